//! Counts what backends are sent, where it is decided: `mizzen_ebpf_abi::traffic`.

use core::arch::asm;

use mizzen_ebpf_abi::{
    addr::Addr,
    counters::Counter,
    socket::SocketPeer,
    traffic::{self, BackendCounts},
};

use crate::{
    lookup::Backend,
    maps::{BACKEND_COUNTS, count},
};

/// Adds to a word of a live map that other CPUs add to. Nothing is read, so that the oldest of the
/// atomic instructions is enough.
#[inline(always)]
pub(crate) fn add(word: *mut u64, value: u64) {
    // SAFETY: an aligned word of a live map, as the verifier proves.
    unsafe {
        asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value);
    }
}

#[inline(always)]
fn record(id: u32, v4: bool) -> Option<*mut BackendCounts> {
    let (chunk, index) = traffic::place(id, v4);
    BACKEND_COUNTS.get_value_ptr_mut(chunk, &index)
}

/// A socket is led to a backend, which the tables have at this moment.
#[inline(always)]
pub(crate) fn dialled(backend: &Backend) {
    if let Some(counts) = record(backend.id, backend.addr.is_v4()) {
        // SAFETY: a record of a live map.
        add(unsafe { &raw mut (*counts).connections }, 1);
    }
}

/// The packet path opened a flow to a backend, which the tables have at this moment.
#[inline(always)]
pub(crate) fn opened(id: u32, v4: bool) {
    if let Some(counts) = record(id, v4) {
        // SAFETY: as above.
        add(unsafe { &raw mut (*counts).flows }, 1);
    }
}

/// What a TCP connection was.
pub(crate) struct Ended {
    /// Octets of data, there and back.
    pub(crate) bytes: [u64; 2],
    /// Segments, there and back.
    pub(crate) segments: [u64; 2],
    /// Segments that were sent again.
    pub(crate) retransmits: u64,
}

/// A connection ended that led to this backend. The id may be another's by now.
#[inline(always)]
pub(crate) fn ended(peer: &SocketPeer, ended: &Ended) {
    let addr: &Addr = &peer.backend;
    let Some(counts) = record(peer.backend_id, addr.is_v4()) else {
        return;
    };
    // SAFETY: as above; one word.
    let owner = unsafe { core::ptr::read_volatile(&raw const (*counts).owner) };
    if owner != traffic::owner(peer.set, addr, peer.backend_port) {
        count(Counter::TrafficOfFormerBackend);
        return;
    }
    // SAFETY: as above.
    unsafe {
        add(&raw mut (*counts).sent_bytes, ended.bytes[0]);
        add(&raw mut (*counts).received_bytes, ended.bytes[1]);
        add(&raw mut (*counts).sent_segments, ended.segments[0]);
        add(&raw mut (*counts).received_segments, ended.segments[1]);
    }
    if ended.retransmits != 0 {
        // SAFETY: as above.
        add(unsafe { &raw mut (*counts).retransmits }, ended.retransmits);
    }
}
