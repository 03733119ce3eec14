//! `cepa rig peers`: cepa beside what a person would pick instead.
//!
//! In: which networks, how long. Out: a table, or JSON. Called by: `cepa rig`.

use std::fmt::Write;

use super::output::{self, OutputFlags};
use crate::rig::peers::{self, Comparison, Figures, PeersOptions};

/// Arguments of `cepa rig peers`.
#[derive(clap::Args)]
pub(super) struct PeersArgs {
    /// All networks alternate so often; the medians count
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
    /// How long each flow of TCP lasts, such as 5s
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    duration: String,
    /// Only these networks, comma-separated
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values = peers::NAMES, value_parser = peers::NAMES)]
    only: Vec<String>,
    #[command(flatten)]
    output: OutputFlags,
}

impl PeersArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let options = PeersOptions {
            rounds: usize::from(self.rounds),
            duration: crate::rig::link::duration(&self.duration)?,
            only: self.only,
        };
        let result = peers::compare(&options, &mut |line| eprintln!("{line}"))?;
        if self.output.json {
            output::print_json("rig-peers", &result)
        } else {
            output::print(format_args!("{}", table(&result)));
            Ok(())
        }
    }
}

/// The comparison as a table of Markdown, readable as it is.
fn table(result: &Comparison) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{} UTC, {}, {} processor(s), Linux {}; sender - {} - receiver, medians of {} round(s){}\n",
        result.date,
        result.processor,
        result.processors,
        result.kernel,
        result.path.join(" - "),
        result.rounds,
        if result.optimised { "" } else { "; built without optimisation, so this says little" }
    );
    let networks: Vec<(&str, &Figures)> = peers::NAMES
        .iter()
        .filter_map(|name| Some((*name, &result.networks.get(name)?.median)))
        .collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut head = vec![String::new()];
    head.extend(networks.iter().map(|(name, _)| (*name).to_owned()));
    let others = networks.iter().map(|(name, _)| *name).filter(|name| *name != "cepa");
    head.extend(others.clone().map(|name| format!("cepa / {name}")));
    rows.push(head);
    for field in &Figures::FIELDS {
        let mut row = vec![field.name.to_owned()];
        row.extend(
            networks.iter().map(|(_, figures)| (field.get)(figures).map_or("-".to_owned(), number)),
        );
        row.extend(others.clone().map(|name| {
            let ratio = result.ratios.get(name).and_then(|ratios| ratios.get(field.key));
            ratio.map_or("-".to_owned(), |ratio| number(*ratio))
        }));
        rows.push(row);
    }
    let mut hosts: Vec<&String> =
        networks.iter().flat_map(|(_, figures)| figures.hosts.keys()).collect();
    hosts.sort();
    hosts.dedup();
    type Cost = (&'static str, fn(&peers::Cost) -> f64);
    let costs: [Cost; 2] =
        [("CPU s per GB", |cost| cost.cpu_s_per_gb), ("MiB resident", |cost| cost.resident_mib)];
    for (what, get) in costs {
        for host in &hosts {
            let mut row = vec![format!("{what}, {host}")];
            row.extend(networks.iter().map(|(_, figures)| {
                figures.hosts.get(*host).map_or("-".to_owned(), |cost| number(get(cost)))
            }));
            row.extend(others.clone().map(|_| "-".to_owned()));
            rows.push(row);
        }
    }
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    for (line, row) in rows.iter().enumerate() {
        text.push('|');
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(text, " {cell:<width$} |")
            } else {
                write!(text, " {cell:>width$} |")
            };
        }
        text.push('\n');
        if line == 0 {
            text.push('|');
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                let _ = if column == 0 {
                    write!(text, "{dashes}-|")
                } else {
                    write!(text, "{dashes}:|")
                };
            }
            text.push('\n');
        }
    }
    text
}

/// Three digits that count.
fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else if value >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}
