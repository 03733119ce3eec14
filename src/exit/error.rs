//! Why an exit's own service cannot run.
//!
//! In: errors of the system. Out: words. Called by: node.

/// Why an exit's own service cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    /// The system refuses a thread or its notification of events.
    #[error("the exit's resolver cannot be started")]
    Start(#[source] std::io::Error),
}
