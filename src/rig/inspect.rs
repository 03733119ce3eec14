//! What an observer of the cables can tell: lengths, plaintext, bytes in common, who meets whom.
//!
//! In: captures. Out: findings. Called by: rig::scenario::wire_image.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context, Result};
use foldhash::HashSet;

use super::{
    captures::CaptureFile,
    frame::{Datagram, Frame},
    plaintext,
    plan::{Plan, RECEIVER_V6},
};
use crate::{
    capture::pcap::PcapReader,
    model::{CID_LEN, CLIENT_INNER_V6},
};

/// A run of so many equal bytes is no chance.
pub const RUN: usize = 16;
/// Cells of each link and direction whose every run is compared with those of other links.
const COMPARED: usize = 1500;

/// Two hosts that exchange datagrams, in the order of their names.
pub type Link = (&'static str, &'static str);

/// What was seen.
#[derive(Debug, Default)]
pub struct Findings {
    /// Lengths of UDP payloads between members, and how many had each.
    pub lengths: BTreeMap<usize, u64>,
    /// Cells by link.
    pub cells: BTreeMap<Link, u64>,
    /// Frames with a run of plaintext, on cables between members: where, and what.
    pub plaintext: Vec<String>,
    /// Runs that two links have in common.
    pub shared: Vec<String>,
    /// Links whose runs were compared, and how many runs each gave.
    pub compared: BTreeMap<Link, usize>,
    /// Addresses in IP headers, by segment.
    pub addresses: BTreeMap<&'static str, BTreeSet<IpAddr>>,
    /// On the receiver's segment: the longest packet with DF set.
    pub longest_df: usize,
    /// Pieces of packets, anywhere.
    pub fragments: u64,
    /// Frames that were looked at.
    pub frames: u64,
    /// Bytes that were searched.
    pub bytes: u64,
}

/// Looks at the captures of a network. `members` are the hosts that exchange cells.
///
/// # Errors
/// When a file cannot be read.
pub fn inspect(plan: &Plan, files: &[CaptureFile], members: &[&str]) -> Result<Findings> {
    let mut findings = Findings::default();
    let needles = Needles::new();
    let mut samples: BTreeMap<Link, Sample> = BTreeMap::new();
    for file in files {
        let bytes = std::fs::read(&file.path)?;
        let reader = PcapReader::new(&bytes).context("expected a capture file")?;
        for (_, frame) in reader {
            findings.frames += 1;
            findings.bytes += frame.len() as u64;
            if file.segment != "outside"
                && let Some(what) = needles.find(frame)
                && findings.plaintext.len() < 10
            {
                findings.plaintext.push(format!("{what} on the cable of {}", file.host));
            }
            let Some(packet) = Frame::parse(frame) else { continue };
            findings.addresses.entry(file.segment).or_default().extend([packet.from, packet.to]);
            findings.fragments += u64::from(packet.fragment);
            if file.segment == "outside" && packet.df {
                findings.longest_df = findings.longest_df.max(packet.ip_len);
            }
            let Some(datagram) = packet.udp() else { continue };
            let Some((link, from)) = link_of(plan, members, &datagram) else { continue };
            // Both ends' cables show it; the sender's is the one that counts.
            if from != file.host {
                continue;
            }
            *findings.lengths.entry(datagram.payload.len()).or_default() += 1;
            *findings.cells.entry(link).or_default() += 1;
            samples.entry(link).or_default().take(from == link.0, datagram.payload);
        }
    }
    compare(&mut findings, samples);
    Ok(findings)
}

fn link_of(plan: &Plan, members: &[&str], datagram: &Datagram<'_>) -> Option<(Link, &'static str)> {
    let name = |ip| plan.host_of(ip).map(|host| host.name).filter(|name| members.contains(name));
    let (from, to) = (name(datagram.from.ip())?, name(datagram.to.ip())?);
    Some((if from < to { (from, to) } else { (to, from) }, from))
}

/// The runs of a link's first cells, as hashes.
#[derive(Default)]
struct Sample {
    taken: [usize; 2],
    runs: Vec<u64>,
}

impl Sample {
    fn take(&mut self, forward: bool, payload: &[u8]) {
        let taken = &mut self.taken[usize::from(forward)];
        if *taken >= COMPARED {
            return;
        }
        *taken += 1;
        self.runs.extend(payload.windows(RUN).map(|run| {
            let bytes = run.first_chunk::<RUN>().copied().unwrap_or_default();
            mix(u128::from_ne_bytes(bytes))
        }));
    }
}

