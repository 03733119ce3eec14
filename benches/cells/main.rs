//! What one cell costs at each place, without system calls; and what a handshake costs.
//!
//! ```text
//! cargo bench --bench cells                     all, beside benches/cells/baseline.json
//! cargo bench --bench cells -- forward          those with this word in their name
//! cargo bench --bench cells -- --instructions   counted by callgrind, too
//! cargo bench --bench cells -- --save           the baseline anew
//! ```
//! Nanoseconds depend on the machine and its mood, instructions on the program alone. Callgrind's
//! processor has AES but not AVX-512, so it counts another way through the library than is timed.

#![expect(clippy::print_stdout, reason = "a bench prints its results")]

mod operations;

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use operations::{OPERATIONS, Operation};
use serde::{Deserialize, Serialize};

/// How long each operation is measured.
const TIME: Duration = Duration::from_millis(400);
const BASELINE: &str = "benches/cells/baseline.json";

/// The committed figures.
#[derive(Default, Serialize, Deserialize)]
struct Baseline {
    processor: String,
    ns: BTreeMap<String, f64>,
    instructions: BTreeMap<String, f64>,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [flag, name, runs] = &words[..]
        && matches!(&flag[..], "--run" | "--prepare")
    {
        let (_, make) = OPERATIONS.iter().find(|(known, _)| known == name).expect("a known name");
        let mut operation = make();
        for _ in 0..runs.parse().expect("a count") {
            operation.prepare();
            if flag == "--run" {
                operation.run();
            }
        }
        return;
    }
    let has = |flag: &str| words.iter().any(|word| word == flag);
    let filter = words.iter().find(|word| !word.starts_with("--"));
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(BASELINE);
    let mut baseline: Baseline = std::fs::read(&file)
        .ok()
        .map(|bytes| serde_json::from_slice(&bytes).expect("a baseline"))
        .unwrap_or_default();
    println!("baseline: {}; here: {}", baseline.processor, processor());
    println!("{:<46}{:>12}{:>10}{:>16}{:>10}", "", "ns", "change", "instructions", "change");
    let mut found = Baseline { processor: processor(), ..Baseline::default() };
    for (name, make) in OPERATIONS {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        let ns = measure(make().as_mut());
        found.ns.insert(name.to_owned(), ns);
        let instructions = (has("--instructions") || has("--save"))
            .then(|| count_instructions(name, make().count()))
            .flatten();
        if let Some(count) = instructions {
            found.instructions.insert(name.to_owned(), count);
        }
        println!(
            "{name:<46}{ns:>12.1}{:>10}{:>16}{:>10}",
            change(Some(ns), baseline.ns.get(name)),
            instructions.map_or("-".to_owned(), |count| format!("{count:.0}")),
            change(instructions, baseline.instructions.get(name))
        );
    }
    if has("--save") {
        baseline.processor = found.processor;
        baseline.ns.extend(found.ns);
        baseline.instructions.extend(found.instructions);
        let text = serde_json::to_string_pretty(&baseline).expect("numbers");
        std::fs::write(&file, text + "\n").expect("a file that can be written");
    }
}

fn change(now: Option<f64>, before: Option<&f64>) -> String {
    match (now, before) {
        (Some(now), Some(before)) => format!("{:+.1} %", (now / before - 1.0) * 100.0),
        _ => "-".to_owned(),
    }
}

/// Nanoseconds each time; the median of all samples.
fn measure(operation: &mut dyn Operation) -> f64 {
    let started = Instant::now();
    let mut samples = Vec::new();
    while started.elapsed() < TIME || samples.len() < 10 {
        operation.prepare();
        let at = Instant::now();
        operation.run();
        samples.push(at.elapsed().as_nanos() as f64 / operation.count() as f64);
    }
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Instructions each time, counted while `run` runs; none without valgrind, for tables that take
/// minutes to fill there, and for several threads, which also count while they wait.
fn count_instructions(name: &str, count: usize) -> Option<f64> {
    const RUNS: usize = 2;
    if name.contains("of 100000") || name.contains("threads") {
        return None;
    }
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*Operation>::run")
        .arg(std::env::current_exe().ok()?)
        .args(["--run", name, &RUNS.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = text.lines().find(|line| line.contains("Collected"))?;
    let collected: f64 = line.rsplit(' ').next()?.parse().ok()?;
    Some(collected / (RUNS * count) as f64)
}

fn processor() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .unwrap_or_default()
        .lines()
        .find(|line| line.starts_with("model name") || line.starts_with("Model"))
        .and_then(|line| line.split_once(':'))
        .map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}
