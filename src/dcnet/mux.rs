//! Many connections in one pseudonym's cells, each with its own credit.
//!
//! In: bytes of local or exit connections, payloads of cells and downstream frames. Out: payloads
//! filled in fair turns, bytes for the connections. Called by: a client for its slot, the relay
//! for every slot.
//!
//! ```text
//! [Conn# 4 | Len 2 | Payload]*      Len 0 closes; Conn# 0 is padding
//! [2^31 + Conn# 4 | 4 2 | credit 4] the peer may send so many bytes more;
//!                                   credit 0: it may not send at all any more
//! ```
//!
//! A sender never exceeds the credit of a connection, so one connection that is not read holds
//! back itself and nobody else.

use std::collections::{BTreeMap, VecDeque};

use crate::dcnet::error::DcnetError;

/// Bytes of a frame before its payload.
pub const FRAME_HEADER: usize = 6;
/// Bytes a connection may send before it has to be granted more.
pub const CREDIT: usize = 64 * 1024;
/// Bytes that may wait for their turn, per connection.
pub const QUEUE: usize = 64 * 1024;
/// Connections of one pseudonym.
pub const CONNECTIONS_MAX: usize = 256;

const CREDIT_FLAG: u32 = 1 << 31;

/// What a payload brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MuxEvent {
    /// The peer opened a connection.
    Open(u32),
    /// Bytes of a connection.
    Data(u32, Vec<u8>),
    /// The peer closed its direction.
    Close(u32),
    /// The peer does not read any more: the connection is over.
    Stop(u32),
    /// More bytes may be queued for it.
    Room(u32),
}

#[derive(Debug, Default)]
struct Flow {
    queue: VecDeque<u8>,
    /// Bytes that may still be sent.
    credit: usize,
    /// Bytes the peer may still send.
    granted: usize,
    /// Consumed here and not granted again yet.
    consumed: usize,
    closing: bool,
    /// The end was sent; the other direction may still carry bytes.
    closed: bool,
    /// The peer has closed; what comes for it is ignored.
    peer_closed: bool,
    /// Nobody here reads what comes for it.
    stopped: bool,
    /// Stands in the turn queue.
    ready: bool,
}

/// The connections of one pseudonym.
#[derive(Debug, Default)]
pub struct Mux {
    flows: BTreeMap<u32, Flow>,
    turns: VecDeque<u32>,
    grants: VecDeque<(u32, u32)>,
}

impl Mux {
    /// Opens a connection from this side.
    pub fn open(&mut self, conn: u32) {
        let fresh = Flow { credit: CREDIT, granted: CREDIT, ..Flow::default() };
        self.flows.entry(conn).or_insert(fresh);
    }

    /// Whether a connection is known.
    pub fn knows(&self, conn: u32) -> bool {
        self.flows.contains_key(&conn)
    }

    /// Connections that are open.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Forgets all connections and gives their numbers.
    pub fn reset(&mut self) -> Vec<u32> {
        let numbers = self.flows.keys().copied().collect();
        *self = Self::default();
        numbers
    }

    /// Bytes that may be queued for a connection.
    pub fn room(&self, conn: u32) -> usize {
        self.flows.get(&conn).map_or(0, |flow| QUEUE.saturating_sub(flow.queue.len()))
    }

    /// Queues bytes for the peer; the caller keeps to [`Mux::room`].
    pub fn write(&mut self, conn: u32, bytes: &[u8]) {
        if let Some(flow) = self.flows.get_mut(&conn)
            && !flow.closing
        {
            flow.queue.extend(bytes);
            self.wake(conn);
        }
    }

    /// Ends this direction of a connection once its bytes are sent.
    pub fn close(&mut self, conn: u32) {
        if let Some(flow) = self.flows.get_mut(&conn) {
            flow.closing = true;
            self.wake(conn);
        }
    }

    /// Ends both directions at once: what waits is dropped, what comes is not read.
    pub fn stop(&mut self, conn: u32) {
        if let Some(flow) = self.flows.get_mut(&conn)
            && !flow.stopped
        {
            flow.stopped = true;
            if !flow.peer_closed {
                self.grants.push_back((conn, 0));
            }
            self.drop_queue(conn);
        }
    }

    fn drop_queue(&mut self, conn: u32) {
        if let Some(flow) = self.flows.get_mut(&conn) {
            flow.queue.clear();
            flow.closing = true;
            self.wake(conn);
        }
    }

