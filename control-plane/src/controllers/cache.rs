//! What the watch of one kind has told so far, corrected by what we wrote ourselves.
//!
//! A controller that creates ten pods must not create them again because its watch has not shown
//! them yet. Instead of counting expectations, the answer of every write is put into the cache at
//! once (*read your own writes*). Two rules keep the late watch from undoing that:
//! - an event older than the cached object (by resourceVersion) is ignored;
//! - an object that we removed leaves a tombstone, so that a late MODIFIED event of the same uid
//!   does not bring it back.
//!
//! In the other direction, the answer of a write is ignored when the watch has passed its
//! revision already: what it does not show any more has been deleted since.
//! Resource versions are compared as numbers, which the API guarantees as of 1.35 (KEP-5504).

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kube::Resource;
use kube::runtime::watcher::Event;
use tokio::sync::watch;

use super::key::Key;

/// One step of an object's life: `old` is `None` when it is new, `new` is `None` when it is gone.
#[derive(Debug, Clone)]
pub(crate) struct Change<K> {
    pub(crate) old: Option<Arc<K>>,
    pub(crate) new: Option<Arc<K>>,
}

impl<K: Resource> Change<K> {
    /// The key of the object.
    pub(crate) fn key(&self) -> Option<Key> {
        self.latest().map(|object| Key::of(&**object))
    }

    /// The newest state that is known of the object, be it its last.
    pub(crate) fn latest(&self) -> Option<&Arc<K>> {
        self.new.as_ref().or(self.old.as_ref())
    }

    /// Whether the object is gone, or was replaced by another one of the same name.
    pub(crate) fn is_removal(&self) -> bool {
        self.new.is_none()
    }
}

/// The objects of one kind.
pub(crate) struct Cache<K> {
    state: RwLock<State<K>>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    /// The newest revision that the watch has delivered.
    seen: u64,
    /// Objects that we removed and whose DELETED event has not come yet: key to uid.
    tombstones: HashMap<Key, String>,
    /// The list under way after a (re)start of the watch.
    listing: Option<BTreeMap<Key, Arc<K>>>,
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        let state =
            State { objects: BTreeMap::new(), seen: 0, tombstones: HashMap::new(), listing: None };
        Self { state: RwLock::new(state), synced: watch::Sender::new(false) }
    }
}

