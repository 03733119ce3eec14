//! Files between peers: one tracker, six nodes, five peers; who lies, who stalls, who dies, and what
//! everybody saw of it. p1 and p2 are honest, p3 lies, p4 stalls, p5 wants files.
//!
//! In: the network with peers. Out: promises, and what each party saw. Called by: rig::suite.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};

use super::share_view::{Needles, busiest_link};
use crate::rig::{
    captures::{CaptureFile, Captures},
    host::Daemon,
    network::Network,
    plan::{NODES, PEERS},
    promise::Evidence,
    report::Party,
    sharers::{Got, Peer, number},
    stage::Stage,
};

const MIB: usize = 1 << 20;
/// A link between two nodes with more cells than these carries something else than echoes.
const ECHOES: u64 = 64;
/// Paths of the captured transfers, so that it is known between which exits they go.
const UP: [&str; 3] = ["n1", "n2", "n4"];
const DOWN: [&str; 3] = ["n2", "n3", "n5"];

/// What the peers share.
struct Files {
    /// By link, from p1.
    secret: Shared,
    /// By link, from p2, long enough to lose an exit in the middle.
    long: Shared,
    /// In the catalogue: from p1, and from p3, who lies.
    film: Shared,
    /// In the catalogue: from p2, and from p4, who stalls.
    pilot: Shared,
}

struct Shared {
    name: &'static str,
    path: PathBuf,
    hash: blake3::Hash,
    size: u64,
}

impl Shared {
    fn write(dir: &Path, name: &'static str, size: usize, needles: &Needles) -> Result<Self> {
        let (path, bytes) = (dir.join(name), needles.content(name, size));
        fs::write(&path, &bytes).with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { name, path, hash: blake3::hash(&bytes), size: size as u64 })
    }

    fn path(&self) -> std::borrow::Cow<'_, str> {
        self.path.to_string_lossy()
    }
}

/// A peer of the scenario; p5 has a second state directory for its fixed path.
fn peer<'a>(
    network: &'a Network,
    link: &'a str,
    name: &str,
    path: Option<[&'static str; 3]>,
) -> Result<Peer<'a>> {
    let state = if path == Some(DOWN) { "fixed-state" } else { "peer-state" };
    Ok(Peer { host: network.host(name)?, link, state, path })
}

fn evidence(got: &Got) -> Evidence {
    let (size, first) = (number(&got.view, "size"), number(&got.view, "first_byte_ms"));
    let (took, rate) = (got.took.as_secs_f64(), got.rate());
    Evidence::new(format!(
        "{:.1} MiB in {took:.2} s with the program's start; first verified byte after {first} ms, \
         then {:.1} MB/s",
        size as f64 / MIB as f64,
        rate / 1e6
    ))
    .with("took_s", took)
    .with("first_byte_ms", first)
    .with("bytes_per_s", rate)
}

