//! Every source file opens with its purpose, what enters, what leaves and who calls it; no file
//! is named after nothing, and none grows past 500 production lines.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    path::{Path, PathBuf},
};

const LIMIT: usize = 500;
const NAMELESS: &[&str] = &["util", "utils", "helpers", "common", "misc", "manager"];

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

#[test]
fn headers_names_and_sizes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let shown = file.strip_prefix(&root).unwrap().display().to_string();
        let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
        let is_tests = stem == "tests";
        let header: String = text.lines().take_while(|line| line.starts_with("//!")).collect();
        if header.is_empty() {
            wrong.push(format!("{shown}: no //! header"));
        }
        if !is_tests && stem != "main" {
            for needed in ["In:", "Out:", "Called by:"] {
                if !header.contains(needed) {
                    wrong.push(format!("{shown}: its header lacks {needed:?}"));
                }
            }
        }
        if NAMELESS.contains(&stem.as_str()) {
            wrong.push(format!("{shown}: a file named after nothing"));
        }
        let lines = text.split("#[cfg(test)]").next().unwrap_or("").lines().count();
        if !is_tests && lines > LIMIT {
            wrong.push(format!("{shown}: {lines} production lines, at most {LIMIT}"));
        }
        if text.contains("XXX") || text.contains("FIXME") {
            wrong.push(format!("{shown}: XXX or FIXME"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
