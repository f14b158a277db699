//! The socket options by which the tables of `iptables-legacy` go to and from the kernel
//! (`linux/netfilter_ipv4/ip_tables.h`); what is in them is the business of
//! [`netfilter::legacy`](crate::netfilter::legacy). They take NET_ADMIN, and any socket will do, whose
//! network namespace is that of the thread that opens it.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::netfilter::Family;

/// Options that set: IPT_SO_SET_REPLACE and IPT_SO_SET_ADD_COUNTERS, IPv6's likewise.
const REPLACE: libc::c_int = 64;
const ADD_COUNTERS: libc::c_int = 65;
/// `struct ipt_replace`: where the number of counters is and a pointer to room for them, and its
/// length without entries.
const COUNT_AT: usize = 84;
const POINTER_AT: usize = 88;
const HEAD: usize = 96;
/// `struct xt_counters`: packets and octets.
const COUNTERS: usize = 16;

/// A socket for the tables of a family.
#[derive(Debug)]
pub struct XtSocket {
    socket: OwnedFd,
    level: libc::c_int,
}

impl XtSocket {
    /// Opens one; nothing is sent by it.
    pub fn open(family: Family) -> io::Result<Self> {
        let (of, level) = match family {
            Family::Ipv4 => (AddressFamily::Inet, libc::SOL_IP),
            Family::Ipv6 => (AddressFamily::Inet6, libc::SOL_IPV6),
        };
        let socket = socket(of, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket, level })
    }

    /// Has the kernel answer to the question in `octets`, in its place.
    pub fn get(&self, option: i32, octets: &mut [u8]) -> io::Result<()> {
        let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut length = libc::socklen_t::try_from(octets.len()).map_err(wrong)?;
        let (socket, to) = (self.socket.as_raw_fd(), octets.as_mut_ptr().cast());
        // SAFETY: the kernel writes at most `length` octets, any of which are valid, to a buffer of
        // this length that lives until it is done.
        let done = unsafe { libc::getsockopt(socket, self.level, option, to, &raw mut length) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Replaces a table, as whose successor `replacement` was made, by it: a `struct ipt_replace` and
    /// its entries. Gives what each of the `entries` before had counted. The kernel refuses where
    /// there was another number of them.
    pub fn replace(&self, replacement: &[u8], entries: usize) -> io::Result<Vec<u8>> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidInput);
        let count = u32::try_from(entries).map_err(|_| wrong())?;
        let mut counters = vec![0_u8; entries * COUNTERS];
        let mut octets = replacement.to_vec();
        let pointer = counters.as_mut_ptr().expose_provenance().to_ne_bytes();
        let head = octets.get_mut(..HEAD).ok_or_else(wrong)?;
        head[COUNT_AT..COUNT_AT + 4].copy_from_slice(&count.to_ne_bytes());
        head[POINTER_AT..POINTER_AT + pointer.len()].copy_from_slice(&pointer);
        self.set(REPLACE, &octets)?;
        Ok(counters)
    }

    /// Adds what is in a `struct xt_counters_info` to what a table's entries count.
    pub fn add_counters(&self, counters: &[u8]) -> io::Result<()> {
        self.set(ADD_COUNTERS, counters)
    }

    fn set(&self, option: libc::c_int, octets: &[u8]) -> io::Result<()> {
        let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let length = libc::socklen_t::try_from(octets.len()).map_err(wrong)?;
        let (socket, from) = (self.socket.as_raw_fd(), octets.as_ptr().cast());
        // SAFETY: the kernel reads at most `length` octets of a buffer of this length. The pointer in
        // them, where the option has one, is [`Self::replace`]'s, to room for as many counters as
        // stand before it; that lives until this returns.
        let done = unsafe { libc::setsockopt(socket, self.level, option, from, length) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}
