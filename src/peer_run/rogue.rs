//! An uploader that does not behave, for the rig: it has the file, and lies or falls silent.
//!
//! In: a network, a file. Out: true chunks up to the point where it stops being honest.
//! Called by: cli (`cepa rig rogue`).

use std::{collections::HashMap, path::Path, sync::Arc};

use quinn::Connection;
use tokio::sync::mpsc;

use super::{
    error::PeerError,
    network::{Listing, Network, NetworkEvent},
    quic,
    wire_stream::read_message,
};
use crate::peer::{
    agreement::{SessionSecrets, Sharer, answer},
    geometry::{CHUNK_LEN, Size},
    link::Content,
    message::{ChunkHead, Message, emit_proof},
    tree::{Tree, group_hashes},
};

/// How it misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Manner {
    /// A byte of the first group that it sends is not the file's.
    Lies,
    /// It sends a chunk and a half, then nothing.
    Stalls,
}

struct File {
    bytes: Vec<u8>,
    tree: Tree,
}

/// Offers a file in the catalogue, under its name, and misbehaves to whoever asks for it; until
/// the network has ended.
///
/// # Errors
/// When the file cannot be read.
pub async fn misbehave(
    network: Arc<dyn Network>,
    mut events: mpsc::Receiver<NetworkEvent>,
    path: &Path,
    manner: Manner,
) -> Result<(), PeerError> {
    let bytes = std::fs::read(path).map_err(PeerError::system("reading", path))?;
    let size = Size::try_from(bytes.len() as u64)?;
    let file = Arc::new(File { tree: Tree::of(size, &bytes), bytes });
    let content = Content { root: file.tree.root(), size, dir: None };
    let id = content.id(None);
    let sharer = Sharer::from_seed(&rand::random())?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    network.announce(vec![Listing { id, name, size: size.bytes(), key: Some(sharer.public()) }]);
    let mut agreed: HashMap<_, SessionSecrets> = HashMap::new();
    while let Some(event) = events.recv().await {
        match event {
            NetworkEvent::Asked { session, key, note, .. } => {
                match answer(id, None, &sharer, (&key, &note), &mut rand::rng()) {
                    Ok(answer) => {
                        agreed.insert(session, answer.secrets.clone());
                        network.accept(session, answer.public, answer.note.clone());
                    }
                    Err(_) => network.refuse(session),
                }
            }
            NetworkEvent::Opened(bridge) => {
                let Some(secrets) = agreed.remove(&bridge.session) else { continue };
                let file = Arc::clone(&file);
                tokio::spawn(async move {
                    let Ok(connection) = quic::accept(bridge.datagrams, secrets).await else {
                        return;
                    };
                    // It ends when the downloader has had enough.
                    let _ = serve(connection, content, &file, manner).await;
                });
            }
            NetworkEvent::Closed { .. } => {}
        }
    }
    Ok(())
}

async fn serve(
    connection: Connection,
    content: Content,
    file: &File,
    manner: Manner,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (mut control, mut requests) = connection.accept_bi().await?;
    control.write_all(&Message::Offer(content, None).emit()).await?;
    let mut data = connection.open_uni().await?;
    let mut sent = 0;
    loop {
        let Message::Want(chunk) = read_message(&mut requests).await? else { continue };
        let true_bytes = file.bytes.chunks(CHUNK_LEN as usize).nth(chunk as usize);
        let Some(true_bytes) = true_bytes else { continue };
        let mut body = true_bytes.to_vec();
        match manner {
            Manner::Lies => body[5] ^= 1,
            Manner::Stalls if sent > 0 => body.truncate(body.len() / 2),
            Manner::Stalls => {}
        }
        let groups = group_hashes(content.size, chunk, true_bytes);
        let mut head = ChunkHead { chunk, is_sent: true }.emit().to_vec();
        emit_proof(&groups, &file.tree.siblings(chunk), &mut head);
        data.write_all(&head).await?;
        data.write_all(&body).await?;
        sent += 1;
        if manner == Manner::Stalls && sent > 1 {
            std::future::pending::<()>().await;
        }
    }
}
