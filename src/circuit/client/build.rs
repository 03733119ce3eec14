//! Building a circuit hop by hop: CREATE to the first, EXTEND through the last for each further.
//!
//! In: a path; answers of hops. Out: cells, control bodies, keys per hop.
//! Called by: the client's circuits.

use super::*;
use crate::{
    circuit::HandshakeError,
    model::{CID_LEN, HttpPeer},
    wire::{Answer, ControlFragment, ControlType, ExtendValue},
};

const LEAST_PATIENCE: Duration = Duration::from_millis(150);
const MOST_PATIENCE: Duration = Duration::from_secs(2);
/// A hop that asks for more cookies than this does not want the circuit.
const MOST_COOKIES: u32 = 3;

/// A circuit on its way: the hop being asked to join, and what was sent to it.
pub(super) struct Building {
    /// The hop being asked, from 0; as many stand already.
    pub(super) hop: usize,
    pub(super) cid: Cid,
    pub(super) handshake: ClientHandshake,
    pub(super) request: u32,
    pub(super) attempts: u32,
    pub(super) cookies: u32,
    /// When this hop was first asked.
    pub(super) asked_at: Instant,
    pub(super) deadline: Instant,
}

impl ClientCircuits {
    /// Starts to build a circuit along `path`.
    ///
    /// # Errors
    /// When the path is empty, or the first hop's keys do not read.
    pub fn build(
        &mut self,
        now: Instant,
        path: Vec<Hop>,
        rng: &mut impl Rng,
    ) -> Result<CircuitKey, HandshakeError> {
        let first = path.first().cloned().ok_or(HandshakeError::Block)?;
        let link_suite = link_suite(self.link_suite, first.suite);
        let building = Building {
            hop: 0,
            cid: Cid::random(rng),
            handshake: ClientHandshake::start(first, link_suite, rng)?,
            request: 0,
            attempts: 1,
            cookies: 0,
            asked_at: now,
            deadline: now + self.patience(),
        };
        let cid = building.cid;
        let row = ClientCircuit {
            echoes: Echoes::new(path.len()),
            doubted: false,
            stalled: None,
            path,
            started: now,
            ready: None,
            state: State::Building(Box::new(building)),
        };
        let key = self.insert(row);
        self.by_cid.insert(cid, key);
        self.ask(key, rng);
        Ok(key)
    }

    /// A cell whose circuit id the data path does not know: the first hop's answer.
    ///
    /// # Errors
    /// The reason to drop and count it, when nothing comes of it.
    pub fn handle_unknown(
        &mut self,
        now: Instant,
        cell: &[u8; CELL_LEN],
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let cid = crate::wire::cid_of(cell);
        let key = *self.by_cid.get(&cid).ok_or(DropReason::UnknownCircuit)?;
        let answer = Answer::parse(&cell[CID_LEN..]).map_err(|_| DropReason::BadControl)?;
        if let Answer::Created { mac, .. } = &answer {
            let row = row_mut(&mut self.rows, key).ok_or(DropReason::UnknownCircuit)?;
            let State::Building(building) = &row.state else {
                return Err(DropReason::UnknownCircuit);
            };
            let bytes = cell[CID_LEN..].first_chunk().ok_or(DropReason::BadControl)?;
            if !building.handshake.pair_keys().proves_created(Answer::before_mac(bytes), mac) {
                return Err(DropReason::BadTag);
            }
        }
        self.handle_answer(now, key, &answer, rng);
        Ok(())
    }

    pub(super) fn handle_control(
        &mut self,
        now: Instant,
        key: CircuitKey,
        hop: usize,
        body: &[u8; BODY_LEN],
        rng: &mut impl Rng,
    ) -> Result<(), DropReason> {
        let fragment = ControlFragment::parse(body).map_err(|_| DropReason::BadControl)?;
        let row = row_mut(&mut self.rows, key).ok_or(DropReason::UnknownCircuit)?;
        let State::Building(building) = &row.state else {
            // The answer to a request that was asked twice, and answered before.
            return Ok(());
        };
        if building.request != fragment.request {
            return Ok(());
        }
        if building.hop == 0 || hop != building.hop - 1 || fragment.count != 1 {
            return Err(DropReason::BadControl);
        }
        let asked = building.hop;
        match fragment.kind {
            ControlType::Extended => {
                let answer = Answer::parse(fragment.value).map_err(|_| DropReason::BadControl)?;
                self.handle_answer(now, key, &answer, rng);
            }
            ControlType::ExtendFailed => {
                let reason = fragment.value.first().copied().unwrap_or_default();
                let reason = DestroyReason::from_wire(reason);
                self.end(key, CloseReason::Refused { hop: asked, reason }, true);
            }
            _ => return Err(DropReason::BadControl),
        }
        Ok(())
    }

    /// Asks the same again, with a fresh counter; gives up after the last attempt.
    pub(super) fn retransmit(&mut self, now: Instant, key: CircuitKey, rng: &mut impl Rng) {
        let patience = self.patience();
        let Some(row) = row_mut(&mut self.rows, key) else { return };
        let State::Building(building) = &mut row.state else { return };
        if now < building.deadline {
            return;
        }
        if building.attempts >= self.timers.attempts {
            let hop = building.hop;
            return self.end(key, CloseReason::NoAnswer { hop }, true);
        }
        let wait = patience * 2u32.pow(building.attempts.min(6));
        building.deadline = now + wait.min(MOST_PATIENCE);
        building.attempts += 1;
        self.ask(key, rng);
    }

