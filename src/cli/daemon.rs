//! How commands find the daemon they ask.
//!
//! In: `--state`, settings. Out: the daemon's answers. Called by: status, circuits, ping, trace.

use std::{path::PathBuf, time::Duration};

use serde::de::DeserializeOwned;

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
    Ok(vec![
        client_place()?,
        place_of::<NodeConfig>(|settings| settings.state)?,
        place_of::<ControllerConfig>(|settings| settings.state)?,
    ])
}

/// The place of one role's daemon: its settings decide, as they decided for the daemon.
fn place_of<S: Settings>(state: impl Fn(S) -> PathBuf) -> anyhow::Result<Place> {
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name == "CEPA_STATE");
    let dir = state(Loader::default().variables(variables).load::<S>()?.settings);
    let own = (dir != state(S::default())).then_some(dir);
    Ok(Place::new(S::ROLE, own.as_deref()))
}
