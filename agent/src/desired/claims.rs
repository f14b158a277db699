//! Who gets a frontend that more than one set asks for.
//!
//! The set of the oldest service has it, and among services of one age that of the first by name:
//! who comes later takes nothing from who is there, and every node and every order of events come
//! to the same answer. When it goes, the next takes over in the same plan (reference B127).

use std::collections::{BTreeMap, BTreeSet};

use mizzen_ebpf_abi::service::FrontendKey;

use super::SetKey;
use crate::heap;

/// Who asks for a frontend. The one that has it comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// When its service was created, in seconds since 1970.
    pub created_s: i64,
    /// The set.
    pub set: SetKey,
}

/// All claims to all frontends.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// In the order of the claimants. Nearly always there is one, for which a tree would take the
    /// memory of eleven.
    by_frontend: BTreeMap<FrontendKey, Vec<(Claimant, u32)>>,
    contested: BTreeSet<FrontendKey>,
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
            if claimants.is_empty() {
                self.by_frontend.remove(frontend);
            }
        }
    }

    /// Who has the frontend, with its flags.
    pub fn winner(&self, frontend: &FrontendKey) -> Option<(&SetKey, u32)> {
        self.claimants(frontend).next()
    }

    /// Everyone who asks for the frontend, the winner first.
    pub fn claimants(&self, frontend: &FrontendKey) -> impl Iterator<Item = (&SetKey, u32)> {
        let claimants = self.by_frontend.get(frontend).into_iter().flatten();
        claimants.map(|(claimant, flags)| (&claimant.set, *flags))
    }

    /// The frontends that more than one set asks for.
    pub fn contested(&self) -> impl Iterator<Item = &FrontendKey> {
        self.contested.iter()
    }

    /// Every frontend that someone asks for, in their order, and who has it with its flags.
    pub fn winners(&self) -> impl Iterator<Item = (&FrontendKey, (&SetKey, u32))> {
        self.by_frontend.iter().filter_map(|(frontend, claimants)| {
            let (winner, flags) = claimants.first()?;
            Some((frontend, (&winner.set, *flags)))
        })
    }
}

/// Where a claimant is, or would be.
fn place(claimants: &[(Claimant, u32)], claimant: &Claimant) -> Result<usize, usize> {
    claimants.binary_search_by(|(other, _)| other.cmp(claimant))
}
