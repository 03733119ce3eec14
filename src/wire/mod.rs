//! The bytes on the wire: parse and emit only, no keys and no state.
//!
//! In: bytes from outside, or typed messages. Out: typed messages, or bytes.
//! Called by: circuit, forward, directory, node.
