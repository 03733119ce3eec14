//! Sends one share to one peer.
//!
//! In: a connection, the chunks it asks for. Out: chunks with their proofs. Called by: engine.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
};

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::Notify;

use super::{shares::Share, wire_stream::read_message};
use crate::peer::message::{ChunkHead, Message, emit_proof};

/// Chunks a peer may ask for ahead; who asks for more is not one of ours.
const MOST_ASKED: usize = 256;

/// What a peer asked for and was not sent yet.
#[derive(Default)]
struct Asked {
    chunks: Mutex<VecDeque<u32>>,
    news: Notify,
}

/// Why an upload ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum UploadEnd {
    #[error("the connection ended: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the peer left: {0}")]
    Write(#[from] quinn::WriteError),
    #[error("the peer left: {0}")]
    Read(#[from] super::wire_stream::StreamError),
    #[error("the peer asks for what an uploader does not send")]
    Protocol,
}

/// Counts a reader of a share for as long as it lives.
struct Reading(Arc<Share>);

impl Reading {
    fn new(share: &Arc<Share>) -> Self {
        share.readers.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(share))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.readers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a share until the peer leaves.
pub(super) async fn serve(connection: Connection, share: Arc<Share>) -> Result<(), UploadEnd> {
    let _reading = Reading::new(&share);
    let (mut control, requests) = connection.accept_bi().await?;
    let offer = Message::Offer(share.link().content, None);
    control.write_all(&offer.emit()).await?;
    let data = connection.open_uni().await?;
    let asked = Arc::new(Asked::default());
    tokio::select! {
        ended = listen(requests, Arc::clone(&asked)) => ended,
        ended = send(data, &mut control, &share, &asked) => ended,
    }
}

async fn listen(mut requests: RecvStream, asked: Arc<Asked>) -> Result<(), UploadEnd> {
    loop {
        let message = read_message(&mut requests).await?;
        let mut chunks = asked.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        match message {
            Message::Want(chunk) if chunks.len() < MOST_ASKED => chunks.push_back(chunk),
            Message::Cancel(chunk) => chunks.retain(|asked| *asked != chunk),
            _ => return Err(UploadEnd::Protocol),
        }
        drop(chunks);
        asked.news.notify_one();
    }
}

/// The chunk, ready to be sent; none if it cannot be read.
async fn prepared(share: &Arc<Share>, chunk: u32) -> Option<(Bytes, Bytes)> {
    let share = Arc::clone(share);
    tokio::task::spawn_blocking(move || {
        if chunk >= share.tree().size().chunks() {
            return None;
        }
        match share.read_chunk(chunk) {
            Ok((bytes, groups)) => {
                let mut head = ChunkHead { chunk, is_sent: true }.emit().to_vec();
                emit_proof(&groups, &share.tree().siblings(chunk), &mut head);
                Some((Bytes::from(head), Bytes::from(bytes)))
            }
            Err(error) => {
                log::warn!("a share cannot be sent: {error}");
                None
            }
        }
    })
    .await
    .ok()?
}

async fn send(
    mut data: SendStream,
    control: &mut SendStream,
    share: &Arc<Share>,
    asked: &Asked,
) -> Result<(), UploadEnd> {
    loop {
        let next = asked.chunks.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(chunk) = next else {
            asked.news.notified().await;
            continue;
        };
        let Some((head, bytes)) = prepared(share, chunk).await else {
            data.write_all(&ChunkHead { chunk, is_sent: false }.emit()).await?;
            control.write_all(&Message::Withdrawn.emit()).await?;
            continue;
        };
        let length = bytes.len() as u64;
        data.write_all_chunks(&mut [head, bytes]).await?;
        share.sent.fetch_add(length, Ordering::Relaxed);
    }
}
