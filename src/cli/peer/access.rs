//! The peer that does it: the one that serves already, or one in this process.
//!
//! In: settings. Out: the same questions to either. Called by: commands, serve.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::PATIENCE;
use crate::{
    cli::{ExitCode, Failure, daemon::ask_place},
    config::{Loaded, PeerConfig, Settings},
    node::ShareSettings,
    peer::{
        transfer::TransferConfig,
        view::{CatalogueView, DownloadView, PeerView, ShareView},
    },
    peer_run::{Engine, EngineSettings, OnionNetwork, PeerError, Visibility},
    telemetry::control::{ControlError, ControlServer, Place, Refusal, RefusalKind, Request},
};

/// Reading a large file for the first time takes so long at most.
const READING: Duration = Duration::from_secs(24 * 3600);

/// What `peer_share` takes.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct ShareRequest {
    pub(super) path: PathBuf,
    pub(super) public: bool,
}

/// What `peer_get` takes.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct GetRequest {
    pub(super) what: String,
    pub(super) to: Option<PathBuf>,
    pub(super) via_code: bool,
}

/// A share and how many links and devices in it were left out.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Shared {
    #[serde(flatten)]
    pub(super) share: ShareView,
    pub(super) skipped: usize,
}

/// A peer to ask.
pub(super) enum Access {
    /// In this process, which holds the state directory.
    Own(Own),
    /// A daemon that holds it.
    Daemon(Place),
}

/// The peer of this process.
pub(super) struct Own {
    pub(super) engine: Arc<Engine>,
    network: Arc<OnionNetwork>,
}

impl Own {
    /// Takes circuits and bridges down, and tells their nodes.
    pub(super) async fn end(&self) {
        self.network.end().await;
    }
}

/// Starts a peer in this process. `resume`: unfinished downloads go on.
async fn start(
    loaded: &Loaded<PeerConfig>,
    control: ControlServer,
    resume: bool,
    downloads: PathBuf,
) -> anyhow::Result<Own> {
    let config = &loaded.settings;
    let link = loaded.required("controller", &config.controller)?;
    let (network, events) = OnionNetwork::start(ShareSettings {
        link: link.clone(),
        state: config.state.clone(),
        listen: config.listen,
        hops: config.hops,
        path: config.path.clone(),
        lab: config.lab,
        rotate_every: config.rotate_every.into(),
        tracker: config.tracker.clone(),
        suites: config.suites.clone(),
        workers: config.workers,
        carrier: config.carrier,
    })
    .await?;
    let settings = EngineSettings {
        state: config.state.clone(),
        downloads,
        transfer: TransferConfig {
            sources: config.sources.into(),
            rotate_every: config.rotate_every.into(),
        },
    };
    let handle: Arc<OnionNetwork> = Arc::clone(&network);
    let engine = Engine::start(settings, handle, events, resume)?;
    let answering = Arc::clone(&engine);
    tokio::spawn(control.serve(move |request| answer(Arc::clone(&answering), request)));
    Ok(Own { engine, network })
}

