//! Devices and sockets: TUN, UDP batches, raw capture, kernel NAT; the only unsafe code.
//!
//! In: packets of the kernel. Out: batches.
//! Called by: node, rig.
