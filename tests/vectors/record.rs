//! Vector files: named values in order, bytes as hex digits, long runs of one byte shortened.
//!
//! ```text
//! # a comment
//! name = 00ff a5*1312 01
//! name = "text"
//! ```

use std::{fmt::Write, fs, path::PathBuf};

/// Runs shorter than this are written out.
const SHORTEST_RUN: usize = 16;
/// Hex digits on one line.
const LINE: usize = 96;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Value {
    Bytes(Vec<u8>),
    Text(String),
}

/// What one vector file holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Record {
    about: Vec<String>,
    values: Vec<(String, Value)>,
}

impl Record {
    /// An empty record; `about` is said at the top of its file.
    pub(crate) fn new(about: &str) -> Self {
        Self { about: about.lines().map(|line| line.trim().to_owned()).collect(), values: vec![] }
    }

    pub(crate) fn bytes(&mut self, name: impl Into<String>, bytes: impl AsRef<[u8]>) {
        self.values.push((name.into(), Value::Bytes(bytes.as_ref().to_vec())));
    }

    pub(crate) fn text(&mut self, name: impl Into<String>, text: &str) {
        self.values.push((name.into(), Value::Text(text.to_owned())));
    }

    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        self.values.iter().find(|(known, _)| known == name).and_then(|(_, value)| match value {
            Value::Bytes(bytes) => Some(bytes.as_slice()),
            Value::Text(_) => None,
        })
    }

    fn parse(text: &str) -> Self {
        let mut record = Self::default();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if let Some(about) = line.strip_prefix('#') {
                record.about.push(about.trim().to_owned());
                continue;
            }
            let Some((name, value)) = line.split_once(" = ") else { continue };
            let mut value = value.to_owned();
            while let Some(more) = lines.next_if(|line| line.starts_with("  ")) {
                value.push(' ');
                value.push_str(more.trim());
            }
            let value = match value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
                Some(text) => Value::Text(text.to_owned()),
                None => Value::Bytes(parse_bytes(&value)),
            };
            record.values.push((name.to_owned(), value));
        }
        record
    }

    fn emit(&self) -> String {
        let mut text = String::new();
        for about in &self.about {
            writeln!(text, "# {about}").unwrap();
        }
        for (name, value) in &self.values {
            match value {
                Value::Text(value) => writeln!(text, "{name} = \"{value}\"").unwrap(),
                Value::Bytes(bytes) => {
                    writeln!(text, "{name} = {}", words(bytes).join("\n  ")).unwrap();
                }
            }
        }
        text
    }
}

fn parse_bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_whitespace() {
        match word.split_once('*') {
            Some((byte, count)) => {
                let byte = u8::from_str_radix(byte, 16).unwrap();
                bytes.resize(bytes.len() + count.parse::<usize>().unwrap(), byte);
            }
            None => bytes.extend(hex::decode(word).unwrap()),
        }
    }
    bytes
}

/// Bytes as words of hex digits and runs.
fn words(bytes: &[u8]) -> Vec<String> {
    let mut words = vec![];
    let mut plain = String::new();
    for run in bytes.chunk_by(|one, other| one == other) {
        if run.len() >= SHORTEST_RUN {
            words.extend(std::mem::take(&mut plain).split_off_lines());
            words.push(format!("{:02x}*{}", run[0], run.len()));
        } else {
            plain.push_str(&hex::encode(run));
        }
    }
    words.extend(plain.split_off_lines());
    words
}

trait Lines {
    fn split_off_lines(self) -> Vec<String>;
}

impl Lines for String {
    fn split_off_lines(self) -> Vec<String> {
        self.as_bytes()
            .chunks(LINE)
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect()
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/vectors/{name}.hex"))
}

/// What the committed file holds, if there is one.
pub(crate) fn committed(name: &str) -> Option<Record> {
    Some(Record::parse(&fs::read_to_string(path(name)).ok()?))
}

/// Compares the committed file with what the specification gives, and that with what the program
/// gives: all of the program's values must be there. Then the file is written again from what was
/// read, and must come out the same.
///
/// `CEPA_WRITE_VECTORS=1` writes the files instead of comparing them.
pub(crate) fn check(name: &str, specified: &Record, program: &Record) {
    for (key, value) in &program.values {
        let expected = specified.values.iter().find(|(known, _)| known == key);
        let (_, expected) = expected.unwrap_or_else(|| panic!("{name}: {key} is not specified"));
        assert!(value == expected, "{name}: the program's {key} is not the specified one");
    }
    if std::env::var_os("CEPA_WRITE_VECTORS").is_some() {
        fs::write(path(name), specified.emit()).unwrap();
    }
    let text = fs::read_to_string(path(name))
        .unwrap_or_else(|error| panic!("{}: {error}", path(name).display()));
    let read = Record::parse(&text);
    for (known, (key, value)) in read.values.iter().zip(&specified.values) {
        assert_eq!(known.0, *key, "{name}: another order of values");
        assert!(known.1 == *value, "{name}: {key} differs from the committed vector");
    }
    assert_eq!(read, *specified, "{name}");
    assert_eq!(read.emit(), text, "{name}: not in its canonical form");
}

#[test]
fn records_read_as_they_are_written() {
    let mut record = Record::new("one\n two");
    record.bytes("empty", []);
    record.bytes("run", [0u8; 40]);
    record.bytes("mixed", [&[7u8; 100][..], &[1, 2, 3], &[0; 15], &[9; 16]].concat());
    record.bytes("long", (0..=255u8).collect::<Vec<_>>());
    record.text("words", "{\"a\":1}");
    assert_eq!(Record::parse(&record.emit()), record);
}
