//! The tables as the programs read them, and the choice of a backend, for sockets and packets
//! alike. What is decided by the tables alone is `mizzen_ebpf_abi::select`.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    bindings::BPF_NOEXIST,
    btf_maps::lpm_trie,
    helpers::generated::{bpf_ktime_get_coarse_ns, bpf_loop},
};
pub(crate) use mizzen_ebpf_abi::select::{Backend, NoBackend, Slots, Unserved, Window};
use mizzen_ebpf_abi::{
    addr::Addr,
    affinity::{Affinity, AffinityKey, Kept},
    counters::Counter,
    nat::Origin,
    node::NodeConfig,
    select::{self, Tables},
    service::{Allocated, Frontend, FrontendKey, NO_SET, SetWord, backend_flags},
};

use crate::maps::{
    AFFINITY, ALLOCATED, BACKENDS4, BACKENDS6, CLUSTER_RANGES, FRONTENDS, NODE_ADDRS, PRESENT,
    SETS, SLOTS, SOURCE_RANGES, SourceRange, count,
};

/// Whether the kernel has `bpf_loop`; set by the loader, so that the verifier leaves out the branch
/// that a kernel can't run.
#[unsafe(no_mangle)]
static HAS_LOOP: Global<u32> = Global::new(1);

/// The maps.
struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Frontend {
        let nothing = Frontend { set: NO_SET, flags: 0, identity: 0 };
        let Some(found) = FRONTENDS.get_value_ptr_mut(PRESENT, key) else {
            return nothing;
        };
        // SAFETY: the element may be reused under our hands; the copy proves below whose it is.
        let found = unsafe { core::ptr::read_volatile(found) };
        if found.is_of(key) { found } else { nothing }
    }

    #[inline(always)]
    fn is_allocated(&self, addr: &Addr) -> bool {
        let (block, octet) = Allocated::place(addr);
        match ALLOCATED.get_value_ptr_mut(PRESENT, &block) {
            // SAFETY: an element of a live map; a word of it is read.
            Some(found) => unsafe { (*found).holds(octet) },
            None => false,
        }
    }

    #[inline(always)]
    fn node_addr_flags(&self, addr: &Addr) -> Option<u32> {
        // SAFETY: the value is read once; an address that comes or goes meanwhile is either.
        Some(unsafe { NODE_ADDRS.get(addr) }?.flags)
    }

    #[inline(always)]
    fn cluster_range_flags(&self, addr: &Addr) -> u32 {
        CLUSTER_RANGES.get(&lpm_trie::Key::new(128, *addr)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn source_ranges_hold(&self, set: u32, addr: &Addr) -> bool {
        let key = lpm_trie::Key::new(32 + 128, SourceRange { set, addr: *addr });
        SOURCE_RANGES.get(&key).is_some()
    }

    #[inline(always)]
    fn set_word(&self, set: u32) -> SetWord {
        match SETS.get_value_ptr_mut(PRESENT, &set) {
            // SAFETY: an aligned word of a live array; one load, so that both halves belong
            // together.
            Some(word) => SetWord(unsafe { core::ptr::read_volatile(word) }),
            None => SetWord(0),
        }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> u32 {
        match SLOTS.get_value(PRESENT, &(index / 2)) {
            Some(pair) => pair[index as usize % 2],
            None => 0,
        }
    }

    #[inline(always)]
    fn backend(&self, set: u32, id: u32, v4: bool) -> Option<Backend> {
        let (owner, backend) = if v4 {
            let b = BACKENDS4.get_value(PRESENT, &(id / 2)).map(|pair| &pair[id as usize % 2])?;
            (b.set, Backend { id, addr: Addr::from_v4(b.addr), port: b.port })
        } else {
            let b = BACKENDS6.get_value(PRESENT, &id)?;
            (b.set, Backend { id, addr: Addr::from_v6(b.addr), port: b.port })
        };
        (owner == set).then_some(backend)
    }
}

/// The frontend of an address: its own, or a node port's where the address is one of the node's.
#[inline(always)]
pub(crate) fn frontend(addr: Addr, port: [u8; 2], protocol: u8) -> Option<Frontend> {
    select::frontend(&Maps, addr, port, protocol)
}

/// What an address is that has no frontend.
#[inline(always)]
pub(crate) fn unserved(addr: Addr) -> Unserved {
    select::unserved(&Maps, addr)
}

/// Whether an address that has no frontend is a service's.
#[inline(always)]
pub(crate) fn refuses_other_ports(addr: Addr) -> bool {
    select::refuses_other_ports(&Maps, addr)
}

/// Where a flow comes from.
#[inline(always)]
pub(crate) fn origin(source: Addr, from_elsewhere: bool) -> Origin {
    select::origin(&Maps, source, from_elsewhere)
}

/// The address that packets of a socket of the node will have, where that is known.
#[inline(always)]
pub(crate) fn source_of_node(config: &NodeConfig, bound: &Addr, dialled: &Addr) -> Option<Addr> {
    select::source_of_node(&Maps, config, bound, dialled)
}

/// What the cluster's ranges say of an address: bits of `cluster_range_flags`.
#[inline(always)]
pub(crate) fn range_flags(addr: &Addr) -> u32 {
    Maps.cluster_range_flags(addr)
}

/// Whether an address is in a range of pods.
#[inline(always)]
pub(crate) fn is_of_pods(addr: &Addr) -> bool {
    select::is_of_pods(&Maps, addr)
}

/// Whether a client may use the frontend.
#[inline(always)]
pub(crate) fn admits(
    frontend: &Frontend,
    client_and_dialled: (&Addr, &Addr),
    own: Option<&Addr>,
) -> bool {
    select::admits(&Maps, frontend, client_and_dialled, own)
}

/// The slots of a window of the frontend's set.
#[inline(always)]
pub(crate) fn slots(frontend: &Frontend, window: Window) -> Result<Slots, NoBackend> {
    select::slots(&Maps, frontend, window).inspect_err(|reason| {
        if *reason == NoBackend::ForeignRange {
            count(Counter::ForeignRange);
        }
    })
}

/// The backend that `hash` leads to.
#[inline(always)]
pub(crate) fn choose(slots: &Slots, hash: u32, v4: bool) -> Result<Backend, NoBackend> {
    slots.choose(&Maps, hash, v4).inspect_err(|_| count(Counter::ForeignBackend))
}

/// The backend with this id, if it belongs to the set.
#[inline(always)]
pub(crate) fn backend(set: u32, id: u32, v4: bool) -> Option<Backend> {
    Maps.backend(set, id, v4)
}

/// Whether the record with this id says that the endpoint with this address and port was deleted.
/// It says so until the id is used again.
#[inline(always)]
pub(crate) fn is_gone(id: u32, addr: &Addr, port: [u8; 2]) -> bool {
    if addr.is_v4() {
        let pair = BACKENDS4.get_value(PRESENT, &(id / 2));
        let Some(b) = pair.map(|pair| &pair[id as usize % 2]) else { return false };
        b.flags & backend_flags::GONE != 0 && b.port == port && addr.is(&Addr::from_v4(b.addr))
    } else {
        let Some(b) = BACKENDS6.get_value(PRESENT, &id) else { return false };
        b.flags & backend_flags::GONE != 0 && b.port == port && addr.is(&Addr::from_v6(b.addr))
    }
}

/// The backend that the client keeps, or the one that `hash` leads to, which it keeps from now on.
/// For slots whose set has session affinity.
#[inline(always)]
pub(crate) fn choose_for(
    client: &Addr,
    slots: &Slots,
    hash: u32,
    v4: bool,
) -> Result<Backend, NoBackend> {
    let key = AffinityKey { client: *client, set: slots.set };
    let now_s = now_s();
    if let Some(backend) = kept(&key, slots, now_s, v4) {
        return Ok(backend);
    }
    let chosen = choose(slots, hash, v4)?;
    Ok(keep(&key, slots, &chosen, now_s, v4))
}

/// The backend that the client keeps, if it may go on to.
#[inline(always)]
fn kept(key: &AffinityKey, slots: &Slots, now_s: u32, v4: bool) -> Option<Backend> {
    let held = AFFINITY.get_ptr_mut(key)?;
    // SAFETY: an element of a live map, of which aligned words are read and written; what is read
    // is checked against the tables, so that a reused element does no harm.
    let mut read = unsafe { core::ptr::read_volatile(held) };
    // SAFETY: as above.
    let choice = unsafe { core::ptr::read_volatile(held.cast()) };
    (read.backend, read.view) = Affinity::of_choice(choice);
    let Kept { backend: id, is_new_view } = read.kept(slots, now_s, |id| offers(slots, id))?;
    let backend = backend(slots.set, id, v4)?;
    if is_new_view {
        // SAFETY: as above.
        unsafe {
            core::ptr::write_volatile(held.cast(), Affinity::choice(id, slots.view()));
            core::ptr::write_volatile(&raw mut (*held).timeout_s, slots.affinity_s);
        }
    }
    if read.seen_s != now_s {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*held).seen_s, now_s) };
    }
    Some(backend)
}

