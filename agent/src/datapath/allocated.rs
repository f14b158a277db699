//! Which addresses are services' cluster IPs. The rest of the agent names such a mark as a frontend
//! ([`FrontendKey::guard`]); here marks become bits of blocks of 256 addresses, which take a
//! fiftieth of the room.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    os::fd::AsFd as _,
};

use mizzen_ebpf_abi::{
    addr::Addr,
    service::{Allocated, Frontend, FrontendKey, NO_SET, frontend_flags},
};

use super::{
    growing::GrowingHash,
    layout,
    pin::{PinError, Pins},
    sys,
};

/// The marks in the kernel.
#[derive(Debug)]
pub(super) struct AllocatedAddrs(GrowingHash<Addr, Allocated>);

impl AllocatedAddrs {
    pub(super) fn open(pins: &Pins) -> Result<Self, PinError> {
        GrowingHash::open(pins, &layout::ALLOCATED).map(Self)
    }

    /// Makes the addresses of these keys marked, or not. The table grows where it has to.
    pub(super) fn set<'a>(
        &mut self,
        keys: impl Iterator<Item = &'a FrontendKey>,
        allocated: bool,
    ) -> io::Result<()> {
        let mut blocks: BTreeMap<Addr, Allocated> = BTreeMap::new();
        for key in keys {
            let (block, octet) = Allocated::place(&key.addr);
            if let Entry::Vacant(entry) = blocks.entry(block) {
                entry.insert(sys::lookup(self.0.as_fd(), &block)?.unwrap_or_default());
            }
            if let Some(bits) = blocks.get_mut(&block) {
                bits.set(octet, allocated);
            }
        }
        for (block, bits) in &blocks {
            if *bits == Allocated::default() {
                sys::delete(self.0.as_fd(), block)?;
                continue;
            }
            while let Err(error) = sys::update(self.0.as_fd(), block, bits) {
                if error.raw_os_error() != Some(libc::E2BIG) {
                    return Err(error);
                }
                self.0.grow(self.0.capacity().saturating_mul(2))?;
            }
        }
        Ok(())
    }

    /// Whether an address is marked.
    pub(super) fn holds(&self, addr: &Addr) -> io::Result<bool> {
        let (block, octet) = Allocated::place(addr);
        let held: Option<Allocated> = sys::lookup(self.0.as_fd(), &block)?;
        Ok(held.is_some_and(|bits| bits.holds(octet)))
    }

    /// Calls `visit` with the mark of every address that has one.
    pub(super) fn visit(&self, mut visit: impl FnMut(&FrontendKey, &Frontend)) -> io::Result<()> {
        self.0.visit(|batch| {
            for (block, bits) in batch.iter() {
                for octet in (0..=u8::MAX).filter(|octet| bits.holds(*octet)) {
                    let mut addr = *block;
                    addr.octets[15] = octet;
                    let key = FrontendKey::guard(addr);
                    visit(&key, &mark(&key));
                }
            }
        })
    }
}

/// What a mark is as a frontend: it leads to no set.
fn mark(key: &FrontendKey) -> Frontend {
    Frontend::new(key, NO_SET, frontend_flags::GUARD)
}
