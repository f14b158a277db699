//! Array maps in this process's memory: a store here is seen by the programs at once, without a
//! system call, and an aligned store of a word is one store, which `bpf_map_update_elem` doesn't
//! promise.
//!
//! Mapping an array makes all its pages resident. Arrays are as large as what they hold asks for,
//! so that the whole is mapped.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

/// Bytes of a word.
const WORD: usize = 4;

/// An array map of records, which lie one behind the other.
#[derive(Debug)]
pub(super) struct MappedArray {
    fd: OwnedFd,
    memory: Mapping,
    /// Words of a record.
    record: usize,
    capacity: u32,
}

/// Mapped memory, as words.
#[derive(Debug)]
struct Mapping {
    memory: NonNull<AtomicU32>,
    words: usize,
}

// SAFETY: shared memory that is accessed by atomic operations only.
unsafe impl Send for Mapping {}
// SAFETY: likewise; whoever shares it has atomic access alone.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: &OwnedFd, words: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * WORD,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { memory, words })
    }

    fn words(&self) -> &[AtomicU32] {
        // SAFETY: mapped for as long as `self` lives, page-aligned, accessed atomically only.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.words) }
    }

    /// The same memory as 64-bit words.
    fn long_words(&self) -> &[AtomicU64] {
        // SAFETY: as above; a page is aligned for them and holds a whole number.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.words / 2) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing borrows any more.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.words * WORD) };
    }
}

impl MappedArray {
    /// The array behind a descriptor, of `capacity` records of so many words.
    pub(super) fn new(fd: OwnedFd, record: usize, capacity: u32) -> io::Result<Self> {
        let memory = Mapping::new(&fd, record * capacity as usize)?;
        Ok(Self { fd, memory, record, capacity })
    }

    /// How many records it holds.
    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    fn record(&self, index: u32) -> &[AtomicU32] {
        let first = self.record * index as usize;
        &self.memory.words()[first..first + self.record]
    }

    /// A 64-bit word of a record of such words; `index` is below the capacity.
    pub(super) fn long(&self, index: u32, word: usize) -> &AtomicU64 {
        &self.memory.long_words()[self.record / 2 * index as usize + word]
    }

    /// Writes a record's words, one store each; behind them nothing is reordered that this thread
    /// stores with [`Self::publish`]. `index` is below the capacity.
    pub(super) fn write(&self, index: u32, words: &[u32]) {
        for (place, word) in self.record(index).iter().zip(words) {
            place.store(*word, Ordering::Relaxed);
        }
    }

    /// Writes a record of 64 bits by one store, behind everything stored before.
    pub(super) fn publish(&self, index: u32, word: u64) {
        self.memory.long_words()[index as usize].store(word, Ordering::Release);
    }

    /// Copies a record's words; zeros where the index is beyond the end.
    pub(super) fn read(&self, index: u32, words: &mut [u32]) {
        if index >= self.capacity {
            return words.fill(0);
        }
        for (copy, word) in words.iter_mut().zip(self.record(index)) {
            *copy = word.load(Ordering::Relaxed);
        }
    }

    /// Calls `visit` with every record that is not all zero.
    pub(super) fn read_all(&self, mut visit: impl FnMut(u32, &[u32])) {
        let mut record = vec![0; self.record];
        for index in 0..self.capacity {
            self.read(index, &mut record);
            if record.iter().any(|word| *word != 0) {
                visit(index, &record);
            }
        }
    }

    /// Writes all that another one holds, which is no larger.
    pub(super) fn copy_from(&self, other: &Self) {
        for (place, word) in self.memory.words().iter().zip(other.memory.words()) {
            place.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

impl AsFd for MappedArray {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
