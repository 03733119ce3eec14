//! The relay of the source: the hub, its rounds and the way out.
//!
//! In: links of clients and trustees (1-byte hello, then cells), bytes of the exit. Out: downstream
//! messages to all clients, NextSlot to all trustees, bytes to the exit.
//! Called by: `cepa dcnet relay --wire seed`.
//!
//! ```text
//! client --cell--\                 /--> exit (one TCP connection per Conn#)
//! client --cell---+--> XOR --> cell
//! trustee --pad--/      ^          <-- exit bytes --> all clients
//!                       `- round done when every party's cell is in
//! ```

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use anyhow::{Context, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
    sync::mpsc,
};

use crate::dcnet::{
    group::Group,
    seed::{CLIENT_WINDOW, CellContent, DownHeader, Hello, TRUSTEE_WINDOW, read_cell},
};

/// Bytes of the exit that wait for their downstream message, in chunks.
const DOWN_QUEUE: usize = 64;
/// Cells that wait for a slow exit connection.
const EXIT_QUEUE: usize = 4096;
/// How long an exit may be silent after the client has closed.
const LINGER: std::time::Duration = std::time::Duration::from_secs(30);
/// Largest downstream payload.
const CHUNK: usize = 16 * 1024;

/// A link's news for the hub.
enum News {
    Cell(usize, Vec<u8>),
    Gone(usize, String),
}

/// A connection's bytes for all clients; none closes it.
type Down = (u32, Vec<u8>);

struct Round {
    sum: Vec<u8>,
    waiting: usize,
}

struct Hub {
    slots: u16,
    parties: usize,
    cell: usize,
    links: Vec<mpsc::Sender<Arc<[u8]>>>,
    trustees: std::ops::Range<usize>,
    rounds: VecDeque<Round>,
    /// The next round each party answers, counted from the first one in `rounds`.
    answered: Vec<usize>,
    issued_down: u64,
    issued_slot: u64,
    exits: HashMap<u32, mpsc::Sender<Vec<u8>>>,
    exit: String,
    down: mpsc::Sender<Down>,
}

/// Runs the relay until a party leaves: the source's pads do not survive that.
///
/// # Errors
/// When the port is taken, or names the party whose link broke.
pub async fn run(group: &Group, listener: TcpListener, exit: String) -> anyhow::Result<()> {
    let clients = group.system.clients.len();
    let parties = clients + group.system.trustees.len();
    let (news, mut cells) = mpsc::channel(4 * parties);
    let links = accept_all(group, &listener, &news).await?;
    log::info!("all {parties} parties are connected; rounds begin");
    let (down, mut chunks) = mpsc::channel(DOWN_QUEUE);
    let mut hub = Hub {
        slots: u16::try_from(clients)?,
        parties,
        cell: group.system.settings.cell_size,
        links,
        trustees: clients..parties,
        rounds: VecDeque::new(),
        answered: vec![0; parties],
        issued_down: 0,
        issued_slot: 0,
        exits: HashMap::new(),
        exit,
        down,
    };
    for _ in 0..TRUSTEE_WINDOW {
        hub.issue_slot().await?;
    }
    for _ in 0..CLIENT_WINDOW {
        hub.issue_down(None).await?;
    }
    while let Some(item) = cells.recv().await {
        match item {
            News::Cell(party, cell) => {
                hub.add(party, &cell)?;
                while let Some(cell) = hub.take_complete() {
                    hub.act(&cell);
                    hub.issue_slot().await?;
                    let chunk = chunks.try_recv().ok();
                    hub.issue_down(chunk).await?;
                }
            }
            News::Gone(party, why) => bail!(
                "{} left ({why}); the seed wire cannot go on without it, start all parties again",
                hub.name(party)
            ),
        }
    }
    Ok(())
}

async fn accept_all(
    group: &Group,
    listener: &TcpListener,
    news: &mpsc::Sender<News>,
) -> anyhow::Result<Vec<mpsc::Sender<Arc<[u8]>>>> {
    let clients = group.system.clients.len();
    let parties = clients + group.system.trustees.len();
    let cell = group.system.settings.cell_size;
    let mut links: Vec<Option<mpsc::Sender<Arc<[u8]>>>> = vec![None; parties];
    while links.iter().any(Option::is_none) {
        let (mut stream, from) = listener.accept().await.context("accepting a party")?;
        stream.set_nodelay(true)?;
        let mut hello = [0];
        if stream.read_exact(&mut hello).await.is_err() {
            log::warn!("{from} left before its hello");
            continue;
        }
        let party = match Hello::parse(hello[0]) {
            Hello::Client(id) => usize::from(id),
            Hello::Trustee(id) => clients + usize::from(id),
        };
        let known = match Hello::parse(hello[0]) {
            Hello::Client(_) => party < clients,
            Hello::Trustee(_) => party < parties,
        };
        if !known || links[party].is_some() {
            log::warn!(
                "{from} said hello as {:#04x}, which is unknown or taken; refused",
                hello[0]
            );
            continue;
        }
        let (reader, mut writer) = stream.into_split();
        let (sender, mut messages) = mpsc::channel::<Arc<[u8]>>(4 * TRUSTEE_WINDOW);
        tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                if writer.write_all(&message).await.is_err() {
                    break;
                }
            }
        });
        tokio::spawn(read_cells(reader, party, cell, news.clone()));
        links[party] = Some(sender);
    }
    Ok(links.into_iter().flatten().collect())
}

