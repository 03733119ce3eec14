//! Every parser over its committed corpus, over mutations of it, and over noise.
//!
//! `CEPA_FUZZ_ROUNDS` sets how many inputs each parser gets beyond the corpus. New findings of
//! `cargo fuzz` go into `fuzz/corpus/<parser>/`, and stay there.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../fuzz/parsers.rs"]
mod parsers;

use std::{fs, path::PathBuf};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

fn rounds() -> u64 {
    std::env::var("CEPA_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(200_000)
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder);
    let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| fs::read(file).unwrap()).collect()
}

/// One to four changes: a bit, a byte, a cut, a repeat, a splice with another input.
fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut StdRng) {
    for _ in 0..rng.random_range(1..=4) {
        let length = input.len();
        if length == 0 {
            input.extend(rng.random::<[u8; 8]>());
            continue;
        }
        let at = rng.random_range(0..length);
        match rng.random_range(0..6) {
            0 => input[at] ^= 1 << rng.random_range(0..8),
            1 => input[at] = *[0, 1, 0x7f, 0x80, 0xff].choose(rng).unwrap(),
            2 => input.truncate(at),
            3 => input.insert(at, rng.random()),
            4 => input.extend_from_within(at..),
            _ => {
                let other = others.choose(rng).unwrap();
                input.truncate(at);
                input.extend_from_slice(&other[other.len() / 2..]);
            }
        }
        input.truncate(16 << 10);
    }
}

#[test]
fn every_parser_over_corpus_mutations_and_noise() {
    for (name, parser) in parsers::ALL {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name} has no corpus");
        for input in &corpus {
            parser(input);
        }
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..rounds() {
            let mut input = if rng.random_ratio(1, 8) {
                let mut noise = vec![0; rng.random_range(0..2000)];
                rng.fill_bytes(&mut noise);
                noise
            } else {
                corpus.choose(&mut rng).unwrap().clone()
            };
            mutate(&mut input, &corpus, &mut rng);
            parser(&input);
        }
    }
}

#[test]
fn every_parser_has_a_target_and_no_corpus_is_left_over() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let names: Vec<_> = parsers::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for name in &names {
        assert!(root.join(format!("fuzz_targets/{name}.rs")).exists(), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
    for entry in fs::read_dir(root.join("corpus")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&name), "fuzz/corpus/{name} has no parser");
    }
}
