//! Hears of the kernel's changes to links, addresses, routes, neighbours and settings, on a
//! thread of its own.

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread,
};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv,
        setsockopt, socket, sockopt::RcvBuf,
    },
};
use tokio::sync::Notify;

use super::{
    netconf,
    netlink::{NetlinkError, RECEIVE_BUFFER, parse, socket_error},
};

/// What may wait to be read; beyond that the kernel drops, and says so.
const BUFFER: usize = 1 << 20;

/// Tells when something that matters has changed. Its thread ends when it is dropped.
#[derive(Debug)]
pub struct Monitor {
    news: Arc<Notify>,
    stop: Option<UnixStream>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Monitor {
    /// What the thread holds is free when this returns.
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by itself.
            let _ended = thread.join();
        }
    }
}

impl Monitor {
    /// Hears of the calling thread's network namespace; `matters` says what is worth telling.
    pub fn start(
        matters: impl Fn(&RouteNetlinkMessage) -> bool + Send + 'static,
    ) -> Result<Self, NetlinkError> {
        let fd = listen()?;
        let thread_error =
            |source| NetlinkError::Socket { operation: "start a thread for", source };
        let (stop, stopped) = UnixStream::pair().map_err(thread_error)?;
        let news = Arc::new(Notify::new());
        let told = Arc::clone(&news);
        let thread = thread::Builder::new()
            .name("podnet-monitor".into())
            .spawn(move || {
                if let Err(error) = hear(&fd, &stopped, &matters, &told) {
                    tracing::error!(%error, "no longer hearing of the kernel's changes");
                }
            })
            .map_err(thread_error)?;
        Ok(Self { news, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns when something that matters has changed since it last returned.
    pub async fn told(&self) {
        self.news.notified().await;
    }
}

fn listen() -> Result<OwnedFd, NetlinkError> {
    let failed = |operation| move |errno: Errno| socket_error(operation, errno);
    let groups = [
        libc::RTMGRP_LINK,
        libc::RTMGRP_IPV4_IFADDR,
        libc::RTMGRP_IPV6_IFADDR,
        libc::RTMGRP_IPV4_ROUTE,
        libc::RTMGRP_IPV6_ROUTE,
        libc::RTMGRP_NEIGH,
        group(libc::RTNLGRP_IPV4_NETCONF),
        group(libc::RTNLGRP_IPV6_NETCONF),
    ];
    let mask = groups.iter().fold(0, |mask, group| mask | group.cast_unsigned());
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)
        .map_err(failed("open"))?;
    setsockopt(&fd, RcvBuf, &BUFFER).map_err(failed("size the buffer of"))?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, mask)).map_err(failed("bind"))?;
    Ok(fd)
}

/// A group in the mask of an address, which has the first 32.
const fn group(number: libc::c_uint) -> libc::c_int {
    1 << (number - 1)
}

/// Until the other end of `stopped` is closed.
fn hear(
    fd: &OwnedFd,
    stopped: &UnixStream,
    matters: &dyn Fn(&RouteNetlinkMessage) -> bool,
    told: &Notify,
) -> io::Result<()> {
    let mut buffer = vec![0; RECEIVE_BUFFER];
    loop {
        let interest = PollFlags::POLLIN;
        let mut fds = [PollFd::new(fd.as_fd(), interest), PollFd::new(stopped.as_fd(), interest)];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        if fds[1].any().unwrap_or(true) {
            return Ok(());
        }
        match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) if !any_matters(&buffer[..length], matters) => {}
            // Some were dropped: anything may have changed.
            Ok(_) | Err(Errno::ENOBUFS) => told.notify_one(),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What can't be read may matter.
fn any_matters(datagram: &[u8], matters: &dyn Fn(&RouteNetlinkMessage) -> bool) -> bool {
    if let Some(told) = netconf::told(datagram) {
        return told;
    }
    parse(datagram).map_or(true, |messages| {
        messages.iter().any(|message| match &message.payload {
            NetlinkPayload::InnerMessage(item) => matters(item),
            _ => false,
        })
    })
}
