//! From what is dialled to a backend: frontend, set word, range header, window, slot, backend.
//! One implementation for sockets and packets.

use core::ffi::c_void;

use aya_ebpf::{Global, helpers::generated::bpf_loop};
use mizzen_ebpf_abi::{
    addr::Addr,
    counters::Counter,
    node::node_addr_flags,
    service::{
        Frontend, FrontendKey, NO_SET, RANGE_HEADER_WORDS, SetWord, frontend_flags, header,
        range_flags, slot_index,
    },
};

use crate::maps::{BACKENDS4, BACKENDS6, FRONTENDS, NODE_ADDRS, SETS, SLOTS, count};

/// Whether the kernel has `bpf_loop`; set by the loader, so that the verifier leaves out the branch
/// that a kernel can't run.
#[unsafe(no_mangle)]
static HAS_LOOP: Global<u32> = Global::new(1);

/// Which window of a range a new flow takes its backend from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    /// Traffic to a ClusterIP.
    Internal,
    /// Traffic from outside the cluster to a node port, external or load balancer address.
    External,
    /// Traffic of this node and its pods to the same.
    Nearby,
}

impl Window {
    /// The window for a client on this node (B30, B31, B33).
    #[inline(always)]
    pub(crate) fn nearby(frontend: &Frontend) -> Self {
        if frontend.flags & frontend_flags::EXTERNAL == 0 { Self::Internal } else { Self::Nearby }
    }

    /// The window for a client that is neither this node nor one of its pods.
    #[inline(always)]
    pub(crate) fn outside(frontend: &Frontend) -> Self {
        if frontend.flags & frontend_flags::EXTERNAL == 0 { Self::Internal } else { Self::External }
    }

    /// Word of the range header that holds the start; the length is in the next one.
    #[inline(always)]
    const fn start_word(self) -> u32 {
        match self {
            Self::Internal => header::INTERNAL_START,
            Self::External => header::EXTERNAL_START,
            Self::Nearby => header::NEARBY_START,
        }
    }

    /// The flag that turns the refusal of an empty window into silence.
    #[inline(always)]
    const fn drop_flag(self) -> u32 {
        match self {
            Self::Internal => range_flags::INTERNAL_DROP,
            Self::External => range_flags::EXTERNAL_DROP,
            Self::Nearby => 0,
        }
    }
}

/// The slots that a flow may choose from, as one flip of its set left them.
#[derive(Clone, Copy)]
pub(crate) struct Slots {
    /// The set.
    pub(crate) set: u32,
    /// The flip that this is the outcome of.
    pub(crate) generation: u32,
    /// First slot, an index into the whole array.
    pub(crate) first: u32,
    /// How many; not 0.
    pub(crate) count: u32,
}

/// A chosen backend.
#[derive(Clone, Copy)]
pub(crate) struct Backend {
    /// Its id.
    pub(crate) id: u32,
    /// Its address.
    pub(crate) addr: Addr,
    /// Its port, network byte order.
    pub(crate) port: [u8; 2],
}

/// Why there is no backend.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoBackend {
    /// The service has no endpoints: refuse.
    Reject,
    /// It has, but the traffic policy asks for a local one and there is none: drop.
    Drop,
    /// A proxy above layer 4 answers for the service: leave it alone.
    Proxy,
    /// The tables contradict themselves, which was counted: the next attempt sees them whole.
    Torn,
}

/// The frontend of an address: its own, or a node port's where the address is one of the node's.
#[inline(always)]
pub(crate) fn frontend(addr: Addr, port: [u8; 2], protocol: u8) -> Option<Frontend> {
    let key = FrontendKey { addr, port, protocol, pad: 0 };
    let mut found = exact(&key);
    if found.set == NO_SET {
        // SAFETY: the value is read once; an address that comes or goes meanwhile is either.
        let flags = unsafe { NODE_ADDRS.get(&addr) }?.flags;
        if flags & node_addr_flags::NODE_PORTS == 0 {
            return None;
        }
        found = exact(&FrontendKey { addr: addr.any_of_family(), ..key });
    }
    (found.set != NO_SET).then_some(found)
}

