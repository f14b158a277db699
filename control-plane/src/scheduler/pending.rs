//! The pods that wait for a node: in line, or parked until something changes that may help.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::controllers::key::Key;

/// The order of the line: higher priority first, then who came first.
type Place = (Reverse<i32>, u64, Key);

/// Pods without a node.
#[derive(Debug, Default)]
pub(super) struct Pending {
    line: BTreeSet<Place>,
    /// The places of all that wait, so that a parked pod comes back to its own.
    places: HashMap<Key, Place>,
    /// Pods that fit nowhere, as they were then.
    parked: HashMap<Key, Arc<Pod>>,
    next: u64,
}

impl Pending {
    /// Puts a pod in line. One that is parked stays so, unless it has changed in what decides
    /// where it fits.
    pub(super) fn add(&mut self, key: &Key, pod: &Arc<Pod>) {
        if let Some(parked) = self.parked.get(key) {
            if parked.spec == pod.spec && parked.metadata.uid == pod.metadata.uid {
                return;
            }
            self.parked.remove(key);
        }
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let next = self.next;
        let place = self.places.entry(key.clone()).or_insert_with(|| {
            self.next += 1;
            (Reverse(priority), next, key.clone())
        });
        self.line.insert(place.clone());
    }

    /// Takes the first out of the line. It keeps its place until it is removed.
    pub(super) fn pop(&mut self) -> Option<Key> {
        self.line.pop_first().map(|(_, _, key)| key)
    }

    /// Parks a pod that fits nowhere.
    pub(super) fn park(&mut self, key: Key, pod: Arc<Pod>) {
        self.parked.insert(key, pod);
    }

    /// Whether pods are parked.
    pub(super) fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Puts all parked pods back in line.
    pub(super) fn wake(&mut self) {
        for (key, _) in self.parked.drain() {
            if let Some(place) = self.places.get(&key) {
                self.line.insert(place.clone());
            }
        }
    }

    /// Forgets a pod: it has a node, or is gone.
    pub(super) fn remove(&mut self, key: &Key) {
        self.parked.remove(key);
        if let Some(place) = self.places.remove(key) {
            self.line.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, priority: i32) -> (Key, Arc<Pod>) {
        let pod = json!({"metadata": {"name": name, "namespace": "d", "uid": name},
                         "spec": {"containers": [], "priority": priority}});
        (Key::new("d", name), Arc::new(serde_json::from_value(pod).unwrap()))
    }

    fn names(pending: &mut Pending) -> Vec<String> {
        std::iter::from_fn(|| pending.pop()).map(|key| key.name).collect()
    }

    #[test]
    fn priority_then_arrival() {
        let mut pending = Pending::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            let (key, pod) = pod(name, priority);
            pending.add(&key, &pod);
            pending.add(&key, &pod);
        }
        assert_eq!(names(&mut pending), ["b", "d", "a", "c"]);
    }

    #[test]
    fn a_parked_pod_waits_for_a_wake_or_its_own_change() {
        let mut pending = Pending::default();
        let (key, mut first) = pod("a", 0);
        let (other, second) = pod("b", 0);
        pending.add(&key, &first);
        pending.add(&other, &second);
        assert_eq!(pending.pop(), Some(key.clone()));
        pending.park(key.clone(), Arc::clone(&first));
        // Its status changes, because we said why.
        pending.add(&key, &first);
        assert_eq!(names(&mut pending), ["b"]);
        pending.wake();
        assert_eq!(pending.pop(), Some(key.clone()));
        pending.park(key.clone(), Arc::clone(&first));
        Arc::make_mut(&mut first).spec.as_mut().unwrap().node_selector = Some([].into());
        pending.add(&key, &first);
        assert_eq!(pending.pop(), Some(key.clone()));
        pending.park(key.clone(), first);
        pending.remove(&key);
        pending.wake();
        assert_eq!(pending.pop(), None);
    }
}
