//! The UDP half of `hello`: each datagram is answered with the same line as a request by HTTP.
//!
//! The answer leaves from the address that was asked (`IPV6_PKTINFO`, RFC 3542 section 6.2),
//! which a wildcard socket would otherwise choose by route: wrong on a host with many addresses.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
};

use anyhow::Context;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use tokio::{io::Interest, net::UdpSocket};

use super::hello::Who;

/// What a question may be long; the rest is cut off, it is not looked at anyway.
const DATAGRAM_MAX: usize = 2048;

/// Answers for ever. A socket that lost its way of answering is an error, a lost answer is not.
pub(super) async fn serve(socket: &UdpSocket, who: &Who) -> anyhow::Result<()> {
    let port = socket.local_addr().context("the address of the UDP socket")?.port();
    if !socket.local_addr().is_ok_and(|address| address.is_ipv6()) {
        return serve_plain(socket, who).await;
    }
    setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true).context("IPV6_RECVPKTINFO")?;
    loop {
        let (client, asked) = socket
            .async_io(Interest::READABLE, || receive(socket))
            .await
            .context("receiving a datagram")?;
        let server = SocketAddr::new(Ipv6Addr::from(asked.ipi6_addr.s6_addr).into(), port);
        let line = who.line(SocketAddr::V6(client), server);
        let sent =
            socket.async_io(Interest::WRITABLE, || send(socket, client, &asked, &line)).await;
        if let Err(error) = sent {
            tracing::debug!(%client, %error, "answer not sent");
        }
    }
}

/// Without IPv6 on the host: the address that was asked is not known.
async fn serve_plain(socket: &UdpSocket, who: &Who) -> anyhow::Result<()> {
    let local = socket.local_addr().context("the address of the UDP socket")?;
    let mut buffer = [0; DATAGRAM_MAX];
    loop {
        let (_, client) = socket.recv_from(&mut buffer).await.context("receiving a datagram")?;
        if let Err(error) = socket.send_to(&who.line(client, local), client).await {
            tracing::debug!(%client, %error, "answer not sent");
        }
    }
}

fn receive(socket: &UdpSocket) -> io::Result<(SocketAddrV6, libc::in6_pktinfo)> {
    let mut buffer = [0; DATAGRAM_MAX];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let message = recvmsg::<SockaddrIn6>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::empty(),
    )?;
    let client = message.address.ok_or_else(|| io::Error::other("a datagram without source"))?;
    let asked = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv6PacketInfo(info) => Some(info),
        _ => None,
    });
    let asked = asked.ok_or_else(|| io::Error::other("a datagram without destination"))?;
    Ok((SocketAddrV6::new(client.ip(), client.port(), 0, client.scope_id()), asked))
}

fn send(
    socket: &UdpSocket,
    client: SocketAddrV6,
    asked: &libc::in6_pktinfo,
    line: &[u8],
) -> io::Result<()> {
    // The interface is left to the route, except for link-local addresses, which need it.
    let local = IpAddr::from(Ipv6Addr::from(asked.ipi6_addr.s6_addr));
    let link_local = matches!(local, IpAddr::V6(address) if address.is_unicast_link_local());
    let source = libc::in6_pktinfo {
        ipi6_ifindex: if link_local { asked.ipi6_ifindex } else { 0 },
        ..*asked
    };
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(line)],
        &[ControlMessage::Ipv6PacketInfo(&source)],
        MsgFlags::empty(),
        Some(&SockaddrIn6::from(client)),
    )?;
    Ok(())
}
