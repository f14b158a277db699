//! Packet programs as filters of the `clsact` queueing discipline, for kernels before 6.6, which
//! have no tcx links. A filter stays when the agent is gone; the next agent replaces its program.

use std::{fs, io, os::fd::AsFd as _, path::Path};

use aya::programs::{
    ProgramError, SchedClassifier, TcAttachType,
    links::Link as _,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};

use super::{link::Outcome, object::LoadedProgram, sys, tc::Direction};

/// Our filters: ahead of others', at a handle of their own, so that they are found again.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 0x6d7a);

/// Why a filter could not be made.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The queueing discipline is missing and can't be added.
    #[error("add the clsact queueing discipline")]
    Clsact(#[source] TcError),
    /// The program can't be handed over by a pin.
    #[error("hand the program over")]
    Pin(#[source] io::Error),
    /// The kernel refused the filter.
    #[error("add the filter")]
    Filter(#[source] ProgramError),
}

/// Makes the filter of ours at the interface run `program`. `pin` is a free place for a moment.
pub(super) fn ensure(
    interface: &str,
    program: &LoadedProgram,
    direction: Direction,
    pin: &Path,
) -> Result<Outcome, FilterError> {
    match qdisc_add_clsact(interface) {
        Ok(()) => {}
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(FilterError::Clsact(error)),
    }
    let mut classifier = by_pin(program, pin)?;
    let place = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    let replaced = SchedClassifierLink::attached(interface, place, PRIORITY, HANDLE, None)
        .map_err(|error| ProgramError::from(TcError::IoError(error)))
        .and_then(|filter| classifier.attach_to_link(filter));
    let (id, outcome) = if let Ok(id) = replaced {
        (id, Outcome::Replaced)
    } else {
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        let id = classifier
            .attach_with_options(interface, place, TcAttachOptions::Netlink(options))
            .map_err(FilterError::Filter)?;
        (id, Outcome::Attached)
    };
    // Dropping the link would remove the filter.
    std::mem::forget(classifier.take_link(id).map_err(FilterError::Filter)?);
    Ok(outcome)
}

/// Removes all filters of ours in this network namespace. How many there were.
pub(super) fn remove_all() -> usize {
    let interfaces = nix::net::if_::if_nameindex();
    let interfaces = interfaces.iter().flat_map(|all| all.iter());
    let mut removed = 0;
    for interface in interfaces {
        let Ok(name) = interface.name().to_str() else { continue };
        for place in [TcAttachType::Ingress, TcAttachType::Egress] {
            let filter = SchedClassifierLink::attached(name, place, PRIORITY, HANDLE, None);
            removed += usize::from(filter.is_ok_and(|filter| filter.detach().is_ok()));
        }
    }
    removed
}

/// The program as aya knows it: it takes over what is pinned.
fn by_pin(program: &LoadedProgram, pin: &Path) -> Result<SchedClassifier, FilterError> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(FilterError::Pin(error));
        }
        _ => {}
    }
    sys::pin(program.as_fd(), pin).map_err(FilterError::Pin)?;
    let classifier = SchedClassifier::from_pin(pin).map_err(FilterError::Filter);
    fs::remove_file(pin).map_err(FilterError::Pin)?;
    classifier
}
