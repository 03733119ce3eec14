//! `cepa keys`: the keys of a node, controller or client, and a new onion key.
//!
//! In: a state directory, or the running daemon. Out: a table or JSON; never a private key.
//! Called by: the command line.

use std::path::Path;

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use rand::{SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::{
    ExitCode, Failure,
    daemon::{PATIENCE, Role, RoleFlags, ask_place},
    output::{self, OutputFlags, say},
    table::{Table, seconds},
};
use crate::{
    directory::Guard,
    keys::{ONION_KEY_GRACE, ONION_KEY_LIFE, OnionKeys, StateDir},
    telemetry::control::{ControlError, Place, Request, StateLock, command},
};

/// Arguments of `cepa keys`.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Say which keys there are, and until when
    Show(Flags),
    /// Draw a new onion key for a node, now instead of when it is a day old
    Rotate(Flags),
}

#[derive(clap::Args)]
struct Flags {
    #[command(flatten)]
    role: RoleFlags,
    #[command(flatten)]
    output: OutputFlags,
}

/// One key.
#[derive(Serialize)]
struct Shown {
    /// What it is for.
    key: &'static str,
    /// Its public name.
    id: String,
    /// Seconds since it was drawn or chosen; none: not kept.
    age_s: Option<i64>,
    /// Seconds until it is replaced or forgotten; none: it stays.
    ends_in_s: Option<i64>,
    /// The file it is kept in.
    file: &'static str,
}

#[derive(Serialize)]
struct Answer<'a> {
    role: &'a str,
    state: &'a Path,
    keys: Vec<Shown>,
}

impl Args {
    pub(super) fn run(self) -> Result<()> {
        match self.action {
            Action::Show(flags) => {
                let (role, state) = flags.role.find()?;
                show(role, &state, flags.output)
            }
            Action::Rotate(flags) => {
                let (role, state) = flags.role.find()?;
                rotate(role, &state)?;
                show(role, &state, flags.output)
            }
        }
    }
}

fn show(role: Role, state: &Path, flags: OutputFlags) -> Result<()> {
    let keys = read(role, state)?;
    if flags.json {
        return output::print_json("keys", &Answer { role: role.name(), state, keys });
    }
    let mut table = Table::new(&["key", "id", "age", "until", "file"]);
    let time = |amount: Option<i64>| {
        amount.map_or("-".to_owned(), |amount| seconds(u64::try_from(amount).unwrap_or(0)))
    };
    for key in keys {
        let (age, ends) = (time(key.age_s), time(key.ends_in_s));
        table.row([key.key.to_owned(), key.id, age, ends, key.file.to_owned()]);
    }
    for line in table.lines() {
        say!("{line}");
    }
    Ok(())
}

fn read(role: Role, state: &Path) -> Result<Vec<Shown>> {
    let dir = StateDir::open_existing(state)?;
    let now = Timestamp::now();
    let age = |since: Timestamp| now.duration_since(since).as_secs();
    let left = |since: Timestamp, life: SignedDuration| (life.as_secs() - age(since)).max(0);
    let mut keys = Vec::new();
    if let Some(identity) = dir.existing_identity("identity.pem")? {
        let id = identity.id().to_string();
        keys.push(Shown {
            key: "identity",
            id,
            age_s: None,
            ends_in_s: None,
            file: "identity.pem",
        });
    }
    if dir.file("onion-keys.json").exists() {
        let mut rng = StdRng::from_rng(&mut rand::rng());
        let onion = OnionKeys::open(&dir, now, &mut rng)?;
        let since = onion.since();
        for (index, key) in onion.accepted(now).enumerate() {
            let current = index == 0;
            // The previous one was retired when the current one was drawn.
            let life = if current { ONION_KEY_LIFE } else { ONION_KEY_GRACE };
            keys.push(Shown {
                key: if current { "onion" } else { "onion, previous" },
                id: key.id().iter().map(|byte| format!("{byte:02x}")).collect(),
                age_s: current.then(|| age(since)),
                ends_in_s: Some(left(since, life)),
                file: "onion-keys.json",
            });
        }
    }
    if role == Role::Client
        && let Some(guard) = Guard::load(&dir)?
    {
        keys.push(Shown {
            key: "guard (pinned)",
            id: format!("{} {}", guard.name, guard.id.short()),
            age_s: Some(age(guard.chosen)),
            ends_in_s: None,
            file: "guard.json",
        });
    }
    if role == Role::Controller {
        let message = "a controller's key is shown by its link: cepa controller link; it is \
                       changed with: cepa controller key rotate";
        return Err(Failure::new(ExitCode::Usage, message).into());
    }
    if keys.is_empty() {
        let message = format!(
            "expected the keys of a {} in {}, got none; they are made at its first start",
            role.name(),
            state.display()
        );
        return Err(Failure::new(ExitCode::Failed, message).into());
    }
    Ok(keys)
}

/// The running daemon changes its key itself; without one it is changed in the file.
fn rotate(role: Role, state: &Path) -> Result<()> {
    match role {
        Role::Node => {}
        Role::Controller => {
            let message = "expected a node; a controller's key is changed with: \
                           cepa controller key rotate";
            return Err(Failure::new(ExitCode::Usage, message).into());
        }
        Role::Client => {
            let message = "expected a node, got a client: its keys are drawn anew for every \
                           circuit (cepa circuits new)";
            return Err(Failure::new(ExitCode::Usage, message).into());
        }
    }
    let place = Place::new(role.name(), Some(state));
    match ask_place::<serde_json::Value>(&place, &Request::plain(command::KEYS_ROTATE), PATIENCE) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.downcast_ref(), Some(ControlError::NoDaemon { .. })) => {
            let dir = StateDir::open_existing(state)?;
            let _lock = StateLock::take(state)?;
            let mut rng = StdRng::from_rng(&mut rand::rng());
            let now = Timestamp::now();
            OnionKeys::open(&dir, now, &mut rng)?.rotate(now, &mut rng)?;
            Ok(())
        }
        Err(error) => Err(error),
    }
}