/// A hash that spreads well enough for a few million runs.
fn mix(run: u128) -> u64 {
    let folded = (run as u64 ^ 0x9e37_79b9_7f4a_7c15) as u128
        * ((run >> 64) as u64 ^ 0xc2b2_ae3d_27d4_eb4f) as u128;
    (folded as u64) ^ (folded >> 64) as u64
}

fn compare(findings: &mut Findings, samples: BTreeMap<Link, Sample>) {
    let mut all: Vec<(u64, u16)> = Vec::new();
    let links: Vec<Link> = samples.keys().copied().collect();
    for (number, (link, sample)) in samples.into_iter().enumerate() {
        findings.compared.insert(link, sample.runs.len());
        all.extend(sample.runs.into_iter().map(|run| (run, number as u16)));
    }
    all.sort_unstable();
    for pair in all.windows(2) {
        if pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1 && findings.shared.len() < 10 {
            let (one, other) = (links[usize::from(pair[0].1)], links[usize::from(pair[1].1)]);
            findings.shared.push(format!("{}-{} and {}-{}", one.0, one.1, other.0, other.1));
        }
    }
}

/// Runs of bytes that no cable between members may show.
struct Needles {
    runs: HashSet<[u8; RUN]>,
    /// Which first two bytes any run has, so that most places are passed over at once.
    starts: Box<[bool; 1 << 16]>,
}

impl Needles {
    fn new() -> Self {
        let name: Vec<u8> =
            plaintext::DNS_NAME.split('.').flat_map(|label| label.bytes().chain([0])).collect();
        let texts: [&[u8]; 5] = [
            &plaintext::runs_of(RUN),
            plaintext::HTTP_SERVER.as_bytes(),
            &name,
            &RECEIVER_V6.octets(),
            &CLIENT_INNER_V6.octets(),
        ];
        let mut needles = Self { runs: HashSet::default(), starts: Box::new([false; 1 << 16]) };
        for run in texts.into_iter().flat_map(|text| text.windows(RUN)) {
            if let Some(run) = run.first_chunk::<RUN>() {
                needles.starts[usize::from(u16::from_ne_bytes([run[0], run[1]]))] = true;
                needles.runs.insert(*run);
            }
        }
        needles
    }

    fn find(&self, frame: &[u8]) -> Option<String> {
        frame
            .windows(RUN)
            .position(|window| {
                self.starts[usize::from(u16::from_ne_bytes([window[0], window[1]]))]
                    && window.first_chunk::<RUN>().is_some_and(|run| self.runs.contains(run))
            })
            .map(|at| format!("{RUN} known bytes at {at}: {:02x?}", &frame[at..at + RUN]))
    }
}

/// The circuit ids that a link showed, for telling circuits apart as an observer could.
pub fn circuit_ids(file: &[u8], members: &Plan) -> BTreeSet<[u8; CID_LEN]> {
    PcapReader::new(file)
        .into_iter()
        .flatten()
        .filter_map(|(_, frame)| Frame::parse(frame)?.udp())
        .filter(|datagram| members.host_of(datagram.to.ip()).is_some())
        .filter_map(|datagram| datagram.payload.first_chunk().copied())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_bytes_are_found_wherever_they_stand() {
        let needles = Needles::new();
        let mut frame = vec![0xee; 500];
        assert_eq!(needles.find(&frame), None);
        plaintext::fill(&mut frame[300..316], 12_345);
        assert!(needles.find(&frame).is_some());
        frame[315] ^= 1;
        assert_eq!(needles.find(&frame), None, "fifteen bytes may be chance");
        frame[100..116].copy_from_slice(&RECEIVER_V6.octets());
        assert!(needles.find(&frame).is_some());
    }

    #[test]
    fn common_runs_are_found_between_links_only() {
        let mut findings = Findings::default();
        let cell = |seed: u8| -> Vec<u8> {
            (0..200u32).map(|n| ((n * 31 + u32::from(seed) * 7919) >> 3) as u8 ^ seed).collect()
        };
        let sample = |cells: &[Vec<u8>]| {
            let mut sample = Sample::default();
            cells.iter().for_each(|cell| sample.take(true, cell));
            sample
        };
        let links = [("a", "b"), ("b", "c")];
        let clean = [sample(&[cell(1), cell(1)]), sample(&[cell(2)])];
        compare(&mut findings, links.into_iter().zip(clean).collect());
        assert!(findings.shared.is_empty(), "{:?}", findings.shared);
        let mut leak = cell(2);
        leak[50..66].copy_from_slice(&cell(1)[10..26]);
        let dirty = [sample(&[cell(1)]), sample(&[leak])];
        compare(&mut findings, links.into_iter().zip(dirty).collect());
        assert_eq!(findings.shared, ["a-b and b-c"]);
    }
}
