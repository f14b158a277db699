//! DEL without an agent: remove the link by its derived name, and leave a note for the agent.
//!
//! The runtime repeats a failed DEL for ever and the pod stays Terminating, so nothing here may
//! fail the call: what can't be done now is the agent's when it is back.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
        setsockopt, socket, sockopt::ReceiveTimeout,
    },
    sys::time::{TimeVal, TimeValLike},
};

use crate::wire::{Attachment, DEL_JOURNAL};

/// The journal takes no more than this many bytes: an agent that never comes back must not fill
/// the node's memory. The agent releases what is not noted when the pod's namespace is gone.
const MAX_JOURNAL: u64 = 4 << 20;

/// How often a note is written again because an agent took the file away meanwhile.
const ATTEMPTS: u32 = 8;

/// Appends `attachment` to the journal that the agent drains when it starts.
pub fn append_journal(state_dir: &Path, attachment: &Attachment) -> io::Result<()> {
    let path = state_dir.join(DEL_JOURNAL);
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    append_in(&path, attachment, open)
}

/// Appends to the file that `open` gives, until that is the one at `path`: an agent that has moved it
/// aside since it was opened may have read it before the note was in it. To be noted twice changes
/// nothing.
fn append_in(
    path: &Path,
    attachment: &Attachment,
    mut open: impl FnMut() -> io::Result<File>,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(attachment)?;
    line.push(b'\n');
    for _ in 0..ATTEMPTS {
        let mut file = open()?;
        if file.metadata()?.len() > MAX_JOURNAL {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the journal is full"));
        }
        // One write: lines of plugins that run side by side don't mix.
        if file.write(&line)? != line.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        if is_at(path, &file)? {
            return Ok(());
        }
    }
    Err(io::Error::other("the journal was taken away each time that it was written to"))
}

/// Whether `path` is that of an open file.
fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (opened.dev(), opened.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the interface `ifname` of this network namespace; both ends of a veth go together.
/// Success where there is none.
pub fn delete_link(ifname: &str) -> io::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(2))?;
    sendto(fd.as_raw_fd(), &del_link(ifname), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let length = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsghdr (16 bytes), then struct nlmsgerr, which begins with the negated errno.
    let code = answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) if Errno::from_raw(-code) == Errno::ENODEV => Ok(()),
        Some(code) => Err(Errno::from_raw(-code).into()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// `RTM_DELLINK` by name, as bytes (rtnetlink(7)): a header, struct ifinfomsg all zero, and one
/// attribute. Written by hand because it is all the netlink that the plugin needs.
fn del_link(ifname: &str) -> Vec<u8> {
    const RTM_DELLINK: u16 = 17;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const IFLA_IFNAME: u16 = 3;
    const HEADERS: usize = 16 + 16;
    let attribute = 4 + ifname.len() + 1;
    let total = HEADERS + attribute.next_multiple_of(4);
    let mut bytes = Vec::with_capacity(total);
    bytes.extend((u32::try_from(total).unwrap_or(u32::MAX)).to_ne_bytes());
    bytes.extend(RTM_DELLINK.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    bytes.resize(HEADERS, 0);
    bytes.extend(u16::try_from(attribute).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(IFLA_IFNAME.to_ne_bytes());
    bytes.extend(ifname.as_bytes());
    bytes.resize(total, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_takes_one_line_per_attachment() {
        let dir = tempfile::tempdir().unwrap();
        for container_id in ["a", "b"] {
            let attachment =
                Attachment { container_id: container_id.into(), ifname: "eth0".into() };
            append_journal(dir.path(), &attachment).unwrap();
        }
        let text = fs::read_to_string(dir.path().join(DEL_JOURNAL)).unwrap();
        let expected = "{\"containerID\":\"a\",\"ifname\":\"eth0\"}\n\
                        {\"containerID\":\"b\",\"ifname\":\"eth0\"}\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_note_goes_into_the_next_journal_where_an_agent_took_the_one_that_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DEL_JOURNAL);
        let attachment = Attachment { container_id: "a".into(), ifname: "eth0".into() };
        let mut taken = 0;
        let open = || -> io::Result<File> {
            let file = File::options().append(true).create(true).open(&path)?;
            if taken < 2 {
                taken += 1;
                fs::rename(&path, path.with_extension("draining"))?;
            }
            Ok(file)
        };
        append_in(&path, &attachment, open).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\"containerID\":\"a\",\"ifname\":\"eth0\"}\n");
        assert_eq!(taken, 2);
    }

    #[test]
    fn deleting_a_link_that_is_not_there_is_success() {
        delete_link("mz-not-there").unwrap();
    }

    #[test]
    fn the_request_is_aligned_and_as_long_as_it_says() {
        for ifname in ["a", "mz0123456789abc"] {
            let bytes = del_link(ifname);
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize, bytes.len());
        }
    }
}