/// All of it; what each party saw is returned.
pub fn files_between_peers(stage: &mut Stage<'_>, dir: &Path) -> Vec<Party> {
    let (network, needles) = (stage.network, Needles::draw());
    let (mut running, mut files) = (Vec::new(), None);
    stage.promise(
        "six nodes, three of them exits, five peers and a tracker come up, the tracker last",
        |stage| {
            files = Some(come_up(stage, &needles, &mut running)?);
            Ok(Evidence::new("every peer found the tracker once the directory listed it"))
        },
    );
    let Some(files) = files else { return Vec::new() };
    let link = stage.daemons.link.clone();
    let at = |name: &str, path| peer(network, &link, name, path);
    let mut captured = Vec::new();
    stage.promise("a link leads to the file, over three nodes on either side", |_| {
        let what = at("p1", Some(UP))?.link_of(files.secret.name)?;
        network.carry_trains(false)?;
        let (got, seen) = under_capture(network, &dir.join("bridge"), || {
            at("p5", Some(DOWN))?.get(&what, &[], &[], |_| Ok(()))
        })?;
        got.check(&files.secret.hash)?;
        let direct = busiest_link(network, &seen, "n4", "n5")?;
        captured.extend(seen);
        ensure!(direct > ECHOES, "expected n4 and n5 to exchange the file, got {direct} cells");
        Ok(evidence(&got).with("cells_between_the_exits", direct))
    });
    stage.promise(
        "by tracking code the same bytes come, and nothing of them from exit to exit",
        |_| {
            let what = at("p1", Some(UP))?.link_of(files.secret.name)?;
            // The first copy is forgotten: this one comes over the network again.
            fs::remove_dir_all(network.host("p5")?.dir.join("fixed-state"))?;
            let (got, seen) = under_capture(network, &dir.join("code"), || {
                at("p5", Some(DOWN))?.get(&what, &[], &["--via-code"], |_| Ok(()))
            })?;
            network.carry_trains(true)?;
            got.check(&files.secret.hash)?;
            let direct = busiest_link(network, &seen, "n4", "n5")?;
            captured.extend(seen);
            ensure!(direct <= ECHOES, "n4 and n5 exchanged {direct} cells on one link");
            Ok(evidence(&got))
        },
    );
    stage.promise("no capture holds a byte of the file, its name or its hash", |_| {
        let names = [files.secret.name.to_owned(), files.secret.hash.to_hex().to_string()];
        let (frames, bytes) = needles.search_captures(&captured, &names)?;
        ensure!(bytes > files.secret.size, "expected captures of transfers, got {bytes} bytes");
        let cables = captured.len();
        Ok(Evidence::new(format!("{frames} frames, {} MiB, {cables} captures", bytes >> 20))
            .with("frames", frames))
    });
    stage.promise(
        "a source is left at the first group it lies about, the other gives the file",
        |_| {
            let got = at("p5", None)?.get(files.film.name, &[], &[], |_| Ok(()))?;
            got.check(&files.film.hash)?;
            let liars = number(&got.view, "liars");
            let more = number(&got.view, "fetched").saturating_sub(files.film.size);
            ensure!(liars == 1, "expected one liar to be found, got {liars}");
            // It lies in the first group it sends, of 16 KiB; whoever took more would notice later.
            let log = fs::read_to_string(network.host("p5")?.dir.join("get.log"))?;
            let left =
                log.lines().filter(|line| line.contains("a source is left: group 0 of chunk"));
            ensure!(left.count() == 1, "expected the liar to be left at its first group");
            Ok(evidence(&got).with("liars", liars).with("bytes_beyond_the_file", more))
        },
    );
    stage.promise("a source that stalls is replaced within 5 s", |_| {
        let got = at("p5", None)?.get(files.pilot.name, &["--sources", "2"], &[], |_| Ok(()))?;
        got.check(&files.pilot.hash)?;
        let pause = got.longest_pause.as_secs_f64();
        ensure!(pause < 5.0, "nothing came for {pause:.1} s");
        Ok(evidence(&got).with("longest_pause_s", pause))
    });
    stage.promise("an exit is killed in the middle: the transfer goes on by itself", |stage| {
        let what = at("p2", None)?.link_of(files.long.name)?;
        let (p5, mut killed) = (at("p5", None)?, None);
        let got = p5.get(&what, &[], &[], |view| {
            if killed.is_none() && number(view, "have") > 4 * MIB as u64 {
                let exit = p5.exit_in_use()?;
                stage.daemons.nodes.remove(&exit).context("expected that exit to run")?.kill();
                killed = Some(exit);
            }
            Ok(())
        })?;
        got.check(&files.long.hash)?;
        let exit = killed.context("the file was there before an exit could be killed")?;
        let pause = got.longest_pause.as_secs_f64();
        let mut evidence = evidence(&got).with("longest_pause_s", pause);
        evidence.text = format!("{exit} was killed; {}", evidence.text);
        Ok(evidence)
    });
    stage.promise("logs and state of tracker and nodes name no shared file and no peer", |_| {
        let mut bytes = 0;
        let mut names = vec![files.secret.name.to_owned(), files.long.name.to_owned()];
        for name in NODES {
            bytes += needles.search_dir(&network.host(name)?.dir, &names)?;
        }
        for name in PEERS {
            names.push(format!("{}:", network.host(name)?.plan.v4()));
        }
        bytes += needles.search_dir(&network.host("tracker")?.dir, &names)?;
        Ok(Evidence::new(format!("{} KiB searched, logs at the level debug", bytes >> 10)))
    });
    parties(stage, &files)
}

