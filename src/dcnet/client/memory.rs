//! What a client takes over from the program that ran before it.
//!
//! In: the sets of the running and the prepared interval. Out: [`ClientMemory`].
//! Called by: the client program and the tests.
//!
//! A file that is written when the pseudonym speaks would tell the relay, which sees its owner
//! answer late. So it is written at every interval, by everybody, and beforehand when a connection
//! is opened: a set the pseudonym may speak in counts as one it has spoken in.

use crate::dcnet::memory::ClientMemory;

use super::{Client, members};

impl Client {
    /// What the next program has to know; `speaking` before a connection is opened.
    pub fn memory(&self, speaking: bool) -> ClientMemory {
        let mut spoken = self.spoken.clone();
        let least = self.member.group.system.settings.min_anonymity_set;
        if speaking || self.is_live() {
            for running in [&self.running, &self.next].into_iter().flatten() {
                let present = members(&running.part);
                let together = match &spoken {
                    Some(spoken) => spoken & &present,
                    None => present,
                };
                // Among fewer it pauses.
                if together.len() >= least {
                    spoken = Some(together);
                }
            }
        }
        ClientMemory { spoken, convicted: self.member.convicted.clone() }
    }

    /// Takes over what the program before has left.
    pub fn recall(&mut self, memory: ClientMemory) {
        self.spoken = memory.spoken;
        self.member.convicted = memory.convicted;
    }
}
