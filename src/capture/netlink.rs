//! Requests to the kernel over netlink, answered before the call returns.
//!
//! In: one request. Out: the kernel's answers, or its error.
//! Called by: capture::route, capture::conntrack.

use std::io;

use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    },
    packet_route::RouteNetlinkMessage,
    sys::{Socket, SocketAddr, protocols},
};

/// A connection to one family of the kernel, in the network namespace it was opened in.
pub(super) struct Netlink {
    socket: Socket,
}

impl Netlink {
    pub(super) fn route() -> io::Result<Self> {
        Self::open(protocols::NETLINK_ROUTE)
    }

    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(protocols::NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Asks for a change and waits until it is made.
    pub(super) fn change(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, NLM_F_ACK | flags).map(drop)
    }

    /// Asks for one object.
    pub(super) fn get(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(message, NLM_F_ACK)
    }

    /// Asks for all objects.
    pub(super) fn list(
        &self,
        message: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.ask(message, NLM_F_DUMP)
    }

    fn ask(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = 1;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while rest.len() >= 16 {
                let answer: NetlinkMessage<RouteNetlinkMessage> =
                    NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
                let len = (answer.header.length as usize).next_multiple_of(4);
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
                rest = rest.get(len.max(16)..).unwrap_or_default();
            }
        }
    }

    /// Sends a request whose bytes are laid out by the caller and waits for the acknowledgement.
    pub(super) fn raw(&self, kind: u16, payload: &[u8]) -> io::Result<()> {
        let len = 16 + payload.len();
        let mut bytes = Vec::with_capacity(len);
        bytes.extend((len as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(payload);
        self.socket.send(&bytes, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        // NLMSG_ERROR: a header of 16 bytes, then the negative error number, zero for success.
        let code = answer
            .get(16..20)
            .map_or(-libc::EPROTO, |code| i32::from_ne_bytes([code[0], code[1], code[2], code[3]]));
        if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
    }
}
