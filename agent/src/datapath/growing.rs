//! Tables that grow without losing an entry: each is pinned as an array of one map, and that one
//! map is the table at present.
//!
//! To grow is to fill a larger map with the same contents and to put it in the place of the other
//! by one `bpf()` call, which waits for the programs that run. The agent is the only writer, so
//! nothing changes meanwhile: programs find the same in either map, and so does one that looks
//! into both. An agent that dies at any moment leaves the one or the other.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    thread::{self, ScopedJoinHandle},
};

use super::{
    layout::{GROWING, GrowingLayout, MapLayout},
    mapped::MappedArray,
    pin::{PinError, Pins},
    sys::{self, BatchError},
    walk::{self, Batch},
};

/// Where in the pinned array the map is.
const PRESENT: u32 = 0;

/// Puts a first map into every table that has none.
pub(super) fn begin(pins: &Pins) -> Result<(), PinError> {
    for layout in &GROWING {
        let outer = Outer::open(pins, layout)?;
        let failed = |source| PinError::Open(pins.map(layout.inner.name), source);
        if outer.present_id().map_err(failed)?.is_none() {
            let first = sys::create_map(&layout.inner).map_err(failed)?;
            outer.replace(first.as_fd()).map_err(failed)?;
        }
    }
    Ok(())
}

/// The pinned array of one map.
#[derive(Debug)]
struct Outer {
    fd: OwnedFd,
    layout: GrowingLayout,
}

impl Outer {
    fn open(pins: &Pins, layout: &GrowingLayout) -> Result<Self, PinError> {
        Ok(Self { fd: pins.open_map(&layout.outer())?, layout: *layout })
    }

    /// The kernel's number of the map that is the table at present.
    fn present_id(&self) -> io::Result<Option<u32>> {
        sys::lookup(self.fd.as_fd(), &PRESENT)
    }

    /// The map that is the table at present, and how many records it holds.
    fn present(&self, pins: &Pins) -> Result<(OwnedFd, u32), PinError> {
        let path = || pins.map(self.layout.inner.name);
        let opened = self.present_id().and_then(|id| {
            let map = sys::map_by_id(id.ok_or(io::ErrorKind::NotFound)?)?;
            let found = MapLayout::of(map.as_fd(), &self.layout.inner)?;
            Ok((map, found))
        });
        let (map, found) = opened.map_err(|source| PinError::Open(path(), source))?;
        let expected = MapLayout { entries: found.entries, ..self.layout.inner };
        if found != expected {
            let (found, expected) = (found.to_string(), expected.to_string());
            return Err(PinError::Layout { path: path(), found, expected });
        }
        Ok((map, self.layout.capacity(found.entries)))
    }

    /// Makes another map the table. Returns when no program that runs has the one before.
    fn replace(&self, map: BorrowedFd<'_>) -> io::Result<()> {
        sys::update(self.fd.as_fd(), &PRESENT, &map.as_raw_fd().cast_unsigned())
    }
}

/// An array that grows.
#[derive(Debug)]
pub(super) struct GrowingArray {
    outer: Outer,
    array: MappedArray,
}

impl GrowingArray {
    pub(super) fn open(pins: &Pins, layout: &GrowingLayout) -> Result<Self, PinError> {
        let outer = Outer::open(pins, layout)?;
        let (map, capacity) = outer.present(pins)?;
        let array = MappedArray::new(map, record_words(layout), capacity)
            .map_err(|source| PinError::Open(pins.map(layout.inner.name), source))?;
        Ok(Self { outer, array })
    }

    /// The array as it is at present.
    pub(super) fn array(&self) -> &MappedArray {
        &self.array
    }

    /// The table's name.
    pub(super) fn name(&self) -> &'static str {
        self.outer.layout.inner.name
    }

    /// Makes room for at least `capacity` records.
    pub(super) fn grow(&mut self, capacity: u32) -> io::Result<()> {
        let layout = &self.outer.layout;
        let larger = layout.holding(capacity);
        let map = sys::create_map(&larger)?;
        let larger = MappedArray::new(map, record_words(layout), layout.capacity(larger.entries))?;
        larger.copy_from(&self.array);
        self.outer.replace(larger.as_fd())?;
        self.array = larger;
        Ok(())
    }
}

/// Makes room in tables, named by `Name`, all at once: each change waits for running programs. Gives
/// for each how many entries were copied.
pub(super) fn side_by_side<'a, Name, K, V>(
    hash: Option<(Name, &'a mut GrowingHash<K, V>, u32)>,
    arrays: impl Iterator<Item = (Name, &'a mut GrowingArray, u32)>,
) -> Vec<(Name, io::Result<usize>)>
where
    K: aya::Pod + Default + Send,
    V: aya::Pod + Default + Send,
{
    thread::scope(|scope| {
        let mut growing: Vec<(Name, ScopedJoinHandle<'_, io::Result<usize>>)> = Vec::new();
        if let Some((name, table, to)) = hash {
            growing.push((name, scope.spawn(move || table.grow(to))));
        }
        for (name, table, to) in arrays {
            growing.push((name, scope.spawn(move || table.grow(to).map(|()| 0))));
        }
        let joined = |(name, grown): (Name, ScopedJoinHandle<'_, io::Result<usize>>)| {
            let failed = |_| Err(io::Error::other("the thread that made room panicked"));
            (name, grown.join().unwrap_or_else(failed))
        };
        growing.into_iter().map(joined).collect()
    })
}

/// Words of one record of an array.
fn record_words(layout: &GrowingLayout) -> usize {
    (layout.inner.value_size / layout.records / 4) as usize
}

/// A hash that grows.
#[derive(Debug)]
pub(super) struct GrowingHash<K, V> {
    outer: Outer,
    map: OwnedFd,
    capacity: u32,
    entries: PhantomData<(K, V)>,
}

impl<K: aya::Pod + Default, V: aya::Pod + Default> GrowingHash<K, V> {
    pub(super) fn open(pins: &Pins, layout: &GrowingLayout) -> Result<Self, PinError> {
        let outer = Outer::open(pins, layout)?;
        let (map, capacity) = outer.present(pins)?;
        Ok(Self { outer, map, capacity, entries: PhantomData })
    }

    /// How many entries it has room for.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Its shape as it is at present.
    pub(super) fn layout(&self) -> MapLayout {
        self.outer.layout.holding(self.capacity)
    }

    /// Makes room for at least `capacity` entries. Gives the number of entries that it wrote.
    pub(super) fn grow(&mut self, capacity: u32) -> io::Result<usize> {
        let larger = sys::create_map(&self.outer.layout.holding(capacity))?;
        let mut copied = 0;
        let mut failed = Ok(());
        self.visit(|batch| {
            copied += batch.keys.len();
            if failed.is_ok() {
                failed = sys::update_batch(larger.as_fd(), batch.keys, batch.values);
            }
        })?;
        failed.map_err(|BatchError { error, .. }| error)?;
        self.outer.replace(larger.as_fd())?;
        self.map = larger;
        self.capacity = capacity;
        Ok(copied)
    }

    /// Calls `visit` with all entries, some at a time.
    pub(super) fn visit(&self, visit: impl FnMut(&Batch<'_, K, V>)) -> io::Result<()> {
        walk::visit(self.map.as_fd(), visit)
    }
}

impl<K, V> AsFd for GrowingHash<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}