    /// So many bytes of a connection were consumed here; the peer gets them granted again.
    pub fn consumed(&mut self, conn: u32, bytes: usize) {
        if let Some(flow) = self.flows.get_mut(&conn) {
            flow.consumed += bytes;
            if flow.consumed >= CREDIT / 2 && !flow.peer_closed && !flow.stopped {
                let amount = std::mem::take(&mut flow.consumed);
                flow.granted += amount;
                self.grants.push_back((conn, u32::try_from(amount).unwrap_or(u32::MAX)));
            }
        }
    }

    fn wake(&mut self, conn: u32) {
        if let Some(flow) = self.flows.get_mut(&conn) {
            let sendable = !flow.queue.is_empty() && flow.credit > 0;
            let ending = flow.queue.is_empty() && flow.closing && !flow.closed;
            if !flow.ready && (sendable || ending) {
                flow.ready = true;
                self.turns.push_back(conn);
            }
        }
    }

    /// Whether there is something to send.
    pub fn has_data(&self) -> bool {
        !self.grants.is_empty() || !self.turns.is_empty()
    }

    /// Appends frames to `out` up to `limit` bytes, one turn each; gives events of freed room.
    pub fn fill(&mut self, out: &mut Vec<u8>, limit: usize, events: &mut Vec<MuxEvent>) {
        while let Some((conn, amount)) = self.grants.front().copied() {
            if out.len() + FRAME_HEADER + 4 > limit {
                return;
            }
            self.grants.pop_front();
            out.extend_from_slice(&(CREDIT_FLAG | conn).to_be_bytes());
            out.extend_from_slice(&4_u16.to_be_bytes());
            out.extend_from_slice(&amount.to_be_bytes());
        }
        while let Some(conn) = self.turns.front().copied() {
            if out.len() + FRAME_HEADER + 1 > limit {
                return;
            }
            self.turns.pop_front();
            let Some(flow) = self.flows.get_mut(&conn) else { continue };
            flow.ready = false;
            out.extend_from_slice(&conn.to_be_bytes());
            if flow.queue.is_empty() {
                out.extend_from_slice(&0_u16.to_be_bytes());
                flow.closed = true;
                if flow.peer_closed {
                    self.flows.remove(&conn);
                }
                continue;
            }
            let count = (limit - out.len() - 2).min(flow.queue.len()).min(flow.credit).min(0xffff);
            out.extend_from_slice(&u16::try_from(count).unwrap_or(0).to_be_bytes());
            out.extend(flow.queue.drain(..count));
            flow.credit -= count;
            events.push(MuxEvent::Room(conn));
            self.wake(conn);
        }
    }

    /// Reads the frames of a payload; `accept` lets unknown connections open.
    ///
    /// # Errors
    /// On frames that do not fit their payload or exceed their credit.
    pub fn handle(
        &mut self,
        mut payload: &[u8],
        accept: bool,
        events: &mut Vec<MuxEvent>,
    ) -> Result<(), DcnetError> {
        let wrong = |expected: &str, got: usize| {
            DcnetError::malformed("frame", expected.to_owned(), got.to_string())
        };
        while let Some((header, rest)) = payload.split_at_checked(FRAME_HEADER) {
            let number = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
            let len = usize::from(u16::from_be_bytes([header[4], header[5]]));
            if number == 0 {
                break;
            }
            let (body, rest) =
                rest.split_at_checked(len).ok_or_else(|| wrong("a length within the cell", len))?;
            payload = rest;
            let conn = number & !CREDIT_FLAG;
            if number & CREDIT_FLAG != 0 {
                let amount: [u8; 4] =
                    body.try_into().map_err(|_| wrong("4 bytes of credit", len))?;
                if amount == [0; 4] && self.knows(conn) {
                    self.drop_queue(conn);
                    events.push(MuxEvent::Stop(conn));
                } else if let Some(flow) = self.flows.get_mut(&conn) {
                    let amount = usize::try_from(u32::from_be_bytes(amount)).unwrap_or(0);
                    flow.credit = flow.credit.saturating_add(amount).min(CREDIT);
                    self.wake(conn);
                }
                continue;
            }
            self.handle_data(conn, body, accept, events)?;
        }
        Ok(())
    }

