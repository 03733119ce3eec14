//! A large file from one and from four uploaders, over three nodes on either side, and what one
//! circuit of ipv8's Rust tunnels carries in the same minutes.
//!
//! In: a size, a rate of the uploaders' cables. Out: bytes a second. Called by: `cepa rig files`,
//! which `scripts/bench-peers` runs.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufWriter, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    daemons::{Daemons, Extra},
    link::LinkOptions,
    network::Network,
    plaintext,
    plan::{NODES, PEERS, Plan},
    rootless,
    run::Run,
    sharers::{Peer, number},
};

/// Measures one circuit of ipv8's tunnels, in one process.
const SCRIPT: &str = include_str!("../../scripts/ipv8-tunnels.py");
/// The name of the file.
const NAME: &str = "film";
/// How long ipv8's speed test takes.
const SPEED_TEST_S: &str = "5";

/// What is measured.
#[derive(Clone, Debug)]
pub struct FilesOptions {
    /// Bytes of the file.
    pub size: u64,
    /// How often; the medians count.
    pub rounds: usize,
    /// Bits a second of each uploader's cable; none: as fast as it goes.
    pub rate: Option<u64>,
    /// A Python that has `pyipv8` and `ipv8-rust-tunnels`; none: without them.
    pub ipv8: Option<PathBuf>,
}

/// One round.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct FilesRound {
    /// Bytes a second from one uploader, from the first verified byte to the end.
    pub one: f64,
    /// From four.
    pub four: f64,
    /// The same of one circuit of three hops of ipv8's tunnels.
    pub ipv8: Option<f64>,
    /// From the start of the request to the first verified byte, from one uploader.
    pub first_byte_ms: u64,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct FilesFigures {
    /// Bytes of the file.
    pub size: u64,
    /// Bits a second of each uploader's cable.
    pub rate: Option<u64>,
    /// Whether this program was built with optimisation.
    pub optimised: bool,
    /// Every round.
    pub rounds: Vec<FilesRound>,
    /// The medians.
    pub median: FilesRound,
    /// One uploader as a multiple of ipv8.
    pub ratio: Option<f64>,
}

#[derive(Deserialize)]
struct Ipv8Answer {
    bytes_per_s: f64,
}

/// Brings the network up and measures in turn; every file is compared with what was shared.
///
/// # Errors
/// When something does not come up, or a file is not the one that was shared.
pub fn measure(options: &FilesOptions, say: &mut dyn FnMut(&str)) -> Result<FilesFigures> {
    rootless::ensure_privilege()?;
    let mut links = BTreeMap::new();
    if let Some(rate) = options.rate {
        let link = LinkOptions { rate: Some(rate), ..LinkOptions::default() };
        links.extend(PEERS[..4].iter().map(|peer| ((*peer).to_owned(), link)));
    }
    let network = Network::up(Run::begin()?, Plan::share(), &links)?;
    let mut daemons = Daemons::default();
    let extra = Extra { log: "info", ..Extra::default() };
    daemons.start_all(&network, &NODES, &extra)?;
    let _tracker = daemons.start_tracker(&network)?;
    daemons.wait_listed(&network, NODES.len() + 1, Duration::from_secs(30))?;
    let path = network.run.dir.join(NAME);
    let hash = write(&path, options.size)?;
    let script = network.run.dir.join("ipv8-tunnels.py");
    fs::write(&script, SCRIPT)?;
    let link = daemons.link.clone();
    let peer = |name: &str, state| -> Result<Peer<'_>> {
        Ok(Peer { host: network.host(name)?, link: &link, state, path: None })
    };
    let mut running = Vec::new();
    for name in &PEERS[..4] {
        let peer = peer(name, "peer-state")?;
        running.push(peer.serve()?);
        peer.run(&["share", "--public", &path.to_string_lossy()])?;
        say(&format!("{name} shares {} MiB", options.size >> 20));
    }
    peer("p5", "peer-state")?.wait_listed(NAME, 4)?;
    let mut rounds = Vec::new();
    for number_of_round in 1..=options.rounds {
        let mut round = FilesRound::default();
        for sources in ["1", "4"] {
            let p5 = peer("p5", "peer-state")?;
            // What was fetched before is forgotten.
            let _ = fs::remove_dir_all(network.host("p5")?.dir.join("peer-state/downloads"));
            let got = p5.get(NAME, &["--sources", sources], &[], |_| Ok(()))?;
            got.check(&hash)?;
            match sources {
                "1" => {
                    round.one = got.rate();
                    round.first_byte_ms = number(&got.view, "first_byte_ms");
                }
                _ => round.four = got.rate(),
            }
        }
        if let Some(python) = &options.ipv8 {
            let words = [&*script.to_string_lossy(), "3", SPEED_TEST_S];
            let said = network.host("p5")?.run(&python.to_string_lossy(), &words)?;
            let line = said.lines().last().context("expected a line of ipv8's measurement")?;
            round.ipv8 = Some(serde_json::from_str::<Ipv8Answer>(line)?.bytes_per_s);
        }
        let ipv8 = round.ipv8.map_or_else(String::new, |rate| format!(", ipv8 {:.1}", rate / 1e6));
        say(&format!(
            "round {number_of_round} of {}: 1 uploader {:.1}, 4 uploaders {:.1}{ipv8} MB/s",
            options.rounds,
            round.one / 1e6,
            round.four / 1e6
        ));
        rounds.push(round);
    }
    let middle = |get: fn(&FilesRound) -> Option<f64>| {
        let mut values: Vec<f64> = rounds.iter().filter_map(get).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let median = FilesRound {
        one: middle(|round| Some(round.one)).unwrap_or_default(),
        four: middle(|round| Some(round.four)).unwrap_or_default(),
        ipv8: middle(|round| round.ipv8),
        first_byte_ms: middle(|round| Some(round.first_byte_ms as f64)).unwrap_or_default() as u64,
    };
    Ok(FilesFigures {
        size: options.size,
        rate: options.rate,
        optimised: !cfg!(debug_assertions),
        ratio: median.ipv8.filter(|rate| *rate > 0.0).map(|rate| median.one / rate),
        rounds,
        median,
    })
}

/// Writes the file; its hash.
fn write(path: &std::path::Path, size: u64) -> Result<blake3::Hash> {
    let mut file = BufWriter::new(fs::File::create(path)?);
    let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    while at < size {
        let length = (size - at).min(buffer.len() as u64) as usize;
        plaintext::fill(&mut buffer[..length], at);
        hasher.update(&buffer[..length]);
        file.write_all(&buffer[..length])?;
        at += length as u64;
    }
    file.flush().with_context(|| format!("writing {}", path.display()))?;
    Ok(hasher.finalize())
}
