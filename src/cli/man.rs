//! `cepa man DIR`: writes the man pages.
//!
//! In: a directory. Out: `cepa.1` and one page per subcommand. Called by: the command line.

use std::{fs, path::PathBuf};

use anyhow::Context;

use super::output::say;

/// Arguments of `cepa man`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Where to write the pages; made if it is not there
    dir: PathBuf,
}

impl Args {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let dir = self.dir.display();
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {dir}"))?;
        clap_mangen::generate_to(super::command(), &self.dir)
            .with_context(|| format!("cannot write the pages into {dir}"))?;
        say!("man pages are in {dir}; read them with: man {}", self.dir.join("cepa.1").display());
        Ok(())
    }
}
