//! `cepa completions SHELL`: prints a completion script.
//!
//! In: the name of a shell. Out: a script on standard output. Called by: the command line.

use super::output;

/// Arguments of `cepa completions`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::command(), "cepa", &mut script);
        output::print(format_args!("{}", String::from_utf8(script)?));
        Ok(())
    }
}
