//! What a relay tells about itself: for `cepa dcnet status` and the page.
//!
//! In: the running hub, once every moment. Out: [`Status`], shared with whoever asks.
//! Called by: the relay program.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    dcnet::member::PartyRef,
    dcnet_run::hub::Hub,
    telemetry::control::{ControlServer, Refusal, RefusalKind, Request, command},
};

/// How often the board is renewed.
const MOMENT: Duration = Duration::from_millis(200);

/// What `cepa dcnet status` shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Clients of the group.
    pub group_clients: usize,
    /// Trustees of the group.
    pub group_trustees: usize,
    /// Clients with a link, by place.
    pub online_clients: Vec<u16>,
    /// Trustees with a link, by place.
    pub online_trustees: Vec<u16>,
    /// The interval that runs; 0 for none.
    pub interval: u32,
    /// Its clients: the anonymity set.
    pub members: Vec<u16>,
    /// Rounds a second, lately.
    pub rounds_per_s: f64,
    /// Rounds in flight.
    pub in_flight: usize,
    /// Rounds that may be in flight.
    pub window: usize,
    /// Slots that speak.
    pub open_slots: usize,
    /// Connections behind the relay.
    pub connections: usize,
    /// Rounds since the start.
    pub rounds: u64,
    /// Cells taken since the start.
    pub cells: u64,
    /// Rounds whose cell did not open: jams and collisions.
    pub collisions: u64,
    /// Rounds whose requests made no sense.
    pub requests_jammed: u64,
    /// Rounds given up at changes of the set.
    pub void: u64,
    /// Intervals since the start.
    pub intervals: u64,
    /// Payload bytes from and to pseudonyms.
    pub payload_bytes: [u64; 2],
    /// Bytes received from and sent to the clients that are linked now.
    pub client_link_bytes: [u64; 2],
    /// The same of trustees.
    pub trustee_link_bytes: [u64; 2],
    /// The last verdict.
    pub last_blame: Option<String>,
    /// How long its trial took from the first jammed cell, in milliseconds.
    pub last_blame_ms: Option<f64>,
    /// Seconds since the start.
    pub uptime_s: f64,
}

/// Shared with control socket and page.
pub type Board = Arc<Mutex<Status>>;

/// The board's content.
pub fn read(board: &Board) -> Status {
    board.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Renews the board for ever.
pub async fn keep(hub: Rc<RefCell<Hub>>, board: Board) {
    let mut last = (0, 0.0, 0.0);
    loop {
        let (clients, trustees) = hub.borrow().group_size();
        let (status, uptime) = hub.borrow().status();
        let [client_link_bytes, trustee_link_bytes] = hub.borrow().link_bytes();
        let now = uptime.as_secs_f64();
        let (rounds_before, at_before, rate) = last;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let measured =
            (status.counters.rounds - rounds_before) as f64 / (now - at_before).max(1e-3);
        let rounds_per_s = if rate == 0.0 { measured } else { 0.5 * rate + 0.5 * measured };
        last = (status.counters.rounds, now, rounds_per_s);
        let online = |wanted: fn(&PartyRef) -> Option<u16>| -> Vec<u16> {
            status.online.iter().filter_map(wanted).collect()
        };
        let (interval, members) = status.interval.clone().unwrap_or_default();
        let fresh = Status {
            group_clients: clients,
            group_trustees: trustees,
            online_clients: online(|party| match party {
                PartyRef::Client(at) => Some(*at),
                PartyRef::Trustee(_) => None,
            }),
            online_trustees: online(|party| match party {
                PartyRef::Trustee(at) => Some(*at),
                PartyRef::Client(_) => None,
            }),
            interval,
            members,
            rounds_per_s,
            in_flight: status.in_flight.0,
            window: status.in_flight.1,
            open_slots: status.open_slots,
            connections: status.connections,
            rounds: status.counters.rounds,
            cells: status.counters.cells,
            collisions: status.counters.jammed,
            requests_jammed: status.counters.requests_jammed,
            void: status.counters.void,
            intervals: status.counters.intervals,
            payload_bytes: status.counters.bytes,
            client_link_bytes,
            trustee_link_bytes,
            last_blame: status.last_blame.map(|blamed| blamed.to_string()),
            last_blame_ms: status.last_trial.map(|took| took.as_secs_f64() * 1000.0),
            uptime_s: now,
        };
        *board.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        tokio::time::sleep(MOMENT).await;
    }
}

/// Answers the control socket for ever.
pub async fn answer(server: ControlServer, board: Board) {
    server
        .serve(move |request: Request| {
            let board = Arc::clone(&board);
            async move {
                if request.command != command::STATUS {
                    return Err(request.unknown("dcnet"));
                }
                serde_json::to_value(read(&board))
                    .map_err(|error| Refusal::new(RefusalKind::Failed, error.to_string()))
            }
        })
        .await;
}
