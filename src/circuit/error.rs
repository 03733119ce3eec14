//! What can go wrong in a handshake.
//!
//! In: nothing. Out: one error type. Called by: the handshake of both sides.

use crate::{
    keys::KeyError,
    model::DestroyReason,
    wire::{AnswerError, CreateError},
};

/// Why a handshake did not end in a circuit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// A key operation failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The bytes are no CREATE.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The bytes are no answer.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// The OAEP block opened, but does not hold what it must.
    #[error(
        "expected a secret, a pair key and two known suites in the OAEP block, got other bytes"
    )]
    Block,
    /// The node did not prove that it holds its keys.
    #[error("expected the node's confirmation of this transcript, got another")]
    Confirmation,
    /// A cookie came where CREATED was expected, or did not open.
    #[error("expected a cookie sealed for this CREATE, got another")]
    Cookie,
    /// The node refuses.
    #[error("the node refuses the circuit: {}", .0.words())]
    Refused(DestroyReason),
}
