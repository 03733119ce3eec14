//! The main controller: asked for a node id, it answers public IP and public key.
//!
//! In: HTTP requests. Out: the signed directory.
//! Called by: cli.
