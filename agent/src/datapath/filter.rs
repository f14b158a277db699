//! Packet programs as filters (`cls_bpf`) of the queueing discipline `clsact`: at the host's ends of
//! pods' veths, and anywhere on kernels before 6.6, which have no tcx links.
//!
//! Pods come and go all day, and the kernel waits for a grace period, with the lock over all devices
//! held, for each tcx link that it makes or unmakes: 16 ms of every ADD. A filter takes none
//! ([ADR 30](../../../docs/adr/0030-programs-of-pods-are-filters.md)). It stays when the agent is
//! gone, the next agent replaces its program in place, and it goes with its interface.

use std::os::fd::{AsFd as _, AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use nix::{errno::Errno, net::if_::if_nameindex};

use super::{link::Outcome, object::LoadedProgram, tc::Direction, uplinks::Interface};
use crate::podnet::netlink::{Change, Netlink, NetlinkError};

/// Which of our filters of a direction it is, by the kernel's priority: ahead of others', and at a
/// handle of their own, so that they are found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Place {
    /// What passes here comes to the other.
    First = 1,
    /// The packet program.
    Main = 2,
}

const HANDLE: TcHandle = TcHandle { major: 0, minor: 0x6d7a };
/// `ETH_P_ALL` in network byte order: packets of every protocol.
const EVERY_PROTOCOL: u32 = 0x0003_u16.to_be() as u32;
/// The handle that every `clsact` has.
const CLSACT: TcHandle = TcHandle { major: u16::MAX, minor: 0 };

/// A program where it belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter<'a> {
    /// Its name, which `tc filter show` says.
    pub(super) name: &'static str,
    /// The program.
    pub(super) program: &'a LoadedProgram,
    /// Which packets it sees.
    pub(super) direction: Direction,
    /// In which order.
    pub(super) place: Place,
}

/// Makes our filters at the interface run these programs; what had to be done for each. All that
/// is missing is made by one request.
pub(super) fn ensure(
    interface: &Interface,
    filters: &[Filter<'_>],
) -> Result<Vec<Outcome>, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let mut outcomes = Vec::with_capacity(filters.len());
    let mut changes = vec![add_clsact(interface)];
    for filter in filters {
        let Filter { direction, place, .. } = *filter;
        let outcome = match running(&mut netlink, interface.index, direction, place)? {
            Some(id) if id == filter.program.id => Outcome::Unchanged,
            Some(_) => Outcome::Replaced,
            None => Outcome::Attached,
        };
        if outcome != Outcome::Unchanged {
            changes.push(put(interface, filter));
        }
        outcomes.push(outcome);
    }
    // Nothing but the discipline itself, which is there.
    if changes.len() > 1 {
        netlink.apply(changes)?;
    }
    Ok(outcomes)
}

/// Removes all filters of ours in this network namespace. How many there were; what can't be removed
/// holds up nothing else.
pub(super) fn remove_all() -> Result<usize, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let interfaces = if_nameindex().map_err(|errno| NetlinkError::Socket {
        operation: "list the interfaces for",
        source: errno.into(),
    })?;
    let (mut removed, mut outcome) = (0, Ok(()));
    for interface in &interfaces {
        for direction in [Direction::Ingress, Direction::Egress] {
            for place in [Place::First, Place::Main] {
                let ifindex = interface.index();
                let done = running(&mut netlink, ifindex, direction, place).and_then(|there| {
                    let delete = there.map(|_| removal(ifindex, direction, place));
                    removed += usize::from(delete.is_some());
                    netlink.apply(delete.into_iter().collect())
                });
                outcome = outcome.and(done);
            }
        }
    }
    outcome.map(|()| removed)
}

/// Removes our filter of an interface, if there is one.
pub(super) fn remove(
    interface: &Interface,
    direction: Direction,
    place: Place,
) -> Result<(), NetlinkError> {
    let mut netlink = Netlink::open()?;
    match running(&mut netlink, interface.index, direction, place)? {
        Some(_) => netlink.apply(vec![removal(interface.index, direction, place)]),
        None => Ok(()),
    }
}

fn removal(ifindex: u32, direction: Direction, place: Place) -> Change {
    Change {
        what: format!("remove a filter of interface {ifindex}"),
        message: RouteNetlinkMessage::DelTrafficFilter(at(ifindex, direction, place)),
        flags: 0,
        tolerate: Some(Errno::ENOENT),
    }
}

/// The kernel's id of the program that our filter of an interface runs; `None` where there is no
/// such filter.
pub(super) fn running(
    netlink: &mut Netlink,
    ifindex: u32,
    direction: Direction,
    place: Place,
) -> Result<Option<u32>, NetlinkError> {
    let question = RouteNetlinkMessage::GetTrafficFilter(at(ifindex, direction, place));
    match netlink.get("get the filter of a packet program", question) {
        Ok(answer) => Ok(answer.and_then(|message| program_of(&message))),
        // No such filter, no filter at all, no discipline to hold one.
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn program_of(message: &RouteNetlinkMessage) -> Option<u32> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = message else { return None };
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    options.iter().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}

fn add_clsact(interface: &Interface) -> Change {
    let mut message = TcMessage::with_index(interface.index.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = CLSACT;
    message.attributes = vec![TcAttribute::Kind("clsact".into())];
    Change {
        what: format!("add the queueing discipline clsact to {}", interface.name),
        message: RouteNetlinkMessage::NewQueueDiscipline(message),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        tolerate: Some(Errno::EEXIST),
    }
}

/// Makes the filter, or has the one that is there run the program from now on.
fn put(interface: &Interface, filter: &Filter<'_>) -> Change {
    let mut message = at(interface.index, filter.direction, filter.place);
    let fd = filter.program.as_fd().as_raw_fd().cast_unsigned();
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(fd)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(filter.name.into())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    Change {
        what: format!("add the filter {} to {}", filter.name, interface.name),
        message: RouteNetlinkMessage::NewTrafficFilter(message),
        flags: NLM_F_CREATE,
        tolerate: None,
    }
}

/// Where our filter of a direction is.
fn at(ifindex: u32, direction: Direction, place: Place) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    let minor = match direction {
        Direction::Ingress => TcHandle::MIN_INGRESS,
        Direction::Egress => TcHandle::MIN_EGRESS,
    };
    message.header.parent = TcHandle { major: u16::MAX, minor };
    message.header.handle = HANDLE;
    message.header.info = (place as u32) << 16 | EVERY_PROTOCOL;
    message.attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.into())];
    message
}