/// The frontend of exactly this key; all zero where there is none. Not an `Option`: the compiler
/// carries the contents of a `None` about, and the verifier objects to what was never written.
#[inline(always)]
fn exact(key: &FrontendKey) -> Frontend {
    let nothing = Frontend { set: NO_SET, flags: 0, identity: 0 };
    let Some(found) = FRONTENDS.get_ptr(key) else {
        return nothing;
    };
    // SAFETY: the element may be reused under our hands; the copy proves below whose it is.
    let found = unsafe { core::ptr::read_volatile(found) };
    if found.is_of(key) { found } else { nothing }
}

/// The slots of a window of the frontend's set.
#[inline(always)]
pub(crate) fn slots(frontend: &Frontend, window: Window) -> Result<Slots, NoBackend> {
    let set = frontend.set;
    let word = match SETS.get_ptr(set) {
        // SAFETY: an aligned word of a live array; one load, so that both halves belong together.
        Some(word) => SetWord(unsafe { core::ptr::read_volatile(word) }),
        None => SetWord(0),
    };
    let offset = word.offset();
    if offset == 0 {
        return Err(none(frontend, 0, window));
    }
    let owner = slot(offset + header::OWNER);
    if owner != set {
        count(Counter::ForeignRange);
        return Err(NoBackend::Torn);
    }
    let start = slot(offset + window.start_word());
    let length = slot(offset + window.start_word() + 1);
    if length == 0 {
        return Err(none(frontend, slot(offset + header::FLAGS), window));
    }
    Ok(Slots {
        set,
        generation: word.generation(),
        first: offset + RANGE_HEADER_WORDS + start,
        count: length,
    })
}

impl Slots {
    /// The backend that `hash` leads to.
    #[inline(always)]
    pub(crate) fn choose(&self, hash: u32, v4: bool) -> Result<Backend, NoBackend> {
        let id = slot(self.first + slot_index(hash, self.count));
        backend(self.set, id, v4).ok_or_else(|| {
            count(Counter::ForeignBackend);
            NoBackend::Torn
        })
    }

    /// Whether a backend is among these slots; no, where the kernel can't search.
    #[inline(always)]
    pub(crate) fn offers(&self, id: u32) -> bool {
        if HAS_LOOP.load() == 0 {
            return false;
        }
        let mut search = Search { first: self.first, id, found: 0 };
        let context = (&raw mut search).cast();
        // SAFETY: the callback gets a pointer to `search`, which outlives the call.
        unsafe { bpf_loop(self.count, is_slot_of as *mut c_void, context, 0) };
        search.found != 0
    }
}

/// What [`Slots::offers`] looks for.
#[repr(C)]
struct Search {
    first: u32,
    id: u32,
    found: u32,
}

/// One step of the search; returns 1 to end it.
extern "C" fn is_slot_of(index: u32, search: *mut Search) -> u64 {
    // SAFETY: the helper hands on the pointer that it was given.
    let search = unsafe { &mut *search };
    if slot(search.first + index) != search.id {
        return 0;
    }
    search.found = 1;
    1
}

/// The backend with this id, if it belongs to the set.
#[inline(always)]
pub(crate) fn backend(set: u32, id: u32, v4: bool) -> Option<Backend> {
    let (owner, backend) = if v4 {
        let b = BACKENDS4.get(id)?;
        (b.set, Backend { id, addr: Addr::from_v4(b.addr), port: b.port })
    } else {
        let b = BACKENDS6.get(id)?;
        (b.set, Backend { id, addr: Addr::from_v6(b.addr), port: b.port })
    };
    (owner == set).then_some(backend)
}

/// The answer of an empty window.
#[inline(always)]
fn none(frontend: &Frontend, flags: u32, window: Window) -> NoBackend {
    if frontend.flags & frontend_flags::L7 != 0 {
        NoBackend::Proxy
    } else if flags & window.drop_flag() != 0 {
        NoBackend::Drop
    } else {
        NoBackend::Reject
    }
}

/// One word of the slot array; 0, which names nothing, outside it.
#[inline(always)]
fn slot(index: u32) -> u32 {
    SLOTS.get(index).copied().unwrap_or(0)
}
