//! Reads messages and exact bytes from a quinn stream.
//!
//! In: a stream. Out: messages, buffers. Called by: upload, source.

use quinn::{ReadExactError, RecvStream};

use crate::peer::message::{BadMessage, Message};

/// Why a stream gives no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    /// It ended, or its connection did.
    #[error(transparent)]
    Ended(#[from] ReadExactError),
    /// What came is no message.
    #[error(transparent)]
    Message(#[from] BadMessage),
}

/// The next message of a control stream.
pub(super) async fn read_message(stream: &mut RecvStream) -> Result<Message, StreamError> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let mut bytes = vec![0; Message::parse_length(length)?];
    stream.read_exact(&mut bytes).await?;
    Ok(Message::parse(&bytes)?)
}
