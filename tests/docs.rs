//! What the documents name is there: files they link and mention, commands, jobs, settings.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cepa::config::{ClientConfig, ControllerConfig, Key, NodeConfig, Settings};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every document of the project, and its text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for folder in [root(), root().join("docs"), root().join("docs/decisions")] {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
}

/// What stands between `open` and `close`, every time.
fn between<'a>(text: &'a str, open: &str, close: char) -> Vec<&'a str> {
    text.split(open).skip(1).filter_map(|rest| rest.split(close).next()).collect()
}

/// The words of a text that stand in backticks or code blocks: commands, files, flags.
fn code_words(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).flat_map(str::split_whitespace).collect()
}

fn check(mut wrong: Vec<String>) {
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for (path, text) in documents() {
        for target in between(&text, "](", ')') {
            let file = target.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            if !path.parent().unwrap().join(file).exists() {
                wrong.push(format!("{}: links {target}", path.display()));
            }
        }
    }
    check(wrong);
}

#[test]
fn files_that_are_mentioned_exist() {
    const FOLDERS: &[&str] = &["src/", "tests/", "docs/", "scripts/", "deploy/", "fuzz/", ".ci/"];
    let mut wrong = Vec::new();
    for (path, text) in documents() {
        for word in code_words(&text) {
            let word = word.trim_end_matches([',', '.', ';', ':', ')']);
            let is_pattern = word.contains(['<', '*', '{']);
            if FOLDERS.iter().any(|folder| word.starts_with(folder))
                && !is_pattern
                && !root().join(word).exists()
            {
                wrong.push(format!("{}: mentions {word}", path.display()));
            }
        }
    }
    check(wrong);
}

fn help(words: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_cepa")).args(words).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lines of shell in the documents that run `cepa`, without what follows a `#`.
fn command_lines(text: &str) -> Vec<Vec<String>> {
    text.split("```sh")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .flat_map(str::lines)
        .map(|line| line.split('#').next().unwrap())
        .map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter(|words| words.first().is_some_and(|word| word == "cepa"))
        .collect()
}

#[test]
fn commands_and_their_flags_exist() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, text) in documents() {
        for words in command_lines(&text) {
            seen += 1;
            let line = words.join(" ");
            // The longest run of words that is a subcommand.
            let mut command: Vec<&str> = Vec::new();
            for word in &words[1..] {
                let mut longer = command.clone();
                longer.extend([word.as_str(), "--help"]);
                if !word.chars().all(|c| c.is_ascii_lowercase()) || !help(&longer).0 {
                    break;
                }
                command.push(word);
            }
            if command.is_empty() {
                wrong.push(format!("{}: {line}: no such command", path.display()));
                continue;
            }
            command.push("--help");
            let (_, text) = help(&command);
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                let flag = flag.split('=').next().unwrap();
                if !text.split([' ', '[', '=', ',', '\n']).any(|known| known == flag) {
                    wrong.push(format!("{}: {line}: no flag {flag}", path.display()));
                }
            }
        }
    }
    assert!(seen > 0, "the documents show no command");
    check(wrong);
}

#[test]
fn variables_that_are_mentioned_are_settings() {
    let keys = [NodeConfig::KEYS, ClientConfig::KEYS, ControllerConfig::KEYS];
    let known: Vec<_> = keys.into_iter().flatten().map(Key::variable).collect();
    let mut wrong = Vec::new();
    for (path, text) in documents() {
        for rest in text.split("CEPA_").skip(1) {
            let name: String =
                rest.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
            if !name.is_empty() && !known.contains(&format!("CEPA_{name}")) {
                wrong.push(format!("{}: CEPA_{name} is no setting", path.display()));
            }
        }
    }
    check(wrong);
}

#[test]
fn every_decision_is_listed() {
    let folder = root().join("docs/decisions");
    let list = fs::read_to_string(folder.join("README.md")).unwrap();
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || list.contains(&name), "{name} is not listed");
    }
}

#[test]
fn the_jobs_that_are_mentioned_are_jobs() {
    let jobs = fs::read_to_string(root().join("scripts/ci.sh")).unwrap();
    let mut sources = documents();
    let run = root().join(".ci/run");
    sources.push((run.clone(), fs::read_to_string(&run).unwrap()));
    for (path, text) in sources {
        for job in between(&text, "scripts/ci.sh ", '\n') {
            let job = job.split([' ', '`', ',']).next().unwrap();
            let known = job == "JOB" || job.starts_with('"') || is_job(&jobs, job);
            assert!(known, "{}: {job} is no job", path.display());
        }
        if let Some(list) = between(&text, "for job in ", ';').first()
            && path == run
        {
            assert!(list.split_whitespace().all(|job| is_job(&jobs, job)), "{list}");
        }
    }
}

fn is_job(script: &str, job: &str) -> bool {
    script
        .lines()
        .filter_map(|line| line.split(')').next())
        .any(|names| names.split('|').any(|name| !job.is_empty() && name.trim() == job))
}

#[test]
fn licences_are_whole() {
    for (file, needle) in [
        ("LICENSE-MIT", "WITHOUT WARRANTY"),
        ("LICENSE-APACHE", "END OF TERMS"),
        ("LICENSE", "either"),
    ] {
        let text = fs::read_to_string(Path::new(&root()).join(file)).unwrap();
        assert!(text.contains(needle), "{file}");
    }
}
