//! The example files list every key with its default, and load as they are, with any one of their
//! settings, and with all of them.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{fs, path::Path};

use cepa::config::{
    ClientConfig, ControllerConfig, Loader, NodeConfig, PeerConfig, Settings, TrackerConfig,
};

/// The lines that are settings to uncomment: `#key = value`.
fn settings_of(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .collect()
}

fn load<S: Settings>(text: &str) -> S {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.toml");
    fs::write(&file, text).unwrap();
    let loaded = Loader::default().file(Some(file)).load();
    loaded.unwrap_or_else(|error| panic!("{error}")).settings
}

fn json<S: Settings>(settings: &S) -> serde_json::Value {
    serde_json::to_value(settings).unwrap()
}

fn check<S: Settings>() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/config")
        .join(format!("{}.toml", S::ROLE));
    let text = fs::read_to_string(&file).unwrap();
    let defaults = json(&S::default());
    assert_eq!(json(&load::<S>(&text)), defaults, "as it is, it changes something");

    let settings = settings_of(&text);
    let keys: Vec<_> =
        settings.iter().map(|line| line.split(" = ").next().unwrap().to_owned()).collect();
    let expected: Vec<_> =
        S::KEYS.iter().filter(|key| !key.planned).map(|key| key.name.to_owned()).collect();
    assert_eq!(keys, expected, "the keys of {}, in order", file.display());

    // Together: some settings need each other.
    let shown = json(&load::<S>(&settings.join("\n")));
    for key in &keys {
        let (default, value) = (&defaults[key], &shown[key]);
        let empty = default.is_null() || default.as_array().is_some_and(Vec::is_empty);
        if empty {
            assert_ne!(value, default, "{key} has no default, and shows an example");
        } else {
            assert_eq!(value, default, "{key} shows its default");
        }
    }
}

#[test]
fn tracker() {
    check::<TrackerConfig>();
}

#[test]
fn controller() {
    check::<ControllerConfig>();
}

#[test]
fn node() {
    check::<NodeConfig>();
}

#[test]
fn client() {
    check::<ClientConfig>();
}

#[test]
fn peer() {
    check::<PeerConfig>();
}
