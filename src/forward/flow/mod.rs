//! Which packets belong together, and which circuit they keep to.
//!
//! In: IP packets of the client's device. Out: a flow's key; the circuit it is pinned to.
//! Called by: the client's data path for every packet, the exit's connection cap.

mod key;
mod map;
#[cfg(test)]
mod tests;

pub use key::{FlowKey, PacketFlow};
pub use map::{FlowMap, FlowOwner};
