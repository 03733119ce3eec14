//! The event loops of the daemons: one turn reads, decides, acts and sleeps.
//!
//! In: device and socket readiness, timers, commands. Out: packets and cells.
//! Called by: cli.
//!
//! Each daemon has one thread for its data path, which owns every table and takes no lock; a tokio
//! runtime beside it talks to the controller and to the command line. They exchange messages over
//! bounded channels, and a [`reactor::Waker`] interrupts the data path's sleep.

mod client;
mod client_service;
mod contact;
mod crew;
mod data_thread;
mod device_queue;
mod door;
mod drop_log;
mod error;
mod exit_setup;
pub mod gateway;
mod handshakes;
mod http_carrier;
pub mod leaktest;
mod link;
pub mod lock;
mod metrics;
mod onward;
mod phases;
mod poster;
mod raw_gateway;
mod reactor;
mod registration;
mod relay;
mod relay_service;
mod relay_status;
mod routes;
mod share;
mod tracker_service;

pub use client_service::run_client;
pub use crew::Workers;
pub use error::NodeError;
pub use relay_service::run_node;
pub use share::{
    Bridge, FileRequest, RequestTicket, ShareError, ShareEvent, ShareNet, ShareSettings,
    ShareStatus,
};
pub use tracker_service::run_tracker;
