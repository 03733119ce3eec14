//! Dependencies point down only, and the pure folders touch no clock, socket, file or runtime.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The layer of each folder of `src/`; folders of one layer are strangers, but for `model`'s readers.
const LAYERS: &[(&str, u8)] = &[
    ("model", 0),
    ("wire", 1),
    ("keys", 1),
    ("circuit", 2),
    ("forward", 2),
    ("directory", 2),
    ("dcnet", 2),
    ("tracker", 2),
    ("peer", 2),
    ("config", 3),
    ("telemetry", 3),
    ("stack", 3),
    ("capture", 4),
    ("controller", 4),
    ("client", 4),
    ("web", 4),
    ("exit", 4),
    ("node", 5),
    ("rig", 5),
    ("dcnet_run", 5),
    ("peer_run", 6),
    ("cli", 7),
];

/// Files of L0 to L2 that may touch sockets, files and clocks.
const SHELL_FILES: &[&str] = &["net.rs", "http.rs", "store.rs"];

/// What a pure file must not name.
const IMPURE: &[&str] = &[
    "tokio::",
    "mio::",
    "std::fs",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::net::UdpSocket",
    "Instant::now",
    "SystemTime::now",
    "rand::rng(",
    "std::thread",
    "std::process",
];

fn layer(folder: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == folder).map(|(_, layer)| *layer)
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The production part of a file: what stands before its unit tests.
fn production(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or(text)
}

fn used_folders(text: &str) -> Vec<String> {
    let mut folders = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let end = group.find("};").unwrap_or(group.len());
            let mut depth = 0;
            let mut word = String::new();
            for character in group[..end].chars() {
                match character {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' if depth == 0 => word.clear(),
                    ':' if depth == 0 && !word.is_empty() => {
                        folders.push(word.trim().to_owned());
                        word.clear();
                    }
                    _ if depth == 0 => word.push(character),
                    _ => {}
                }
            }
        } else {
            folders.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    folders
}

fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    files
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(&file).unwrap();
            (file.strip_prefix(&root).unwrap().to_owned(), text)
        })
        .collect()
}

#[test]
fn every_folder_has_a_layer() {
    for (file, _) in sources() {
        let mut parts = file.components();
        let first = parts.next().unwrap().as_os_str().to_string_lossy().into_owned();
        if parts.next().is_some() {
            assert!(layer(&first).is_some(), "src/{first}/ has no layer in tests/layers.rs");
        }
    }
}

#[test]
fn arrows_point_down() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let folder = file.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let Some(own) = layer(&folder) else { continue };
        for used in used_folders(production(&text)) {
            if used == folder {
                continue;
            }
            if let Some(other) = layer(&used)
                && other >= own
            {
                wrong
                    .push(format!("{}: uses crate::{used} (L{other}) from L{own}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that point up or sideways:\n{}", wrong.join("\n"));
}

#[test]
fn pure_folders_stay_pure() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let folder = file.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let is_exempt = name == "tests.rs" || SHELL_FILES.contains(&name.as_str());
        if layer(&folder).is_none_or(|layer| layer > 2) || is_exempt {
            continue;
        }
        for (number, line) in production(&text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for needle in IMPURE {
                if line.contains(needle) {
                    wrong.push(format!("{}:{}: {needle}", file.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "impure lines in L0 to L2:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_lives_in_capture_and_one_hint() {
    for (file, text) in sources() {
        if file.starts_with("capture") || file == Path::new("model/prefetch.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            assert!(
                !code.contains("unsafe {")
                    && !code.contains("unsafe fn")
                    && !code.contains("unsafe impl"),
                "{}:{}: unsafe outside capture/ and model/prefetch.rs",
                file.display(),
                number + 1
            );
        }
    }
}
