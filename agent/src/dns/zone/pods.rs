//! Which addresses are pods', and of which namespace, as far as EndpointSlices tell: the pods that
//! are behind Services. No pod has to be watched for it.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::blocks::Blocks;
use crate::{
    local_pods::LocalPods,
    model::{ObjectKey, snapshot::Snapshot},
};

/// The pods behind Services.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    /// Namespaces of the pods with an address, once for each Service that names it: more than one
    /// namespace only while a freed address is given out again.
    by_address: Blocks<Arc<str>>,
}

impl Pods {
    /// Whether a pod of that namespace, a label in lower case, has `address`.
    pub fn has(&self, address: IpAddr, namespace: &[u8]) -> bool {
        self.by_address.of(address).any(|name| name.as_bytes() == namespace)
    }

    /// Follows what the slices of `service` say in `to` where they said what they say in `from`;
    /// tells whether a name came or went. Those of `local` are there in any case.
    pub fn advance(
        &mut self,
        service: &ObjectKey,
        from: &Snapshot,
        to: &Snapshot,
        local: &LocalPods,
    ) -> bool {
        let (old, new) = (pods(service, from), pods(service, to));
        let mut changed = false;
        for (address, namespace) in old.difference(&new) {
            self.by_address.remove(*address, namespace);
            changed |= !self.knows(local, *address, namespace);
        }
        for (address, namespace) in new.difference(&old) {
            changed |= !self.knows(local, *address, namespace);
            self.by_address.add(*address, Arc::clone(namespace));
        }
        changed
    }

    fn knows(&self, local: &LocalPods, address: IpAddr, namespace: &str) -> bool {
        self.has(address, namespace.as_bytes()) || is_local(local, address, namespace.as_bytes())
    }
}

/// Whether `address` is that of a pod of this node in that namespace.
pub fn is_local(local: &LocalPods, address: IpAddr, namespace: &[u8]) -> bool {
    local.namespace_of(address).is_some_and(|name| name.as_bytes() == namespace)
}

/// Addresses and namespaces of the pods behind `service`, ready or not.
fn pods(service: &ObjectKey, snapshot: &Snapshot) -> BTreeSet<(IpAddr, Arc<str>)> {
    let endpoints = snapshot.endpoints_of(service);
    let of_pods = endpoints.filter(|(slice, endpoint)| slice.pod(endpoint).is_some());
    of_pods.map(|(_, endpoint)| (endpoint.address, service.namespace.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::fixture::{HTTP, add, service, slice};

    fn with(names: &[&str], address: &str) -> Snapshot {
        let mut all = Snapshot::default();
        for name in names {
            let service = service("ns", name, &["10.0.0.1"], &[HTTP]);
            let mut slice = slice(&service, "a", &[(address, "")], &[HTTP]);
            slice.endpoints[0].ready = false;
            slice.endpoints[0].names = slice.names.add("pod-0", "");
            add(&mut all, service, vec![slice]);
        }
        all
    }

    #[test]
    fn dns_25_a_pod_is_known_while_some_service_names_it() {
        let address: IpAddr = "172.0.0.9".parse().unwrap();
        let (none, one, two) =
            (Snapshot::default(), with(&["a"], "172.0.0.9"), with(&["a", "b"], "172.0.0.9"));
        let mut pods = Pods::default();
        let keys = ["a", "b"].map(|name| ObjectKey::new("ns", name));
        let mut follow = |from: &Snapshot, to: &Snapshot| {
            for key in &keys {
                pods.advance(key, from, to, &LocalPods::default());
            }
            (
                pods.has(address, b"ns"),
                pods.has(address, b"other"),
                pods.by_address.of(address).count(),
            )
        };
        assert_eq!(follow(&none, &two), (true, false, 2));
        assert_eq!(follow(&two, &one), (true, false, 1));
        assert_eq!(follow(&one, &with(&["a"], "172.0.0.10")), (false, false, 0));
        assert_eq!(follow(&with(&["a"], "172.0.0.10"), &none), (false, false, 0));
    }
}
