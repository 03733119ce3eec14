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
    rc::Rc,
    sync::mpsc,
    time::{Duration, Instant},
};

use tokio::sync::mpsc as awaited;

use crate::{dcnet::member::PartyRef, dcnet_run::link::Link};

type Said = (PartyRef, Rc<Link>, Vec<u8>);

/// A queue in which everything stays for the same time.
pub(super) struct Far {
    round_trip: Duration,
    /// Each with the time when it is heard.
    queue: RefCell<VecDeque<(Instant, Said)>>,
    due: mpsc::Sender<Instant>,
}

impl Far {
    /// Starts a thread that waits: the runtime's timers are a millisecond wide. It gives a sign when
    /// something is due.
    pub(super) fn new(round_trip: Duration) -> (Rc<Self>, awaited::UnboundedReceiver<()>) {
        let (due, dues) = mpsc::channel::<Instant>();
        let (ripen, ripe) = awaited::unbounded_channel();
        std::thread::spawn(move || {
            for due in dues {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                if ripen.send(()).is_err() {
                    break;
                }
            }
        });
        (Rc::new(Self { round_trip, queue: RefCell::default(), due }), ripe)
    }

    pub(super) fn push(&self, party: PartyRef, link: &Rc<Link>, plain: Vec<u8>) {
        let (mut queue, due) = (self.queue.borrow_mut(), Instant::now() + self.round_trip);
        if queue.is_empty() {
            self.wait(due);
        }
        queue.push_back((due, (party, Rc::clone(link), plain)));
    }

    /// What was said first, if it is due; to be called after a sign until there is none.
    pub(super) fn pop(&self) -> Option<Said> {
        let mut queue = self.queue.borrow_mut();
        let due = queue.front()?.0;
        if due > Instant::now() {
            self.wait(due);
            return None;
        }
        queue.pop_front().map(|(_, said)| said)
    }

    fn wait(&self, due: Instant) {
        // The thread waits as long as this queue is there.
        let _ = self.due.send(due);
    }
}
