//! The stream of states that keeps the page alive (server-sent events).
//!
//! In: changes of the backend. Out: one event for each, at most some a second.
//! Called by: web (api).

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::response::{
    Sse,
    sse::{Event, KeepAlive},
};
use futures_core::Stream;
use tokio::sync::mpsc;

use super::Backend;

/// Between two states, at least.
const PACE: Duration = Duration::from_millis(250);
/// Without a change, a state comes all the same: ages and rates move on.
const STILL: Duration = Duration::from_secs(1);

/// States as they come from the task that makes them.
pub(super) struct States(mpsc::Receiver<Event>);

impl Stream for States {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|event| event.map(Ok))
    }
}

/// Streams states until the browser goes.
pub(super) fn stream(
    backend: Arc<dyn Backend>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut changes = backend.changes();
        loop {
            let Ok(event) = Event::default().json_data(backend.view()) else { return };
            if sender.send(event).await.is_err() {
                return;
            }
            tokio::time::sleep(PACE).await;
            if let Ok(Err(_)) = tokio::time::timeout(STILL, changes.changed()).await {
                return;
            }
        }
    });
    Sse::new(States(receiver)).keep_alive(KeepAlive::default())
}
