//! What an observer of the cables sees.
//!
//! In: captures of a scenario. Out: promises about them. Called by: rig::suite.

use std::net::IpAddr;

use anyhow::{Result, ensure};

use crate::{
    model::CELL_LEN,
    rig::{
        captures::CaptureFile,
        inspect::{self, Findings, RUN},
        plan::{RECEIVER_V4, RECEIVER_V6},
        promise::Evidence,
        stage::Stage,
    },
};

/// Looks at the captures of traffic on a path, and returns the findings for the report.
pub fn examine(
    stage: &mut Stage<'_>,
    files: Vec<CaptureFile>,
    path: &[&'static str],
) -> Option<Findings> {
    let mut members = vec!["sender"];
    members.extend(
        stage
            .network
            .plan
            .hosts
            .iter()
            .map(|host| host.name)
            .filter(|name| name.strip_prefix('n').is_some_and(|rest| rest.parse::<u8>().is_ok())),
    );
    let mut found = None;
    stage.promise("every cable is captured without a gap", |stage| {
        let lost: u64 = files.iter().map(|file| file.lost).sum();
        ensure!(lost == 0, "the kernel dropped {lost} frames before they were written");
        let findings = inspect::inspect(&stage.network.plan, &files, &members)?;
        let text = format!(
            "{} files, {} frames, {} MiB",
            files.len(),
            findings.frames,
            findings.bytes >> 20
        );
        found = Some(findings);
        Ok(Evidence::new(text))
    });
    let findings = found?;
    stage.promise("every UDP payload between members has one length", |_| one_length(&findings));
    stage.promise(format!("no run of {RUN} plaintext bytes on any cable between members"), |_| {
        ensure!(findings.plaintext.is_empty(), "found {}", findings.plaintext.join("; "));
        Ok(Evidence::new(format!("searched {} MiB at every byte", findings.bytes >> 20)))
    });
    stage.promise(format!("no run of {RUN} bytes common to two links"), |_| {
        ensure!(findings.shared.is_empty(), "found on {}", findings.shared.join("; "));
        ensure!(findings.compared.len() > 1, "expected cells on several links, got one");
        let runs: usize = findings.compared.values().sum();
        Ok(Evidence::new(format!(
            "compared {runs} runs of {} links, all against all",
            findings.compared.len()
        )))
    });
    stage.promise("only the exit's segment shows the receiver", |stage| {
        segments(stage, &findings, path)
    });
    stage
        .promise("cells pass between neighbours of the path only", |_| neighbours(&findings, path));
    Some(findings)
}

fn one_length(findings: &Findings) -> Result<Evidence> {
    let lengths: Vec<String> =
        findings.lengths.iter().map(|(len, count)| format!("{count} of {len}")).collect();
    ensure!(
        findings.lengths.keys().eq([&CELL_LEN]),
        "expected {CELL_LEN} bytes only, got {}",
        lengths.join(", ")
    );
    Ok(Evidence::new(format!("{} bytes", lengths.join(", ")))
        .with("cells", findings.lengths.values().sum::<u64>()))
}

fn segments(stage: &Stage<'_>, findings: &Findings, path: &[&str]) -> Result<Evidence> {
    let receiver = [IpAddr::V4(RECEIVER_V4), IpAddr::V6(RECEIVER_V6)];
    let inside = findings.addresses.get("switch").cloned().unwrap_or_default();
    for address in receiver {
        ensure!(!inside.contains(&address), "the switch shows {address}");
    }
    let outside = findings.addresses.get("outside").cloned().unwrap_or_default();
    ensure!(outside.contains(&receiver[0]), "the exit's segment does not show the receiver");
    let exit = path.last().copied().unwrap_or_default();
    for address in &outside {
        let host = stage.network.plan.host_of(*address).map(|host| host.name);
        let strange = host.is_some_and(|name| name != exit && name != "receiver");
        ensure!(!strange, "the exit's segment shows {address} of {}", host.unwrap_or_default());
    }
    ensure!(findings.fragments == 0, "{} packets were fragmented", findings.fragments);
    ensure!(
        findings.longest_df == 1500,
        "expected packets of 1500 bytes with DF behind the exit, got at most {}",
        findings.longest_df
    );
    Ok(Evidence::new(format!(
        "behind {exit}: {exit} and the receiver, packets of up to {} bytes with DF, no fragments",
        findings.longest_df
    )))
}

fn neighbours(findings: &Findings, path: &[&'static str]) -> Result<Evidence> {
    let mut hosts = vec!["sender"];
    hosts.extend(path);
    let expected: Vec<(&str, &str)> = hosts
        .windows(2)
        .map(|pair| if pair[0] < pair[1] { (pair[0], pair[1]) } else { (pair[1], pair[0]) })
        .collect();
    for (link, cells) in &findings.cells {
        ensure!(expected.contains(link), "{cells} cells between {} and {}", link.0, link.1);
    }
    ensure!(findings.cells.len() == expected.len(), "expected cells on {} links", expected.len());
    let words: Vec<String> = findings
        .cells
        .iter()
        .map(|(link, cells)| format!("{}-{} {cells}", link.0, link.1))
        .collect();
    Ok(Evidence::new(words.join(", ")))
}
