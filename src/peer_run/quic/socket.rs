//! A bridge as the socket that quinn wants.
//!
//! In: datagrams of a bridge. Out: an `AsyncUdpSocket`. Called by: quic.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// The largest datagram of a bridge, in bytes.
pub const BRIDGE_MTU: u16 = 1284;
/// Datagrams sent at once, at most.
const SEND_SEGMENTS: usize = 16;
/// Datagrams received at once, at most: a bridge hands over runs of up to 60,000 bytes.
const RECEIVE_SEGMENTS: usize = 48;
/// There are no addresses on a bridge; quinn wants one for each side.
pub(super) const OTHER_SIDE: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x0100, 0, 0, 0, 0, 0, 0, 1)), 1);

/// The datagrams between two peers: lossy, unordered, bounded, at most [`BRIDGE_MTU`] bytes each.
pub trait Datagrams: fmt::Debug + Send + Sync + 'static {
    /// Sends datagrams of `segment` bytes back to back; the last may be shorter.
    ///
    /// # Errors
    /// `WouldBlock` if the queue is full; anything else if the bridge is gone.
    fn try_send(&self, bytes: &[u8], segment: usize) -> io::Result<()>;

    /// Ready when [`Self::try_send`] is worth another try.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Fills `bufs`, each with datagrams of one length; notes (length, stride) of each.
    ///
    /// # Errors
    /// If the bridge is gone.
    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        strides: &mut [(usize, usize)],
    ) -> Poll<io::Result<usize>>;
}

/// Datagrams in the clothes of a UDP socket.
#[derive(Debug)]
pub(super) struct BridgeUdp(pub(super) Arc<dyn Datagrams>);

impl AsyncUdpSocket for BridgeUdp {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable(self))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        self.0.try_send(transmit.contents, segment)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut strides = [(0, 0); 64];
        let count = bufs.len().min(meta.len()).min(strides.len());
        self.0.poll_recv(cx, &mut bufs[..count], &mut strides[..count]).map_ok(|filled| {
            for (meta, (len, stride)) in meta.iter_mut().zip(&strides[..filled]) {
                *meta = RecvMeta {
                    addr: OTHER_SIDE,
                    len: *len,
                    stride: *stride,
                    ecn: None,
                    dst_ip: None,
                };
            }
            filled
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(OTHER_SIDE)
    }

    fn max_transmit_segments(&self) -> usize {
        SEND_SEGMENTS
    }

    fn max_receive_segments(&self) -> usize {
        RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct Writable(Arc<BridgeUdp>);

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.0.poll_writable(cx)
    }
}
