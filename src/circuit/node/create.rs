//! CREATE at a node: what is checked before the RSA operation, cheapest first.
//!
//! In: a cell on an unknown circuit id. Out: a handshake job, a cookie, or a reason to drop.
//! Called by: the node's circuits.

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::{
    keys::{mac1, seal_cookie},
    model::CID_LEN,
    wire::Answer,
};
use subtle::ConstantTimeEq;

impl NodeCircuits {
    pub(super) fn handle_create(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cid: Cid,
        cell: &[u8; CELL_LEN],
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let prefix =
            CreatePrefix::parse(&cell[CID_LEN..]).map_err(|_| DropReason::UnknownCircuit)?;
        if !bool::from(mac1(&self.id, prefix.before_mac1()).ct_eq(&prefix.mac1())) {
            return Err(DropReason::BadCreate);
        }
        let create = *blake3::hash(prefix.as_bytes()).as_bytes();
        if let Some(computing) = self.computing.get(&cid) {
            // The same again while it is being computed is the client's retransmission.
            return if computing.create == create { Ok(()) } else { Err(DropReason::BadCreate) };
        }
        let repeated = |refusal: &&Refusal| refusal.cid == cid && refusal.create == create;
        if let Some(refusal) = self.refusals.iter().find(repeated) {
            let answer = refusal.answer;
            self.send(from, cid, &answer, rng);
            return Ok(());
        }
        let age = self
            .onion_keys
            .iter()
            .position(|id| *id == prefix.onion_key_id())
            .ok_or(DropReason::UnknownOnionKey)?;
        let source = source_bytes(from);
        if self.computing.len() >= self.limits.max_handshakes / 4
            && !self.jar.proves(now, &source, prefix.before_mac2(), &prefix.mac2())
        {
            self.send_cookie(now, from, cid, &prefix, &source, rng);
            return Err(DropReason::CreateOverload);
        }
        if !self.rate.allows(now, from.ip()) {
            return Err(DropReason::RateLimited);
        }
        if self.computing.len() >= self.limits.max_handshakes {
            return Err(DropReason::CreateOverload);
        }
        let seen = &mut self.ephemerals[age.min(1)];
        let ephemeral = Ephemerals::of(&prefix.ephemeral());
        if seen.contains(&ephemeral) {
            return Err(DropReason::ReplayedCreate);
        }
        seen.insert(ephemeral, self.limits.max_ephemerals);
        let full = self.rows.len() + self.computing.len() >= self.limits.max_circuits;
        let status =
            if full { Status::Refused(DestroyReason::ResourceLimit) } else { Status::Open };
        self.computing.insert(cid, Computing { create, ephemeral });
        self.events.push_back(NodeEvent::Handshake(HandshakeJob { from, cid, prefix, status }));
        Ok(())
    }

    /// The client's CREATE came again after the circuit was opened: its answer was lost.
    pub fn handle_repeated_create(
        &mut self,
        key: CircuitKey,
        from: SocketAddr,
        cid: Cid,
        rng: &mut impl Rng,
    ) {
        if let Some(created) = self.rows.get(key).map(|row| row.created) {
            self.send(from, cid, &created, rng);
        }
    }

    fn send_cookie(
        &mut self,
        now: Instant,
        from: SocketAddr,
        cid: Cid,
        prefix: &CreatePrefix,
        source: &[u8],
        rng: &mut impl Rng,
    ) {
        let cookie = self.jar.cookie(now, source, rng);
        let mut salt = [0u8; 32];
        rng.fill_bytes(&mut salt);
        let sealed_cookie = seal_cookie(&self.id, &salt, &prefix.mac1(), &cookie);
        let mut answer = [0u8; ANSWER_LEN];
        rng.fill_bytes(&mut answer);
        Answer::Cookie { salt, sealed_cookie }.emit(&mut answer);
        self.send(from, cid, &answer, rng);
    }
}

fn source_bytes(from: SocketAddr) -> Vec<u8> {
    let mut bytes = match from.ip() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    bytes.extend_from_slice(&from.port().to_be_bytes());
    bytes
}
