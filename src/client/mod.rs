//! What a client offers besides the TUN device: proxies and a resolver, the gateway of a LAN, and
//! the lockdown that holds without any of them.
//!
//! In: settings; connections, questions and packets of this machine and its network. Out: streams
//! and questions through the circuit, by the user-space stack; rules for the kernel.
//! Called by: node, cli.
//!
//! ```text
//! SOCKS5, HTTP --handshake--> Target --Names--> address --Stack::connect--> splice
//! DNS          --question---> Names ----------> the resolver of the circuit's exit
//! ```

mod counters;
mod dialer;
mod dns;
mod error;
pub mod gateway;
mod groups;
pub mod http;
pub mod inside_services;
pub mod leaktest;
mod listener;
pub mod lockdown;
mod names;
pub mod probe;
mod proxies;
pub mod socks;
mod target;

pub use self::{
    dialer::{DialError, Dialer},
    error::ProxyError,
    proxies::{Proxies, ProxySettings},
    target::{Host, NameRefused, Target, check_name},
};
