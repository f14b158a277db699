//! All tests that need more than one piece, in one binary. Each module is one subject.
#![allow(clippy::unwrap_used, reason = "tests panic")]

mod bootstrap;
mod bugreport;
mod cgroups;
mod cni;
mod credentials;
mod dns;
mod facts;
mod foreign;
mod fuzz;
mod maps;
mod migrate;
mod node_condition;
mod notices;
mod packet;
mod ports;
mod privileges;
mod removal;
mod service_manager;
mod soak;
mod socket;
mod systemd;
mod watch;
