//! The package has what the program needs: units run commands that exist, every file of settings
//! is kept on upgrade, every file that is named is there.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extension: &str) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect()
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// The part of Cargo.toml that makes the package.
fn metadata() -> toml::Table {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let table: toml::Table = text.parse().unwrap();
    table["package"]["metadata"]["deb"].as_table().unwrap().clone()
}

#[test]
fn units_run_commands_that_exist() {
    let units = files("deploy/systemd", "service");
    assert!(units.len() >= 7, "{units:?}");
    for unit in units {
        let text = fs::read_to_string(&unit).unwrap();
        let starts: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("ExecStart=/usr/bin/cepa ")).collect();
        assert_eq!(starts.len(), 1, "{}", unit.display());
        let words: Vec<&str> =
            starts[0].split_whitespace().filter(|word| !word.starts_with('$')).collect();
        let output = Command::new(env!("CARGO_BIN_EXE_cepa")).args(&words).arg("--help").output();
        assert!(output.unwrap().status.success(), "{}: {words:?}", unit.display());
    }
}

#[test]
fn settings_are_kept_and_units_restarted() {
    let metadata = metadata();
    let texts = |key: &str| -> BTreeSet<String> {
        let list = metadata[key].as_array().unwrap().iter();
        list.map(|value| value.as_str().unwrap().to_owned()).collect()
    };
    let settings = files("deploy/config", "toml");
    let expected = settings.iter().map(|path| format!("/etc/cepa/{}", name(path))).collect();
    assert_eq!(texts("conf-files"), expected);

    let assets = metadata["assets"].as_array().unwrap();
    let packed = |file: &str| {
        assets.iter().any(|asset| {
            let from = asset[0].as_str().unwrap();
            from == file || from.strip_suffix("*.toml").is_some_and(|dir| file.starts_with(dir))
        })
    };
    let units = metadata["systemd-units"].as_array().unwrap();
    let managed: BTreeSet<&str> =
        units.iter().map(|unit| unit["unit-name"].as_str().unwrap()).collect();
    for unit in files("deploy/systemd", "service") {
        let unit = name(&unit);
        let managed = managed.contains(unit.trim_end_matches(".service"));
        assert!(managed || packed(&format!("deploy/systemd/{unit}")), "{unit} is not packed");
    }
    for asset in assets {
        let from = asset[0].as_str().unwrap();
        let made = from.starts_with("target/");
        assert!(made || from.contains('*') || root().join(from).exists(), "{from} is not there");
    }
}
