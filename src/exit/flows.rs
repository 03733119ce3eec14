//! What is under way at an unprivileged exit, within its limits.
//!
//! In: openings, datagrams, circuits that ended. Out: whether there is room; queues to the tasks.
//! Called by: the engine, its tasks.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    net::IpAddr,
    rc::Rc,
};

use tokio::sync::mpsc;

use crate::stack::Ends;

/// Connections being opened at once.
const MOST_OPENING: usize = 2048;
/// UDP flows at once.
const MOST_FLOWS: usize = 4096;
/// Datagrams that wait for one flow's socket.
const MOST_WAITING: usize = 64;
/// Echoes under way at once.
const MOST_ECHOES: usize = 128;

/// The first datagram of a flow, and the queue of the next ones.
pub(super) type NewFlow = (Vec<u8>, mpsc::Receiver<Vec<u8>>);

/// What is under way.
#[derive(Default)]
pub(super) struct Flows {
    opening: RefCell<HashSet<Ends>>,
    datagrams: RefCell<HashMap<Ends, mpsc::Sender<Vec<u8>>>>,
    echoes: Rc<Cell<usize>>,
}

/// An echo under way.
pub(super) struct EchoPlace(Rc<Cell<usize>>);

impl Flows {
    /// Whether this opening is new and there is room for it; a copy of one that is under way is
    /// neither.
    pub(super) fn begin_opening(&self, ends: Ends) -> bool {
        let mut opening = self.opening.borrow_mut();
        opening.len() < MOST_OPENING && opening.insert(ends)
    }

    pub(super) fn end_opening(&self, ends: &Ends) {
        self.opening.borrow_mut().remove(ends);
    }

    /// Hands a datagram to its flow's task; gives it back if it starts a flow that needs one.
    pub(super) fn datagram(&self, ends: Ends, payload: Vec<u8>) -> Option<NewFlow> {
        let mut flows = self.datagrams.borrow_mut();
        let payload = match flows.get(&ends) {
            Some(flow) => match flow.try_send(payload) {
                // What a slow network has no room for is lost.
                Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => return None,
                Err(mpsc::error::TrySendError::Closed(payload)) => payload,
            },
            None if flows.len() >= MOST_FLOWS => return None,
            None => payload,
        };
        let (sender, arriving) = mpsc::channel(MOST_WAITING);
        flows.insert(ends, sender);
        Some((payload, arriving))
    }

    pub(super) fn end_datagrams(&self, ends: &Ends) {
        self.datagrams.borrow_mut().remove(ends);
    }

    pub(super) fn begin_echo(&self) -> Option<EchoPlace> {
        let under_way = self.echoes.get();
        (under_way < MOST_ECHOES).then(|| {
            self.echoes.set(under_way + 1);
            EchoPlace(Rc::clone(&self.echoes))
        })
    }

    /// Ends the datagrams of a circuit: their tasks see their queue close.
    pub(super) fn forget(&self, circuit: IpAddr) {
        self.datagrams.borrow_mut().retain(|ends, _| ends.remote.ip() != circuit);
    }
}

impl Drop for EchoPlace {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(port: u16) -> Ends {
        Ends { local: ([192, 0, 2, 1], 53).into(), remote: ([100, 65, 0, 2], port).into() }
    }

    #[test]
    fn a_flow_has_one_task_until_its_circuit_ends() {
        let flows = Flows::default();
        let (first, mut arriving) = flows.datagram(ends(1), vec![1]).unwrap();
        assert_eq!(first, [1]);
        assert!(flows.datagram(ends(1), vec![2]).is_none());
        assert_eq!(arriving.try_recv(), Ok(vec![2]));
        flows.forget([100, 65, 0, 3].into());
        assert!(!arriving.is_closed());
        flows.forget([100, 65, 0, 2].into());
        assert_eq!(arriving.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        drop(arriving);
        assert!(flows.datagram(ends(1), vec![3]).is_some());
    }

    #[test]
    fn a_copy_of_an_opening_is_not_another_one() {
        let flows = Flows::default();
        assert!(flows.begin_opening(ends(1)));
        assert!(!flows.begin_opening(ends(1)));
        flows.end_opening(&ends(1));
        assert!(flows.begin_opening(ends(1)));
    }
}
