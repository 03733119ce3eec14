//! Real peers over a network in memory: what is downloaded is what was shared, whoever lies,
//! stalls, or goes away.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "peer/net.rs"]
mod net;

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use cepa::{
    peer::{
        agreement::{Sharer, answer},
        link::ShareLink,
        message::{ChunkHead, Message, emit_proof},
        transfer::TransferConfig,
        view::{DownloadState, DownloadView},
    },
    peer_run::{
        Engine, EngineSettings, Visibility,
        network::{Listing, Network, NetworkEvent},
        quic,
    },
};
use net::{CALM, Weather, World};
use tempfile::TempDir;

struct Peer {
    folder: TempDir,
    engine: Arc<Engine>,
}

fn settings(folder: &Path) -> EngineSettings {
    EngineSettings {
        state: folder.join("state"),
        downloads: folder.join("downloads"),
        transfer: TransferConfig::default(),
    }
}

fn peer_in(world: &World, weather: Weather, folder: TempDir) -> Peer {
    let (network, events) = world.join(weather);
    let engine = Engine::start(settings(folder.path()), network, events, true).unwrap();
    Peer { folder, engine }
}

fn peer(world: &World, weather: Weather) -> Peer {
    peer_in(world, weather, tempfile::tempdir().unwrap())
}

