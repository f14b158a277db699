//! What a translation is: who is masqueraded, which entries a new flow has, and which source
//! ports source NAT may use. Semantics are those of kube-proxy in nftables mode.

use crate::{
    addr::Addr,
    conntrack::{Flow, FlowKey, flow_flags},
    flow_state,
    limits::{SNAT_PORT_MAX, SNAT_PORT_MIN},
    node::{NodeConfig, node_config_flags},
    service::frontend_flags,
};

/// Where a flow comes from, by its source address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A pod of the cluster.
    Pod,
    /// This node itself.
    Node,
    /// Anything else: a client outside the cluster, or another node.
    Outside,
}

/// What masquerading depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Where the flow comes from.
    pub origin: Origin,
    /// Flags of the frontend that it dials: bits of [`frontend_flags`].
    pub frontend: u32,
    /// Flags of the node's configuration: bits of [`node_config_flags`].
    pub config: u32,
}

impl Facts {
    /// The origin as far as the configuration lets it be told: without detection of pods, they
    /// are as foreign as anyone.
    #[inline(always)]
    fn detected(&self) -> Origin {
        match self.origin {
            Origin::Pod if !self.detects_pods() => Origin::Outside,
            origin => origin,
        }
    }

    #[inline(always)]
    const fn detects_pods(&self) -> bool {
        self.config & node_config_flags::NO_POD_DETECTION == 0
    }

    /// Whether the external traffic policy binds this flow: not that of pods and of the node
    /// itself, which reach every backend (B30, B31, B33, B34).
    #[inline(always)]
    pub fn bound_by_external_policy(&self) -> bool {
        self.frontend & frontend_flags::EXTERNAL != 0 && self.detected() == Origin::Outside
    }

    /// Whether the flow leaves with this node's address as its source. `hairpin` says that the
    /// chosen backend is the client itself (B2): an answer must not go there directly.
    #[inline(always)]
    pub fn masquerades(&self, hairpin: bool) -> bool {
        if hairpin {
            return true;
        }
        if self.frontend & frontend_flags::EXTERNAL != 0 {
            return self.frontend & frontend_flags::KEEP_SOURCE == 0
                || self.detected() == Origin::Node;
        }
        // To a ClusterIP.
        self.config & node_config_flags::MASQUERADE_ALL != 0
            || (self.detects_pods() && self.origin != Origin::Pod)
    }
}

/// How the first packet of a flow leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Source address.
    pub source: Addr,
    /// Source port, network byte order.
    pub source_port: [u8; 2],
    /// Destination address: the backend's.
    pub destination: Addr,
    /// Destination port, network byte order.
    pub destination_port: [u8; 2],
}

/// The two entries of a flow. The original direction's key is the first packet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    /// How packets of the opener leave.
    pub original: Flow,
    /// The flow of the answers, as they arrive.
    pub reply_key: FlowKey,
    /// How answers leave.
    pub reply: Flow,
}

/// The entries of the flow whose first packet is `key`, with that packet counted as seen.
#[inline(always)]
pub fn entries(key: &FlowKey, to: &Translation, tcp_flags: u8, now_s: u32) -> Entries {
    let mut original = Flow {
        source: to.source,
        destination: to.destination,
        source_port: to.source_port,
        destination_port: to.destination_port,
        flags: flow_flags::ORIGINAL,
        state: flow_state::next(0, key.protocol, tcp_flags),
        peer_state: 0,
        seen_s: now_s,
        backend: 0,
        set: 0,
        reserved: 0,
    };
    if to.source != key.source || to.source_port != key.source_port {
        original.flags |= flow_flags::REWRITE_SOURCE;
    }
    if to.destination != key.destination || to.destination_port != key.destination_port {
        original.flags |= flow_flags::REWRITE_DESTINATION;
    }
    let reply_key = key.rewritten(&original).reversed();
    let reply = reply_of(key, &original);
    Entries { original, reply_key, reply }
}

/// The answerer's entry of a flow: what the original rewrites on the one end it restores on the
/// other.
#[inline(always)]
fn reply_of(key: &FlowKey, original: &Flow) -> Flow {
    let mut flags = 0;
    if original.flags & flow_flags::REWRITE_DESTINATION != 0 {
        flags |= flow_flags::REWRITE_SOURCE;
    }
    if original.flags & flow_flags::REWRITE_SOURCE != 0 {
        flags |= flow_flags::REWRITE_DESTINATION;
    }
    Flow {
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
        flags,
        state: 0,
        peer_state: original.state,
        ..*original
    }
}

/// The source port to try as number `probe` (from 0), network byte order: from a random start
/// through the node's range, in steps that visit distinct ports.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the remainder is below a 16-bit span")]
pub fn source_port(config: &NodeConfig, start: u32, probe: u32) -> [u8; 2] {
    let (min, max) = if config.snat_port_min == 0 || config.snat_port_max < config.snat_port_min {
        (SNAT_PORT_MIN, SNAT_PORT_MAX)
    } else {
        (config.snat_port_min, config.snat_port_max)
    };
    let span = u32::from(max - min) + 1;
    // Both terms stay far below 2^32: no wrap-around that would skew the steps.
    let port = min + ((start % span + probe) % span) as u16;
    port.to_be_bytes()
}

/// The address that masqueraded packets carry, if the node has one of that family.
#[inline(always)]
pub fn masquerade_address(config: &NodeConfig, v4: bool) -> Option<Addr> {
    let address = if v4 { config.ipv4 } else { config.ipv6 };
    let set = address != Addr::default() && address != Addr::ANY_V4;
    (set && address.is_v4() == v4).then_some(address)
}

#[cfg(test)]
#[path = "nat_tests.rs"]
pub(crate) mod tests;
