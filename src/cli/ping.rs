//! `cepa ping NODE`: echoes to one node, inside the client's circuits.
//!
//! In: a node of a circuit. Out: one line per echo and a sum, or JSON. Called by: the command line.

use std::{thread, time::Duration};

use serde::Serialize;

use super::{
    ExitCode, Failure,
    daemon::ClientFlags,
    output::{self, OutputFlags, say},
    table::round_trip,
};
use crate::{
    config::Period,
    telemetry::{
        PingAnswer,
        control::{PingArgs, Request, command},
    },
};

/// What an answer of the daemon may take beyond the echo itself.
const MARGIN: Duration = Duration::from_secs(5);

/// Arguments of `cepa ping`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The node, by name or id; it must be a hop of a circuit
    node: String,
    /// How many echoes
    #[arg(long, short = 'c', default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// The time between two echoes
    #[arg(long, default_value = "1s")]
    interval: Period,
    /// How long to wait for an answer
    #[arg(long, default_value = "2s")]
    timeout: Period,
    #[command(flatten)]
    client: ClientFlags,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(Serialize)]
struct Sum {
    node: String,
    sent: u32,
    received: usize,
    loss: f64,
    rtt_min_ms: Option<f64>,
    rtt_mean_ms: Option<f64>,
    rtt_max_ms: Option<f64>,
    echoes: Vec<PingAnswer>,
}

impl Sum {
    fn of(node: String, echoes: Vec<PingAnswer>) -> Self {
        let rtts: Vec<f64> = echoes.iter().filter_map(|echo| echo.rtt_ms).collect();
        let some = |value: f64| (!rtts.is_empty()).then_some(value);
        let sent = echoes.len();
        Self {
            node,
            sent: u32::try_from(sent).unwrap_or(u32::MAX),
            received: rtts.len(),
            loss: 1.0 - rtts.len() as f64 / sent.max(1) as f64,
            rtt_min_ms: some(rtts.iter().copied().fold(f64::INFINITY, f64::min)),
            rtt_mean_ms: some(rtts.iter().sum::<f64>() / rtts.len() as f64),
            rtt_max_ms: some(rtts.iter().copied().fold(0.0, f64::max)),
            echoes,
        }
    }
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let timeout = self.timeout.get();
        let args = PingArgs {
            node: self.node.clone(),
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        };
        let request = Request::with(command::PING, &args);
        let mut echoes = Vec::new();
        for number in 1..=self.count {
            let echo: PingAnswer = self.client.ask(&request, timeout + MARGIN)?;
            if !self.output.json {
                let place = format!("hop {} of circuit {}", echo.hop, echo.circuit);
                say!("{} ({place}): {}", echo.node, round_trip(echo.rtt_ms));
            }
            echoes.push(echo);
            if number < self.count {
                thread::sleep(self.interval.get());
            }
        }
        let sum = Sum::of(self.node, echoes);
        if self.output.json {
            output::print_json("ping", &sum)?;
        } else {
            say!("{}", words(&sum));
        }
        if sum.received == 0 {
            let message = format!(
                "expected an answer of {}, got none; see which hop is lost with: cepa trace",
                sum.node
            );
            return Err(Failure::new(ExitCode::Failed, message).into());
        }
        Ok(())
    }
}

fn words(sum: &Sum) -> String {
    let start =
        format!("{} sent, {} answered, {:.0} % lost", sum.sent, sum.received, 100.0 * sum.loss);
    match (sum.rtt_min_ms, sum.rtt_mean_ms, sum.rtt_max_ms) {
        (Some(min), Some(mean), Some(max)) => {
            format!("{start}; round trip {min:.2} / {mean:.2} / {max:.2} ms (least, mean, most)")
        }
        _ => start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_counts_what_was_lost() {
        let echo = |rtt_ms| PingAnswer { rtt_ms, ..PingAnswer::default() };
        let sum = Sum::of(
            "otter".to_owned(),
            vec![echo(Some(1.0)), echo(None), echo(Some(3.0)), echo(None)],
        );
        assert_eq!(
            words(&sum),
            "4 sent, 2 answered, 50 % lost; round trip 1.00 / 2.00 / 3.00 ms (least, mean, most)"
        );
        let nothing = Sum::of("otter".to_owned(), vec![echo(None)]);
        assert_eq!(words(&nothing), "1 sent, 0 answered, 100 % lost");
    }
}