/// Bytes that do not repeat.
fn content(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&len.to_be_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl Peer {
    async fn share(&self, name: &str, bytes: &[u8], visibility: Visibility) -> ShareLink {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        self.engine.share(&path, visibility).await.unwrap().0.link().clone()
    }

    async fn wait(&self, id: &str, seconds: u64) -> DownloadView {
        let began = Instant::now();
        loop {
            let view = self.engine.download(id).unwrap();
            if matches!(view.state, DownloadState::Done | DownloadState::Failed) {
                return view;
            }
            assert!(began.elapsed() < Duration::from_secs(seconds), "{view:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn get(&self, what: &str, seconds: u64) -> DownloadView {
        let id = self.engine.get(what, None, false).await.unwrap();
        let view = self.wait(&id, seconds).await;
        assert_eq!(view.state, DownloadState::Done, "{view:?}");
        view
    }
}

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_link_leads_to_the_file_over_a_lossy_bridge() {
    let world = World::default();
    let weather = Weather { loss: 0.02, per_second: 20_000_000, delay: Duration::from_millis(10) };
    let (up, down) = (peer(&world, weather), peer(&world, weather));
    let bytes = content(5 * MIB + 77);
    let link = up.share("schöne Grüße ✓.bin", &bytes, Visibility::Link).await;
    let view = down.get(&link.to_string(), 60).await;
    assert_eq!(fs::read(&view.path).unwrap(), bytes);
    assert!(view.path.ends_with("downloads/schöne Grüße ✓.bin"));
    assert!(view.first_byte_ms.unwrap() < 1000, "{view:?}");
    assert_eq!(view.fetched, bytes.len() as u64);
    let seen = world.seen();
    let root = link.content.root.to_string();
    assert!(!seen.contains("Grüße") && !seen.contains(&root), "the tracker learns nothing: {seen}");
    assert_eq!(view.root, Some(root));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_of_the_catalogue_leads_to_the_file() {
    let world = World::default();
    let (up, down) = (peer(&world, CALM), peer(&world, CALM));
    let bytes = content(300_000);
    up.share("titanic", &bytes, Visibility::Catalogue).await;
    up.share("secret", &bytes[1..], Visibility::Link).await;
    let listed = down.engine.catalogue("").await.unwrap();
    assert_eq!(listed.iter().map(|entry| &entry.name[..]).collect::<Vec<_>>(), ["titanic"]);
    let view = down.get("titanic", 20).await;
    assert_eq!(fs::read(&view.path).unwrap(), bytes);
    let by_id = down.get(&listed[0].id, 20).await;
    assert!(by_id.path.ends_with("titanic (2)"), "{}", by_id.path);
    assert!(down.engine.get("borat", None, false).await.is_err());
}

/// Two ask for one file together and again as soon as they see its end: while the record of the
/// download before is still being written.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_asked_for_again_as_soon_as_it_is_there() {
    let world = World::default();
    let (up, down) = (peer(&world, CALM), peer(&world, CALM));
    let link = up.share("again", &content(1000), Visibility::Link).await.to_string();
    let hurry = |engine: Arc<Engine>, link: String| async move {
        for _ in 0..50 {
            let id = engine.get(&link, None, false).await.unwrap();
            while engine.download(&id).unwrap().state != DownloadState::Done {
                tokio::task::yield_now().await;
            }
        }
    };
    let two = [0, 1].map(|_| tokio::spawn(hurry(Arc::clone(&down.engine), link.clone())));
    for one in two {
        one.await.unwrap();
    }
    assert_eq!(down.engine.view().downloads.len(), 1);
}

/// Two share one file at the same moment: each gets the link, and the share survives a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_shared_twice_at_once() {
    let world = World::default();
    let up = peer(&world, CALM);
    let path = up.folder.path().join("twice");
    fs::write(&path, content(1000)).unwrap();
    for _ in 0..50 {
        let share = || up.engine.share(&path, Visibility::Link);
        let (one, two) = tokio::join!(share(), share());
        assert_eq!(one.unwrap().0.link().id(), two.unwrap().0.link().id());
    }
    let (network, events) = world.join(CALM);
    let again = Engine::start(settings(up.folder.path()), network, events, true).unwrap();
    assert_eq!(again.view().shares.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_files_small_files_and_directories() {
    let world = World::default();
    let (up, down) = (peer(&world, CALM), peer(&world, CALM));
    for len in [0, 1, 16 << 10, (256 << 10) - 1, 256 << 10, (256 << 10) + 1] {
        let bytes = content(len);
        let link = up.share(&format!("{len}"), &bytes, Visibility::Link).await;
        let view = down.get(&link.to_string(), 20).await;
        assert_eq!(fs::read(&view.path).unwrap(), bytes);
    }
    let top = up.folder.path().join("fotos 📷");
    fs::create_dir_all(top.join("leer/ganz")).unwrap();
    fs::create_dir_all(top.join("sub")).unwrap();
    fs::write(top.join("sub/groß"), content(2 * MIB + 5)).unwrap();
    fs::write(top.join("a"), "").unwrap();
    for number in 0..40 {
        fs::write(top.join(format!("sub/{number}")), content(number * 997)).unwrap();
    }
    std::os::unix::fs::symlink("/etc/passwd", top.join("link")).unwrap();
    let (share, skipped) = up.engine.share(&top, Visibility::Link).await.unwrap();
    assert_eq!(skipped.len(), 1, "links are left out and said");
    let view = down.get(&share.link().to_string(), 30).await;
    let got = Path::new(&view.path);
    assert!(got.ends_with("fotos 📷") && got.join("leer/ganz").is_dir());
    assert_eq!(fs::read(got.join("sub/groß")).unwrap(), content(2 * MIB + 5));
    for number in 0..40 {
        assert_eq!(fs::read(got.join(format!("sub/{number}"))).unwrap(), content(number * 997));
    }
    assert!(!got.join("link").exists() && got.join("a").is_file());
}

#[tokio::test(flavor = "multi_thread")]
async fn four_slow_sources_are_faster_than_one() {
    let weather = Weather { loss: 0.0, per_second: 3_000_000, delay: Duration::from_millis(5) };
    let bytes = content(8 * MIB);
    let mut seconds = Vec::new();
    for sources in [1, 4] {
        let world = World::default();
        let ups: Vec<_> = (0..sources).map(|_| peer(&world, weather)).collect();
        let mut link = None;
        for up in &ups {
            link = Some(up.share("film", &bytes, Visibility::Catalogue).await);
        }
        let down = peer(&world, CALM);
        let began = Instant::now();
        let view = down.get("film", 60).await;
        seconds.push(began.elapsed().as_secs_f64());
        assert_eq!(
            blake3::hash(&fs::read(&view.path).unwrap()).as_bytes(),
            &link.unwrap().content.root.0
        );
        let sent: Vec<_> = ups.iter().map(|up| up.engine.view().shares[0].sent).collect();
        assert!(sent.iter().all(|sent| *sent > 0), "all sources send: {sent:?}");
        assert!(view.fetched <= bytes.len() as u64 + sources * (256 << 10), "{view:?}");
    }
    assert!(seconds[1] * 2.0 < seconds[0], "{seconds:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_there_is_not_fetched_again() {
    let world = World::default();
    let weather = Weather { loss: 0.0, per_second: 4_000_000, delay: Duration::from_millis(2) };
    let up = peer(&world, weather);
    let bytes = content(6 * MIB);
    let link = up.share("x", &bytes, Visibility::Link).await.to_string();
    let down = peer(&world, CALM);
    let id = down.engine.get(&link, None, false).await.unwrap();
    while down.engine.download(&id).unwrap().have < 2 * MIB as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The process goes; its directory stays.
    let Peer { folder, engine } = down;
    let before = engine.download(&id).unwrap();
    drop(engine);
    let down = peer_in(&world, CALM, folder);
    let view = down.wait(&id, 30).await;
    assert_eq!(view.state, DownloadState::Done, "{view:?}");
    assert_eq!(fs::read(&view.path).unwrap(), bytes);
    let all = before.fetched + view.fetched;
    assert!(all <= (6 * MIB + (256 << 10)) as u64, "{all} bytes for {}", bytes.len());
}

/// An uploader that is not one of ours: its share is another peer's, its bytes are not.
fn rogue(world: &World, link: &ShareLink, bytes: Vec<u8>, kind: Rogue) {
    let (network, mut events) = world.join(CALM);
    let link = link.clone();
    let id = link.id();
    network.announce(vec![Listing { id, name: String::new(), size: 0, key: None }]);
    tokio::spawn(async move {
        let sharer = Sharer::from_seed(&[1; 32]).unwrap();
        let mut secrets = std::collections::HashMap::new();
        while let Some(event) = events.recv().await {
            match event {
                NetworkEvent::Asked { session, key, note, .. } => {
                    let secret = link.secret.as_ref();
                    let rng = &mut rand::rng();
                    let answer = answer(id, secret, &sharer, (&key, &note), rng).unwrap();
                    secrets.insert(session, answer.secrets.clone());
                    network.accept(session, answer.public, answer.note.clone());
                }
                NetworkEvent::Opened(bridge) => {
                    let secrets = secrets.remove(&bridge.session).unwrap();
                    let (link, bytes) = (link.clone(), bytes.clone());
                    tokio::spawn(async move {
                        let connection = quic::accept(bridge.datagrams, secrets).await.unwrap();
                        let _ = misbehave(connection, &link, &bytes, kind).await;
                    });
                }
                NetworkEvent::Closed { .. } => {}
            }
        }
    });
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Rogue {
    /// The first chunk is true but for one byte of its third group.
    LiesInAGroup,
    /// Its proof leads elsewhere.
    LiesInTheProof,
    /// It sends one chunk and a half, then nothing.
    Stalls,
    /// It sends what is no message.
    Babbles,
}

async fn misbehave(
    connection: quinn::Connection,
    link: &ShareLink,
    bytes: &[u8],
    kind: Rogue,
) -> anyhow::Result<()> {
    use cepa::peer::{geometry::CHUNK_LEN, tree};
    let size = link.content.size;
    let (mut control, mut requests) = connection.accept_bi().await?;
    control.write_all(&Message::Offer(link.content, None).emit()).await?;
    let mut data = connection.open_uni().await?;
    if kind == Rogue::Babbles {
        control.write_all(&[0, 0, 0, 9, 77, 1, 2, 3, 4, 5, 6, 7, 8]).await?;
    }
    let hashes = bytes
        .chunks(CHUNK_LEN as usize)
        .zip(0..)
        .map(|(chunk, number)| tree::chunk_hash(size, number, chunk))
        .collect();
    let true_tree = tree::Tree::from_chunks(size, hashes);
    let mut sent = 0;
    loop {
        let mut length = [0; 4];
        requests.read_exact(&mut length).await?;
        let mut message = vec![0; Message::parse_length(length)?];
        requests.read_exact(&mut message).await?;
        let Message::Want(chunk) = Message::parse(&message)? else { continue };
        let data_of = bytes.chunks(CHUNK_LEN as usize).nth(chunk as usize).unwrap();
        let mut groups = tree::group_hashes(size, chunk, data_of);
        let mut body = data_of.to_vec();
        match kind {
            Rogue::LiesInAGroup => body[2 * (16 << 10) + 5] ^= 1,
            Rogue::LiesInTheProof => groups[0][0] ^= 1,
            Rogue::Stalls if sent >= 1 => {
                body.truncate(body.len() / 2);
            }
            _ => {}
        }
        let mut head = ChunkHead { chunk, is_sent: true }.emit().to_vec();
        emit_proof(&groups, &true_tree.siblings(chunk), &mut head);
        data.write_all(&head).await?;
        data.write_all(&body).await?;
        sent += 1;
        if kind == Rogue::Stalls && sent >= 2 {
            std::future::pending::<()>().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_lies_is_cut_off_and_the_transfer_ends_well() {
    for kind in [Rogue::LiesInAGroup, Rogue::LiesInTheProof, Rogue::Babbles] {
        let world = World::default();
        let honest = Weather { loss: 0.0, per_second: 8_000_000, delay: Duration::from_millis(5) };
        let up = peer(&world, honest);
        let bytes = content(4 * MIB);
        let link = up.share("x", &bytes, Visibility::Link).await;
        rogue(&world, &link, bytes.clone(), kind);
        let down = peer(&world, CALM);
        let view = down.get(&link.to_string(), 30).await;
        assert_eq!(fs::read(&view.path).unwrap(), bytes, "{kind:?}");
        assert_eq!(view.liars, 1, "{kind:?}: {view:?}");
        // Two true groups at most came before the lie; they are fetched again with their chunk.
        let more = view.fetched - bytes.len() as u64;
        assert!(more <= 2 * (16 << 10), "{kind:?}: {more} bytes of the liar were taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_stalls_is_replaced_within_five_seconds() {
    let world = World::default();
    let bytes = content(3 * MIB);
    let first = peer(&world, CALM);
    let link = first.share("x", &bytes, Visibility::Link).await;
    first.engine.unshare(&first.engine.view().shares[0].id).unwrap();
    rogue(&world, &link, bytes.clone(), Rogue::Stalls);
    let down = peer(&world, CALM);
    let began = Instant::now();
    let id = down.engine.get(&link.to_string(), None, false).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Another who has it comes online.
    let second = peer(&world, CALM);
    second.share("x", &bytes, Visibility::Link).await;
    let view = second.engine.view();
    assert_ne!(view.shares[0].link, link.to_string(), "another peer draws another secret");
    let file = first.folder.path().join("x");
    first.engine.share(&file, Visibility::Link).await.unwrap();
    let again = first.engine.view().shares[0].link.clone();
    let same = if again == link.to_string() { None } else { Some(again) };
    assert_eq!(same, None, "a file that is shared again keeps its link");
    let view = down.wait(&id, 20).await;
    assert_eq!(view.state, DownloadState::Done, "{view:?}");
    assert_eq!(fs::read(&view.path).unwrap(), bytes);
    assert!(began.elapsed() < Duration::from_secs(1 + 5 + 3), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_exit_is_routed_around() {
    let world = World::default();
    let weather = Weather { loss: 0.0, per_second: 2_000_000, delay: Duration::from_millis(5) };
    let up = peer(&world, weather);
    let bytes = content(4 * MIB);
    let link = up.share("x", &bytes, Visibility::Link).await.to_string();
    let down = peer(&world, CALM);
    let id = down.engine.get(&link, None, false).await.unwrap();
    for part in [1, 2] {
        let began = Instant::now();
        while down.engine.download(&id).unwrap().have < part * MIB as u64 {
            let view = down.engine.download(&id).unwrap();
            assert!(began.elapsed() < Duration::from_secs(15), "{view:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        world.cut(0);
    }
    let view = down.wait(&id, 30).await;
    assert_eq!(view.state, DownloadState::Done, "{view:?}");
    assert_eq!(fs::read(&view.path).unwrap(), bytes);
    assert!(world.bridges_of(0) >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_is_not_sent() {
    let world = World::default();
    let (up, down) = (peer(&world, CALM), peer(&world, CALM));
    let bytes = content(MIB);
    let link = up.share("x", &bytes, Visibility::Link).await;
    let mut other = bytes.clone();
    other[700_000] ^= 1;
    fs::write(up.folder.path().join("x"), &other).unwrap();
    let id = down.engine.get(&link.to_string(), None, false).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let view = down.engine.download(&id).unwrap();
    assert_ne!(view.state, DownloadState::Done);
    assert_eq!(view.liars, 0, "it did not lie: it sent nothing that is not true");
    assert!(up.engine.view().shares[0].problem.is_some());
}

/// A small file system of its own, taken away when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    #[expect(clippy::print_stderr, reason = "what is skipped is said")]
    fn mount(path: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size}");
        let words = ["-t", "tmpfs", "-o", options.as_str(), "cepa-test"];
        let mounted = std::process::Command::new("mount").args(words).arg(path).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: a small file system needs root");
            return None;
        }
        Some(Self(path.to_owned()))
    }

    fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        let grown =
            std::process::Command::new("mount").args(["-o", &options]).arg(&self.0).status();
        assert!(grown.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_what_is_there_is_kept() {
    let world = World::default();
    let (up, down) = (peer(&world, CALM), peer(&world, CALM));
    let Some(disk) = SmallDisk::mount(&down.folder.path().join("downloads"), "3m") else { return };
    let bytes = content(6 * MIB);
    let link = up.share("x", &bytes, Visibility::Link).await.to_string();
    let id = down.engine.get(&link, None, false).await.unwrap();
    let view = down.wait(&id, 20).await;
    assert_eq!(view.state, DownloadState::Failed, "{view:?}");
    let why = view.reason.unwrap();
    assert!(why.contains("no space left") && why.contains("free some space, then resume"), "{why}");
    let kept = view.have;
    assert!(kept > MIB as u64, "{kept} bytes are kept");
    disk.grow("8m");
    down.engine.resume(&id).unwrap();
    let began = Instant::now();
    loop {
        let view = down.engine.download(&id).unwrap();
        if view.state == DownloadState::Done {
            assert_eq!(fs::read(&view.path).unwrap(), bytes);
            let most = bytes.len() as u64 - kept + 4 * (256 << 10);
            assert!(view.fetched <= most, "{} bytes were fetched again", view.fetched);
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{view:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const CHILD: &str = "CEPA_PEER_CHILD";
const FILM: usize = 24 * MIB;

/// Not a test: the process that [`a_kill_at_any_time_costs_at_most_one_chunk`] kills. It says after
/// every change how much it fetched in this run and how much is there.
#[tokio::test(flavor = "multi_thread")]
async fn child_of_the_kill_test() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let dir = Path::new(&dir);
    let world = World::default();
    let weather = Weather { loss: 0.0, per_second: 6_000_000, delay: Duration::from_millis(2) };
    let engine_of = |name: &str, weather| {
        let (network, events) = world.join(weather);
        Engine::start(settings(&dir.join(name)), network, events, true).unwrap()
    };
    let up = engine_of("up", weather);
    let link = match up.view().shares.first() {
        Some(share) => share.link.clone(),
        None => {
            let path = dir.join("film");
            fs::write(&path, content(FILM)).unwrap();
            up.share(&path, Visibility::Link).await.unwrap().0.link().to_string()
        }
    };
    let down = engine_of("down", CALM);
    let id = down.get(&link, None, false).await.unwrap();
    let mut said = None;
    loop {
        let view = down.download(&id).unwrap();
        if view.state == DownloadState::Done {
            println!("\nDONE {}", view.path);
            return;
        }
        // Before its first byte it may still be looking at what is there.
        if view.state == DownloadState::Running && view.fetched > 0 && said != Some(view.fetched) {
            said = Some(view.fetched);
            println!("\nAT {} {}", view.fetched, view.have);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn a_kill_at_any_time_costs_at_most_one_chunk() {
    use std::io::{BufRead, BufReader};
    let kills: usize =
        std::env::var("CEPA_PEER_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let folder = tempfile::tempdir().unwrap();
    let child = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["child_of_the_kill_test", "--exact", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut before = 0;
    for number in 0..=kills {
        let mut process = child();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        // Somewhere inside the part of the file that this run gets to fetch.
        let part = (FILM / (kills + 1)) as u64;
        let at = rand::random_range(part / 4..part);
        let mut last = (0, 0);
        let mut first = None;
        let mut done = None;
        let mut is_killed = false;
        for line in lines.map_while(Result::ok) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["AT", fetched, have] => {
                    last = (fetched.parse::<u64>().unwrap(), have.parse::<u64>().unwrap());
                    first.get_or_insert(last.1);
                }
                ["DONE", ..] => done = Some(line[5..].to_owned()),
                _ => {}
            }
            if number < kills && last.0 >= at && !is_killed {
                // SIGKILL; what it said before is still read.
                process.kill().unwrap();
                is_killed = true;
            }
        }
        process.wait().unwrap();
        let kept = first.unwrap_or(before);
        let lost = before.saturating_sub(kept);
        assert!(lost <= 256 << 10, "kill {number}: {lost} bytes are fetched again");
        before = kept + last.0;
        if let Some(path) = done {
            assert_eq!(number, kills);
            assert_eq!(fs::read(path).unwrap(), content(FILM));
            let all = before;
            assert!(all <= (FILM + kills * (256 << 10)) as u64, "{all} bytes fetched in all");
            return;
        }
    }
    panic!("the last run ended without the file");
}