/// Keeps a choice. Where another processor kept one for this client at the same moment, that one
/// counts.
#[inline(always)]
fn keep(key: &AffinityKey, slots: &Slots, chosen: &Backend, now_s: u32, v4: bool) -> Backend {
    let view = slots.view();
    if let Some(held) = AFFINITY.get_ptr_mut(key) {
        // What is over, or left the window, is replaced in place.
        // SAFETY: as in `kept`.
        unsafe {
            core::ptr::write_volatile(held.cast(), Affinity::choice(chosen.id, view));
            core::ptr::write_volatile(&raw mut (*held).timeout_s, slots.affinity_s);
            core::ptr::write_volatile(&raw mut (*held).seen_s, now_s);
        }
        return *chosen;
    }
    let affinity =
        Affinity { backend: chosen.id, view, seen_s: now_s, timeout_s: slots.affinity_s };
    match AFFINITY.insert(key, &affinity, BPF_NOEXIST.into()) {
        Ok(()) => *chosen,
        Err(_) => {
            let Some(held) = AFFINITY.get_ptr(key) else {
                count(Counter::AffinityTableFull);
                return *chosen;
            };
            // SAFETY: as in `kept`.
            let (id, _) = Affinity::of_choice(unsafe { core::ptr::read_volatile(held.cast()) });
            backend(slots.set, id, v4).unwrap_or(*chosen)
        }
    }
}

/// Whether a backend is among these slots; no, where the kernel can't search.
#[inline(always)]
pub(crate) fn offers(slots: &Slots, id: u32) -> bool {
    if HAS_LOOP.load() == 0 {
        return false;
    }
    let mut search = Search { first: slots.first, id, found: 0 };
    let context = (&raw mut search).cast();
    // SAFETY: the callback gets a pointer to `search`, which outlives the call.
    unsafe { bpf_loop(slots.count, is_slot_of as *mut c_void, context, 0) };
    search.found != 0
}

/// What [`offers`] looks for.
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
    if Maps.slot(search.first + index) != search.id {
        return 0;
    }
    search.found = 1;
    1
}

/// Seconds since boot, without suspend. Of the clock that is read in a few instructions.
#[inline(always)]
pub(crate) fn now_s() -> u32 {
    // SAFETY: the helper has no preconditions.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}
