//! Takes a datapath out of force that no agent runs: programs are detached, tables forgotten. The way
//! back to another service proxy, which has to be in force already.

use std::{fs, io, path::Path};

use mizzen_ebpf_abi::service::{Frontend, FrontendKey, frontend_flags};

use super::{
    filter,
    growing::GrowingHash,
    layout, link,
    pin::{PinError, Pins},
    reader::ReadError,
};
use crate::{netfilter::Family, podnet::netlink::NetlinkError};

/// Why the datapath is still in force, or a part of it.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// Somebody else has the pins, or they can't be reached.
    #[error(transparent)]
    Pins(#[from] PinError),
    /// Filters can't be removed.
    #[error(
        "remove the programs at the devices of this network namespace, which run on without their \
         tables' writer; run it again, or remove them with `tc filter del`"
    )]
    Filters(#[from] NetlinkError),
    /// A pin can't be removed.
    #[error("remove the pins in {folder}; what is left of them stays in force: run it again")]
    Remove {
        /// The folder.
        folder: String,
        /// Why.
        source: io::Error,
    },
}

/// Whether an earlier agent left a datapath below `bpffs`, or tables of one.
pub fn is_in_force(bpffs: &Path) -> bool {
    ["links", "maps"].iter().any(|folder| {
        let entries = Pins::folder_of(bpffs).join(folder).read_dir();
        entries.is_ok_and(|mut entries| entries.next().is_some())
    })
}

/// The families of which an earlier agent left services in force below `bpffs`; `None` where nothing
/// of it is.
pub fn services_in_force(bpffs: &Path) -> Result<Option<Vec<Family>>, ReadError> {
    if !is_in_force(bpffs) {
        return Ok(None);
    }
    let opened =
        GrowingHash::<FrontendKey, Frontend>::open(&Pins::of_another(bpffs), &layout::FRONTENDS);
    let frontends = match opened {
        // It was begun to be taken out of force.
        Err(PinError::Open(_, error)) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(Vec::new()));
        }
        opened => opened?,
    };
    let mut found = [false; 2];
    let visited = frontends.visit(|batch| {
        for (key, frontend) in batch.iter() {
            let of_a_pod = frontend.flags & frontend_flags::HOST_PORT != 0;
            found[usize::from(!key.addr.is_v4())] |= !of_a_pod;
        }
    });
    visited.map_err(|source| ReadError::Kernel { map: layout::FRONTENDS.inner.name, source })?;
    let families = Family::ALL.into_iter().zip(found);
    Ok(Some(families.filter(|(_, found)| *found).map(|(family, _)| family).collect()))
}

/// Detaches all programs pinned below `bpffs` and forgets the tables. How many links there were.
/// Connections that sockets translated go on, those of the packet path end.
pub fn release(bpffs: &Path) -> Result<usize, ReleaseError> {
    let pins = Pins::open(bpffs, false)?;
    let mut links = 0;
    // Programs first: they would run without the tables' writer.
    for folder in [pins.links(), pins.maps()] {
        let is_links = folder == pins.links();
        let mut remove = || {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let removed = if is_links { link::remove(&path) } else { fs::remove_file(path) };
                removed?;
                links += usize::from(is_links);
            }
            fs::remove_dir(&folder)
        };
        let text = folder.display().to_string();
        remove().map_err(|source| ReleaseError::Remove { folder: text, source })?;
        if is_links {
            links += filter::remove_all()?;
        }
    }
    let folder = Pins::folder_of(bpffs);
    fs::remove_dir(&folder)
        .map_err(|source| ReleaseError::Remove { folder: folder.display().to_string(), source })?;
    Ok(links)
}
