//! Parties as if they were far away: what they say is heard later.
//!
//! In: plaintexts of links. Out: the same, in order, each so much later. Called by: the relay
//! program, in benches of distant groups.
//!
//! All of the round trip is put on the way up, in one queue: seen from any party that is a path of
//! half as much either way.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    dcnet::member::PartyRef,
    dcnet_run::{alarm::Alarm, link::Link},
};

type Said = (PartyRef, Rc<Link>, Vec<u8>);

/// A queue in which everything stays for the same time.
pub(super) struct Far {
    round_trip: Duration,
    /// Each with the time when it is heard.
    queue: RefCell<VecDeque<(Instant, Said)>>,
    filled: Notify,
    alarm: Alarm,
}

impl Far {
    pub(super) fn new(round_trip: Duration) -> io::Result<Self> {
        let (queue, filled) = (RefCell::default(), Notify::new());
        Ok(Self { round_trip, queue, filled, alarm: Alarm::new()? })
    }

    pub(super) fn push(&self, party: PartyRef, link: &Rc<Link>, plain: Vec<u8>) {
        let mut queue = self.queue.borrow_mut();
        if queue.is_empty() {
            self.filled.notify_one();
        }
        queue.push_back((Instant::now() + self.round_trip, (party, Rc::clone(link), plain)));
    }

    /// What is heard next.
    ///
    /// # Errors
    /// Those of the system's alarms.
    pub(super) async fn next(&self) -> io::Result<Said> {
        loop {
            let first = self.queue.borrow().front().map(|(due, _)| *due);
            match first {
                None => self.filled.notified().await,
                Some(due) => {
                    self.alarm.wait_until(due).await?;
                    if let Some((_, said)) = self.queue.borrow_mut().pop_front() {
                        return Ok(said);
                    }
                }
            }
        }
    }
}
