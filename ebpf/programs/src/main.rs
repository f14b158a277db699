//! Mizzen's eBPF programs. Thin: what they decide is in [`lookup`] and `mizzen-ebpf-abi`.
//!
//! [`socket`] translates what the node's sockets dial; the packet programs translate the rest.
//! All of them share the tables of [`maps`] and the one selection of [`lookup`].
#![no_std]
#![no_main]
// For the one instruction that adds to what other processors add to: `core` has none for BPF.
#![feature(asm_experimental_arch)]

mod events;
mod lookup;
mod maps;
mod socket;
mod sockets;
mod tc;
mod traffic;

/// The kernel allows GPL-only helpers where it finds one of the licences that it knows here.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The compiler asks for it; the verifier proves that nothing arrives here.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
