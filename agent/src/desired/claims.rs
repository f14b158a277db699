//! Who gets a frontend that more than one set asks for.
//!
//! The set of the oldest service has it, and among services of one age that of the first by name:
//! who comes later takes nothing from who is there, and every node and every order of events come
//! to the same answer. When it goes, the next takes over in the same plan (reference B127).

use std::collections::{BTreeMap, BTreeSet};

use mizzen_ebpf_abi::{
    addr::Addr,
    service::{FrontendKey, frontend_flags::HOST_PORT},
};

use super::SetKey;
use crate::heap;

/// Who asks for a frontend. The one that has it comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// Its place among others: the least goes first.
    pub place: i64,
    /// The set.
    pub set: SetKey,
}

/// The place of a service that was created so many seconds after 1970.
pub const fn place_of_service(created_s: i64) -> i64 {
    created_s
}

/// The place of a pod's host ports: behind all services, and before those of earlier pods.
pub fn place_of_host_ports(serial: u64) -> i64 {
    i64::try_from(serial).map_or(0, |serial| i64::MAX - serial)
}

/// All claims to all frontends.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// In the order of the claimants. Nearly always there is one, for which a tree would take the
    /// memory of eleven.
    by_frontend: BTreeMap<FrontendKey, Vec<(Claimant, u32)>>,
    contested: BTreeSet<FrontendKey>,
    /// Host ports at one address.
    at_address: BTreeSet<FrontendKey>,
}

impl Claims {
    /// Enters that `claimant` asks for `frontend` with `flags`.
    pub fn enter(&mut self, frontend: FrontendKey, claimant: Claimant, flags: u32) {
        let claimants = self.by_frontend.entry(frontend).or_default();
        match place(claimants, &claimant) {
            Ok(at) => claimants[at].1 = flags,
            Err(at) => {
                claimants.reserve_exact(1);
                claimants.insert(at, (claimant, flags));
            }
        }
        if claimants.len() > 1 {
            self.contested.insert(frontend);
        }
        if flags & HOST_PORT != 0 && !is_any(&frontend) {
            self.at_address.insert(frontend);
        }
    }

    /// Has them take no more memory than they must.
    pub fn pack(&mut self) {
        heap::pack(&mut self.by_frontend);
    }

    /// Withdraws a claim.
    pub fn withdraw(&mut self, frontend: &FrontendKey, claimant: &Claimant) {
        if let Some(claimants) = self.by_frontend.get_mut(frontend) {
            if let Ok(at) = place(claimants, claimant) {
                claimants.remove(at);
            }
            if claimants.len() < 2 {
                self.contested.remove(frontend);
            }
            if !claimants.iter().any(|(_, flags)| flags & HOST_PORT != 0) {
                self.at_address.remove(frontend);
            }
            if claimants.is_empty() {
                self.by_frontend.remove(frontend);
            }
        }
    }

    /// Who has the frontend, with its flags.
    pub fn winner(&self, frontend: &FrontendKey) -> Option<(&SetKey, u32)> {
        let (winner, flags) = self.claimants(frontend).next()?;
        self.node_port_before(frontend, flags).is_none().then_some((winner, flags))
    }

    /// The set whose node port keeps a host port at one address from being there.
    fn node_port_before(&self, frontend: &FrontendKey, flags: u32) -> Option<&SetKey> {
        if flags & HOST_PORT == 0 || is_any(frontend) {
            return None;
        }
        let any = FrontendKey { addr: frontend.addr.any_of_family(), ..*frontend };
        let (set, flags) = self.claimants(&any).next()?;
        (flags & HOST_PORT == 0).then_some(set)
    }

    /// The frontends that depend on who has this one, itself apart.
    pub fn dependents(&self, frontend: &FrontendKey) -> impl Iterator<Item = FrontendKey> {
        let same = |other: &&FrontendKey| {
            is_any(frontend)
                && other.addr.any_of_family() == frontend.addr
                && (other.port, other.protocol) == (frontend.port, frontend.protocol)
        };
        self.at_address.iter().filter(same).copied()
    }

    /// Everyone who asks for the frontend, the winner first.
    pub fn claimants(&self, frontend: &FrontendKey) -> impl Iterator<Item = (&SetKey, u32)> {
        let claimants = self.by_frontend.get(frontend).into_iter().flatten();
        claimants.map(|(claimant, flags)| (&claimant.set, *flags))
    }

    /// Who does not have a frontend that it asks for, and who has it instead: the frontend, the
    /// loser, the winner.
    pub fn losers(&self) -> impl Iterator<Item = (&FrontendKey, &SetKey, &SetKey)> {
        let contested = self.contested.iter().flat_map(move |frontend| {
            let winner = self.claimants(frontend).next().into_iter();
            winner.flat_map(move |(winner, _)| {
                let losers = self.claimants(frontend).skip(1);
                losers.map(move |(loser, _)| (frontend, loser, winner))
            })
        });
        let behind_node_ports = self.at_address.iter().filter_map(move |frontend| {
            let (loser, flags) = self.claimants(frontend).next()?;
            Some((frontend, loser, self.node_port_before(frontend, flags)?))
        });
        contested.chain(behind_node_ports)
    }

    /// Every frontend that someone asks for, in their order, and who has it with its flags.
    pub fn winners(&self) -> impl Iterator<Item = (&FrontendKey, (&SetKey, u32))> {
        self.by_frontend.iter().filter_map(|(frontend, claimants)| {
            let (winner, flags) = claimants.first()?;
            let has = self.node_port_before(frontend, *flags).is_none();
            has.then_some((frontend, (&winner.set, *flags)))
        })
    }
}

/// Where a claimant is, or would be.
fn place(claimants: &[(Claimant, u32)], claimant: &Claimant) -> Result<usize, usize> {
    claimants.binary_search_by(|(other, _)| other.cmp(claimant))
}

/// Whether a frontend is at every address of the node.
fn is_any(frontend: &FrontendKey) -> bool {
    frontend.addr == Addr::ANY_V4 || frontend.addr == Addr::ANY_V6
}
