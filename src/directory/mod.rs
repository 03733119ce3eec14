//! Descriptors, the signed directory and the choice of paths.
//!
//! In: signed bytes. Out: checked descriptors, paths.
//! Called by: controller, node, cli.
