//! What the agent and a service manager (systemd) tell each other, by sd_notify(3) and
//! sd_listen_fds(3): that the agent serves, and the listening DNS sockets, which outlive a restart.
//!
//! The manager keeps them only between one process and the next. The agent hands them in when it is
//! told to stop, and the next takes them out when it starts: a socket that somebody keeps and
//! nobody reads would keep the questions of this node's pods from the resolvers of other nodes.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    sync::Arc,
    time::Duration,
};

use nix::unistd::close;
use rustix::{
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketType, sendmsg_addr, socket,
    },
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};
use tokio_util::sync::CancellationToken;

use crate::{
    handover::{Departure, OpenSockets},
    status::{Board, State},
    supervisor::TaskError,
};

/// The first descriptor that is handed over (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;
/// Descriptors that are taken at most, and that one message takes.
const TAKEN_MAX: RawFd = 256;
const SENT_MAX: usize = 64;
/// What the descriptors are called in the manager's store.
const NAME: &str = "dns";
/// How often it is looked whether the agent serves, until it does.
const LOOK: Duration = Duration::from_millis(100);

/// The service manager, where one started this process and wants to be told.
#[derive(Clone, Debug, Default)]
pub(super) struct ServiceManager {
    /// Where it listens; a first octet of zero is an abstract name.
    at: Option<Arc<SocketAddrUnix>>,
}

impl ServiceManager {
    /// That of this process.
    pub(super) fn of_process() -> Self {
        let named = std::env::var_os("NOTIFY_SOCKET");
        let address = named.and_then(|name| match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddrUnix::new_abstract_name(rest).ok(),
            path => SocketAddrUnix::new(path).ok(),
        });
        Self { at: address.map(Arc::new) }
    }

    /// Takes the descriptors that were kept for this process.
    pub(super) fn take(&self) -> Vec<OwnedFd> {
        let number = |name| std::env::var(name).ok()?.parse::<RawFd>().ok();
        let own = number("LISTEN_PID") == Some(getpid().as_raw_nonzero().get());
        let count = number("LISTEN_FDS").filter(|_| own).unwrap_or(0).clamp(0, TAKEN_MAX);
        let taken: Vec<_> = (FIRST..FIRST + count).filter_map(take_over).collect();
        if count > 0 {
            tracing::info!(sockets = taken.len(), "DNS sockets were kept by the service manager");
            self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={NAME}"), &[]);
        }
        taken
    }

    /// Says once that the agent serves.
    pub(super) async fn tell_ready(
        self,
        board: Arc<Board>,
        cancel: CancellationToken,
    ) -> Result<(), TaskError> {
        if self.at.is_none() {
            cancel.cancelled().await;
            return Ok(());
        }
        let serves = |state: &State| matches!(state, State::Ready | State::Degraded(_));
        while !board.parts().values().all(serves) {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        self.tell("READY=1", &[]);
        cancel.cancelled().await;
        Ok(())
    }

    /// Says that the agent stops, and hands `sockets` in for the next one: their addresses stay then.
    pub(super) fn keep(&self, sockets: &OpenSockets, departure: &Departure) {
        if self.at.is_none() {
            return;
        }
        match sockets.duplicates() {
            Ok(sockets) if sockets.is_empty() => {}
            Ok(sockets) => {
                for part in sockets.chunks(SENT_MAX) {
                    let part: Vec<_> = part.iter().map(|socket| socket.as_fd()).collect();
                    self.tell(&format!("FDSTORE=1\nFDNAME={NAME}\nFDPOLL=0"), &part);
                }
                departure.set_kept();
            }
            Err(error) => tracing::warn!(%error, "the service manager keeps no DNS sockets"),
        }
        self.tell("STOPPING=1", &[]);
    }

    /// Sends a message, without waiting.
    fn tell(&self, message: &str, descriptors: &[BorrowedFd<'_>]) {
        let Some(at) = &self.at else { return };
        let send = || -> io::Result<()> {
            let from = socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SENT_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty()
                && !control.push(SendAncillaryMessage::ScmRights(descriptors))
            {
                return Err(io::Error::other("more descriptors than a message takes"));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            sendmsg_addr(from, &**at, &[IoSlice::new(message.as_bytes())], &mut control, flags)?;
            Ok(())
        };
        if let Err(error) = send() {
            tracing::warn!(%error, message, "the service manager was not told");
        }
    }
}

/// The descriptor `number` of this process, which nobody else here knows of, as one that is closed
/// when programs are started.
fn take_over(number: RawFd) -> Option<OwnedFd> {
    let this = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    let taken = pidfd_getfd(this, number, PidfdGetfdFlags::empty());
    let _absent = close(number);
    taken.ok()
}
