//! Taking over from an agent of an older layout, with traffic going on.
//!
//! The older programs run on with maps of their own, until this agent has filled its tables and
//! replaces them link by link, as after any restart. What can't be made anew is taken over:
//! - maps whose records are the same in both layouts are shared: the flows, what sockets remember,
//!   the pods;
//! - those records name sets and backends by number, so the numbers go over too. Ranges don't:
//!   the first plan writes them;
//! - the links move to this layout's folder.
//!
//! Each step can be done again, and the older folder goes last: an agent that dies on the way
//! leaves what the next one needs.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use mizzen_ebpf_abi::{
    maps,
    service::{Backend6, Frontend, FrontendKey, SetWord},
};
use nix::fcntl::{Flock, FlockArg};

use super::{
    layout::{self, ARRAY, HASH, MMAPABLE, MapLayout, NO_PREALLOC, layout},
    mapped::MappedArray,
    maps::{KernelMaps, record},
    pin::{PinError, Pins},
    sys, walk,
};
use crate::apply::maps::{Growing, Maps as _, MapsError};

/// The layout that is taken over.
const OLDER: u32 = 1;
/// Maps that are the same in both layouts.
const SHARED: [MapLayout; 3] = [layout::FLOWS, layout::SOCKET_PEERS, layout::ENDPOINTS];

/// The older layout's tables that have numbers in them.
const FRONTENDS: MapLayout =
    layout::<FrontendKey, Frontend>(maps::FRONTENDS, HASH, NO_PREALLOC, 1 << 17);
const SETS: MapLayout = layout::<u32, SetWord>(maps::SETS, ARRAY, MMAPABLE, 1 << 16);
/// Its records had a fourth word, which was always zero.
const BACKENDS4: MapLayout = layout::<u32, [u32; 4]>(maps::BACKENDS4, ARRAY, MMAPABLE, 1 << 18);
const BACKENDS6: MapLayout = layout::<u32, Backend6>(maps::BACKENDS6, ARRAY, MMAPABLE, 1 << 18);

