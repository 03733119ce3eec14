//! What each node knows: its log and its memory.
//!
//! In: nodes that have just carried traffic. Out: promises. Called by: rig::suite.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use crate::rig::{memory::Image, plan::HostPlan, promise::Evidence, stage::Stage};

/// Looks at the logs of the nodes of a path: each names its neighbours at most.
pub fn logs(stage: &mut Stage<'_>, path: &[&'static str]) {
    let mut line = vec!["sender"];
    line.extend(path);
    line.push("receiver");
    stage.promise("each node's log names only its neighbours", |stage| {
        let mut lines = 0;
        for (number, name) in line.iter().enumerate().skip(1).take(path.len()) {
            let log = &stage.daemons.nodes.get(*name).context("expected a node")?.log;
            let text = std::fs::read_to_string(log)?;
            lines += text.lines().count();
            for (other, stranger) in line.iter().enumerate() {
                if other.abs_diff(number) <= 1 {
                    continue;
                }
                let plan = stage.network.plan.host(stranger).context("expected a host")?;
                for address in plan.addresses() {
                    let found = text.lines().find(|line| names(line, address));
                    ensure!(
                        found.is_none(),
                        "the log of {name} names {stranger}: {}",
                        found.unwrap_or_default()
                    );
                }
            }
        }
        Ok(Evidence::new(format!("{lines} lines, at the level debug")))
    });
}

/// Whether a line of text holds an address as a word.
fn names(line: &str, address: IpAddr) -> bool {
    let text = address.to_string();
    line.match_indices(&text).any(|(at, _)| {
        let word = |character: char| character.is_ascii_alphanumeric() || character == '.';
        let before = line[..at].chars().next_back().is_some_and(|c| word(c) || c == ':');
        let after = line[at + text.len()..].chars().next().is_some_and(word);
        !before && !after
    })
}

/// Searches the memory of the nodes of a path: behind the guard nobody knows the sender, before
/// the exit nobody knows the receiver.
pub fn memory(stage: &mut Stage<'_>, path: &[&'static str]) {
    let last = path.len() - 1;
    for (number, name) in path.iter().enumerate() {
        let mut strangers = Vec::new();
        if number > 0 {
            strangers.push("sender");
        }
        if number < last {
            strangers.push("receiver");
        }
        stage.promise(
            format!("the memory of {name} holds no address of {}", strangers.join(" or ")),
            |stage| {
                let pid = stage.daemons.nodes.get(*name).context("expected a node")?.pid();
                let dir = stage.network.host(name)?.dir.clone();
                let image = Image::take(pid, &dir.join("memory"))?;
                for stranger in &strangers {
                    let plan = stage.network.plan.host(stranger).context("expected a host")?;
                    search(&image, plan)?;
                }
                Ok(Evidence::new(format!("{} MiB searched", image.len() >> 20)))
            },
        );
    }
}

fn search(image: &Image, plan: &HostPlan) -> Result<()> {
    for address in plan.addresses() {
        let bytes = match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        for needle in [bytes, address.to_string().into_bytes()] {
            let places = image.find(&needle);
            ensure!(
                places.is_empty(),
                "{address} of {} stands in it {} times, for example in {}",
                plan.name,
                places.len(),
                image.around(places[0])
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_words() {
        let ip: IpAddr = "10.77.0.1".parse().unwrap();
        assert!(names("from 10.77.0.1:5000", ip));
        assert!(!names("from 10.77.0.11:5000", ip));
        assert!(!names("from 110.77.0.1", ip));
        let ip: IpAddr = "fd77::c".parse().unwrap();
        assert!(names("[fd77::c]:5000", ip));
        assert!(!names("[fd77::c9]:5000", ip));
    }
}
