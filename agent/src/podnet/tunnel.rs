//! The tunnel's device: one for all nodes that this one shares no link with (VXLAN, RFC 7348). Which
//! node a packet goes to and which it may come from is the programs' business, by the table of
//! peers; nothing here is per node.

use mizzen_cni::wire::Mac;
use mizzen_ebpf_abi::tunnel::DEVICE_MAC;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::{
    message::{self, add_vxlan, delete_link, set_mtu, set_up, without_link_local},
    netlink::{Netlink, NetlinkError},
    sysctl::{self, SysctlError},
};

/// The device's name.
pub const IFNAME: &str = "mizzen.vxlan";

/// What the device shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    /// The UDP port of every node's end.
    pub port: u16,
    /// Of packets in the tunnel, in bytes.
    pub mtu: u32,
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The kernel refused.
    #[error(
        "{0}; is another VXLAN device without an id at this port (ip -d link show type vxlan)?"
    )]
    Refused(#[source] NetlinkError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A setting could not be made.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// It was made and is not there.
    #[error("{IFNAME} vanished")]
    Vanished,
}

/// How the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its index.
    pub ifindex: u32,
    /// In bytes.
    pub mtu: u32,
    /// Whether it is a tunnel of ours at this port: else it is none that can be mended.
    is_ours: bool,
    up: bool,
}

impl Device {
    /// Whether packets can go through it.
    pub fn is_usable(&self) -> bool {
        self.is_ours && self.up
    }
}

/// The device, where there is one.
pub fn find(netlink: &mut Netlink, port: u16) -> Result<Option<Device>, NetlinkError> {
    let found = netlink.get("get the tunnel's device", message::get_link(IFNAME))?;
    Ok(found.and_then(|message| match message {
        RouteNetlinkMessage::NewLink(link) => Some(device(&link, port)),
        _ => None,
    }))
}

fn device(link: &LinkMessage, port: u16) -> Device {
    let mut device = Device {
        ifindex: link.header.index,
        is_ours: false,
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
    };
    let (mut has_mac, mut is_tunnel) = (false, false);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => has_mac = bytes.as_slice() == DEVICE_MAC,
            LinkAttribute::Mtu(mtu) => device.mtu = *mtu,
            LinkAttribute::LinkInfo(infos) => {
                is_tunnel = infos.iter().any(|info| is_at(info, port));
            }
            _ => {}
        }
    }
    device.is_ours = has_mac && is_tunnel && link.header.flags.contains(LinkFlags::Noarp);
    device
}

fn is_at(info: &LinkInfo, port: u16) -> bool {
    let LinkInfo::Data(InfoData::Vxlan(vxlan)) = info else { return false };
    vxlan.contains(&InfoVxlan::CollectMetadata(true)) && vxlan.contains(&InfoVxlan::Port(port))
}

/// Has the device be there as `spec` says, with the right settings but not yet up; its index, and
/// whether it is new. One that is otherwise and can't be mended is made anew.
pub fn prepare(netlink: &mut Netlink, spec: &TunnelSpec) -> Result<(u32, bool), TunnelError> {
    let before = find(netlink, spec.port)?;
    let usable = before.filter(|device| device.is_ours);
    if usable.is_none() {
        let add = add_vxlan(IFNAME, Mac(DEVICE_MAC), spec.mtu, spec.port);
        netlink.apply(vec![delete_link(IFNAME)])?;
        netlink.apply(vec![add]).map_err(TunnelError::Refused)?;
        if sysctl::has_ipv6() {
            netlink.apply(vec![without_link_local(IFNAME)])?;
        }
    }
    let device = match usable {
        Some(device) => device,
        None => find(netlink, spec.port)?.ok_or(TunnelError::Vanished)?,
    };
    if device.mtu != spec.mtu {
        netlink.apply(vec![set_mtu(IFNAME, spec.mtu)])?;
    }
    sysctl::tune_host_end(IFNAME)?;
    Ok((device.ifindex, usable.is_none()))
}

/// Brings the device up, when its programs are in place. Whether it was down.
pub fn bring_up(netlink: &mut Netlink, port: u16) -> Result<bool, TunnelError> {
    let device = find(netlink, port)?.ok_or(TunnelError::Vanished)?;
    if !device.up {
        netlink.apply(vec![set_up(IFNAME)])?;
    }
    Ok(!device.up)
}
