//! Array maps in this process's memory: a store here is seen by the programs at once, without a
//! system call, and an aligned store of a word is one store, which `bpf_map_update_elem` doesn't
//! promise.
//!
//! Mapping an array makes all its pages resident, so it is mapped window by window, where it is
//! written; reading the whole is done through a mapping that goes again.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use super::layout::MapLayout;

/// Bytes of a window; a multiple of every page size.
const WINDOW: usize = 64 * 1024;
/// Bytes of a word.
const WORD: usize = 4;

/// An array map.
#[derive(Debug)]
pub(super) struct MappedArray {
    fd: OwnedFd,
    layout: MapLayout,
    windows: Vec<Option<Mapping>>,
}

/// Mapped memory, as words.
#[derive(Debug)]
struct Mapping {
    memory: NonNull<AtomicU32>,
    words: usize,
}

// SAFETY: shared memory that is accessed by atomic operations only.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(fd: &OwnedFd, offset: usize, length: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        Ok(Self { memory, words: length / WORD })
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
    /// The array behind a descriptor.
    pub(super) fn new(fd: OwnedFd, layout: MapLayout) -> Self {
        let mut array = Self { fd, layout, windows: Vec::new() };
        array.windows.resize_with(array.length().div_ceil(WINDOW), || None);
        array
    }

    /// Its shape.
    pub(super) fn layout(&self) -> &MapLayout {
        &self.layout
    }

    /// Bytes from one element to the next: the kernel rounds up to 8.
    fn stride(&self) -> usize {
        (self.layout.value_size as usize).next_multiple_of(8)
    }

    /// Bytes of the whole, a multiple of the page size where it is more than a window.
    fn length(&self) -> usize {
        self.stride() * self.layout.entries as usize
    }

    /// The window that a byte is in.
    fn window(&mut self, byte: usize) -> io::Result<&Mapping> {
        let start = byte / WINDOW * WINDOW;
        let length = WINDOW.min(self.length() - start);
        let window = &mut self.windows[byte / WINDOW];
        match window {
            Some(mapping) => Ok(mapping),
            None => Ok(window.insert(Mapping::new(&self.fd, start, length)?)),
        }
    }

    /// Writes an element's words, one store each; behind them nothing is reordered that this
    /// thread stores with [`Self::publish`]. `index` is below the number of entries.
    pub(super) fn write(&mut self, index: u32, words: &[u32]) -> io::Result<()> {
        let first = self.stride() * index as usize;
        for (i, word) in words.iter().enumerate() {
            let byte = first + i * WORD;
            let window = self.window(byte)?;
            window.words()[byte % WINDOW / WORD].store(*word, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes an element of 64 bits by one store, behind everything stored before.
    pub(super) fn publish(&mut self, index: u32, word: u64) -> io::Result<()> {
        let byte = self.stride() * index as usize;
        let window = self.window(byte)?;
        window.long_words()[byte % WINDOW / (2 * WORD)].store(word, Ordering::Release);
        Ok(())
    }

    /// Calls `visit` with every element that is not all zero.
    pub(super) fn read_all(&self, mut visit: impl FnMut(u32, &[u32])) -> io::Result<()> {
        let whole = Mapping::new(&self.fd, 0, self.length())?;
        let used = self.layout.value_size as usize / WORD;
        let mut element = vec![0; used];
        for (index, words) in (0..).zip(whole.words().chunks_exact(self.stride() / WORD)) {
            for (copy, word) in element.iter_mut().zip(words) {
                *copy = word.load(Ordering::Relaxed);
            }
            if element.iter().any(|word| *word != 0) {
                visit(index, &element);
            }
        }
        Ok(())
    }
}