impl Access {
    /// The daemon if one holds the state directory, else a peer in this process.
    pub(super) async fn open(loaded: &Loaded<PeerConfig>) -> anyhow::Result<Self> {
        match ControlServer::bind(PeerConfig::ROLE, &loaded.settings.state) {
            Ok(control) => {
                let here = std::env::current_dir()?;
                let downloads = loaded.settings.downloads.clone().unwrap_or(here);
                Ok(Self::Own(start(loaded, control, false, downloads).await?))
            }
            Err(ControlError::AlreadyRuns { .. }) => {
                Ok(Self::Daemon(Place::new(PeerConfig::ROLE, Some(&loaded.settings.state))))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the peer, if it is of this process.
    pub(super) async fn end(&self) {
        if let Self::Own(own) = self {
            own.end().await;
        }
    }

    /// A peer in this process that serves.
    pub(super) async fn serve(loaded: &Loaded<PeerConfig>) -> anyhow::Result<Own> {
        let control = ControlServer::bind(PeerConfig::ROLE, &loaded.settings.state)?;
        let files = loaded.settings.state.join("files");
        let downloads = loaded.settings.downloads.clone().unwrap_or(files);
        start(loaded, control, true, downloads).await
    }

    async fn ask<T>(place: &Place, request: Request, patience: Duration) -> anyhow::Result<T>
    where
        T: serde::de::DeserializeOwned + Send + 'static,
    {
        let place = place.clone();
        tokio::task::spawn_blocking(move || ask_place(&place, &request, patience)).await?
    }

    pub(super) async fn view(&self) -> anyhow::Result<PeerView> {
        match self {
            Self::Own(own) => Ok(own.engine.view()),
            Self::Daemon(place) => Self::ask(place, Request::plain("peer_view"), PATIENCE).await,
        }
    }

    pub(super) async fn share(&self, request: ShareRequest) -> anyhow::Result<Shared> {
        match self {
            Self::Own(own) => Ok(share(&own.engine, request).await?),
            Self::Daemon(place) => {
                Self::ask(place, Request::with("peer_share", &request), READING).await
            }
        }
    }

    pub(super) async fn unshare(&self, id: String) -> anyhow::Result<()> {
        match self {
            Self::Own(own) => Ok(own.engine.unshare(&id)?),
            Self::Daemon(place) => {
                Self::ask(place, Request::with("peer_unshare", &id), PATIENCE).await
            }
        }
    }

    pub(super) async fn get(&self, request: GetRequest) -> anyhow::Result<String> {
        match self {
            Self::Own(own) => {
                Ok(own.engine.get(&request.what, request.to, request.via_code).await?)
            }
            Self::Daemon(place) => {
                Self::ask(place, Request::with("peer_get", &request), PATIENCE).await
            }
        }
    }

    pub(super) async fn download(&self, id: &str) -> anyhow::Result<DownloadView> {
        let found = match self {
            Self::Own(own) => own.engine.download(id),
            Self::Daemon(place) => {
                Self::ask(place, Request::with("peer_download", &id), PATIENCE).await?
            }
        };
        let gone = || Failure::new(ExitCode::Failed, "the download was removed");
        Ok(found.ok_or_else(gone)?)
    }

    pub(super) async fn catalogue(&self, filter: &str) -> anyhow::Result<Vec<CatalogueView>> {
        match self {
            Self::Own(own) => {
                wait_for_tracker(&own.engine).await;
                Ok(own.engine.catalogue(filter).await?)
            }
            Self::Daemon(place) => {
                Self::ask(place, Request::with("peer_catalogue", &filter), PATIENCE).await
            }
        }
    }
}

/// Gives circuits that are being built some time.
pub(super) async fn wait_for_tracker(engine: &Engine) {
    let is_ready = || engine.view().network == crate::peer::transfer::Stage::Ready;
    let ready = async {
        while !is_ready() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Without it, the question itself fails, and says why.
    let _ = tokio::time::timeout(Duration::from_secs(20), ready).await;
}

async fn share(engine: &Arc<Engine>, request: ShareRequest) -> Result<Shared, PeerError> {
    let visibility = if request.public { Visibility::Catalogue } else { Visibility::Link };
    let (share, skipped) = engine.share(&request.path, visibility).await?;
    Ok(Shared { share: share.view(), skipped: skipped.len() })
}

/// Answers the control socket.
async fn answer(engine: Arc<Engine>, request: Request) -> Result<serde_json::Value, Refusal> {
    let failed = |error: PeerError| Refusal::new(RefusalKind::Failed, error.to_string());
    let value = match request.command.as_str() {
        "status" | "peer_view" => serde_json::to_value(engine.view()),
        "peer_share" => {
            let shared = share(&engine, request.parse_args()?).await.map_err(failed)?;
            serde_json::to_value(shared)
        }
        "peer_unshare" => {
            engine.unshare(&request.parse_args::<String>()?).map_err(failed)?;
            serde_json::to_value(())
        }
        "peer_get" => {
            let GetRequest { what, to, via_code } = request.parse_args()?;
            serde_json::to_value(engine.get(&what, to, via_code).await.map_err(failed)?)
        }
        "peer_download" => serde_json::to_value(engine.download(&request.parse_args::<String>()?)),
        "peer_catalogue" => {
            let filter: String = request.parse_args()?;
            serde_json::to_value(engine.catalogue(&filter).await.map_err(failed)?)
        }
        _ => return Err(request.unknown("peer")),
    };
    value.map_err(|error| Refusal::new(RefusalKind::Failed, error.to_string()))
}
