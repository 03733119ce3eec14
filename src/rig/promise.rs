//! A promise: a sentence, a check, what was measured.
//!
//! In: checks. Out: kept or broken, with evidence. Called by: the scenarios.

use serde::Serialize;
use serde_json::{Map, Value};

/// A promise that was checked.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Promise {
    /// The scenario it belongs to.
    pub scenario: &'static str,
    /// What is promised.
    pub name: String,
    /// Whether it is kept.
    pub kept: bool,
    /// What was seen.
    pub evidence: String,
    /// What was measured, with units in the names.
    pub values: Map<String, Value>,
    /// How long the check took.
    pub seconds: f64,
}

/// What a check saw.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Evidence {
    /// In words.
    pub text: String,
    /// In figures.
    pub values: Map<String, Value>,
}

impl Evidence {
    /// In words.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), values: Map::new() }
    }

    /// Adds a figure; its name ends in its unit.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.values.insert(name.to_owned(), value.into());
        self
    }
}
