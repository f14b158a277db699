//! What the programs know of their node: its addresses, its pods, the cluster's address ranges.

use crate::{addr::Addr, layout::record};

/// Index of the loopback interface of every network namespace: Linux' `LOOPBACK_IFINDEX`.
pub const LOOPBACK: u32 = 1;

/// Bits of [`NodeAddr::flags`].
pub mod node_addr_flags {
    /// Node ports answer on this address.
    pub const NODE_PORTS: u32 = 1 << 0;
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// Sockets of this pod are left alone: the packet path does its translation.
    pub const NO_SOCKET_TRANSLATION: u32 = 1 << 0;
    /// What this pod receives passes the host's end of its veth, where a queue holds it back: no
    /// program puts a packet behind that queue.
    pub const QUEUED: u32 = 1 << 1;
}

/// Bits of the value of [`crate::maps::SOCKET_OPTIONS`].
pub mod socket_options {
    /// Some pod of this node has [`super::endpoint_flags::NO_SOCKET_TRANSLATION`]: sockets have to
    /// be asked whose they are.
    pub const OPTED_OUT: u32 = 1 << 0;
}

/// Bits of a value of [`crate::maps::CLUSTER_RANGES`].
pub mod cluster_range_flags {
    /// Pods have their addresses from it.
    pub const PODS: u32 = 1 << 0;
    /// Services have their cluster IPs from it (KEP-1880): what dials one that no service has is
    /// dropped (reference B10).
    pub const SERVICES: u32 = 1 << 1;
    /// Who is there knows the way back to pods: what pods send there keeps its source.
    pub const KNOWS_PODS: u32 = 1 << 2;
}

record! {
    /// The pod behind a network namespace: who a socket's client is (reference D12).
    pub struct PodNetns: 36, 4 {
        /// Its IPv4 address; all zero where it has none.
        pub ipv4: Addr,
        /// Its IPv6 address; all zero where it has none.
        pub ipv6: Addr,
        /// Bits of [`endpoint_flags`].
        pub flags: u32,
    }

    /// An address of this node.
    pub struct NodeAddr: 8, 4 {
        /// Bits of [`node_addr_flags`].
        pub flags: u32,
        /// The interface that has it.
        pub ifindex: u32,
    }

    /// A pod of this node, under each of its addresses.
    pub struct Endpoint: 24, 4 {
        /// The host's end of its veth.
        pub ifindex: u32,
        /// Security identity; 0 until there are policies.
        pub identity: u32,
        /// Bits of [`endpoint_flags`].
        pub flags: u32,
        /// The pod's link-layer address.
        pub pod_mac: [u8; 6],
        /// The link-layer address of the host's end.
        pub host_mac: [u8; 6],
    }

    /// Another node of the cluster, under the ranges of its pods and under its own addresses.
    pub struct Peer: 16, 4 {
        /// Where its end of the tunnel is: what its packets come from and what goes there is sent to.
        pub endpoint: Addr,
    }

    /// The node's own facts; one record.
    pub struct NodeConfig: 48, 4 {
        /// Source address of masqueraded IPv4 traffic; unset is all zero.
        pub ipv4: Addr,
        /// Source address of masqueraded IPv6 traffic; unset is all zero.
        pub ipv6: Addr,
        /// First source port of source NAT, host byte order.
        pub snat_port_min: u16,
        /// Last source port of source NAT, host byte order.
        pub snat_port_max: u16,
        /// Bits of [`node_config_flags`].
        pub flags: u32,
        /// UDP port of the nodes' ends of the tunnel, host byte order; 0: there are no tunnels.
        pub tunnel_port: u16,
        /// Zero.
        pub padding: u16,
        /// Zero.
        pub reserved: u32,
    }
}

impl NodeConfig {
    /// The node's first address of a family; all zero where it has none.
    #[inline(always)]
    pub const fn own(&self, v4: bool) -> &Addr {
        if v4 { &self.ipv4 } else { &self.ipv6 }
    }
}

/// Bits of [`NodeConfig::flags`].
pub mod node_config_flags {
    /// Masquerade everything sent to a ClusterIP, pods' traffic too (kube-proxy's
    /// `masqueradeAll`, reference B48).
    pub const MASQUERADE_ALL: u32 = 1 << 0;
    /// Pods can't be told from others by their IPv4 addresses (kube-proxy without a local detector
    /// for the family, reference B47): traffic to a ClusterIP is not masqueraded, and pods are bound
    /// by the external traffic policy.
    pub const NO_POD_DETECTION_V4: u32 = 1 << 1;
    /// What this node's pods send out of the cluster leaves under the node's address.
    pub const MASQUERADE_PODS: u32 = 1 << 2;
    /// [`NO_POD_DETECTION_V4`] for IPv6.
    pub const NO_POD_DETECTION_V6: u32 = 1 << 3;
    /// What the node itself sends may have another IPv4 address of its own than the first: where
    /// its socket is bound to none, its routes tell which, and so only its packets do.
    pub const SEVERAL_SOURCES_V4: u32 = 1 << 4;
    /// [`SEVERAL_SOURCES_V4`] for IPv6.
    pub const SEVERAL_SOURCES_V6: u32 = 1 << 5;
    /// Pods can't be told from others by any address.
    pub const NO_POD_DETECTION: u32 = NO_POD_DETECTION_V4 | NO_POD_DETECTION_V6;

    /// The bit that says so of a family: that of the address that is dialled.
    #[inline(always)]
    pub const fn no_pod_detection(v4: bool) -> u32 {
        // In bits: a branch would double the ways that the verifier walks.
        NO_POD_DETECTION_V4 << ((1 - v4 as u32) * 2)
    }

    /// The bit that says of a family that the node may send from several addresses.
    #[inline(always)]
    pub const fn several_sources(v4: bool) -> u32 {
        SEVERAL_SOURCES_V4 << (1 - v4 as u32)
    }

    const _: () = assert!(several_sources(true) == SEVERAL_SOURCES_V4);
    const _: () = assert!(several_sources(false) == SEVERAL_SOURCES_V6);
    const _: () = assert!(no_pod_detection(true) == NO_POD_DETECTION_V4);
    const _: () = assert!(no_pod_detection(false) == NO_POD_DETECTION_V6);
}
