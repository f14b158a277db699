//! Rule sets in the shape that kube-proxy gives them, so that it can be compared with where it is
//! not. Pure: services in, the input of `nft -f` or `iptables-restore` out.

pub mod iptables;
pub mod nft;

use std::net::Ipv4Addr;

/// What a rule set depends on beside the services.
#[derive(Clone, Copy, Debug)]
pub struct Node {
    /// The node's own address, where node ports are.
    pub address: Ipv4Addr,
    /// The range of pods: what is from elsewhere is masqueraded.
    pub pods: (Ipv4Addr, u8),
}