/// Why an older layout is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Pins can't be opened.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// Its contents can't be read.
    #[error("read the older map {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The numbers can't be written.
    #[error("take over the numbers of sets and backends")]
    Write(#[from] MapsError),
    /// Pins can't be moved or removed.
    #[error("move the pin {}", .0.display())]
    Move(PathBuf, #[source] io::Error),
}

/// The pins of an older agent, which does not run any more.
#[derive(Debug)]
pub(super) struct Older {
    folder: PathBuf,
    _lock: Flock<File>,
}

impl Older {
    /// The older layout's pins, where there are any.
    pub(super) fn find(bpffs: &Path) -> Result<Option<Self>, PinError> {
        let folder = bpffs.join(format!("v{OLDER}"));
        let file = match File::open(&folder) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(PinError::Folder(folder, error)),
        };
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| PinError::Busy(folder.clone()))?;
        tracing::info!(from = OLDER, "taking over from an agent of an older layout");
        Ok(Some(Self { folder, _lock: lock }))
    }

    fn map(&self, layout: &MapLayout) -> PathBuf {
        self.folder.join("maps").join(layout.name)
    }

    /// Opens a map of the older layout; none where it is missing or has another shape.
    fn open_map(&self, expected: &MapLayout) -> Result<Option<OwnedFd>, PinError> {
        let path = self.map(expected);
        match sys::open_pin(&path).and_then(|fd| Ok((MapLayout::of(fd.as_fd(), expected)?, fd))) {
            Ok((found, fd)) if expected.admits(&found) => Ok(Some(fd)),
            Ok((found, _)) => {
                tracing::warn!(path = %path.display(), %found, "an older map is not taken over");
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(PinError::Open(path, error)),
        }
    }

    /// Pins what both layouts share in this one's folder too. To be done before the programs are
    /// loaded, which take what is pinned.
    pub(super) fn share(&self, pins: &Pins) -> Result<(), PinError> {
        for layout in &SHARED {
            let path = pins.map(layout.name);
            if path.exists() {
                continue;
            }
            if let Some(map) = self.open_map(layout)? {
                sys::pin(map.as_fd(), &path).map_err(|error| PinError::Open(path, error))?;
            }
        }
        Ok(())
    }

    /// Takes over numbers and links, and removes what is left. To be done when the programs are
    /// loaded and before anything is written.
    pub(super) fn hand_over(self, pins: &Pins) -> Result<(), MigrateError> {
        let mut tables = KernelMaps::open(pins)?;
        // Again where it was broken off: nothing else writes before the older folder is gone.
        self.copy_backends(&mut tables)?;
        self.copy_sets(&mut tables)?;
        self.copy_frontends(&mut tables)?;
        self.move_links(pins)?;
        let failed = |source| MigrateError::Move(self.folder.clone(), source);
        fs::remove_dir_all(&self.folder).map_err(failed)
    }

    /// An older array in memory, as records of so many words.
    fn array(&self, layout: &MapLayout) -> Result<Option<MappedArray>, MigrateError> {
        let Some(map) = self.open_map(layout)? else { return Ok(None) };
        MappedArray::new(map, layout.value_size as usize / 4, layout.entries)
            .map(Some)
            .map_err(|error| MigrateError::Read(self.map(layout), error))
    }

    fn copy_backends(&self, tables: &mut KernelMaps) -> Result<(), MigrateError> {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        if let Some(array) = self.array(&BACKENDS4)? {
            array.read_all(|id, words| four.push((id, record::<_, 3>(words))));
        }
        if let Some(array) = self.array(&BACKENDS6)? {
            array.read_all(|id, words| six.push((id, record::<_, 6>(words))));
        }
        let needed = |last: Option<u32>| last.map_or(0, |id| id + 1);
        tables.grow(&[
            (Growing::Backends4, needed(four.last().map(|(id, _)| *id))),
            (Growing::Backends6, needed(six.last().map(|(id, _)| *id))),
        ])?;
        tables.write_backends4(&four)?;
        Ok(tables.write_backends6(&six)?)
    }

    /// Generations go on; ranges are written anew.
    fn copy_sets(&self, tables: &mut KernelMaps) -> Result<(), MigrateError> {
        let mut words = Vec::new();
        if let Some(array) = self.array(&SETS)? {
            array.read_all(|set, halves| words.push((set, SetWord::new(0, halves[1]))));
        }
        tables.grow(&[(Growing::Sets, words.last().map_or(0, |(set, _)| set + 1))])?;
        Ok(tables.flip(&words)?)
    }

    fn copy_frontends(&self, tables: &mut KernelMaps) -> Result<(), MigrateError> {
        let Some(map) = self.open_map(&FRONTENDS)? else { return Ok(()) };
        let mut entries: Vec<(FrontendKey, Frontend)> = Vec::new();
        walk::visit(map.as_fd(), |batch| {
            entries.extend(batch.iter().map(|(key, value)| (*key, *value)));
        })
        .map_err(|error| MigrateError::Read(self.map(&FRONTENDS), error))?;
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        tables.grow(&[(Growing::Frontends, count.next_power_of_two())])?;
        Ok(tables.put_frontends(&entries)?)
    }

    /// Moves the pins of the links, each at once: their programs run on until they are replaced.
    fn move_links(&self, pins: &Pins) -> Result<(), MigrateError> {
        let folder = self.folder.join("links");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(MigrateError::Move(folder, error)),
        };
        // The names first: the folder changes under the list.
        let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name())).collect();
        for name in names.map_err(|error| MigrateError::Move(folder.clone(), error))? {
            let from = folder.join(&name);
            fs::rename(&from, pins.links().join(&name))
                .map_err(|error| MigrateError::Move(from, error))?;
        }
        Ok(())
    }
}
