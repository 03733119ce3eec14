//! `cepa circuits`: the client's circuits, and commands to build and end them.
//!
//! In: the client's answers. Out: a table or JSON. Called by: the command line.

use std::time::Duration;

use super::{
    daemon::{ClientFlags, PATIENCE},
    output::{self, OutputFlags, say},
    table::{Table, bytes, round_trip, seconds},
};
use crate::telemetry::{
    CircuitInfo, CircuitsStatus,
    control::{CloseArgs, Request, command},
};

/// How long building a circuit may take.
const BUILDING: Duration = Duration::from_secs(30);

/// Arguments of `cepa circuits`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    client: ClientFlags,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Build a circuit, and use it for new flows
    New,
    /// End a circuit
    Close {
        /// Its number in the list
        number: u32,
    },
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        match self.action {
            None => self.list(),
            Some(Action::New) => {
                let request = Request::plain(command::CIRCUIT_NEW);
                let circuit: CircuitInfo = self.client.ask(&request, BUILDING)?;
                if self.output.json {
                    return output::print_json("circuits.new", &circuit);
                }
                say!("circuit {}: {}", circuit.number, path(&circuit));
                Ok(())
            }
            Some(Action::Close { number }) => {
                let args = CloseArgs { number };
                let request = Request::with(command::CIRCUIT_CLOSE, &args);
                let _: serde_json::Value = self.client.ask(&request, PATIENCE)?;
                if self.output.json {
                    return output::print_json("circuits.close", &args);
                }
                say!("circuit {number} is closed");
                Ok(())
            }
        }
    }

    fn list(&self) -> anyhow::Result<()> {
        let status: CircuitsStatus =
            self.client.ask(&Request::plain(command::CIRCUITS), PATIENCE)?;
        if self.output.json {
            return output::print_json("circuits", &status);
        }
        if status.circuits.is_empty() {
            say!("no circuit is open; see: cepa status");
            return Ok(());
        }
        let columns = ["circuit", "state", "path", "round trip", "age", "flows", "up", "down"];
        let mut table = Table::new(&columns);
        for circuit in &status.circuits {
            let rtt = circuit.hops.last().and_then(|hop| hop.rtt_ms);
            table.row([
                circuit.number.to_string(),
                circuit.state.word().to_owned(),
                path(circuit),
                if rtt.is_some() { round_trip(rtt) } else { "-".to_owned() },
                seconds(circuit.age_s),
                circuit.flows.to_string(),
                bytes(circuit.bytes_up),
                bytes(circuit.bytes_down),
            ]);
        }
        for line in table.lines() {
            say!("{line}");
        }
        Ok(())
    }
}

fn path(circuit: &CircuitInfo) -> String {
    circuit.hops.iter().map(|hop| hop.name.as_str()).collect::<Vec<_>>().join(" > ")
}