impl<K: Resource + Clone + Debug> Cache<K> {
    /// The object of that key.
    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }

    /// All objects of one namespace, by name.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Key::new(namespace, "");
        self.read()
            .objects
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    /// All objects, by namespace and name.
    pub(crate) fn all(&self) -> Vec<Arc<K>> {
        self.read().objects.values().cloned().collect()
    }

    /// The objects of which that is true, by namespace and name.
    pub(crate) fn matching(&self, wanted: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        self.read().objects.values().filter(|object| wanted(object)).cloned().collect()
    }

    /// The object as it is held here: the same object at the same revision.
    pub(crate) fn same(&self, key: &Key, object: &K) -> Option<Arc<K>> {
        let state = self.read();
        let mut held = [state.objects.get(key), state.listing.as_ref().and_then(|it| it.get(key))]
            .into_iter()
            .flatten();
        let same = |held: &&Arc<K>| {
            held.meta().uid == object.meta().uid && revision(held.as_ref()) == revision(object)
        };
        held.find(same).cloned()
    }

    /// Takes in what the watch says and returns what changed by it.
    pub(crate) fn watched(&self, event: Event<Arc<K>>) -> Vec<Change<K>> {
        let mut state = self.write();
        match event {
            Event::Init => {
                state.listing = Some(BTreeMap::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                if let Some(listing) = &mut state.listing {
                    listing.insert(Key::of(&*object), object);
                }
                Vec::new()
            }
            Event::InitDone => {
                let changes = state.relisted();
                drop(state);
                self.synced.send_replace(true);
                changes
            }
            Event::Apply(object) => state.applied(object).into_iter().collect(),
            Event::Delete(object) => state.deleted(&object).into_iter().collect(),
        }
    }

    /// Takes in the answer of a write of ours.
    pub(crate) fn written(&self, object: Arc<K>) -> Option<Change<K>> {
        let mut state = self.write();
        let key = Key::of(&*object);
        let newer = match state.objects.get(&key) {
            Some(cached) => revision(&*object) > revision(cached.as_ref()),
            None => revision(&*object) > state.seen,
        };
        newer.then(|| state.put(key, object))
    }

    /// Takes in that an object is gone because we deleted it.
    pub(crate) fn removed(&self, key: &Key, uid: &str) -> Option<Change<K>> {
        let mut state = self.write();
        let cached = state.objects.get(key)?;
        if cached.meta().uid.as_deref() != Some(uid) {
            return None;
        }
        state.tombstones.insert(key.clone(), uid.to_owned());
        let old = state.objects.remove(key);
        Some(Change { old, new: None })
    }

    /// Returns when the first list is complete.
    pub(crate) async fn synced(&self) {
        let mut receiver = self.synced.subscribe();
        // An error means that the sender is gone, which it is not while `self` lives.
        drop(receiver.wait_for(|synced| *synced).await);
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Resource + Clone + Debug> State<K> {
    fn applied(&mut self, object: Arc<K>) -> Option<Change<K>> {
        let key = Key::of(&*object);
        self.seen = self.seen.max(revision(&*object));
        match self.tombstones.get(&key) {
            Some(uid) if object.meta().uid.as_deref() == Some(uid) => return None,
            Some(_) => drop(self.tombstones.remove(&key)),
            None => {}
        }
        let stale = self
            .objects
            .get(&key)
            .is_some_and(|cached| revision(cached.as_ref()) >= revision(&*object));
        (!stale).then(|| self.put(key, object))
    }

    fn deleted(&mut self, object: &K) -> Option<Change<K>> {
        let key = Key::of(object);
        self.seen = self.seen.max(revision(object));
        self.tombstones.remove(&key);
        let cached = self.objects.get(&key)?;
        // Another uid: the name has been taken again since, and we know it from our own write.
        if cached.meta().uid != object.meta().uid {
            return None;
        }
        let old = self.objects.remove(&key);
        Some(Change { old, new: None })
    }

    fn relisted(&mut self) -> Vec<Change<K>> {
        let Some(mut listing) = self.listing.take() else { return Vec::new() };
        self.tombstones.clear();
        let newest = listing.values().map(|object| revision(object.as_ref())).max();
        self.seen = self.seen.max(newest.unwrap_or(0));
        let mut changes = Vec::new();
        let before = std::mem::take(&mut self.objects);
        for (key, listed) in &mut listing {
            match before.get(key) {
                // What we wrote may be newer than the list.
                Some(cached) if revision(cached.as_ref()) >= revision(listed.as_ref()) => {
                    *listed = Arc::clone(cached);
                }
                old => {
                    changes.push(Change { old: old.cloned(), new: Some(Arc::clone(listed)) });
                }
            }
        }
        let gone = before.into_iter().filter(|(key, _)| !listing.contains_key(key));
        changes.extend(gone.map(|(_, cached)| Change { old: Some(cached), new: None }));
        self.objects = listing;
        changes
    }

    fn put(&mut self, key: Key, new: Arc<K>) -> Change<K> {
        let old = self.objects.insert(key, Arc::clone(&new));
        Change { old, new: Some(new) }
    }
}

/// The object's resourceVersion as a number; 0 if it has none.
pub(crate) fn revision<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use kube::ResourceExt;

    fn pod(name: &str, uid: &str, version: u64) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("default".into());
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.resource_version = Some(version.to_string());
        Arc::new(pod)
    }

    fn names(cache: &Cache<Pod>) -> Vec<String> {
        cache.all().iter().map(|pod| format!("{}@{}", pod.name_any(), revision(&**pod))).collect()
    }

    fn synced(pods: Vec<Arc<Pod>>) -> Cache<Pod> {
        let cache = Cache::default();
        cache.watched(Event::Init);
        for pod in pods {
            cache.watched(Event::InitApply(pod));
        }
        cache.watched(Event::InitDone);
        cache
    }

    #[test]
    fn own_write_is_seen_before_the_watch_tells_and_told_once() {
        let cache = synced(vec![]);
        assert!(cache.written(pod("a", "1", 10)).is_some());
        assert_eq!(names(&cache), ["a@10"]);
        assert!(cache.watched(Event::Apply(pod("a", "1", 10))).is_empty());
        assert_eq!(cache.watched(Event::Apply(pod("a", "1", 11))).len(), 1);
    }

    #[test]
    fn late_events_do_not_undo_a_write() {
        let cache = synced(vec![pod("a", "1", 5)]);
        cache.written(pod("a", "1", 9));
        assert!(cache.watched(Event::Apply(pod("a", "1", 7))).is_empty());
        assert_eq!(names(&cache), ["a@9"]);
    }

    #[test]
    fn a_late_answer_does_not_bring_back_what_the_watch_saw_deleted() {
        let cache = synced(vec![]);
        cache.watched(Event::Apply(pod("a", "1", 10)));
        cache.watched(Event::Delete(pod("a", "1", 12)));
        assert!(cache.written(pod("a", "1", 10)).is_none());
        assert!(names(&cache).is_empty());
    }

    #[test]
    fn a_tombstone_holds_until_the_deletion_is_told() {
        let cache = synced(vec![pod("a", "1", 5)]);
        let key = Key::new("default", "a");
        assert!(cache.removed(&key, "other").is_none());
        assert!(cache.removed(&key, "1").is_some_and(|change| change.is_removal()));
        assert!(cache.watched(Event::Apply(pod("a", "1", 6))).is_empty());
        assert!(cache.watched(Event::Delete(pod("a", "1", 7))).is_empty());
        // The name is taken again: a new object.
        assert_eq!(cache.watched(Event::Apply(pod("a", "2", 8))).len(), 1);
        assert_eq!(names(&cache), ["a@8"]);
    }

    #[test]
    fn the_deletion_of_a_predecessor_leaves_the_successor() {
        let cache = synced(vec![pod("a", "1", 5)]);
        cache.written(pod("a", "2", 9));
        assert!(cache.watched(Event::Delete(pod("a", "1", 8))).is_empty());
        assert_eq!(names(&cache), ["a@9"]);
    }

    #[test]
    fn a_second_list_tells_only_the_difference() {
        let cache = synced(vec![pod("a", "1", 5), pod("b", "2", 6), pod("c", "3", 7)]);
        cache.watched(Event::Init);
        cache.watched(Event::InitApply(pod("b", "2", 6)));
        cache.watched(Event::InitApply(pod("c", "3", 9)));
        cache.watched(Event::InitApply(pod("d", "4", 8)));
        let changes = cache.watched(Event::InitDone);
        let mut told: Vec<_> = changes
            .iter()
            .map(|change| {
                (
                    change.latest().map(|pod| pod.name_any()),
                    change.old.is_some(),
                    change.is_removal(),
                )
            })
            .collect();
        told.sort();
        assert_eq!(
            told,
            [
                (Some("a".into()), true, true),
                (Some("c".into()), true, false),
                (Some("d".into()), false, false)
            ]
        );
        assert_eq!(names(&cache), ["b@6", "c@9", "d@8"]);
    }

    #[test]
    fn a_namespace_is_a_range() {
        let mut other = pod("a", "9", 3);
        Arc::make_mut(&mut other).metadata.namespace = Some("default2".into());
        let cache = synced(vec![pod("a", "1", 5), pod("b", "2", 6), other]);
        assert_eq!(cache.in_namespace("default").len(), 2);
        assert_eq!(cache.in_namespace("default2").len(), 1);
        assert_eq!(cache.in_namespace("defaul").len(), 0);
    }
}
