//! What commands print: lines for people, or one JSON object for programs.
//!
//! In: values. Out: standard output. Called by: every subcommand.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    io::{self, Write},
};

use serde::Serialize;

use super::ExitCode;

/// The flag of every command that prints an answer.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct OutputFlags {
    /// Print one JSON object, whose first field names its schema
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

/// One JSON object with its schema in front.
#[derive(Serialize)]
struct Envelope<'a, T> {
    schema: String,
    #[serde(flatten)]
    body: &'a T,
}

/// `body`, which serializes as an object, as JSON text whose first field is `"schema": "cepa.<command>/1"`.
pub(crate) fn json_text(command: &str, body: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&Envelope { schema: format!("cepa.{command}/1"), body })
}

/// The same on one line, for a stream of objects.
pub(crate) fn json_line(command: &str, body: &impl Serialize) -> serde_json::Result<String> {
    serde_json::to_string(&Envelope { schema: format!("cepa.{command}/1"), body })
}

/// Prints [`json_text`].
pub(crate) fn print_json(command: &str, body: &impl Serialize) -> anyhow::Result<()> {
    print(format_args!("{}\n", json_text(command, body)?));
    Ok(())
}

/// An error and its causes in one line. A cause that an error already quotes is not said again.
pub(super) fn words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Prints an error for a program that asked for JSON.
pub(super) fn print_error_json(code: ExitCode, error: &anyhow::Error) {
    #[derive(Serialize)]
    struct Body {
        exit_code: u8,
        error: String,
    }
    let body = Body { exit_code: code as u8, error: words(error) };
    if let Ok(text) = json_text("error", &body) {
        print(format_args!("{text}\n"));
    }
}

/// Whether the arguments ask for JSON.
pub(super) fn wants_json(mut arguments: impl Iterator<Item = OsString>) -> bool {
    arguments.any(|argument| argument == OsStr::new("--json"))
}

/// Writes to standard output. A reader that went away (`cepa nodes | head`) ends the process quietly.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    if out.write_fmt(text).and_then(|()| out.flush()).is_err() {
        std::process::exit(ExitCode::Ok as i32);
    }
}

/// Prints one line to standard output, and ends quietly if nobody reads it any more.
macro_rules! say {
    () => { $crate::cli::output::print(format_args!("\n")) };
    ($format:literal $($rest:tt)*) => {
        $crate::cli::output::print(format_args!("{}\n", format_args!($format $($rest)*)))
    };
}
pub(crate) use say;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_is_the_first_field() {
        let text = json_text("status", &serde_json::json!({"a": 1, "z": 2})).unwrap();
        assert!(text.starts_with("{\n  \"schema\": \"cepa.status/1\","), "{text}");
    }

    #[test]
    fn a_cause_is_said_once() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        let quoted = anyhow::Error::new(denied()).context("expected a key, got permission denied");
        assert_eq!(words(&quoted), "expected a key, got permission denied");
        let plain = anyhow::Error::new(denied()).context("opening the key");
        assert_eq!(words(&plain), "opening the key: permission denied");
    }

    #[test]
    fn json_is_asked_for_anywhere() {
        let arguments = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(wants_json(arguments(&["cepa", "status", "--json"]).into_iter()));
        assert!(!wants_json(arguments(&["cepa", "status"]).into_iter()));
    }
}
