//! A walk over the entries of a hash, a batch at a time, which may be left off and gone on with.
//! What comes or goes meanwhile may be missed or met twice.

use std::{io, ops::ControlFlow, os::fd::BorrowedFd};

use aya::Pod;

use super::sys::{self, Cursor};

/// Entries read by one call to the kernel: bounds how long it is busy with it.
const BATCH: usize = 4_096;

/// How far a walk has come.
#[derive(Debug)]
pub(super) struct Walk<K, V> {
    cursor: Option<Cursor>,
    keys: Vec<K>,
    values: Vec<V>,
}

/// Entries that a walk met.
pub(super) struct Batch<'a, K, V> {
    /// Their keys.
    pub(super) keys: &'a [K],
    /// Their values, in the same order.
    pub(super) values: &'a [V],
    /// Whether these are the last: the next step begins anew.
    pub(super) is_last: bool,
}

impl<K, V> Batch<'_, K, V> {
    /// Each entry.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.keys.iter().zip(self.values)
    }
}

impl<K: Pod + Default, V: Pod + Default> Walk<K, V> {
    /// One that begins.
    pub(super) fn new() -> Self {
        let (keys, values) = (vec![K::default(); BATCH], vec![V::default(); BATCH]);
        Self { cursor: None, keys, values }
    }

    /// Whether the next step begins anew.
    pub(super) fn is_at_start(&self) -> bool {
        self.cursor.is_none()
    }

    /// Goes on over this map, always the same one.
    pub(super) fn step(&mut self, map: BorrowedFd<'_>) -> io::Result<Batch<'_, K, V>> {
        let from = self.cursor.as_ref();
        let read = sys::lookup_batch(map, from, &mut self.keys, &mut self.values)?;
        self.cursor = read.next;
        Ok(Batch {
            keys: &self.keys[..read.count],
            values: &self.values[..read.count],
            is_last: self.cursor.is_none(),
        })
    }
}

/// Shows all entries of a hash, some at a time, until `visit` has seen enough.
pub(super) fn visit_until<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(&Batch<'_, K, V>) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut walk = Walk::new();
    loop {
        let batch = walk.step(map)?;
        if visit(&batch).is_break() || batch.is_last {
            return Ok(());
        }
    }
}

/// Shows all entries of a hash, some at a time.
pub(super) fn visit<K: Pod + Default, V: Pod + Default>(
    map: BorrowedFd<'_>,
    mut visit: impl FnMut(&Batch<'_, K, V>),
) -> io::Result<()> {
    visit_until(map, |batch| {
        visit(batch);
        ControlFlow::Continue(())
    })
}
