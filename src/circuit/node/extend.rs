//! EXTEND at a node: the last hop carries a CREATE to the next node and its answer back.
//!
//! In: control bodies of the client; answers of the next node. Out: cells, link keys, answers.
//! Called by: the node's circuits.

use super::*;
use crate::{
    model::CID_LEN,
    wire::{Answer, ControlFragment, ControlType, ExtendValue},
};

impl NodeCircuits {
    /// A control body of the client. `member` finds the address of a member of the directory by
    /// node id or `ip:port`.
    ///
    /// # Errors
    /// The reason to drop and count it, when it makes no sense.
    pub fn handle_control(
        &mut self,
        now: Instant,
        key: CircuitKey,
        body: &[u8; BODY_LEN],
        member: impl Fn(&str) -> Option<SocketAddr>,
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let fragment = ControlFragment::parse(body).map_err(|_| DropReason::BadControl)?;
        if fragment.kind != ControlType::Extend || fragment.count != 1 {
            return Err(DropReason::BadControl);
        }
        let request = fragment.request;
        let row = self.rows.get(key).ok_or(DropReason::UnknownCircuit)?;
        if let Some((answered, kind, value)) = &row.answered
            && *answered == request
        {
            let (kind, value) = (*kind, value.clone());
            self.answer(key, request, kind, &value);
            return Ok(());
        }
        match &row.link {
            Link::Awaiting { request: pending, cid, addr, prefix, .. } if *pending == request => {
                let (cid, addr, prefix) = (*cid, *addr, prefix.clone());
                self.send(addr, cid, prefix.as_slice(), rng);
                return Ok(());
            }
            Link::None => {}
            _ => return Err(DropReason::BadControl),
        }
        let value = ExtendValue::parse(fragment.value).map_err(|_| DropReason::BadControl)?;
        if CreatePrefix::parse(value.relay.as_slice()).is_err() {
            return Err(DropReason::BadControl);
        }
        let Some(addr) = member(&value.to) else {
            self.fail_extend(key, request, DestroyReason::NotAMember);
            return Ok(());
        };
        let cid = Cid::random(rng);
        let pair = Box::new(PairKeys::derive(value.link_suite, &value.pair));
        self.send(addr, cid, value.relay.as_slice(), rng);
        self.awaiting.insert(cid, key);
        if let Some(row) = self.rows.get_mut(key) {
            row.link = Link::Awaiting { request, cid, addr, prefix: value.relay, pair, since: now };
        }
        Ok(())
    }

    /// The next node answered a CREATE.
    pub(super) fn handle_answer(
        &mut self,
        key: CircuitKey,
        cell: &[u8; CELL_LEN],
    ) -> Result<(), DropReason> {
        let bytes: &[u8; ANSWER_LEN] =
            cell[CID_LEN..].first_chunk().ok_or(DropReason::BadControl)?;
        let answer = Answer::parse(bytes).map_err(|_| DropReason::BadControl)?;
        let row = self.rows.get_mut(key).ok_or(DropReason::UnknownCircuit)?;
        let Link::Awaiting { request, cid, addr, pair, .. } = &row.link else {
            return Err(DropReason::UnknownCircuit);
        };
        let (request, cid, addr) = (*request, *cid, *addr);
        match answer {
            Answer::Created { mac, .. } => {
                if !pair.proves_created(Answer::before_mac(bytes), &mac) {
                    return Err(DropReason::BadTag);
                }
                let pair = pair.clone();
                row.link = Link::Linked;
                self.events.push_back(NodeEvent::Extend { key, addr, cid, pair });
            }
            // The client comes again with proof, under a request and an id of their own.
            Answer::Cookie { .. } => row.link = Link::None,
        }
        self.awaiting.remove(&cid);
        self.answer(key, request, ControlType::Extended, bytes);
        Ok(())
    }

    /// Tells the client that the circuit was not extended.
    pub(super) fn fail_extend(&mut self, key: CircuitKey, request: u32, reason: DestroyReason) {
        if let Some(row) = self.rows.get_mut(key) {
            if let Link::Awaiting { cid, .. } = row.link {
                self.awaiting.remove(&cid);
                row.link = Link::None;
            }
            self.answer(key, request, ControlType::ExtendFailed, &[reason as u8]);
        }
    }

    fn answer(&mut self, key: CircuitKey, request: u32, kind: ControlType, value: &[u8]) {
        let mut body = Box::new([0u8; BODY_LEN]);
        let fragment = ControlFragment { kind, request, index: 0, count: 1, value };
        if fragment.emit(&mut body).is_ok()
            && let Some(row) = self.rows.get_mut(key)
        {
            row.answered = Some((request, kind, value.into()));
            self.events.push_back(NodeEvent::Answer { key, body });
        }
    }
}