    fn handle_answer(
        &mut self,
        now: Instant,
        key: CircuitKey,
        answer: &Answer,
        rng: &mut impl Rng,
    ) {
        let patience = self.patience();
        let Some(row) = row_mut(&mut self.rows, key) else { return };
        let State::Building(building) = &mut row.state else { return };
        let hop = building.hop;
        let keys = match answer {
            Answer::Cookie { salt, sealed_cookie } => {
                match building.handshake.handle_cookie(salt, sealed_cookie, rng) {
                    Ok(handshake) => building.handshake = handshake,
                    Err(error) => {
                        log::debug!("a cookie for hop {} was dropped: {error}", hop + 1);
                        return;
                    }
                }
                building.cookies += 1;
                if building.cookies > MOST_COOKIES {
                    let reason = DestroyReason::ResourceLimit;
                    return self.end(key, CloseReason::Refused { hop, reason }, true);
                }
                // The hop is there: the request with its proof is asked as often as the first.
                building.attempts = 1;
                building.request = take_request(&mut self.next_request);
                building.asked_at = now;
                building.deadline = now + patience;
                if hop == 0 {
                    self.by_cid.remove(&building.cid);
                    building.cid = Cid::random(rng);
                    self.by_cid.insert(building.cid, key);
                }
                return self.ask(key, rng);
            }
            Answer::Created { ephemeral, confirmation, sealed_status, .. } => {
                building.handshake.handle_created(ephemeral, confirmation, sealed_status)
            }
        };
        match keys {
            Ok(keys) => self.hop_stands(now, key, keys, rng),
            Err(HandshakeError::Refused(reason)) => {
                self.end(key, CloseReason::Refused { hop, reason }, true);
            }
            Err(error) => {
                self.end(key, CloseReason::Handshake { hop, error: error.to_string() }, true);
            }
        }
    }

    fn hop_stands(&mut self, now: Instant, key: CircuitKey, keys: HopKeys, rng: &mut impl Rng) {
        let Some(row) = row_mut(&mut self.rows, key) else { return };
        let State::Building(building) = &mut row.state else { return };
        if building.attempts == 1 {
            // Karn's rule: an answer to a repeated question says nothing of the time it took.
            let took = now.saturating_duration_since(building.asked_at);
            self.hop_took = Some(self.hop_took.map_or(took, |before| (before * 3 + took) / 4));
        }
        let patience = patience(&self.timers, self.hop_took);
        if building.hop == 0 {
            self.by_cid.remove(&building.cid);
            self.events.push_back(ClientEvent::Open {
                key,
                cid: building.cid,
                guard: row.path[0].addr,
                pair: Box::new(building.handshake.pair_keys()),
            });
        }
        self.events.push_back(ClientEvent::AddHop { key, keys: Box::new(keys) });
        building.hop += 1;
        let hop = building.hop;
        let Some(next) = row.path.get(hop).cloned() else {
            row.state = State::Open;
            row.ready = Some(now);
            let took = now.saturating_duration_since(row.started);
            self.events.push_back(ClientEvent::Ready { key, took });
            return;
        };
        let link_suite = link_suite(row.path[hop - 1].suite, next.suite);
        match ClientHandshake::start(next, link_suite, rng) {
            Ok(handshake) => {
                building.handshake = handshake;
                building.request = take_request(&mut self.next_request);
                building.attempts = 1;
                building.cookies = 0;
                building.asked_at = now;
                building.deadline = now + patience;
                self.ask(key, rng);
            }
            Err(error) => {
                self.end(key, CloseReason::Handshake { hop, error: error.to_string() }, true);
            }
        }
    }

    fn patience(&self) -> Duration {
        patience(&self.timers, self.hop_took)
    }

    /// Sends what the hop being asked must get: a cell to the first, a control body for the others.
    fn ask(&mut self, key: CircuitKey, rng: &mut impl Rng) {
        let Some(row) = row_mut(&mut self.rows, key) else { return };
        let State::Building(building) = &row.state else { return };
        let prefix = building.handshake.prefix();
        if building.hop == 0 {
            let mut cell = Box::new([0u8; CELL_LEN]);
            rng.fill_bytes(cell.as_mut_slice());
            crate::wire::set_cid(&mut cell, building.cid);
            cell[CID_LEN..][..prefix.as_bytes().len()].copy_from_slice(prefix.as_bytes());
            self.events.push_back(ClientEvent::Send { to: row.path[0].addr, cell });
            return;
        }
        let value = ExtendValue {
            to: match HttpPeer::of(&row.path[0].addr) {
                // A path that starts over HTTP stays on it.
                Some(_) => format!("http://{}", row.path[building.hop].id),
                None => row.path[building.hop].id.to_string(),
            },
            relay: Box::new(*prefix.as_bytes()),
            pair: zeroize::Zeroizing::new(*building.handshake.pair()),
            link_suite: building.handshake.link_suite(),
        }
        .emit();
        let mut body = Box::new([0u8; BODY_LEN]);
        let fragment = ControlFragment {
            kind: ControlType::Extend,
            request: building.request,
            index: 0,
            count: 1,
            value: &value,
        };
        if fragment.emit(&mut body).is_ok() {
            let hop = building.hop - 1;
            self.events.push_back(ClientEvent::SendBody { key, hop, body });
        }
    }
}

/// The first wait for a hop: four times what hops took of late.
fn patience(timers: &ClientTimers, hop_took: Option<Duration>) -> Duration {
    hop_took.map_or(timers.retransmit, |took| (took * 4).clamp(LEAST_PATIENCE, MOST_PATIENCE))
}

/// Link tags are made with AES only where both ends have it in hardware.
fn link_suite(one: Suite, other: Suite) -> Suite {
    one.max(other)
}

fn take_request(next: &mut u32) -> u32 {
    let request = *next;
    *next = next.wrapping_add(1).max(1);
    request
}
