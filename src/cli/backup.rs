//! `cepa backup` and `cepa restore`: the state of one role into a file, and back.
//!
//! In: a role, a file. Out: the file, or the state directory. Called by: the command line.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::Serialize;

use super::{
    ExitCode, Failure, archive,
    daemon::{Role, RoleFlags},
    output::{self, OutputFlags, say},
    table::{bytes, count},
};
use crate::telemetry::control::StateLock;

/// Arguments of `cepa backup`.
#[derive(clap::Args)]
pub(super) struct BackupArgs {
    /// The file to write; it holds private keys
    file: PathBuf,
    #[command(flatten)]
    role: RoleFlags,
    #[command(flatten)]
    output: OutputFlags,
}

/// Arguments of `cepa restore`.
#[derive(clap::Args)]
pub(super) struct RestoreArgs {
    /// The file that `cepa backup` wrote
    file: PathBuf,
    /// Put the state that is there aside, under another name
    #[arg(long)]
    replace: bool,
    /// Only check the file
    #[arg(long)]
    check: bool,
    /// The state directory [default: that of the role the backup is of]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(Serialize)]
struct Answer<'a> {
    role: &'a str,
    state: Option<&'a Path>,
    file: &'a Path,
    files: usize,
    bytes: u64,
    /// Where the state went that was there before.
    aside: Option<&'a Path>,
}

impl BackupArgs {
    pub(super) fn run(self) -> Result<()> {
        let (role, state) = self.role.find()?;
        let _lock = hold(role, &state)?;
        let manifest = archive::write(role.name(), &state, &self.file)?;
        let (files, len) = (manifest.files.len(), manifest.bytes());
        if self.output.json {
            let answer = Answer {
                role: role.name(),
                state: Some(&state),
                file: &self.file,
                files,
                bytes: len,
                aside: None,
            };
            return output::print_json("backup", &answer);
        }
        say!(
            "{}: the {}'s state, {} with {}, written and checked",
            self.file.display(),
            role.name(),
            count(files, "file"),
            bytes(len)
        );
        say!("it holds private keys: keep it where nobody else reads it");
        Ok(())
    }
}

impl RestoreArgs {
    pub(super) fn run(self) -> Result<()> {
        let manifest = archive::read(&self.file, None)?;
        let role: Role = manifest.role.parse().map_err(anyhow::Error::msg)?;
        let (files, len) = (manifest.files.len(), manifest.bytes());
        let answer = |state, aside| Answer {
            role: role.name(),
            state,
            file: &self.file,
            files,
            bytes: len,
            aside,
        };
        let what = format!(
            "the state of a {} of {}, {} with {}",
            role.name(),
            manifest.created.strftime("%Y-%m-%d %H:%M UTC"),
            count(files, "file"),
            bytes(len)
        );
        if self.check {
            if self.output.json {
                return output::print_json("restore", &answer(None, None));
            }
            say!("{}: whole; {what}", self.file.display());
            return Ok(());
        }
        let state = match &self.state {
            Some(state) => state.clone(),
            None => role.state()?,
        };
        let aside = self.put_in_place(role, &state)?;
        if self.output.json {
            return output::print_json("restore", &answer(Some(&state), aside.as_deref()));
        }
        say!("{}: {what}", state.display());
        if let Some(aside) = &aside {
            say!("what was there is in {}; remove it when all is well", aside.display());
        }
        say!(
            "start the {} again; if it runs as another user, give the files to that user:",
            role.name()
        );
        say!("  chown -R USER: {}", state.display());
        Ok(())
    }

    /// Unpacks beside the state directory, then renames: there is a whole state at any moment.
    fn put_in_place(&self, role: Role, state: &Path) -> Result<Option<PathBuf>> {
        let there = fs::read_dir(state).is_ok_and(|entries| entries.count() > 0);
        let lock = if there { Some(hold(role, state)?) } else { None };
        if there && !self.replace {
            let message = format!(
                "expected no state in {}, got some; put it aside with --replace, or name another \
                 directory with --state",
                state.display()
            );
            return Err(Failure::new(ExitCode::Failed, message).into());
        }
        let now = Timestamp::now().as_second();
        let beside = |word: &str| {
            let name = state.file_name().unwrap_or_default().to_string_lossy().into_owned();
            state.with_file_name(format!("{name}.{word}-{now}"))
        };
        let fresh = beside("restoring");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&fresh)
            .with_context(|| format!("making {}", fresh.display()))?;
        let moved = archive::read(&self.file, Some(&fresh)).and_then(|_| {
            let aside = there.then(|| beside("before"));
            if let Some(aside) = &aside {
                fs::rename(state, aside).context("putting the present state aside")?;
            } else {
                // An empty directory may stand there.
                let _ = fs::remove_dir(state);
            }
            fs::rename(&fresh, state).context("putting the state in its place")?;
            Ok(aside)
        });
        if moved.is_err() {
            let _ = fs::remove_dir_all(&fresh);
        }
        drop(lock);
        moved
    }
}

/// Takes a state directory that no daemon may be using.
fn hold(role: Role, state: &Path) -> Result<StateLock> {
    use crate::telemetry::control::ControlError;
    StateLock::take(state).map_err(|error| match error {
        ControlError::AlreadyRuns { dir } => Failure::new(
            ExitCode::Failed,
            format!(
                "{}: a {role} runs on this state; stop it first: systemctl stop cepa-{role}",
                dir.display(),
                role = role.name()
            ),
        )
        .into(),
        ControlError::System { path, source, .. }
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            Failure::new(
                ExitCode::Failed,
                format!(
                    "expected the state of a {} in {}, got none; name it with --state, or the \
                     role with --role",
                    role.name(),
                    path.display()
                ),
            )
            .into()
        }
        other => other.into(),
    })
}
