//! Every way the DC-net can refuse: what was expected, what came, what to do.
//!
//! In: the checks of this folder. Out: [`DcnetError`], one sentence a person can act on.
//! Called by: every file of `dcnet/`, the programs in `dcnet_run/`, the command line.

use thiserror::Error;

/// Why the DC-net refuses a file, a message or a party.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum DcnetError {
    /// A configuration file is missing, unreadable or says something impossible.
    #[error("{file}: {field}: {problem}")]
    Config {
        /// The file's name.
        file: String,
        /// The JSON field, or `file` for the file itself.
        field: String,
        /// Expected, got, and the way out.
        problem: String,
    },
    /// A message does not have its form.
    #[error("malformed {what}: expected {expected}, got {got}; the link is closed")]
    Malformed {
        /// The message.
        what: &'static str,
        /// The form it has to have.
        expected: String,
        /// What came.
        got: String,
    },
    /// A proof or signature does not hold.
    #[error("{what} by {who} does not verify; its session must not be used")]
    BadProof {
        /// The proof.
        what: &'static str,
        /// The prover.
        who: String,
    },
    /// A message came in a state that has no place for it.
    #[error("{what} while {state}; the link is closed")]
    OutOfPlace {
        /// The message.
        what: String,
        /// The receiver's state.
        state: String,
    },
    /// The group is too small to hide in.
    #[error(
        "an anonymity set of {got} members, expected at least {min}; wait for more members or \
         lower min-anonymity-set for a new group"
    )]
    SetTooSmall {
        /// Members offered.
        got: usize,
        /// Members needed.
        min: usize,
    },
    /// The relay showed this party something else than the others.
    #[error(
        "the relay's signed history differs from the one received here in round {round}; it equivocates, leave it"
    )]
    Equivocation {
        /// The round of the checkpoint.
        round: u64,
    },
}

impl DcnetError {
    /// A configuration error, named by file and field.
    pub fn config(
        file: impl Into<String>,
        field: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::Config { file: file.into(), field: field.into(), problem: problem.into() }
    }

    /// A malformed message.
    pub fn malformed(
        what: &'static str,
        expected: impl Into<String>,
        got: impl Into<String>,
    ) -> Self {
        Self::Malformed { what, expected: expected.into(), got: got.into() }
    }
}
