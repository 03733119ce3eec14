//! What a run found, for people and for programs.
//!
//! In: promises and findings. Out: text, or a value for JSON. Called by: rig::suite, `cepa rig`.

use std::{fmt::Write, path::PathBuf};

use serde::Serialize;

use super::{
    inspect::Findings,
    plan::{HostPlan, Plan},
    promise::Promise,
    run::Run,
};

/// What a host on the path saw.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct View {
    /// Its name.
    pub host: String,
    /// Its address.
    pub address: String,
    /// Whom it exchanged cells or packets with.
    pub sees: Vec<String>,
    /// Cells with each of them.
    pub cells: Vec<u64>,
    /// The lengths of all UDP payloads.
    pub lengths: Vec<usize>,
}

/// What a party of a scenario saw.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Party {
    /// Who.
    pub who: String,
    /// In words.
    pub saw: String,
}

/// What a run found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// The run's name.
    pub run: String,
    /// Whether every promise is kept.
    pub kept: bool,
    /// Where the captures are, if the rig made them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captures: Option<PathBuf>,
    /// Where logs are, if they are on this machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<PathBuf>,
    /// The path whose cables were captured, from sender to receiver.
    pub path: Vec<View>,
    /// What each party saw of the files between peers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parties: Vec<Party>,
    /// The promises.
    pub promises: Vec<Promise>,
}

impl Report {
    /// An empty report.
    pub fn new(run: &Run, captures: PathBuf) -> Self {
        Self {
            run: run.id.clone(),
            kept: false,
            captures: Some(captures),
            logs: Some(run.dir.clone()),
            path: Vec::new(),
            parties: Vec::new(),
            promises: Vec::new(),
        }
    }

    /// Takes in who saw what on a path.
    pub fn see(&mut self, plan: &Plan, path: &[&str], findings: &Findings) {
        let mut line = vec!["sender"];
        line.extend(path);
        line.push("receiver");
        self.path = line
            .iter()
            .enumerate()
            .map(|(number, name)| {
                let mut view = View {
                    host: (*name).to_owned(),
                    address: plan
                        .host(name)
                        .map(HostPlan::v4)
                        .map(|ip| ip.to_string())
                        .unwrap_or_default(),
                    sees: Vec::new(),
                    cells: Vec::new(),
                    lengths: findings.lengths.keys().copied().collect(),
                };
                let before = number.checked_sub(1).and_then(|before| line.get(before));
                for other in before.into_iter().chain(line.get(number + 1)) {
                    let cells = findings
                        .cells
                        .iter()
                        .find(|(link, _)| {
                            [link.0, link.1].contains(name) && [link.0, link.1].contains(other)
                        })
                        .map_or(0, |(_, cells)| *cells);
                    view.sees.push((*other).to_owned());
                    view.cells.push(cells);
                }
                view
            })
            .collect();
    }

    /// Decides whether every promise is kept.
    pub fn finish(&mut self) {
        self.kept = !self.promises.is_empty() && self.promises.iter().all(|promise| promise.kept);
    }

    /// The path and who sees whom, as lines for a terminal.
    pub fn picture(&self) -> String {
        let mut text = String::new();
        if self.path.is_empty() {
            return text;
        }
        let width = 14;
        let mut row = |cell: &dyn Fn(&View) -> String, joint: &str| {
            for (number, view) in self.path.iter().enumerate() {
                if number > 0 {
                    text.push_str(joint);
                }
                let _ = write!(text, "{:^width$}", cell(view));
            }
            text.push('\n');
        };
        row(&|_| format!("┌{}┐", "─".repeat(width - 2)), "  ");
        row(&|view| format!("│{:^inner$}│", view.host, inner = width - 2), "══");
        row(&|view| format!("│{:^inner$}│", view.address, inner = width - 2), "  ");
        row(&|_| format!("└{}┘", "─".repeat(width - 2)), "  ");
        row(&|_| "knows".to_owned(), "  ");
        row(&|view| view.sees.first().cloned().unwrap_or_default(), "  ");
        row(&|view| view.sees.get(1).cloned().unwrap_or_default(), "  ");
        let cables: Vec<String> = self
            .path
            .windows(2)
            .filter(|pair| pair[1].host != "receiver")
            .map(|pair| {
                format!(
                    "  {} ══ {}: {} cells of {} bytes\n",
                    pair[0].host,
                    pair[1].host,
                    pair[0].cells.last().copied().unwrap_or_default(),
                    pair[0]
                        .lengths
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(" and ")
                )
            })
            .collect();
        text.push('\n');
        text.push_str(&cables.concat());
        text
    }

    /// How many promises are kept, of how many.
    pub fn count(&self) -> (usize, usize) {
        (self.promises.iter().filter(|promise| promise.kept).count(), self.promises.len())
    }
}
