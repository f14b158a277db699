//! What the eBPF programs and the agent must agree on: the layout of every map, the limits, and
//! the packet logic that runs in the kernel and, unchanged, in tests on the host.
//!
//! Rules for a type that crosses the border:
//! - fixed-width integers and byte arrays only; no `bool`, `enum`, `Option` or `usize` in a record;
//! - padding is explicit and zero, so that a record is its bytes;
//! - size and alignment are asserted here at compile time;
//! - a field in network byte order is a `[u8; N]`; an integer is in host byte order;
//! - a change of any layout raises [`maps::ABI_VERSION`], which is part of the pin path; only what
//!   is appended to [`counters`] does not.
//!
//! Addresses of both families share one 16-byte form ([`addr::Addr`]), IPv4 as v4-mapped IPv6, so
//! that one set of tables and one piece of logic serves both.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]
#![expect(
    clippy::inline_always,
    reason = "what the kernel runs is one program: a call costs a frame of its 512-octet stack"
)]

pub mod addr;
pub mod affinity;
pub mod checksum;
pub mod conntrack;
pub mod counters;
pub mod event;
pub mod flow_state;
#[cfg(any(test, feature = "frame"))]
pub mod frame;
mod layout;
pub mod limits;
pub mod maps;
pub mod nat;
pub mod node;
pub mod packet;
pub mod pod_rate;
pub mod rate;
pub mod reject;
pub mod rewrite;
pub mod select;
pub mod service;
pub mod socket;
pub mod tracking;
pub mod traffic;
pub mod tunnel;
