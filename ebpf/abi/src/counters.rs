//! What the programs count: one list, from which metrics and drop reasons take their names.
//!
//! New counters are appended, and none is ever removed or moved: an agent takes over what the
//! programs of an earlier one counted, and one that knows fewer leaves the others alone. That is no
//! change of the layout.

macro_rules! counters {
    ($( $(#[$meta:meta])* $variant:ident = $name:literal, )*) => {
        /// Index into the per-CPU array [`crate::maps::COUNTERS`].
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $( $(#[$meta])* $variant, )* }

        impl Counter {
            /// All of them, in index order.
            pub const ALL: &[Self] = &[$( Self::$variant, )*];

            /// The name used in metrics and in the command line.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }
        }
    };
}

counters! {
    /// A socket's connect or send was translated.
    SocketTranslated = "socket_translated",
    /// A connect was refused because its service has no endpoints.
    SocketRefused = "socket_refused",
    /// A packet opened a new translated flow.
    FlowCreated = "flow_created",
    /// A packet was rewritten.
    PacketTranslated = "packet_translated",
    /// A set's word named a range that another set owns. Must stay 0.
    ForeignRange = "foreign_range",
    /// A slot named a backend that is missing or belongs to another set. Must stay 0.
    ForeignBackend = "foreign_backend",
    /// A client's choice could not be kept: the affinity table is full.
    AffinityTableFull = "affinity_table_full",
    /// A connection ended, or a packet passed, of a backend whose id another has now: in no
    /// service's counters.
    TrafficOfFormerBackend = "traffic_of_former_backend",
    /// Dropped: the client is outside of the load balancer's source ranges.
    DropSourceRange = "drop_source_range",
    /// Dropped: an address of a service range that no service has.
    DropUnallocated = "drop_unallocated",
    /// Reset: the flow's backend was deleted.
    ResetGone = "reset_gone",
    /// Dropped: the flow table is full.
    DropFlowTableFull = "drop_flow_table_full",
    /// Dropped: no free source port for source NAT.
    DropNoSourcePort = "drop_no_source_port",
    /// Dropped: a Local traffic policy without a local endpoint.
    DropNoLocalEndpoint = "drop_no_local_endpoint",
    /// Dropped: the service has no endpoints and an answer could not be made.
    DropNoEndpoints = "drop_no_endpoints",
    /// Answered with a TCP reset or an ICMP error: the service has no endpoints.
    Rejected = "rejected",
    /// Dropped: a first fragment whose ports could not be kept for the others.
    DropFragment = "drop_fragment",
    /// Dropped: a fragment for a service that came before the first of its packet, or whose first
    /// went to no backend.
    DropFragmentAhead = "drop_fragment_ahead",
    /// Dropped: no route to the translated destination.
    DropNoRoute = "drop_no_route",
    /// Dropped: the translated packet's time to live or hop limit ran out here. The sender was told
    /// where possible.
    DropHopLimit = "drop_hop_limit",
    /// Dropped: larger than the link it would leave by. The sender was told where possible.
    DropPacketTooBig = "drop_packet_too_big",
    /// Dropped without a word: this processor has sent as many resets and ICMP errors as it may.
    DropAnswerLimit = "drop_answer_limit",
    /// Dropped: came by the tunnel from an address that is not behind the node that sent it.
    DropTunnelSource = "drop_tunnel_source",
    /// Dropped: routed into the tunnel, to an address that is behind no other node.
    DropNoPeer = "drop_no_peer",
    /// Dropped: a pod sent more than its bandwidth, past the queue that would have held it back.
    DropPodRate = "drop_pod_rate",
    /// Something happened that those who follow were not told of: they read too slowly.
    FlowEventLost = "flow_event_lost",
    /// Passed to the stack: a fragment that is not the first, to an address that is no pod's, of a
    /// packet whose first was of no flow or has not come yet. If a service has the address, the
    /// packet is lost; if it is the node's own, all is well.
    FragmentUnknown = "fragment_unknown",
}
