//! What every store has to do, on the embedded one and on a real etcd; and several control planes
//! on one etcd.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on shall fail at that place")]

mod contract;
mod embedded;
mod etcd;
mod model;
mod server;
mod several;
