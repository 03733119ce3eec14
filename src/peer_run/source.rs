//! Fetches chunks from one source: every group is verified the moment it is there.
//!
//! In: a bridge, chunks to ask for. Out: chunks on disk, reports. Called by: download.

use std::{sync::Arc, time::Duration};

use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;

use super::{
    error::PeerError,
    part::Part,
    quic::{self, Datagrams, QuicError},
    wire_stream::{StreamError, read_message},
};
use crate::peer::{
    agreement::SessionSecrets,
    bitmap::Bitmap,
    geometry::{CHUNK_LEN, GROUP_LEN},
    link::Content,
    message::{CHUNK_HEAD_LEN, ChunkHead, Message, parse_proof, proof_len},
    transfer::SourceId,
    tree::Forged,
};

/// How long a source has to say what it has.
const OFFER: Duration = Duration::from_secs(5);

/// What a source reports to its download.
#[derive(Debug)]
pub(super) enum Report {
    /// It is connected: what it has of which content; none: everything.
    Ready(Content, Option<Bitmap>, Orders),
    /// It has one more chunk.
    Gained(u32),
    /// So many verified bytes came.
    Group(usize),
    /// A chunk is verified and written.
    Chunk(u32),
    /// It does not send a chunk.
    Skipped(u32),
    /// It has nothing any more.
    Withdrawn,
    /// It lied; what it is left for.
    Lied(String),
    /// The disk refuses.
    Disk(PeerError),
    /// It is gone, or never came.
    Gone(String),
}

/// What a download tells its source.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    Want(u32),
    Cancel(u32),
}

pub(super) type Orders = mpsc::UnboundedSender<Order>;
pub(super) type Reports = mpsc::Sender<(SourceId, Report)>;

/// What a source is told once the content is known.
pub(super) type PartOf = tokio::sync::oneshot::Receiver<Arc<Part>>;

/// Why a source ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    Quic(#[from] QuicError),
    #[error("{0}")]
    Stream(#[from] StreamError),
    #[error("{0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("{0}")]
    Write(#[from] quinn::WriteError),
    #[error("{0}")]
    Read(#[from] quinn::ReadExactError),
    #[error("it offers nothing")]
    NoOffer,
    #[error("{0}")]
    Forged(#[from] Forged),
    #[error("an answer that was not asked for")]
    NotAsked,
    #[error("{0}")]
    Disk(PeerError),
    #[error("the download ended")]
    Over,
}

impl End {
    fn report(self) -> Report {
        match self {
            Self::Forged(_) | Self::NotAsked => Report::Lied(self.to_string()),
            Self::Stream(StreamError::Message(_)) => Report::Lied(self.to_string()),
            Self::Disk(error) => Report::Disk(error),
            other => Report::Gone(other.to_string()),
        }
    }
}

/// Runs a source until it ends; the last report says why.
pub(super) async fn run(
    id: SourceId,
    bridge: Arc<dyn Datagrams>,
    secrets: SessionSecrets,
    part: PartOf,
    reports: Reports,
) {
    let Err(end) = fetch(id, bridge, secrets, part, &reports).await;
    // The download may be over.
    let _ = reports.send((id, end.report())).await;
}

async fn fetch(
    id: SourceId,
    bridge: Arc<dyn Datagrams>,
    secrets: SessionSecrets,
    part: PartOf,
    reports: &Reports,
) -> Result<std::convert::Infallible, End> {
    let connection = quic::connect(bridge, secrets).await?;
    let (mut control, mut news) = connection.open_bi().await?;
    let (orders, taken) = mpsc::unbounded_channel();
    let report = async |report| reports.send((id, report)).await.map_err(|_| End::Over);
    // The stream exists for the other side once something was sent on it.
    control.write_all(&Message::Cancel(u32::MAX).emit()).await?;
    let offer = tokio::time::timeout(OFFER, read_message(&mut news));
    let Message::Offer(content, bitmap) = offer.await.map_err(|_| End::NoOffer)?? else {
        return Err(End::NotAsked);
    };
    let have = bitmap.and_then(|bytes| Bitmap::parse(&bytes, content.size.chunks()).ok());
    report(Report::Ready(content, have, orders)).await?;
    let part = part.await.map_err(|_| End::Over)?;
    tokio::select! {
        end = tell(control, taken) => Err(end),
        end = hear(id, news, reports) => Err(end),
        end = receive(id, &connection, &part, reports) => Err(end),
    }
}

/// Passes orders on.
async fn tell(mut control: SendStream, mut orders: mpsc::UnboundedReceiver<Order>) -> End {
    let mut batch = Vec::new();
    loop {
        let mut bytes = Vec::new();
        if orders.recv_many(&mut batch, 64).await == 0 {
            return End::Over;
        }
        for order in batch.drain(..) {
            let message = match order {
                Order::Want(chunk) => Message::Want(chunk),
                Order::Cancel(chunk) => Message::Cancel(chunk),
            };
            bytes.extend_from_slice(&message.emit());
        }
        if let Err(error) = control.write_all(&bytes).await {
            return error.into();
        }
    }
}

/// Hears what the source says about itself.
async fn hear(id: SourceId, mut news: RecvStream, reports: &Reports) -> End {
    loop {
        let report = match read_message(&mut news).await {
            Ok(Message::Gained(chunk)) => Report::Gained(chunk),
            Ok(Message::Withdrawn) => Report::Withdrawn,
            Ok(_) => return End::NotAsked,
            Err(error) => return error.into(),
        };
        if reports.send((id, report)).await.is_err() {
            return End::Over;
        }
    }
}

async fn receive(
    id: SourceId,
    connection: &Connection,
    part: &Arc<Part>,
    reports: &Reports,
) -> End {
    let mut data = match connection.accept_uni().await {
        Ok(data) => data,
        Err(error) => return error.into(),
    };
    loop {
        if let Err(end) = receive_chunk(id, &mut data, part, reports).await {
            return end;
        }
    }
}

async fn receive_chunk(
    id: SourceId,
    data: &mut RecvStream,
    part: &Arc<Part>,
    reports: &Reports,
) -> Result<(), End> {
    let report = async |report| reports.send((id, report)).await.map_err(|_| End::Over);
    let mut head = [0; CHUNK_HEAD_LEN];
    data.read_exact(&mut head).await?;
    let head = ChunkHead::parse(head).ok_or(End::NotAsked)?;
    if !head.is_sent {
        return report(Report::Skipped(head.chunk)).await;
    }
    let Content { root, size, .. } = part.content();
    if head.chunk >= size.chunks() {
        return Err(End::NotAsked);
    }
    let mut proof = vec![0; proof_len(size, head.chunk)];
    data.read_exact(&mut proof).await?;
    let check = parse_proof(root, size, head.chunk, &proof)?;
    let mut bytes = vec![0; size.chunk_len(head.chunk)];
    debug_assert!(bytes.len() <= CHUNK_LEN as usize);
    for (number, group) in bytes.chunks_mut(GROUP_LEN as usize).enumerate() {
        data.read_exact(group).await?;
        check.check(number, group)?;
        report(Report::Group(group.len())).await?;
    }
    let (part, chunk) = (Arc::clone(part), head.chunk);
    let written = tokio::task::spawn_blocking(move || {
        if part.has(chunk) {
            return Ok(());
        }
        part.write_chunk(chunk, &bytes, check.hash())
    });
    match written.await {
        Ok(Ok(())) => report(Report::Chunk(chunk)).await,
        Ok(Err(error)) => Err(End::Disk(error)),
        Err(_) => Err(End::Over),
    }
}
