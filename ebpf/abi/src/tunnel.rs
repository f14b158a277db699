//! What the nodes' ends of the tunnel agree on (VXLAN, RFC 7348).

/// The UDP port of nodes' ends by default: the one that IANA assigned.
pub const PORT: u16 = 4789;
/// The network in the tunnel: one for the cluster.
pub const VNI: u32 = 77;
/// The link-layer address of every node's tunnel device, so that all neighbours have the same.
pub const DEVICE_MAC: [u8; 6] = [0x02, 0xff, 0x4d, 0x7a, 0x6e, 0x01];
/// The link-layer address that packets in the tunnel are from: no device's.
pub const SOURCE_MAC: [u8; 6] = [0x02, 0xff, 0x4d, 0x7a, 0x6e, 0x02];
