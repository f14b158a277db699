//! The clients that keep their backends: who was silent for longer than the service says does so no
//! more.

use std::sync::Arc;

use mizzen_ebpf_abi::{
    affinity::{Affinity, AffinityKey},
    flow_state::Need,
    maps,
};

use super::{
    Datapath, layout,
    pin::PinError,
    sweep::{Entries, Sweeper},
};

/// The entries of `AFFINITY`.
#[derive(Debug)]
pub struct Clients;

impl Entries for Clients {
    type Key = AffinityKey;
    type Facts = ();
    type Value = Affinity;
    const TABLE: &'static str = maps::AFFINITY;

    fn is_over(_: &AffinityKey, affinity: &Affinity, now_s: u32, _need: Need) -> bool {
        affinity.is_over(affinity.timeout_s, now_s)
    }
}

impl Datapath {
    /// The sweeper of the clients that keep their backends.
    pub fn affinity_sweeper(&self) -> Result<Sweeper<Clients>, PinError> {
        Sweeper::open(Arc::clone(&self.pins), &layout::AFFINITY)
    }
}
