//! The flows of the packet path: both entries of one go when both are silent for too long, since
//! traffic may go one way only.

use mizzen_ebpf_abi::{
    conntrack::{Flow, FlowKey},
    flow_state::{self, Need},
    maps,
};

use super::{
    Datapath, layout,
    pin::PinError,
    sweep::{Entries, Sweeper},
};

/// The entries of `FLOWS`.
#[derive(Debug)]
pub struct Flows;

impl Entries for Flows {
    type Key = FlowKey;
    type Value = Flow;
    const TABLE: &'static str = maps::FLOWS;

    fn is_over(key: &FlowKey, flow: &Flow, now_s: u32, need: Need) -> bool {
        flow_state::silent(key.protocol, flow, now_s, need)
    }

    fn partner(key: &FlowKey, flow: &Flow) -> Option<FlowKey> {
        Some(key.rewritten(flow).reversed())
    }
}

impl Datapath {
    /// The sweeper of the flow table.
    pub fn flow_sweeper(&self) -> Result<Sweeper<Flows>, PinError> {
        Sweeper::open(&self.pins, &layout::FLOWS)
    }
}
