//! The sizes of a cell and of what it carries, in bytes.
//!
//! In: nothing. Out: constants. Called by: every folder that touches cells.

/// One cell: the UDP payload between any two members, always.
pub const CELL_LEN: usize = 1408;
/// The circuit id at the start of a cell.
pub const CID_LEN: usize = 16;
/// One forward slot: a sequence number and an AEAD tag.
pub const SLOT_LEN: usize = SEQ_LEN + TAG_LEN;
/// Slots of a forward cell, and so the longest path.
pub const SLOTS: usize = 4;
/// An AEAD tag or a keyed MAC.
pub const TAG_LEN: usize = 16;
/// A per-hop sequence number.
pub const SEQ_LEN: usize = 4;
/// The body of a cell, in both directions.
pub const BODY_LEN: usize = 1312;
/// Where the body starts, in both directions.
pub const BODY_AT: usize = CELL_LEN - BODY_LEN;
/// The header of a body: recognised, kind, flags, offset.
pub const BODY_HEADER_LEN: usize = 12;
/// What a body carries of the inner-packet stream or of a control message.
pub const STREAM_LEN: usize = BODY_LEN - BODY_HEADER_LEN;
/// The largest inner packet, everywhere.
pub const INNER_MTU: usize = 1500;
/// The fewest hops of a path outside a lab.
pub const MIN_HOPS: usize = 3;
/// The inner IPv4 address that every client uses.
pub const CLIENT_INNER_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(100, 64, 0, 2);
/// The inner IPv6 address that every client uses.
pub const CLIENT_INNER_V6: std::net::Ipv6Addr =
    std::net::Ipv6Addr::new(0xfd63, 0x6570, 0x6100, 0, 0, 0, 0, 2);
/// The inner IPv4 address that every exit answers from, and resolves names at.
pub const EXIT_INNER_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(100, 64, 0, 1);
/// The inner IPv6 address that every exit answers from, and resolves names at.
pub const EXIT_INNER_V6: std::net::Ipv6Addr =
    std::net::Ipv6Addr::new(0xfd63, 0x6570, 0x6100, 0, 0, 0, 0, 1);
/// The port of the resolver at the exit's inner addresses, UDP and TCP.
pub const EXIT_RESOLVER_PORT: u16 = 53;
