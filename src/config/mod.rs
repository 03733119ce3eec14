//! Configuration: defaults, files, environment and flags, checked.
//!
//! In: TOML files, `CEPA_*` variables. Out: one settings struct per role.
//! Called by: cli, node, controller.
