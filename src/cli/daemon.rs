//! How commands find the daemon they ask.
//!
//! In: `--state`, `--role`, settings. Out: the daemon's answers, state directories.
//! Called by: status, circuits, ping, trace, bench, keys, backup.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;

use super::{ExitCode, Failure};
use crate::{
    config::{ClientConfig, ControllerConfig, Loader, NodeConfig, Settings},
    telemetry::control::{Place, Request, ask},
};

/// How long a daemon has for an answer that needs no network.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// The flag of every command that asks a client.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ClientFlags {
    /// The client's state directory [default: that of its settings]
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
}

impl ClientFlags {
    /// Asks the client.
    pub(crate) fn ask<T: DeserializeOwned>(
        &self,
        request: &Request,
        patience: Duration,
    ) -> anyhow::Result<T> {
        let place = match &self.state {
            Some(dir) => Place::new(ClientConfig::ROLE, Some(dir)),
            None => client_place()?,
        };
        ask_place(&place, request, patience)
    }
}

/// A role with state of its own.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Node,
    Client,
    Controller,
}

impl Role {
    const ALL: [Self; 3] = [Self::Node, Self::Client, Self::Controller];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Node => NodeConfig::ROLE,
            Self::Client => ClientConfig::ROLE,
            Self::Controller => ControllerConfig::ROLE,
        }
    }

    /// Its state directory, by its settings.
    pub(crate) fn state(self) -> anyhow::Result<PathBuf> {
        match self {
            Self::Node => state_of::<NodeConfig>(|settings| settings.state),
            Self::Client => state_of::<ClientConfig>(|settings| settings.state),
            Self::Controller => state_of::<ControllerConfig>(|settings| settings.state),
        }
    }

    /// Whose state a directory holds, by a file that only this role keeps.
    fn of_dir(dir: &Path) -> Option<Self> {
        let own = [
            (Self::Node, "onion-keys.json"),
            (Self::Controller, "controller.db"),
            (Self::Client, "guard.json"),
        ];
        own.into_iter().find(|(_, file)| dir.join(file).exists()).map(|(role, _)| role)
    }
}

impl std::str::FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name);
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| format!("expected a role ({}), got {text:?}", known.join(", ")))
    }
}

/// The flags of every command about the state of one role.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct RoleFlags {
    /// Whose state [default: that of the only role with state here]
    #[arg(long, value_enum)]
    role: Option<Role>,
    /// The state directory [default: that of the role's settings]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl RoleFlags {
    /// The role and its state directory.
    pub(crate) fn find(&self) -> anyhow::Result<(Role, PathBuf)> {
        match (self.role, &self.state) {
            (Some(role), Some(state)) => Ok((role, state.clone())),
            (Some(role), None) => Ok((role, role.state()?)),
            (None, Some(state)) => {
                let role = Role::of_dir(state).ok_or_else(|| {
                    let message = format!(
                        "expected the state of a node, client or controller in {}, got none; say \
                         whose it is with --role",
                        state.display()
                    );
                    Failure::new(ExitCode::Failed, message)
                })?;
                Ok((role, state.clone()))
            }
            (None, None) => {
                let mut found = Vec::new();
                for role in Role::ALL {
                    let state = role.state()?;
                    // CEPA_STATE names the state of every role: then its files tell whose it is.
                    if state.exists() && Role::of_dir(&state).is_none_or(|owner| owner == role) {
                        found.push((role, state));
                    }
                }
                if found.len() == 1 {
                    return Ok(found.remove(0));
                }
                let message = if found.is_empty() {
                    "no role has state here; name a directory with --state".to_owned()
                } else {
                    let names: Vec<_> = found.iter().map(|(role, _)| role.name()).collect();
                    format!(
                        "expected one role with state here, got {}; choose with --role",
                        names.join(", ")
                    )
                };
                Err(Failure::new(ExitCode::Usage, message).into())
            }
        }
    }
}

/// The place of whichever daemon has this state directory.
pub(crate) fn place_in(dir: &Path) -> Place {
    Place::new(Role::of_dir(dir).map_or("daemon", Role::name), Some(dir))
}

/// Asks the daemon at `place`.
pub(crate) fn ask_place<T: DeserializeOwned>(
    place: &Place,
    request: &Request,
    patience: Duration,
) -> anyhow::Result<T> {
    Ok(serde_json::from_value(ask(place, request, patience)?)?)
}

fn client_place() -> anyhow::Result<Place> {
    place_of::<ClientConfig>(|settings| settings.state)
}

/// Where the daemons of this machine are, by their settings.
pub(crate) fn every_place() -> anyhow::Result<Vec<Place>> {
    let mut places = vec![
        client_place()?,
        place_of::<NodeConfig>(|settings| settings.state)?,
        place_of::<ControllerConfig>(|settings| settings.state)?,
    ];
    // CEPA_STATE names the state of every role; whoever runs there is asked once.
    let mut seen = Vec::new();
    places.retain(|place| {
        let is_new = !seen.contains(&place.sockets().to_vec());
        seen.push(place.sockets().to_vec());
        is_new
    });
    Ok(places)
}

/// The place of one role's daemon: its settings decide, as they decided for the daemon.
fn place_of<S: Settings>(state: impl Fn(S) -> PathBuf) -> anyhow::Result<Place> {
    let dir = state_of(&state)?;
    let own = (dir != state(S::default())).then_some(dir);
    Ok(Place::new(S::ROLE, own.as_deref()))
}

/// The state directory of one role, by its settings.
fn state_of<S: Settings>(state: impl Fn(S) -> PathBuf) -> anyhow::Result<PathBuf> {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name == "CEPA_STATE");
    Ok(state(Loader::default().variables(variables).load::<S>()?.settings))
}
