//! The local number of a circuit inside one daemon.
//!
//! In: an index. Out: a typed key. Called by: circuit (draws it), forward, node.

/// Names a circuit inside one daemon; the number is free again when the circuit is gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct CircuitKey(pub u32);

impl CircuitKey {
    /// The key as an index into a table.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for CircuitKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
