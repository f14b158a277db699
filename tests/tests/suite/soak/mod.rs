//! Fault tests whose counts matter: `cargo xtask test` runs each with a seeded twentieth,
//! `cargo xtask soak` in full.

mod cluster;
mod figures;
mod tables;
mod unsteady;
mod watches;
mod whole_load;
mod windows;
