//! The scripts install what is missing, name what they cannot, and refuse what they do not know.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of programs that stand before the system's in PATH.
struct Programs(TempDir);

impl Programs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn with(self, name: &str, script: &str) -> Self {
        let file = self.0.path().join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn run(&self, script: &str, words: &[&str]) -> Output {
        Command::new(root().join(script))
            .args(words)
            .env("PATH", format!("{}:/usr/bin:/bin", self.0.path().display()))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn what_is_there_is_not_installed() {
    let programs = Programs::new().with("apt-get", "exit 1");
    let output = programs.run("scripts/need", &["sh:dash", "cat:coreutils"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(said(&output), "");
}

#[test]
fn what_is_missing_is_installed_as_root() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let programs = Programs::new()
        .with("id", "echo 0")
        .with("apt-get", &format!("echo \"$@\" >> {}", log.display()));
    let words = ["sh:dash", "no-such-command:its-package", "nor-this:other"];
    let output = programs.run("scripts/need", &words);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(said(&output), "installing: its-package other\n");
    let calls = fs::read_to_string(&log).unwrap();
    assert_eq!(calls, "update -q\ninstall -qy --no-install-recommends its-package other\n");
}

#[test]
fn without_the_right_to_install_the_command_is_named() {
    let programs = Programs::new().with("id", "echo 1000").with("sudo", "exit 1");
    let programs = programs.with("apt-get", "exit 1");
    let output = programs.run("scripts/need", &["no-such-command:its-package"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(said(&output).contains("sudo apt-get install its-package"), "{}", said(&output));
}

#[test]
fn what_apt_says_is_shown_when_it_fails() {
    let programs = Programs::new().with("id", "echo 0");
    let programs = programs.with("apt-get", "echo no network; exit 100");
    let output = programs.run("scripts/need", &["no-such-command:its-package"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("no network"), "{}", said(&output));
}

#[test]
fn without_rust_the_way_to_it_is_named() {
    let programs = Programs::new();
    for name in ["cc", "nft", "ip"] {
        fs::write(programs.0.path().join(name), "#!/bin/sh\n").unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(programs.0.path().join(name), mode).unwrap();
    }
    if PathBuf::from("/usr/bin/cargo").exists() {
        eprintln!("SKIPPED: cargo is one of the system's programs");
        return;
    }
    let output = Command::new(root().join("scripts/run"))
        .env("PATH", format!("{}:/usr/bin:/bin", programs.0.path().display()))
        .env("HOME", "/nonexistent")
        .env_remove("CARGO_HOME")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", said(&output));
    assert!(said(&output).contains("rustup.rs"), "{}", said(&output));
}

#[test]
fn unknown_jobs_and_tiers_are_2_and_list_the_known() {
    let programs = Programs::new();
    for (script, word, needle) in [
        ("scripts/ci.sh", "fly", "fuzz-replay"),
        ("scripts/ci.sh", "", "fuzz-replay"),
        ("scripts/test", "fly", "unit integration"),
        ("scripts/flash", "fly", "scripts/flash --help"),
        ("scripts/package", "fly", "arm64, amd64"),
        ("scripts/pi-rig", "fly", "scripts/pi-rig --help"),
    ] {
        let words: &[&str] = if word.is_empty() { &[] } else { &[word] };
        let output = programs.run(script, words);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{script} {word}: {said}");
        assert!(said.contains(needle), "{script} {word}: {said}");
    }
    let output = programs.run("scripts/ci.sh", &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for job in
        ["fmt", "clippy", "doc", "layers", "test", "sim", "netns", "deny", "sim-full", "kills-full"]
    {
        assert!(said(&output).contains(job), "{job} is not in the help");
    }
}

/// What the help lists, the job list accepts: the guard in front must not forget one.
#[test]
fn every_job_of_the_help_is_accepted() {
    let script = fs::read_to_string(root().join("scripts/ci.sh")).unwrap();
    let help: Vec<&str> = script
        .lines()
        .filter_map(|line| line.strip_prefix("#   "))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(help.len() > 12, "{help:?}");
    let (guard, jobs) = script.split_once("scripts/need cc").unwrap();
    for job in help {
        let word = |text: &str| {
            text.lines().filter(|line| !line.starts_with('#')).any(|line| {
                line.trim_end_matches(" ;;").split([' ', '|', ')']).any(|word| word == job)
                    && line.contains(')')
            })
        };
        assert!(word(guard), "{job} is refused by the guard");
        assert!(word(jobs), "{job} does nothing");
    }
}

#[test]
fn every_script_is_executable_and_parses() {
    let scripts = fs::read_dir(root().join("scripts")).unwrap();
    let scripts = scripts.map(|entry| entry.unwrap().path()).chain([root().join(".ci/run")]);
    // Sourced, not run; or run by the Python of an environment of its own.
    let run = |file: &PathBuf| {
        file.is_file()
            && !file.ends_with("scripts/rust")
            && file.extension().is_none_or(|end| end != "py")
    };
    for file in scripts.filter(run) {
        let name = file.display();
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{name} is not executable");
        assert!(Command::new("sh").arg("-n").arg(&file).status().unwrap().success(), "{name}");
    }
}
