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

/// Where a flow comes from, by its source address and the way that it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A pod of the cluster.
    Pod,
    /// The same, by a packet that came in from another host, so that it is none of this node's.
    PodElsewhere,
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
    /// Whether the address that it dials is one of IPv4.
    pub v4: bool,
}

impl Facts {
    /// The origin as far as the configuration lets it be told: without detection of pods, they
    /// are as foreign as anyone.
    #[inline(always)]
    fn detected(&self) -> Origin {
        match self.origin {
            Origin::Pod | Origin::PodElsewhere if !self.detects_pods() => Origin::Outside,
            origin => origin,
        }
    }

    /// Whether pods are told from others by their addresses of this family.
    #[inline(always)]
    pub const fn detects_pods(&self) -> bool {
        self.config & node_config_flags::no_pod_detection(self.v4) == 0
    }

    /// Whether the external traffic policy binds this flow: not that of this node's pods and of the
    /// node itself, which reach every backend (B30, B31, B33, B34). A pod of another node is bound by
    /// Local as any client outside: its source is kept, so that a backend elsewhere would answer it
    /// directly, from an address that it never dialled.
    #[inline(always)]
    pub fn bound_by_external_policy(&self) -> bool {
        self.frontend & frontend_flags::EXTERNAL != 0
            && match self.detected() {
                Origin::Pod | Origin::Node => false,
                Origin::PodElsewhere => self.frontend & frontend_flags::KEEP_SOURCE != 0,
                Origin::Outside => true,
            }
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
            || (self.detects_pods() && !matches!(self.origin, Origin::Pod | Origin::PodElsewhere))
    }
}

/// Who the client of a flow is where clients keep their backends: whom its packets come from; but
/// the node, whichever of its addresses it sends from, is one client, by the address that its
/// sockets are known by (reference D12).
#[inline(always)]
pub fn client<'a>(origin: Origin, source: &'a Addr, config: &'a NodeConfig) -> &'a Addr {
    let own = config.own(source.is_v4());
    if matches!(origin, Origin::Node) && !own.is(&Addr::default()) { own } else { source }
}

/// How the first packet of a flow leaves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    /// Source address.
    pub source: Addr,
    /// Destination address: the backend's.
    pub destination: Addr,
    /// Source port, network byte order.
    pub source_port: [u8; 2],
    /// Destination port, network byte order.
    pub destination_port: [u8; 2],
}

/// The two entries of a flow. The original direction's key is the first packet's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// How packets of the opener leave.
    pub original: Flow,
    /// How answers leave.
    pub reply: Flow,
    /// The flow of the answers, as they arrive.
    pub reply_key: FlowKey,
}

impl Entries {
    /// Fills in the entries of the flow whose first packet is `key`, with that packet counted as
    /// seen. In place: the programs keep them outside of their stack.
    #[inline(always)]
    pub fn fill(&mut self, key: &FlowKey, to: &Translation, now_s: u32) {
        let seen = flow_state::OPENED;
        let [opened, ..] = now_s.to_le_bytes();
        let source_kept = to.source.is(&key.source) && to.source_port == key.source_port;
        let destination_kept =
            to.destination.is(&key.destination) && to.destination_port == key.destination_port;
        let source = if source_kept { 0 } else { flow_flags::REWRITE_SOURCE };
        let destination = if destination_kept { 0 } else { flow_flags::REWRITE_DESTINATION };

        let original = &mut self.original;
        original.source = to.source;
        original.destination = to.destination;
        original.source_port = to.source_port;
        original.destination_port = to.destination_port;
        original.flags = flow_flags::ORIGINAL | source | destination;
        original.opened = opened;
        original.state = seen;
        original.peer_state = 0;
        original.seen_s = now_s;

        // What the original rewrites on the one end, answers get back on the other.
        let reply = &mut self.reply;
        reply.source = key.destination;
        reply.destination = key.source;
        reply.source_port = key.destination_port;
        reply.destination_port = key.source_port;
        reply.flags = 0;
        reply.opened = opened;
        if !source_kept {
            reply.flags |= flow_flags::REWRITE_DESTINATION;
        }
        if !destination_kept {
            reply.flags |= flow_flags::REWRITE_SOURCE;
        }
        reply.state = 0;
        reply.peer_state = seen;
        reply.seen_s = now_s;

        let reply_key = &mut self.reply_key;
        reply_key.source = to.destination;
        reply_key.destination = to.source;
        reply_key.source_port = to.destination_port;
        reply_key.destination_port = to.source_port;
        reply_key.protocol = key.protocol;
        reply_key.pad = key.pad;
    }

    /// Names the device of a flow of the node itself, to which the answers then go; 0 of others.
    #[inline(always)]
    pub fn set_device(&mut self, device: u32) {
        (self.original.device, self.reply.device) = (device, device);
        if device != 0 {
            self.reply.flags |= flow_flags::TO_NODE;
        }
    }

    /// Names the backend in both entries.
    #[inline(always)]
    pub fn set_backend(&mut self, set: u32, backend: u32) {
        (self.original.set, self.original.backend) = (set, backend);
        (self.reply.set, self.reply.backend) = (set, backend);
    }
}

/// The first and the last of the node's source ports.
#[inline(always)]
pub fn source_ports(config: &NodeConfig) -> (u16, u16) {
    if config.snat_port_min == 0 || config.snat_port_max < config.snat_port_min {
        (SNAT_PORT_MIN, SNAT_PORT_MAX)
    } else {
        (config.snat_port_min, config.snat_port_max)
    }
}

/// The source port to try as number `probe` (from 0), network byte order: from a random start
/// through the node's range, in steps that visit distinct ports.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the remainder is below a 16-bit span")]
pub fn source_port(config: &NodeConfig, start: u32, probe: u32) -> [u8; 2] {
    let (min, max) = source_ports(config);
    let span = u32::from(max - min) + 1;
    // Both terms stay far below 2^32: no wrap-around that would skew the steps.
    let port = min + ((start % span + probe) % span) as u16;
    port.to_be_bytes()
}

/// The address that masqueraded packets carry, if the node has one of that family.
#[inline(always)]
pub fn masquerade_address(config: &NodeConfig, v4: bool) -> Option<Addr> {
    let address = *config.own(v4);
    let set = address != Addr::default() && address != Addr::ANY_V4;
    (set && address.is_v4() == v4).then_some(address)
}

#[cfg(test)]
#[path = "nat_tests.rs"]
pub(crate) mod tests;
