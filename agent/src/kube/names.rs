//! One copy of each name that many objects have: nodes, zones, namespaces and ports stand in every
//! endpoint of a cluster. Names of pods and hosts are not shared, each has its own.

use std::{collections::HashSet, sync::Arc};

use crate::model::{ObjectKey, endpoints::EndpointSlice, service::Service};

/// Names below which nothing is looked through for those that nobody has any more.
const FEW: usize = 1024;

/// The copies.
#[derive(Debug, Default)]
pub(super) struct Names {
    held: HashSet<Arc<str>>,
    /// Of keys of services, which their slices name.
    services: HashSet<ObjectKey>,
    /// How many there were when it was last looked which are in use.
    in_use: usize,
}

impl Names {
    /// Puts the one copy of each of a slice's names in the place of its own.
    pub(super) fn share(&mut self, slice: &mut EndpointSlice) {
        self.one_of_services(&mut slice.service);
        let namespace = Arc::clone(&slice.service.namespace);
        slice.key = ObjectKey::of(namespace, Arc::clone(&slice.key.name));
        for port in &mut slice.ports {
            self.one(&mut port.name);
        }
        for endpoint in &mut slice.endpoints {
            let hints = endpoint.particulars.iter_mut();
            let hints = hints.flat_map(|of| of.for_zones.iter_mut().chain(&mut of.for_nodes));
            endpoint.node.iter_mut().chain(hints).for_each(|name| self.one(name));
        }
        self.forget();
    }

    /// As [`Self::share`], for a service.
    pub(super) fn share_service(&mut self, service: &mut Service) {
        self.one_of_services(&mut service.key);
        for port in &mut service.ports {
            self.one(&mut port.name);
        }
        self.forget();
    }

    fn one_of_services(&mut self, key: &mut ObjectKey) {
        if let Some(held) = self.services.get(key) {
            *key = held.clone();
            return;
        }
        let mut namespace = Arc::clone(&key.namespace);
        self.one(&mut namespace);
        *key = ObjectKey::of(namespace, Arc::clone(&key.name));
        self.services.insert(key.clone());
    }

    fn one(&mut self, name: &mut Arc<str>) {
        match self.held.get(name) {
            Some(held) => *name = Arc::clone(held),
            None => drop(self.held.insert(Arc::clone(name))),
        }
    }

    /// Lets go of names that nobody has any more, when there may be as many as others.
    fn forget(&mut self) {
        if self.held.len() + self.services.len() > 2 * self.in_use.max(FEW) {
            // Keys first: they have names.
            self.services.retain(|key| key.copies() > 1);
            self.services.shrink_to_fit();
            self.held.retain(|name| Arc::strong_count(name) > 1);
            self.held.shrink_to_fit();
            self.in_use = self.held.len() + self.services.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::endpoints::{Endpoint, SlicePods};

    fn slice(node: &str) -> EndpointSlice {
        let at = |last| Endpoint {
            node: Some(node.into()),
            ..Endpoint::ready_at([10, 244, 0, last].into())
        };
        EndpointSlice {
            key: ObjectKey::new("default", "a-slice"),
            service: ObjectKey::new("default", "a-service"),
            ipv6: false,
            ports: Vec::new(),
            endpoints: vec![at(1), at(2)],
            pods: SlicePods::default(),
            trigger_time: None,
        }
    }

    #[test]
    fn slices_share_their_names_and_say_the_same() {
        let mut names = Names::default();
        let (mut one, mut other) = (slice("node-1"), slice("node-1"));
        names.share(&mut one);
        names.share(&mut other);
        assert_eq!(one, slice("node-1"));
        let node = |of: &EndpointSlice, at: usize| of.endpoints[at].node.clone().unwrap();
        assert!(Arc::ptr_eq(&node(&one, 0), &node(&one, 1)));
        assert!(Arc::ptr_eq(&node(&one, 0), &node(&other, 0)));
        assert!(Arc::ptr_eq(&one.key.namespace, &other.key.namespace));
    }

    #[test]
    fn names_that_nobody_has_any_more_are_let_go() {
        let mut names = Names::default();
        let mut kept = slice("kept");
        names.share(&mut kept);
        for n in 0..10 * FEW {
            names.share(&mut slice(&format!("node-{n}")));
            assert!(names.held.len() <= 2 * FEW + 4, "{} names", names.held.len());
        }
        let mut again = slice("kept");
        names.share(&mut again);
        assert!(Arc::ptr_eq(&kept.service.name, &again.service.name));
    }
}
