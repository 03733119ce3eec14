//! What stands between a person's devices and a circuit: the gateway, and the lockdown that holds
//! without it.
//!
//! In: settings, packets of the inside. Out: rules for the kernel, packets for a circuit.
//! Called by: node, cli.

pub mod gateway;
pub mod inside_services;
pub mod leaktest;
pub mod lockdown;
pub mod probe;
