//! Parties as if they were far away: what they say is heard later.
//!
//! In: plaintexts of links. Out: the same, in order, each so much later. Called by: the relay
//! program, in benches of distant groups.
//!
//! All of the round trip is put on the way up, in one queue: seen from any party that is a path of
//! half as much either way.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{dcnet::member::PartyRef, dcnet_run::link::Link};

type Said = (PartyRef, Rc<Link>, Vec<u8>);

/// A queue in which everything stays for the same time.
pub(super) struct Far {
    round_trip: Duration,
    queue: RefCell<VecDeque<(Instant, Said)>>,
    wake: Notify,
}

impl Far {
    pub(super) fn new(round_trip: Duration) -> Self {
        Self { round_trip, queue: RefCell::default(), wake: Notify::new() }
    }

    pub(super) fn push(&self, party: PartyRef, link: &Rc<Link>, plain: Vec<u8>) {
        let due = Instant::now() + self.round_trip;
        self.queue.borrow_mut().push_back((due, (party, Rc::clone(link), plain)));
        self.wake.notify_one();
    }

    pub(super) async fn next(&self) -> Said {
        loop {
            let due = self.queue.borrow().front().map(|(due, _)| *due);
            match due {
                Some(due) if due <= Instant::now() => {
                    if let Some((_, said)) = self.queue.borrow_mut().pop_front() {
                        return said;
                    }
                }
                Some(due) => sleep_until(due).await,
                None => self.wake.notified().await,
            }
        }
    }
}
