//! Control state machines of circuits, client side and node side, without I/O.
//!
//! In: control messages, timers. Out: cells to send, events for the data path.
//! Called by: node.
//!
//! | message     | made by          | handled in                     |
//! |-------------|------------------|--------------------------------|
//! | CREATE      | client, last hop | `node::handle_unknown`         |
//! | CREATED     | node             | `client` and `node`, by its CID|
//! | COOKIE      | node under load  | as CREATED                     |
//! | EXTEND      | client           | `node::handle_control`         |
//! | EXTENDED    | last hop         | `client::handle_body`          |
//! | DESTROY     | either neighbour | `handle_neighbour`, both sides |
//! | echo, reply | client, any hop  | node event loop, `client`      |

pub mod client;
mod error;
mod handshake;
mod isolation;
pub mod node;
mod pool;
mod source_rate;

pub use client::{
    ClientCircuit, ClientCircuits, ClientEvent, ClientTimers, CloseReason, HopHealth,
};
pub use error::HandshakeError;
pub use handshake::{ClientHandshake, NodeHandshake, respond};
pub use isolation::{Group, Isolation};
pub use node::{HandshakeJob, NodeCircuits, NodeEvent, NodeLimits};
pub use pool::{Pool, PoolSettings};

#[cfg(test)]
mod test_nodes;
