//! Endpoints on this node that left their service otherwise than by being terminated: somebody
//! changed the labels of a pod to look at it. It lives, and so do its flows, until its address is
//! released or another pod's.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Addresses, Presence, another_pod};
use crate::model::{ObjectKey, endpoints::PodName};

/// So many are remembered. They go with their pods, where this node's CNI plugin is ours; beside
/// another's, whose releases nobody hears of, later ones are left to their timeouts.
const STRAYS_MAX: usize = 4096;

/// Names of the pods at an address.
type Pods = BTreeSet<Box<str>>;

/// The endpoints, by service and by address.
#[derive(Clone, Debug, Default)]
pub(super) struct Strays {
    of: BTreeMap<ObjectKey, BTreeMap<IpAddr, Pods>>,
    at: BTreeMap<IpAddr, BTreeSet<ObjectKey>>,
    count: usize,
}

impl Strays {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Those of a service.
    pub(super) fn of(&self, service: &ObjectKey) -> Option<&BTreeMap<IpAddr, Pods>> {
        self.of.get(service)
    }

    /// Takes note of one.
    pub(super) fn add(&mut self, service: &ObjectKey, address: IpAddr, pods: Pods) {
        if self.count >= STRAYS_MAX {
            tracing::debug!(%service, %address, "too many endpoints left their services otherwise");
            return;
        }
        let before = self.of.entry(service.clone()).or_default().insert(address, pods);
        self.at.entry(address).or_default().insert(service.clone());
        self.count += usize::from(before.is_none());
    }

    fn remove(&mut self, service: &ObjectKey, address: IpAddr) {
        let Some(of) = self.of.get_mut(service) else { return };
        self.count -= usize::from(of.remove(&address).is_some());
        if of.is_empty() {
            self.of.remove(service);
        }
        if let Some(at) = self.at.get_mut(&address) {
            at.remove(service);
            if at.is_empty() {
                self.at.remove(&address);
            }
        }
    }

    /// Forgets those of a service.
    pub(super) fn forget(&mut self, service: &ObjectKey) {
        let addresses: Vec<IpAddr> =
            self.of(service).into_iter().flat_map(BTreeMap::keys).copied().collect();
        for address in addresses {
            self.remove(service, address);
        }
    }

    /// Takes out those that have one of these addresses, which are nobody's any more.
    pub(super) fn released(&mut self, addresses: &BTreeSet<IpAddr>) -> Addresses {
        let mut deleted = Addresses::new();
        for address in addresses {
            for service in self.at.get(address).cloned().unwrap_or_default() {
                self.remove(&service, *address);
                deleted.entry(service).or_default().insert(*address);
            }
        }
        deleted
    }

    /// Takes in what a service's slices say now. One that is back is no stray; one whose address is
    /// another pod's, of whichever service, is deleted, and given back.
    pub(super) fn meet(
        &mut self,
        service: &ObjectKey,
        now: &BTreeMap<IpAddr, Presence<'_>>,
    ) -> Addresses {
        let mut deleted = Addresses::new();
        if self.is_empty() {
            return deleted;
        }
        for (address, is) in now {
            for of in self.at.get(address).cloned().unwrap_or_default() {
                let Some(were) = self.of(&of).and_then(|of| of.get(address)) else { continue };
                let inherited = {
                    let were = were.iter().map(|pod| PodName::from(&**pod)).collect();
                    another_pod(&were, &is.pods)
                };
                if inherited || of == *service {
                    self.remove(&of, *address);
                }
                if inherited {
                    deleted.entry(of).or_default().insert(*address);
                }
            }
        }
        deleted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    fn address(n: usize) -> IpAddr {
        [0xfd00, 0, 0, 0, 0, 0, 0, u16::try_from(n).unwrap()].into()
    }

    fn add(strays: &mut Strays, name: &str, n: usize) {
        strays.add(&service(name), address(n), BTreeSet::from([Box::<str>::from("pod")]));
    }

    /// Whether nothing takes memory.
    fn is_bare(strays: &Strays) -> bool {
        strays.is_empty() && strays.of.is_empty() && strays.at.is_empty()
    }

    #[test]
    fn v8_so_many_strays_are_remembered_and_each_counts_once() {
        let mut strays = Strays::default();
        add(&mut strays, "s", 0);
        for n in 0..STRAYS_MAX {
            add(&mut strays, "s", n);
        }
        let has = |strays: &Strays, n| strays.of(&service("s")).unwrap().contains_key(&address(n));
        assert!(has(&strays, STRAYS_MAX - 1));
        add(&mut strays, "s", STRAYS_MAX);
        assert!(!has(&strays, STRAYS_MAX), "one too many");
        // What goes leaves its place to one other.
        assert_eq!(strays.released(&[address(0)].into()).len(), 1);
        assert_eq!(strays.released(&[address(0)].into()).len(), 0, "once is enough");
        for n in [STRAYS_MAX, STRAYS_MAX + 1] {
            add(&mut strays, "s", n);
        }
        assert!(has(&strays, STRAYS_MAX) && !has(&strays, STRAYS_MAX + 1));
        strays.forget(&service("s"));
        assert!(is_bare(&strays));
    }

    #[test]
    fn v8_services_that_had_one_address_are_forgotten_each_by_itself() {
        let mut strays = Strays::default();
        for (name, n) in [("one", 1), ("one", 2), ("other", 1)] {
            add(&mut strays, name, n);
        }
        strays.forget(&service("one"));
        assert!(strays.of(&service("one")).is_none());
        let released = strays.released(&[address(1), address(2)].into());
        assert_eq!(released, Addresses::from([(service("other"), BTreeSet::from([address(1)]))]));
        assert!(is_bare(&strays));
    }

    #[test]
    fn v8_who_is_met_at_a_strays_address_tells_what_became_of_it() {
        for (name, pods, stays, is_deleted) in [
            ("s", &["pod"][..], false, false),
            ("s", &[], false, false),
            ("s", &["heir"], false, true),
            ("s", &["heir", "pod"], false, false),
            ("other", &["pod"], true, false),
            ("other", &[], true, false),
            ("other", &["heir"], false, true),
        ] {
            let mut strays = Strays::default();
            add(&mut strays, "s", 1);
            let pods: BTreeSet<_> = pods.iter().copied().map(PodName::from).collect();
            let case = format!("{name}, {pods:?}");
            let is = Presence { pods, ..Presence::default() };
            let deleted = strays.meet(&service(name), &[(address(1), is)].into());
            let expected = [(service("s"), BTreeSet::from([address(1)]))];
            let expected = expected.into_iter().filter(|_| is_deleted);
            assert_eq!(deleted, expected.collect::<Addresses>(), "{case}");
            assert_eq!(strays.of(&service("s")).is_some(), stays, "{case}");
            assert_eq!(is_bare(&strays), !stays, "{case}");
        }
    }
}