async fn read_cells(mut reader: OwnedReadHalf, party: usize, len: usize, news: mpsc::Sender<News>) {
    loop {
        let mut cell = vec![0; len];
        let item = match reader.read_exact(&mut cell).await {
            Ok(_) => News::Cell(party, cell),
            Err(error) => News::Gone(party, error.to_string()),
        };
        let over = matches!(item, News::Gone(..));
        if news.send(item).await.is_err() || over {
            return;
        }
    }
}

impl Hub {
    fn name(&self, party: usize) -> String {
        if self.trustees.contains(&party) {
            format!("trustee {}", party - self.trustees.start)
        } else {
            format!("client {party}")
        }
    }

    fn add(&mut self, party: usize, cell: &[u8]) -> anyhow::Result<()> {
        let at = self.answered[party];
        if at > TRUSTEE_WINDOW {
            bail!("{} answered a round nobody asked for", self.name(party));
        }
        while self.rounds.len() <= at {
            self.rounds.push_back(Round { sum: vec![0; self.cell], waiting: self.parties });
        }
        let round = &mut self.rounds[at];
        for (sum, byte) in round.sum.iter_mut().zip(cell) {
            *sum ^= byte;
        }
        round.waiting -= 1;
        self.answered[party] += 1;
        Ok(())
    }

    fn take_complete(&mut self) -> Option<Vec<u8>> {
        if self.rounds.front()?.waiting > 0 {
            return None;
        }
        for answered in &mut self.answered {
            *answered -= 1;
        }
        self.rounds.pop_front().map(|round| round.sum)
    }

    /// A cell from which all pads have cancelled.
    fn act(&mut self, cell: &[u8]) {
        match read_cell(cell) {
            Ok(CellContent::Empty) => {}
            Ok(CellContent::Close(conn)) => {
                self.exits.remove(&conn);
            }
            Ok(CellContent::Data(conn, payload)) => {
                self.exits.retain(|_, sender| !sender.is_closed());
                let (exit, down) = (self.exit.clone(), self.down.clone());
                let sender = self.exits.entry(conn).or_insert_with(|| {
                    let (sender, receiver) = mpsc::channel(EXIT_QUEUE);
                    tokio::spawn(exit_connection(conn, exit, receiver, down));
                    sender
                });
                if sender.try_send(payload.to_vec()).is_err() {
                    log::warn!("connection {conn}: the exit is gone or does not read; closed");
                    self.exits.remove(&conn);
                }
            }
            Err(error) => log::warn!("a round was jammed: {error}"),
        }
    }

    async fn issue_slot(&mut self) -> anyhow::Result<()> {
        let slot = u16::try_from(self.issued_slot % u64::from(self.slots))?;
        self.issued_slot += 1;
        let message: Arc<[u8]> = Arc::from(slot.to_be_bytes().as_slice());
        for trustee in self.trustees.clone() {
            self.send(trustee, &message).await?;
        }
        Ok(())
    }

    async fn issue_down(&mut self, chunk: Option<Down>) -> anyhow::Result<()> {
        let slot = u16::try_from(self.issued_down % u64::from(self.slots))?;
        self.issued_down += 1;
        let (conn, payload) = chunk.unwrap_or_default();
        let message: Arc<[u8]> = DownHeader::emit(conn, slot, &payload).into();
        for client in 0..self.trustees.start {
            self.send(client, &message).await?;
        }
        Ok(())
    }

    async fn send(&self, party: usize, message: &Arc<[u8]>) -> anyhow::Result<()> {
        self.links[party]
            .send(Arc::clone(message))
            .await
            .with_context(|| format!("{} left; start all parties again", self.name(party)))
    }
}

/// One connection behind the relay: to the SOCKS5 server, or whatever the exit is.
async fn exit_connection(
    conn: u32,
    exit: String,
    mut upstream: mpsc::Receiver<Vec<u8>>,
    down: mpsc::Sender<Down>,
) {
    let stream = match TcpStream::connect(&exit).await {
        Ok(stream) => stream,
        Err(error) => {
            log::warn!("connection {conn}: the exit {exit} cannot be reached: {error}");
            let _ = down.send((conn, Vec::new())).await;
            return;
        }
    };
    let _ = stream.set_nodelay(true);
    let (mut reader, mut writer) = stream.into_split();
    let mut buffer = vec![0; CHUNK];
    let mut open = true;
    loop {
        tokio::select! {
            bytes = upstream.recv(), if open => match bytes {
                Some(bytes) => open = writer.write_all(&bytes).await.is_ok(),
                // Closed by the client: what the exit still answers goes down.
                None => {
                    open = false;
                    let _ = writer.shutdown().await;
                }
            },
            () = tokio::time::sleep(LINGER), if !open => return,
            count = reader.read(&mut buffer) => {
                let count = count.unwrap_or(0);
                if down.send((conn, buffer[..count].to_vec())).await.is_err() || count == 0 {
                    return;
                }
            }
        }
    }
}
