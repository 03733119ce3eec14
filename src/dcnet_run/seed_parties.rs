//! Client and trustee of the source.
//!
//! In: the relay's messages, local connections (any protocol). Out: one cell per message; bytes
//! for the local connections. Called by: `cepa dcnet client|trustee --wire seed`.

use std::{collections::HashMap, sync::Arc};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, SemaphorePermit, mpsc},
};

use crate::dcnet::{
    group::Group,
    seed::{CELL_HEADER, DOWN_HEADER, DownHeader, Hello, Pad, conn_number, speak},
};
use curve25519_dalek::Scalar;

/// Bytes that may wait for a local connection that does not read; then it is closed.
const LOCAL_LIMIT: usize = 4 * 1024 * 1024;
/// Cells that wait for their slot.
const UP_QUEUE: usize = 16;

/// A client's secrets and place.
pub struct SeedClient {
    /// Its place in `system.json`.
    pub index: usize,
    /// Its slot.
    pub slot: usize,
    /// One pad per trustee.
    pub pads: Vec<Pad>,
}

/// Pads of `own` with all of `others`.
pub fn pads(own: &Scalar, others: &[curve25519_dalek::RistrettoPoint]) -> Vec<Pad> {
    others.iter().map(|other| Pad::new(own, other)).collect()
}

async fn say_hello(group: &Group, hello: Hello) -> anyhow::Result<TcpStream> {
    let relay = &group.system.relay;
    let address = format!("{}:{}", relay.host, relay.port);
    let mut stream = crate::dcnet_run::dial::dial(&address).await?;
    stream.write_all(&[hello.byte()]).await?;
    Ok(stream)
}

/// Runs a trustee until the relay leaves.
///
/// # Errors
/// When the relay cannot be reached or leaves.
pub async fn run_trustee(group: &Group, index: usize, mut pads: Vec<Pad>) -> anyhow::Result<()> {
    let stream = say_hello(group, Hello::Trustee(u8::try_from(index)?)).await?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        // Whose slot it is changes nothing for a trustee.
        reader.read_u16().await.context("the relay left")?;
        let mut cell = vec![0; group.system.settings.cell_size];
        pads.iter_mut().for_each(|pad| pad.apply(&mut cell));
        writer.write_all(&cell).await.context("the relay left")?;
    }
}

/// What local connections tell the rounds.
enum Local {
    Open(u32, mpsc::UnboundedSender<Vec<u8>>, Arc<Semaphore>),
    Data(u32, Vec<u8>),
}

/// Runs a client until the relay leaves.
///
/// # Errors
/// When the relay cannot be reached or leaves.
pub async fn run_client(
    group: &Group,
    mut client: SeedClient,
    listener: TcpListener,
) -> anyhow::Result<()> {
    let stream = say_hello(group, Hello::Client(u8::try_from(client.index)?)).await?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let cell_size = group.system.settings.cell_size;
    let (local, mut events) = mpsc::channel(UP_QUEUE);
    let slots = group.system.clients.len();
    tokio::spawn(accept_locals(listener, client.slot, slots, cell_size - CELL_HEADER, local));
    let mut connections: HashMap<u32, (mpsc::UnboundedSender<Vec<u8>>, Arc<Semaphore>)> =
        HashMap::new();
    loop {
        let mut header = [0; DOWN_HEADER];
        reader.read_exact(&mut header).await.context("the relay left")?;
        let header = DownHeader::parse(&header);
        let mut payload = vec![0; usize::from(header.len)];
        reader.read_exact(&mut payload).await.context("the relay left")?;
        let mut cell = vec![0; cell_size];
        client.pads.iter_mut().for_each(|pad| pad.apply(&mut cell));
        if usize::from(header.next_slot) == client.slot {
            while let Ok(event) = events.try_recv() {
                match event {
                    Local::Open(conn, sender, room) => {
                        connections.insert(conn, (sender, room));
                    }
                    Local::Data(conn, bytes) => {
                        speak(&mut cell, conn, &bytes);
                        break;
                    }
                }
            }
        }
        writer.write_all(&cell).await.context("the relay left")?;
        deliver(&mut connections, header.conn, payload);
    }
}

fn deliver(
    connections: &mut HashMap<u32, (mpsc::UnboundedSender<Vec<u8>>, Arc<Semaphore>)>,
    conn: u32,
    payload: Vec<u8>,
) {
    // A foreign connection is ignored.
    let Some((sender, room)) = connections.get(&conn) else { return };
    let needed = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let room = room.try_acquire_many(needed).map(SemaphorePermit::forget);
    if room.is_err() {
        log::warn!("connection {conn}: it does not read what comes for it; closed");
    }
    if needed == 0 || room.is_err() || sender.send(payload).is_err() {
        connections.remove(&conn);
    }
}

async fn accept_locals(
    listener: TcpListener,
    slot: usize,
    slots: usize,
    payload: usize,
    local: mpsc::Sender<Local>,
) {
    let mut k = 0;
    while let Ok((stream, _)) = listener.accept().await {
        let conn = conn_number(slot, slots, k);
        k += 1;
        let (sender, receiver) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(LOCAL_LIMIT));
        if local.send(Local::Open(conn, sender, Arc::clone(&room))).await.is_err() {
            return;
        }
        tokio::spawn(serve_local(stream, conn, payload, receiver, room, local.clone()));
    }
}

async fn serve_local(
    stream: TcpStream,
    conn: u32,
    payload: usize,
    mut down: mpsc::UnboundedReceiver<Vec<u8>>,
    room: Arc<Semaphore>,
    up: mpsc::Sender<Local>,
) {
    let _ = stream.set_nodelay(true);
    let (mut reader, mut writer) = stream.into_split();
    let writing = tokio::spawn(async move {
        while let Some(bytes) = down.recv().await {
            let count = bytes.len();
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
            room.add_permits(count);
        }
    });
    let mut buffer = vec![0; payload];
    loop {
        let count = reader.read(&mut buffer).await.unwrap_or(0);
        // No bytes: the end, which travels as a cell of length 0.
        if up.send(Local::Data(conn, buffer[..count].to_vec())).await.is_err() || count == 0 {
            break;
        }
    }
    let _ = writing.await;
}
