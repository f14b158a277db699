//! Headers that are not where the programs read them in place: a device may leave a frame in pages
//! of which the buffer's own memory has nothing but the link-layer header.

use std::{
    io,
    net::{IpAddr, UdpSocket},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use mizzen_ebpf_abi::{
    addr::protocol,
    counters::Counter,
    frame::{Frame, key},
};
use mizzen_tests::{
    echo::Transport,
    lab::{CLIENT, FAMILIES, Family, Lab, mac},
};

use super::{EXTERNAL, NODE_PORT, node_port};

/// More than a page: the kernel keeps smaller frames in one piece.
const PAYLOAD: usize = 5_000;
/// Octets of an Ethernet header.
const ETHERNET: u16 = 14;

/// Sends a frame by `eth0` of which the first octets alone are in the buffer's own memory
/// (`PACKET_VNET_HDR`, packet(7)).
fn send_in_pages(frame: &[u8]) -> io::Result<()> {
    // SAFETY: integers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel gave it to us alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let on: libc::c_int = 1;
    let size = |bytes: usize| libc::socklen_t::try_from(bytes).unwrap();
    // SAFETY: the kernel reads a live integer of the size that it is told.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_VNET_HDR,
            (&raw const on).cast(),
            size(size_of_val(&on)),
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    // `struct virtio_net_hdr`: no flags, no segments, so many octets of headers.
    let mut bytes = vec![0; 10];
    bytes[2..4].copy_from_slice(&ETHERNET.to_le_bytes());
    bytes.extend(frame);
    let ifindex = nix::net::if_::if_nametoindex("eth0")?;
    let to = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap(),
        sll_protocol: u16::from_ne_bytes([frame[12], frame[13]]),
        sll_ifindex: ifindex.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    // SAFETY: the kernel reads live memory of the sizes that it is told.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const to).cast(),
            size(size_of_val(&to)),
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A client's socket, and the node port of a pod that it is about to send to.
fn client_of_a_node_port(lab: &mut Lab, family: Family) -> (UdpSocket, (IpAddr, u16)) {
    let backend = lab.nodes[0].pods[0].server(family);
    node_port(&mut lab.nodes[0], family, Transport::Udp, &[backend], EXTERNAL);
    let socket = lab.client.run(|| UdpSocket::bind((family.wire(CLIENT), 0))).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (socket, (lab.address_of_node(0, family), NODE_PORT))
}

#[test]
fn headers_that_lie_in_pages_are_read_all_the_same() {
    let mut lab = Lab::new([1, 0]);
    lab.allow_jumbo_frames();
    let macs = [mac(&lab.nodes[0].node.netns, "eth0"), mac(&lab.client, "eth0")].concat();
    for family in FAMILIES {
        let (socket, node) = client_of_a_node_port(&mut lab, family);
        let (client, port) = (family.wire(CLIENT), socket.local_addr().unwrap().port());
        let sent = Frame {
            payload: vec![b'm'; PAYLOAD],
            ..Frame::new(key(protocol::UDP, (client, port), node))
        };
        let mut frame = sent.bytes();
        frame[..macs.len()].copy_from_slice(&macs);
        let before = lab.nodes[0].counted(Counter::PacketTranslated);
        lab.client.run(|| send_in_pages(&frame)).unwrap();
        let mut answer = [0; 2 * PAYLOAD];
        let (length, from) = socket.recv_from(&mut answer).unwrap();
        assert_eq!(from, node.into(), "{family:?}");
        assert!(length >= PAYLOAD, "{length}");
        assert_eq!(lab.nodes[0].counted(Counter::PacketTranslated) - before, 2, "there and back");
    }
}

/// A device below one of a VLAN sees that one's packets before it does, under their tag.
#[test]
fn what_has_a_vlan_tag_passes_the_device_below() {
    let mut lab = Lab::new([1, 0]);
    let macs = [mac(&lab.nodes[0].node.netns, "eth0"), mac(&lab.client, "eth0")].concat();
    for family in FAMILIES {
        let (socket, node) = client_of_a_node_port(&mut lab, family);
        let (client, port) = (family.wire(CLIENT), socket.local_addr().unwrap().port());
        let created = lab.nodes[0].counted(Counter::FlowCreated);
        for (port, tag) in [(port ^ 1, &[0x81, 0, 0, 100][..]), (port, &[])] {
            let frame = Frame::new(key(protocol::UDP, (client, port), node)).bytes();
            let frame = [&macs, tag, &frame[macs.len()..]].concat();
            lab.client.run(|| send_in_pages(&frame)).unwrap();
        }
        // What was sent last is answered, so that what was sent before it has passed.
        socket.recv_from(&mut [0; 2_000]).unwrap();
        assert_eq!(lab.nodes[0].counted(Counter::FlowCreated) - created, 1, "{family:?}");
    }
}
