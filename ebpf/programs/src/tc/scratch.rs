//! Memory of the processor's own for what the stages hand on: the stack has 512 octets for all of
//! them together. It also keeps the verifier's work small: it knows nothing of what the memory
//! holds, so that all ways through a stage look the same to the next.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use mizzen_ebpf_abi::{conntrack::FlowKey, packet::Packet, tracking::Opening};

use super::deliver::Way;

/// What one packet needs on its way.
#[repr(C)]
pub(super) struct Scratch {
    /// The packet as it came.
    pub(super) packet: Packet,
    /// The packet that an ICMP error quotes.
    pub(super) quoted: Packet,
    /// The packet's flow as it leaves.
    pub(super) leaving: FlowKey,
    /// Where it goes.
    pub(super) way: Way,
    /// The flow that the packet opens.
    pub(super) opening: Opening,
}

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// This processor's. To be asked for once in a program.
#[inline(always)]
pub(super) fn own() -> Option<&'static mut Scratch> {
    // SAFETY: the memory is this processor's, and a packet program is not interrupted by another.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// Makes a packet the default one: in words, where the compiler would go octet by octet.
#[inline(always)]
pub(super) fn clear(packet: &mut Packet) {
    const WORDS: usize = size_of::<Packet>() / size_of::<u64>();
    const { assert!(WORDS * size_of::<u64>() == size_of::<Packet>()) };
    let words = core::ptr::from_mut(packet).cast::<u64>();
    for at in 0..WORDS {
        // SAFETY: a word of the packet, which is aligned to one, and of which zeros are a value.
        unsafe { words.add(at).write_volatile(0) };
    }
}
