//! Which pod of this node has which address: said by the pod network as it gives addresses and
//! takes them back, asked by the resolver. An address is here before the pod that has it runs, and
//! under no other pod's name while it does, so whoever asks is never told of another pod. Pods in
//! the node's own network, and those of other nodes, have no address here.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

/// The pods' namespaces, by their addresses.
#[derive(Debug, Default)]
pub struct LocalPods {
    namespaces: RwLock<HashMap<IpAddr, Arc<str>>>,
    changes: AtomicU32,
}

impl LocalPods {
    /// These addresses are those of a pod in `namespace`.
    pub fn add(&self, addresses: &[IpAddr], namespace: &str) {
        // A runtime need not say for whom it calls.
        if namespace.is_empty() {
            return;
        }
        let namespace: Arc<str> = namespace.into();
        let mut all = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            let before = all.insert(*address, Arc::clone(&namespace));
            self.changes.fetch_add(u32::from(before.as_ref() != Some(&namespace)), Relaxed);
        }
    }

    /// These are no pod's any more.
    pub fn remove(&self, addresses: &[IpAddr]) {
        let mut all = self.namespaces.write().unwrap_or_else(PoisonError::into_inner);
        for address in addresses {
            self.changes.fetch_add(all.remove(address).is_some().into(), Relaxed);
        }
    }

    /// How often what it says has changed.
    pub fn changes(&self) -> u32 {
        self.changes.load(Relaxed)
    }

    /// The namespace of the pod that has `address`.
    pub fn namespace_of(&self, address: IpAddr) -> Option<Arc<str>> {
        self.namespaces.read().unwrap_or_else(PoisonError::into_inner).get(&address).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_the_pod_that_has_it_now() {
        let pods = LocalPods::default();
        let addresses = ["10.244.1.7", "fd00:244::7"].map(|text| text.parse().unwrap());
        let said =
            || addresses.map(|address| pods.namespace_of(address).map(|name| name.to_string()));
        assert_eq!(said(), [None, None]);
        pods.add(&addresses, "one");
        assert_eq!(said(), [Some("one".into()), Some("one".into())]);
        pods.add(&addresses, "one");
        assert_eq!(pods.changes(), 2);
        pods.remove(&addresses);
        pods.add(&addresses[..1], "two");
        pods.add(&addresses[1..], "");
        assert_eq!(said(), [Some("two".into()), None]);
        pods.remove(&addresses);
        assert_eq!(pods.changes(), 6, "two came, two went, one came and went");
    }
}
