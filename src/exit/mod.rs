//! What an exit does itself, in user space: names for its circuits, and without privileges also
//! the way out, by sockets.
//!
//! In: packets of circuits to the exit's inner addresses, or all packets. Out: answers; sockets of
//! this machine. Called by: node.
//!
//! ```text
//! with a TUN   packet -> policy -> to the inner address, port 53? -> lanes -> Stack -> resolver
//!                               -> everything else -> TUN, kernel NAT
//! --userspace  packet -> policy -> lanes -> Stack -> resolver, TcpStream, UdpSocket, ping socket
//! ```
//!
//! The policy stands before all of it (`forward::exit`), and applies to what names resolve to.

mod echo;
mod engine;
mod error;
mod flows;
mod outlet;
mod resolver;
mod service;

pub use self::{
    engine::{Engine, EngineSettings},
    error::ExitError,
    service::Service,
};
