//! The reliable, sealed transport of two peers: QUIC over the datagrams of a bridge.
//!
//! In: a bridge, the secrets of its session. Out: a quinn connection.
//! Called by: peer_run (upload, source).

mod crypto;
mod socket;

use std::{io, sync::Arc, time::Duration};

use quinn::{
    AckFrequencyConfig, ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use quinn_proto::congestion::CubicConfig;

pub use self::socket::{BRIDGE_MTU, Datagrams};
use self::{
    crypto::{AgreedCrypto, LocalKey},
    socket::{BridgeUdp, OTHER_SIDE},
};
use crate::peer::agreement::SessionSecrets;

/// What a source may send ahead of what was read: 80 MB/s at a round trip of 200 ms.
const WINDOW: u32 = 16 << 20;
/// How long two peers have for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(8);
/// A connection without a packet for so long is gone; pings come more often.
const IDLE_MS: u32 = 12_000;
const PING: Duration = Duration::from_secs(3);

/// Why two peers are not connected.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The runtime or the bridge refuses.
    #[error("bridge: {0}")]
    Bridge(#[from] io::Error),
    /// The connection cannot begin.
    #[error("connecting: {0}")]
    Connect(#[from] quinn::ConnectError),
    /// The other peer does not answer, or holds other secrets.
    #[error("the other peer does not answer: {0}")]
    Handshake(#[from] quinn::ConnectionError),
    /// The other peer does not answer in time.
    #[error("the other peer does not answer within {} s", HANDSHAKE.as_secs())]
    Silent,
}

fn transport() -> Arc<TransportConfig> {
    let mut acks = AckFrequencyConfig::default();
    // Every acknowledgement is a whole cell: one for about 25 packets, or after 5 ms.
    acks.ack_eliciting_threshold(VarInt::from_u32(24))
        .max_ack_delay(Some(Duration::from_millis(5)));
    let mut cubic = CubicConfig::default();
    cubic.initial_window(64 * u64::from(BRIDGE_MTU));
    let mut config = TransportConfig::default();
    config
        .initial_mtu(BRIDGE_MTU)
        .min_mtu(1200)
        .mtu_discovery_config(None)
        .stream_receive_window(VarInt::from_u32(WINDOW))
        .receive_window(VarInt::from_u32(2 * WINDOW))
        .send_window(u64::from(WINDOW))
        .send_fairness(false)
        .packet_threshold(24)
        .initial_rtt(Duration::from_millis(100))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(1))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_MS).into()))
        .keep_alive_interval(Some(PING))
        .datagram_receive_buffer_size(None)
        .allow_spin(false)
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(cubic));
    Arc::new(config)
}

fn endpoint(
    server: Option<ServerConfig>,
    bridge: Arc<dyn Datagrams>,
) -> Result<Endpoint, QuicError> {
    let mut config = EndpointConfig::new(Arc::new(LocalKey(rand::random())));
    config
        .max_udp_payload_size(BRIDGE_MTU)
        .unwrap_or_else(|_| unreachable!("{BRIDGE_MTU} is more than QUIC's least"));
    let socket = Arc::new(BridgeUdp(bridge));
    Ok(Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime))?)
}

/// Connects as the downloader.
///
/// # Errors
/// If the uploader does not answer in time or holds other secrets.
pub async fn connect(
    bridge: Arc<dyn Datagrams>,
    secrets: SessionSecrets,
) -> Result<Connection, QuicError> {
    let endpoint = endpoint(None, bridge)?;
    let mut config = ClientConfig::new(AgreedCrypto::new(secrets));
    config.transport_config(transport());
    let connecting = endpoint.connect_with(config, OTHER_SIDE, "peer")?;
    Ok(tokio::time::timeout(HANDSHAKE, connecting).await.map_err(|_| QuicError::Silent)??)
}

/// Waits for the downloader.
///
/// # Errors
/// If it does not come in time or holds other secrets.
pub async fn accept(
    bridge: Arc<dyn Datagrams>,
    secrets: SessionSecrets,
) -> Result<Connection, QuicError> {
    let mut config =
        ServerConfig::new(AgreedCrypto::new(secrets), Arc::new(LocalKey(rand::random())));
    config.transport_config(transport()).migration(false).max_incoming(4);
    let endpoint = endpoint(Some(config), bridge)?;
    let accepting = async {
        let incoming = endpoint.accept().await.ok_or(QuicError::Silent)?;
        // One session, one connection: later first packets are somebody's replay.
        endpoint.set_server_config(None);
        Ok(incoming.accept()?.await?)
    };
    tokio::time::timeout(HANDSHAKE, accepting).await.map_err(|_| QuicError::Silent)?
}
