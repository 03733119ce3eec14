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
    queue: RefCell<VecDeque<Said>>,
    due: mpsc::Sender<Instant>,
}

impl Far {
    /// Starts a thread that waits: the runtime's timers are a millisecond wide. It gives a sign for
    /// everything that is due.
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
        self.queue.borrow_mut().push_back((party, Rc::clone(link), plain));
        // The thread waits as long as this queue is there.
        let _ = self.due.send(Instant::now() + self.round_trip);
    }

    /// What was said first.
    pub(super) fn pop(&self) -> Option<Said> {
        self.queue.borrow_mut().pop_front()
    }
}
