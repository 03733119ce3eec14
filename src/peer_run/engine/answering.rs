//! What the network says: somebody asks, a bridge stands, a bridge is gone.
//!
//! In: [`NetworkEvent`]s. Out: uploads, news for downloads. Called by: engine.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Engine;
use crate::{
    peer::agreement::answer,
    peer_run::{
        network::{FileId, NetworkEvent, OpenBridge, SessionId},
        quic, upload,
        wish::Tell,
    },
};

/// Uploads at once, at most; further askers are refused and ask others.
const UPLOADS: usize = 32;
/// A session that was accepted has so long to come.
const SESSION: Duration = Duration::from_secs(30);

impl Engine {
    pub(super) fn handle_event(self: &Arc<Self>, event: NetworkEvent) {
        match event {
            NetworkEvent::Asked { session, id, key, note } => {
                self.handle_asked(session, id, &key, &note);
            }
            NetworkEvent::Opened(bridge) if bridge.answer.is_some() => {
                let told = self.state().downloads.get(&bridge.id).and_then(|d| d.told.clone());
                if let Some(told) = told {
                    // A download that is over, or full of news, has no use for it.
                    let _ = told.try_send(Tell::Opened(bridge));
                }
            }
            NetworkEvent::Opened(bridge) => self.handle_reader(bridge),
            NetworkEvent::Closed { session, is_exit_lost } => {
                let mut state = self.state();
                if let Some((upload, _)) = state.uploads.remove(&session) {
                    upload.abort();
                }
                for download in state.downloads.values() {
                    if let Some(told) = &download.told {
                        let _ = told.try_send(Tell::Closed { session, is_exit_lost });
                    }
                }
            }
        }
        self.changed();
    }

    fn handle_asked(&self, session: SessionId, id: FileId, key: &[u8; 32], note: &[u8]) {
        let mut state = self.state();
        state.accepted.retain(|_, (_, _, since)| since.elapsed() < SESSION);
        state.uploads.retain(|_, (upload, _)| !upload.is_finished());
        let room = state.uploads.len() + state.accepted.len() < UPLOADS;
        let Some(share) = state.shares.get(&id).cloned().filter(|_| room) else {
            drop(state);
            self.network.refuse(session);
            return;
        };
        let secret = share.link().secret.as_ref();
        match answer(id, secret, &self.sharer, (key, note), &mut rand::rng()) {
            Ok(answer) => {
                let now = Instant::now();
                state.accepted.insert(session, (share, answer.secrets.clone(), now));
                drop(state);
                self.network.accept(session, answer.public, answer.note.clone());
            }
            Err(error) => {
                drop(state);
                log::debug!("a request is refused: {error}");
                self.network.refuse(session);
            }
        }
    }

    fn handle_reader(self: &Arc<Self>, bridge: OpenBridge) {
        let mut state = self.state();
        let Some((share, secrets, _)) = state.accepted.remove(&bridge.session) else { return };
        let changes = self.changes.clone();
        let serving = tokio::spawn(async move {
            let served = async {
                let connection = quic::accept(bridge.datagrams, secrets)
                    .await
                    .map_err(|error| error.to_string())?;
                upload::serve(connection, share).await.map_err(|error| error.to_string())
            };
            if let Err(why) = served.await {
                log::debug!("an upload ended: {why}");
            }
            changes.send_modify(|count| *count += 1);
        });
        state.uploads.insert(bridge.session, (serving.abort_handle(), bridge.circuit));
    }
}
