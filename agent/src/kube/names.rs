//! One copy of what many objects have: names of namespaces, services and ports, and the sites of
//! endpoints. Names of hosts are not shared, each has its own.
//!
//! The copies belong to the thread that reads: an object has them as soon as it is read. Where they
//! took the place of its own only later, a list of ten thousand would leave holes all over the heap.

use std::{cell::RefCell, collections::HashSet, hash::Hash, sync::Arc};

use crate::model::{
    ObjectKey,
    endpoints::{EndpointSlice, Site},
    namespace::Namespace,
    node::Node,
    pod::OptedOutPod,
    service::{Service, ServiceCidr},
};

thread_local! {
    static NAMES: RefCell<Names> = RefCell::default();
}

/// Puts this thread's copies in the place of a value's own.
pub(super) fn share(value: &mut impl Shared) {
    NAMES.with_borrow_mut(|names| value.share(names));
}

/// A value that may have what others have.
pub trait Shared {
    /// Puts the copies in the place of its own.
    fn share(&mut self, names: &mut Names);
}

/// How many there may be before they are looked through for those that nobody has any more.
const FEW: usize = 1024;

/// The copies.
#[derive(Debug, Default)]
pub struct Names {
    texts: Copies<Arc<str>>,
    /// Keys of services, which their slices name.
    services: Copies<ObjectKey>,
    sites: Copies<Arc<Site>>,
}

/// What is shared by pointing to it.
trait Pointer: Clone + Eq + Hash {
    /// How many point to the same.
    fn copies(&self) -> usize;
}

impl<T: ?Sized + Eq + Hash> Pointer for Arc<T> {
    fn copies(&self) -> usize {
        Self::strong_count(self)
    }
}

impl Pointer for ObjectKey {
    fn copies(&self) -> usize {
        self.copies()
    }
}

#[derive(Debug)]
struct Copies<T> {
    held: HashSet<T>,
    /// How many there were when it was last looked which are in use.
    in_use: usize,
}

impl<T> Default for Copies<T> {
    fn default() -> Self {
        Self { held: HashSet::new(), in_use: 0 }
    }
}

impl Shared for EndpointSlice {
    fn share(&mut self, names: &mut Names) {
        names.one_of_services(&mut self.service);
        let namespace = Arc::clone(&self.service.namespace);
        self.key = ObjectKey::of(namespace, Arc::clone(&self.key.name));
        for port in &mut self.ports {
            names.texts.one(&mut port.name);
        }
        for endpoint in &mut self.endpoints {
            names.sites.one(&mut endpoint.site);
        }
        names.forget();
    }
}

impl Shared for Service {
    fn share(&mut self, names: &mut Names) {
        names.one_of_services(&mut self.key);
        for port in &mut self.ports {
            names.texts.one(&mut port.name);
        }
        names.forget();
    }
}

/// There are few of these.
impl Shared for Node {
    fn share(&mut self, _: &mut Names) {}
}

impl Shared for ServiceCidr {
    fn share(&mut self, _: &mut Names) {}
}

impl Shared for OptedOutPod {
    fn share(&mut self, _: &mut Names) {}
}

impl Shared for Namespace {
    fn share(&mut self, _: &mut Names) {}
}

impl Names {
    /// Puts the one copy of a service's key in the place of this one.
    fn one_of_services(&mut self, key: &mut ObjectKey) {
        if !self.services.held.contains(key) {
            let mut namespace = Arc::clone(&key.namespace);
            self.texts.one(&mut namespace);
            *key = ObjectKey::of(namespace, Arc::clone(&key.name));
        }
        self.services.one(key);
    }

    /// Lets go of what nobody has any more. Keys first: they have names.
    fn forget(&mut self) {
        self.services.forget();
        self.texts.forget();
        self.sites.forget();
    }
}

impl<T: Pointer> Copies<T> {
    /// Puts the one copy in the place of this one.
    fn one(&mut self, of: &mut T) {
        match self.held.get(of) {
            Some(held) => *of = held.clone(),
            None => drop(self.held.insert(of.clone())),
        }
    }

    /// Lets go of those that nobody has any more, when there may be as many as others.
    fn forget(&mut self) {
        if self.held.len() > 2 * self.in_use.max(FEW) {
            self.held.retain(|copy| copy.copies() > 1);
            self.held.shrink_to_fit();
            self.in_use = self.held.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::endpoints::Endpoint;

    fn slice(node: &str) -> EndpointSlice {
        let at = |last| Endpoint {
            site: Site::on(node),
            ..Endpoint::ready_at([10, 244, 0, last].into())
        };
        EndpointSlice {
            endpoints: vec![at(1), at(2)],
            ..EndpointSlice::new(ObjectKey::new("default", "a-service"), "a-slice", false)
        }
    }

    #[test]
    fn slices_share_their_names_and_say_the_same() {
        let mut names = Names::default();
        let (mut one, mut other) = (slice("node-1"), slice("node-1"));
        one.share(&mut names);
        other.share(&mut names);
        assert_eq!(one, slice("node-1"));
        let site = |of: &EndpointSlice, at: usize| Arc::clone(&of.endpoints[at].site);
        assert!(Arc::ptr_eq(&site(&one, 0), &site(&one, 1)));
        assert!(Arc::ptr_eq(&site(&one, 0), &site(&other, 0)));
        assert!(Arc::ptr_eq(&one.key.namespace, &other.key.namespace));
    }

    #[test]
    fn names_that_nobody_has_any_more_are_let_go() {
        let mut names = Names::default();
        let mut kept = slice("kept");
        kept.share(&mut names);
        for n in 0..10 * FEW {
            slice(&format!("node-{n}")).share(&mut names);
            let held = (names.texts.held.len(), names.sites.held.len());
            assert!(held.0.max(held.1) <= 2 * FEW + 4, "{held:?}");
        }
        let mut again = slice("kept");
        again.share(&mut names);
        assert!(Arc::ptr_eq(&kept.service.name, &again.service.name));
    }
}