    fn handle_data(
        &mut self,
        conn: u32,
        body: &[u8],
        accept: bool,
        events: &mut Vec<MuxEvent>,
    ) -> Result<(), DcnetError> {
        if !self.knows(conn) {
            if !accept || body.is_empty() {
                return Ok(());
            }
            if self.flows.len() >= CONNECTIONS_MAX {
                log::warn!("a pseudonym wants more than {CONNECTIONS_MAX} connections; refused");
                return Ok(());
            }
            self.open(conn);
            events.push(MuxEvent::Open(conn));
        }
        let Some(flow) = self.flows.get_mut(&conn) else { return Ok(()) };
        if body.is_empty() {
            flow.peer_closed = true;
            if flow.closed {
                self.flows.remove(&conn);
            }
            events.push(MuxEvent::Close(conn));
            return Ok(());
        }
        flow.granted = flow.granted.checked_sub(body.len()).ok_or_else(|| {
            DcnetError::malformed(
                "frame",
                format!("at most {} bytes of credit", flow.granted),
                body.len().to_string(),
            )
        })?;
        if !flow.stopped {
            events.push(MuxEvent::Data(conn, body.to_vec()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn carry(from: &mut Mux, to: &mut Mux, limit: usize) -> Vec<MuxEvent> {
        let (mut payload, mut events) = (Vec::new(), Vec::new());
        from.fill(&mut payload, limit, &mut Vec::new());
        payload.resize(limit, 0);
        to.handle(&payload, true, &mut events).unwrap();
        events
    }

    #[test]
    fn connections_take_turns_and_close() {
        let (mut here, mut there) = (Mux::default(), Mux::default());
        for conn in [1, 2] {
            here.open(conn);
            here.write(conn, &[u8::try_from(conn).unwrap(); 150]);
            here.close(conn);
        }
        let mut order = Vec::new();
        while here.has_data() {
            for event in carry(&mut here, &mut there, 100) {
                match event {
                    MuxEvent::Data(conn, _) => order.push(conn),
                    MuxEvent::Close(conn) => order.push(conn + 10),
                    MuxEvent::Open(_) | MuxEvent::Stop(_) | MuxEvent::Room(_) => {}
                }
            }
        }
        assert_eq!(order, [1, 2, 1, 2, 11, 2, 12]);
        assert_eq!(here.len(), 2, "the other direction is open");
        for conn in [1, 2] {
            there.write(conn, b"late");
            there.close(conn);
        }
        let events = carry(&mut there, &mut here, 100);
        assert!(events.contains(&MuxEvent::Data(1, b"late".to_vec())));
        assert!(here.is_empty() && there.is_empty());
    }

    #[test]
    fn one_that_is_not_read_stops_alone() {
        let (mut here, mut there) = (Mux::default(), Mux::default());
        here.open(1);
        here.open(2);
        let mut got = [0, 0];
        for _ in 0..1000 {
            for conn in [1, 2] {
                let room = here.room(conn).min(1000);
                here.write(conn, &vec![9; room]);
            }
            for event in carry(&mut here, &mut there, 500) {
                if let MuxEvent::Data(conn, bytes) = event {
                    got[conn as usize - 1] += bytes.len();
                    if conn == 2 {
                        there.consumed(2, bytes.len());
                    }
                }
            }
            carry(&mut there, &mut here, 500);
        }
        assert_eq!(got[0], CREDIT);
        assert!(got[1] > 4 * CREDIT);
    }

    #[test]
    fn a_stopped_connection_is_over_at_both_ends() {
        let (mut here, mut there) = (Mux::default(), Mux::default());
        here.open(1);
        here.write(1, b"get");
        assert_eq!(
            carry(&mut here, &mut there, 100),
            [MuxEvent::Open(1), MuxEvent::Data(1, b"get".to_vec())]
        );
        there.write(1, &[7; 500]);
        here.stop(1);
        assert!(carry(&mut here, &mut there, 100).contains(&MuxEvent::Stop(1)));
        assert!(carry(&mut there, &mut here, 100).iter().all(|e| !matches!(e, MuxEvent::Data(..))));
        assert!(here.is_empty() && there.is_empty());
        assert!(!here.has_data() && !there.has_data());
    }

    #[test]
    fn more_than_the_credit_is_refused() {
        let mut mux = Mux::default();
        let mut frame = [5_u32.to_be_bytes().as_slice(), &60_000_u16.to_be_bytes()].concat();
        frame.resize(FRAME_HEADER + 60_000, 1);
        mux.handle(&frame, true, &mut Vec::new()).unwrap();
        assert!(mux.handle(&frame, true, &mut Vec::new()).is_err());
    }

    proptest! {
        #[test]
        fn any_payload_is_read_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut mux = Mux::default();
            let _ = mux.handle(&payload, true, &mut Vec::new());
        }
    }
}
