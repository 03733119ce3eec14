//! `cepa bench`: throughput and latency of the running client's circuits.
//!
//! In: the client's answers. Out: a progress bar, a table or JSON. Called by: the command line.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    ExitCode, Failure,
    daemon::{ClientFlags, PATIENCE},
    output::{self, OutputFlags, say},
    table::{Table, round_trip},
};
use crate::{
    config::Period,
    model::STREAM_LEN,
    telemetry::{
        BenchAnswer, CircuitInfo, CircuitState, CircuitsStatus, TraceAnswer,
        control::{BenchArgs, Request, TraceArgs, command},
    },
};

/// The idle round trip is the median of so many echoes, so far apart.
const IDLE_ECHOES: u32 = 20;
const IDLE_INTERVAL: Duration = Duration::from_millis(25);
/// One measurement under load; several make up the whole.
const SLICE: Duration = Duration::from_millis(500);
/// What an answer may take beyond that.
const MARGIN: Duration = Duration::from_secs(10);
const FIRST_WINDOW: u32 = 32;

/// Arguments of `cepa bench`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The circuit's number [default: every open one]
    #[arg(long, value_name = "N")]
    circuit: Option<u32>,
    /// How long each circuit is measured under load
    #[arg(long, default_value = "3s")]
    duration: Period,
    #[command(flatten)]
    client: ClientFlags,
    #[command(flatten)]
    output: OutputFlags,
}

/// What was measured of one circuit. Each cell goes to the exit and back, so the throughput is
/// that of both directions at once.
#[derive(Serialize)]
struct Measured {
    circuit: u32,
    state: CircuitState,
    path: Vec<String>,
    /// Payload of cells each way, in Mbit/s.
    throughput_mbps: f64,
    cells_per_second: f64,
    /// The median round trip with nothing else on the circuit.
    idle_rtt_ms: Option<f64>,
    /// The median and the 99th percentile under load.
    loaded_rtt_ms: Option<f64>,
    loaded_rtt_p99_ms: Option<f64>,
    /// The share of cells that never came back.
    loss: f64,
    seconds: f64,
}

#[derive(Serialize)]
struct Answer {
    circuits: Vec<Measured>,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let status: CircuitsStatus =
            self.client.ask(&Request::plain(command::CIRCUITS), PATIENCE)?;
        let wanted = |circuit: &CircuitInfo| match self.circuit {
            Some(number) => circuit.number == number,
            None => matches!(
                circuit.state,
                CircuitState::Active | CircuitState::Spare | CircuitState::Extra
            ),
        };
        let circuits: Vec<_> = status.circuits.into_iter().filter(wanted).collect();
        if circuits.is_empty() {
            let message = match self.circuit {
                Some(number) => {
                    format!("expected an open circuit, got {number}; list them: cepa circuits")
                }
                None => "no circuit is open; see why: cepa status".to_owned(),
            };
            let code = if self.circuit.is_some() { ExitCode::Failed } else { ExitCode::Blocked };
            return Err(Failure::new(code, message).into());
        }
        let slices = (self.duration.get().as_millis() / SLICE.as_millis()).max(1) as u64;
        let bar = progress(slices * circuits.len() as u64);
        let mut measured = Vec::new();
        for circuit in &circuits {
            match self.measure(circuit, slices, &bar) {
                Ok(one) => measured.push(one),
                // It ended meanwhile, as circuits do; the others are still worth the wait.
                Err(error) if self.circuit.is_none() && circuits.len() > 1 => {
                    bar.suspend(|| eprintln!("circuit {}: {error:#}", circuit.number));
                }
                Err(error) => return Err(error),
            }
        }
        bar.finish_and_clear();
        if self.output.json {
            return output::print_json("bench", &Answer { circuits: measured });
        }
        let columns = ["circuit", "path", "each way", "round trip", "under load", "99 %", "lost"];
        let mut table = Table::new(&columns);
        for one in &measured {
            table.row([
                format!("{} {}", one.circuit, one.state.word()),
                one.path.join(" > "),
                format!("{:.1} Mbit/s", one.throughput_mbps),
                round_trip(one.idle_rtt_ms),
                round_trip(one.loaded_rtt_ms),
                round_trip(one.loaded_rtt_p99_ms),
                format!("{:.1} %", 100.0 * one.loss),
            ]);
        }
        for line in table.lines() {
            say!("{line}");
        }
        say!("cells to the exit and back, both directions at once; see each hop with: cepa trace");
        Ok(())
    }

    fn measure(
        &self,
        circuit: &CircuitInfo,
        slices: u64,
        bar: &ProgressBar,
    ) -> anyhow::Result<Measured> {
        let number = Some(circuit.number);
        bar.set_message(format!("circuit {}", circuit.number));
        if bar.is_hidden() {
            eprintln!("measuring circuit {}", circuit.number);
        }
        let args = TraceArgs {
            circuit: number,
            count: IDLE_ECHOES,
            interval_ms: u64::try_from(IDLE_INTERVAL.as_millis()).unwrap_or(u64::MAX),
        };
        let idle: TraceAnswer = self.client.ask(&Request::with(command::TRACE, &args), MARGIN)?;
        let mut all: Vec<BenchAnswer> = Vec::new();
        for _ in 0..slices {
            let args = BenchArgs {
                circuit: number,
                millis: u64::try_from(SLICE.as_millis()).unwrap_or(u64::MAX),
                window: all.last().map_or(FIRST_WINDOW, |slice| slice.window),
            };
            let slice: BenchAnswer =
                self.client.ask(&Request::with(command::BENCH, &args), SLICE + MARGIN)?;
            all.push(slice);
            bar.inc(1);
        }
        Ok(sum(circuit, idle.hops.last().and_then(|hop| hop.rtt_ms), &all))
    }
}