fn under_capture(
    network: &Network,
    dir: &Path,
    work: impl FnOnce() -> Result<Got>,
) -> Result<(Got, Vec<CaptureFile>)> {
    let captures = Captures::start(network, dir)?;
    let got = work();
    let seen = captures.stop()?;
    Ok((got?, seen))
}

/// The network, then the peers, the tracker last: whoever is early has to find it later.
fn come_up(stage: &mut Stage<'_>, needles: &Needles, running: &mut Vec<Daemon>) -> Result<Files> {
    let (network, extra) = (stage.network, stage.extra.clone());
    stage.daemons.start_all(network, &NODES, &extra)?;
    let dir = network.run.dir.join("shared");
    fs::create_dir_all(&dir)?;
    let files = Files {
        secret: Shared::write(&dir, "nobody-may-read-this-name.pdf", 3 * MIB, needles)?,
        long: Shared::write(&dir, "très-long-and-private.iso", 48 * MIB, needles)?,
        film: Shared::write(&dir, "a public film.mkv", 16 * MIB, needles)?,
        pilot: Shared::write(&dir, "a public pilot.mkv", 12 * MIB, needles)?,
    };
    let link = &stage.daemons.link;
    let p1 = peer(network, link, "p1", Some(UP))?;
    running.push(p1.serve()?);
    p1.run(&["share", "--public", &files.film.path()])?;
    p1.run(&["share", &files.secret.path()])?;
    let p2 = peer(network, link, "p2", None)?;
    running.push(p2.serve()?);
    p2.run(&["share", "--public", &files.pilot.path()])?;
    p2.run(&["share", &files.long.path()])?;
    for (name, manner, file) in [("p3", "lies", &files.film), ("p4", "stalls", &files.pilot)] {
        let host = network.host(name)?;
        let state = host.dir.join("state");
        let words = ["rig", "rogue", "--manner", manner, "--controller", link, "--state"];
        let mut words = words.map(str::to_owned).to_vec();
        words.extend([state.to_string_lossy().into_owned(), file.path().into_owned()]);
        running.push(host.daemon("rogue", &words)?);
    }
    running.push(stage.daemons.start_tracker(network)?);
    stage.daemons.wait_listed(network, NODES.len() + 1, Duration::from_secs(30))?;
    let p5 = peer(network, &stage.daemons.link, "p5", None)?;
    p5.wait_listed(files.film.name, 2)?;
    p5.wait_listed(files.pilot.name, 2)?;
    Ok(files)
}

/// What each party saw, in words.
fn parties(stage: &Stage<'_>, files: &Files) -> Vec<Party> {
    let (network, mut parties) = (stage.network, Vec::new());
    let mut see = |who: &str, saw: String| parties.push(Party { who: who.to_owned(), saw });
    match stage.daemons.tracker_status(network) {
        Ok(status) => see(
            "tracker",
            format!(
                "{} circuits, each by its exit; {} files, of which two have names: {}, {}; no peer's \
                 address, no byte of a file",
                status.circuits, status.files, files.film.name, files.pilot.name
            ),
        ),
        Err(error) => see("tracker", format!("does not answer: {error:#}")),
    }
    for name in NODES {
        let Ok(status) = stage.daemons.node_status(network, name) else {
            see(name, "was killed".to_owned());
            continue;
        };
        let (cells_in, cells_out) = (status.traffic.cells_in, status.traffic.cells_out);
        let what = match status.exit {
            Some(_) => {
                "which of its circuits are joined, to which exit; no name, no byte of a file"
            }
            None => "the nodes before and after; not what, not for whom",
        };
        see(name, format!("{cells_in} cells in, {cells_out} out; {what}"));
    }
    for (name, path) in [("p1", Some(UP)), ("p2", None)] {
        let view = peer(network, &stage.daemons.link, name, path).and_then(|peer| peer.view());
        let view = view.unwrap_or_else(|error| anyhow!(error).to_string().into());
        let shares = view["shares"].as_array().into_iter().flatten();
        let sent: u64 = shares.map(|share| number(share, "sent")).sum();
        see(name, format!("sent {:.1} MiB, to somebody behind an exit", sent as f64 / MIB as f64));
    }
    see("p3, p4", "were asked, and left once they lied or stalled".to_owned());
    see("p5", "got every file; of its sources it knows their exits, and nothing else".to_owned());
    parties
}
