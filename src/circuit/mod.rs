//! Control state machines of circuits, client side and node side, without I/O.
//!
//! In: control messages, timers. Out: cells to send, events for the data path.
//! Called by: node.