fn sum(circuit: &CircuitInfo, idle_rtt_ms: Option<f64>, slices: &[BenchAnswer]) -> Measured {
    let seconds: f64 = slices.iter().map(|slice| slice.seconds).sum();
    let received: u64 = slices.iter().map(|slice| slice.received).sum();
    let sent: u64 = slices.iter().map(|slice| slice.sent).sum();
    let lost: u64 = slices.iter().map(|slice| slice.lost).sum();
    let cells_per_second = received as f64 / seconds.max(1e-9);
    let middle = |pick: fn(&BenchAnswer) -> Option<f64>| {
        let mut values: Vec<f64> = slices.iter().filter_map(pick).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Measured {
        circuit: circuit.number,
        state: circuit.state,
        path: circuit.hops.iter().map(|hop| hop.name.clone()).collect(),
        throughput_mbps: cells_per_second * STREAM_LEN as f64 * 8.0 / 1e6,
        cells_per_second,
        idle_rtt_ms,
        loaded_rtt_ms: middle(|slice| slice.rtt_median_ms),
        loaded_rtt_p99_ms: middle(|slice| slice.rtt_p99_ms),
        loss: lost as f64 / sent.max(1) as f64,
        seconds,
    }
}

/// A bar on a terminal; elsewhere it is hidden, and lines tell.
fn progress(steps: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}");
    let bar = ProgressBar::new(steps);
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_add_up() {
        let slice = |received, lost, rtt| BenchAnswer {
            sent: received + lost,
            received,
            lost,
            seconds: 0.5,
            rtt_median_ms: Some(rtt),
            ..BenchAnswer::default()
        };
        let circuit = CircuitInfo { number: 3, ..CircuitInfo::default() };
        let slices = [slice(100, 0, 1.0), slice(300, 100, 3.0), slice(200, 0, 2.0)];
        let sum = sum(&circuit, Some(0.5), &slices);
        assert!((sum.cells_per_second - 400.0).abs() < 1e-9);
        assert!((sum.throughput_mbps - 400.0 * 1300.0 * 8.0 / 1e6).abs() < 1e-9);
        assert!((sum.loss - 1.0 / 7.0).abs() < 1e-9);
        assert_eq!((sum.loaded_rtt_ms, sum.loaded_rtt_p99_ms), (Some(2.0), None));
    }
}
