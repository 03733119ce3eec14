//! `cepa trace`: round trip and loss of every hop of a circuit, by echoes addressed to each.
//!
//! In: the client's answer. Out: a table or JSON. Called by: the command line.

use std::time::Duration;

use super::{
    daemon::ClientFlags,
    output::{self, OutputFlags, say},
    table::{Table, round_trip},
};
use crate::{
    config::Period,
    telemetry::{
        TraceAnswer, TraceHop,
        control::{Request, TraceArgs, command},
    },
};

/// What an answer of the daemon may take beyond sending the echoes.
const MARGIN: Duration = Duration::from_secs(10);
/// A hop that loses more than this is worth a word.
const LOSSY: f64 = 0.05;

/// Arguments of `cepa trace`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The circuit's number [default: the active one]
    #[arg(long, value_name = "N")]
    circuit: Option<u32>,
    /// Echoes per hop
    #[arg(long, short = 'c', default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    count: u32,
    /// The time between two echoes to one hop
    #[arg(long, default_value = "100ms")]
    interval: Period,
    #[command(flatten)]
    client: ClientFlags,
    #[command(flatten)]
    output: OutputFlags,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let interval = self.interval.get();
        let args = TraceArgs {
            circuit: self.circuit,
            count: self.count,
            interval_ms: u64::try_from(interval.as_millis()).unwrap_or(u64::MAX),
        };
        let patience = interval.saturating_mul(self.count).saturating_add(MARGIN);
        let answer: TraceAnswer =
            self.client.ask(&Request::with(command::TRACE, &args), patience)?;
        if self.output.json {
            return output::print_json("trace", &answer);
        }
        say!("circuit {}", answer.circuit);
        let mut table = Table::new(&["hop", "node", "round trip", "lost", "answered"]);
        for (index, hop) in answer.hops.iter().enumerate() {
            table.row([
                (index + 1).to_string(),
                hop.name.clone(),
                round_trip(hop.rtt_ms),
                format!("{:.0} %", 100.0 * hop.loss),
                format!("{} of {}", hop.received, hop.sent),
            ]);
        }
        for line in table.lines() {
            say!("{line}");
        }
        if let Some(step) = next_step(&answer.hops) {
            say!("{step}");
        }
        Ok(())
    }
}

/// What the first bad hop means.
fn next_step(hops: &[TraceHop]) -> Option<String> {
    let bad = hops.iter().position(|hop| hop.loss > LOSSY)?;
    let name = &hops[bad].name;
    let before = match bad {
        0 => "this machine".to_owned(),
        _ => hops[bad - 1].name.clone(),
    };
    Some(if hops[bad].received == 0 {
        format!("{name} does not answer through {before}; leave it with: cepa circuits new")
    } else {
        format!("cells are lost between {before} and {name}; avoid it with: cepa circuits new")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_hop_is_named() {
        let hop = |name: &str, received| TraceHop {
            name: name.to_owned(),
            sent: 10,
            received,
            loss: 1.0 - f64::from(received) / 10.0,
            ..TraceHop::default()
        };
        assert_eq!(next_step(&[hop("a", 10), hop("b", 10)]), None);
        let lossy = next_step(&[hop("a", 10), hop("b", 8), hop("c", 0)]);
        assert!(lossy.is_some_and(|step| step.starts_with("cells are lost between a and b")));
        let dead = next_step(&[hop("a", 0), hop("b", 0)]);
        assert!(
            dead.is_some_and(|step| step.starts_with("a does not answer through this machine"))
        );
    }
}
