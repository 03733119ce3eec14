//! TCP and UDP in user space over inner packets: proxies and exits without privileges.
//!
//! In: packets of a data path, by a queue. Out: streams and datagrams for tasks, and packets.
//! Called by: client, exit, node.
//!
//! The stack lives on one thread, with a single-threaded tokio runtime, together with the tasks
//! that use it, so that it needs no lock. The data path is another thread; between the two are
//! the lanes of [`lanes`].
//!
//! ```text
//! data path  ==lanes==  Driver::run: arrived -> by ends -> Connection (smoltcp) -> TcpStream
//!                                                        -> UdpSocket             -> Incoming
//! ```

mod connection;
mod core;
mod device;
mod packet;
mod queue;
mod splice;
mod tcp;
mod udp;

pub use self::{
    core::{Driver, Incoming, Stack},
    packet::{EchoRequest, Ends, Opening, Undeliverable},
    queue::{DataSide, GroupedPackets, StackSide, lanes},
    splice::splice,
    tcp::TcpStream,
    udp::UdpSocket,
};
