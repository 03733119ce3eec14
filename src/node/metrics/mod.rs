//! What the daemons of this layer tell Prometheus.
//!
//! In: their status. Out: metrics at `/metrics`. Called by: the services.

mod client;
mod node;
mod tracker;

use tokio::{net::TcpListener, task::JoinSet};

pub(super) use self::{
    client::{BuildTimes, follow},
    node::page as node_page,
    tracker::page as tracker_page,
};
use super::NodeError;
use crate::telemetry::metrics;

/// Names of metrics begin so.
const PREFIX: &str = "cepa";

/// Opens the port of the settings and answers scrapes there with `page`, as one of `tasks`.
pub(super) async fn start<F>(
    tasks: &mut JoinSet<()>,
    addr: Option<std::net::SocketAddr>,
    page: impl Fn() -> F + Clone + Send + Sync + 'static,
) -> Result<(), NodeError>
where
    F: Future<Output = Option<String>> + Send + 'static,
{
    let Some(addr) = addr else { return Ok(()) };
    let listener: TcpListener =
        metrics::bind(addr).await.map_err(|source| NodeError::Metrics { addr, source })?;
    tasks.spawn(metrics::serve(listener, page));
    Ok(())
}
