//! Names of files: any Unicode, and never a way out of the directory they are written to.
//!
//! In: names from outside. Out: checked names; text that is safe to show.
//! Called by: peer (link, manifest), peer_run, web, cli.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes: what file systems take.
pub const LONGEST_NAME: usize = 255;
/// The deepest path in a shared directory.
pub const DEEPEST: usize = 64;
/// The longest path in a shared directory, in bytes.
pub const LONGEST_PATH: usize = 4000;

/// The name of one file or directory: not empty, not `.` or `..`, without `/` and NUL.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

/// A name that would not stay where it is put.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "expected a file name of 1 to {LONGEST_NAME} bytes that is not \".\" or \"..\" and has no \"/\" and no NUL, got {got:?}"
)]
pub struct BadName {
    got: String,
}

impl FileName {
    /// Checks a name.
    ///
    /// # Errors
    /// If it would not stay in its directory.
    pub fn new(name: impl Into<String>) -> Result<Self, BadName> {
        let name = name.into();
        let is_plain = !name.is_empty()
            && name.len() <= LONGEST_NAME
            && name != "."
            && name != ".."
            && !name.contains(['/', '\0']);
        if is_plain {
            return Ok(Self(name));
        }
        Err(BadName { got: name.chars().take(80).collect() })
    }

    /// As it is, for the file system.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for FileName {
    type Error = BadName;

    fn try_from(name: String) -> Result<Self, BadName> {
        Self::new(name)
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

/// Shows the name on a terminal: see [`printable`].
impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0))
    }
}

/// A path inside a shared directory: [`FileName`]s joined by `/`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InnerPath(String);

impl InnerPath {
    /// Checks a path.
    ///
    /// # Errors
    /// If it is too long, too deep, or one of its parts is no [`FileName`].
    pub fn new(path: impl Into<String>) -> Result<Self, BadName> {
        let path = path.into();
        let fits = path.len() <= LONGEST_PATH && path.split('/').count() <= DEEPEST;
        if !fits {
            return Err(BadName { got: path.chars().take(80).collect() });
        }
        path.split('/').try_for_each(|part| FileName::new(part).map(drop))?;
        Ok(Self(path))
    }

    /// As it is, for the file system.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for InnerPath {
    type Error = BadName;

    fn try_from(path: String) -> Result<Self, BadName> {
        Self::new(path)
    }
}

impl From<InnerPath> for String {
    fn from(path: InnerPath) -> Self {
        path.0
    }
}

/// Characters that turn or hide text around them.
fn is_misleading(c: char) -> bool {
    matches!(c,
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// `text` with control characters, and those that turn the direction of text, replaced by U+FFFD.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_misleading(c) { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_stay_where_they_are_put() {
        for good in ["a", "...", "æ ✓ 漢字 🦀", " ", "-rf", "C:\\x", "<b>", "a\nb", ".hidden"]
        {
            assert!(FileName::new(good).is_ok(), "{good:?}");
        }
        let long = "x".repeat(256);
        for bad in ["", ".", "..", "a/b", "/etc/passwd", "a\0", "../x", &long] {
            assert!(FileName::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "/a", "a/", "a//b", "a/../b", "./a", "a/.", &vec!["a"; 65].join("/")] {
            assert!(InnerPath::new(bad).is_err(), "{bad:?}");
        }
        assert!(InnerPath::new("a/b c/…/d").is_ok());
    }

    #[test]
    fn what_is_shown_cannot_turn_the_line() {
        let name = FileName::new("a\u{1b}[2J\u{202e}gpj.exe\n").unwrap();
        assert_eq!(name.to_string(), "a\u{fffd}[2J\u{fffd}gpj.exe\u{fffd}");
    }

    proptest! {
        #[test]
        fn accepted_paths_stay_below(path: String) {
            if let Ok(inner) = InnerPath::new(path) {
                let joined = std::path::Path::new("/top").join(inner.as_str());
                prop_assert!(joined.starts_with("/top"));
                prop_assert!(joined.components().all(|part| part != std::path::Component::ParentDir));
                prop_assert!(joined != std::path::Path::new("/top"));
            }
        }
    }
}
