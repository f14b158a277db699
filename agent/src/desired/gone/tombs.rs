//! Sets that their service has no more, or whose service is gone, while endpoints of theirs may be
//! deleted yet: a service is often deleted before its slices are (a namespace, a manifest), and
//! connections outlive it. Such a set keeps its number and the ids of those endpoints, and nothing
//! leads to it.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    desired::{DesiredSet, SetKey},
    model::ObjectKey,
};

/// So many sets are kept; connections to what is deleted of others are left to time out.
const TOMBS_MAX: usize = 4096;

/// The sets.
#[derive(Clone, Debug, Default)]
pub(super) struct Tombs {
    of: BTreeMap<ObjectKey, BTreeMap<SetKey, Arc<DesiredSet>>>,
    count: usize,
}

impl Tombs {
    /// Whether a service has one.
    pub(super) fn has(&self, service: &ObjectKey) -> bool {
        self.of.contains_key(service)
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = (&SetKey, &Arc<DesiredSet>)> {
        self.of.values().flatten()
    }

    /// Those of a service.
    pub(super) fn of(
        &self,
        service: &ObjectKey,
    ) -> impl Iterator<Item = (&SetKey, &Arc<DesiredSet>)> {
        self.of.get(service).into_iter().flatten()
    }

    /// The one with this key.
    pub(super) fn get(&self, key: &SetKey) -> Option<&Arc<DesiredSet>> {
        self.of.get(&key.service)?.get(key)
    }

    /// Takes out those of a service.
    pub(super) fn open(&mut self, service: &ObjectKey) -> BTreeMap<SetKey, Arc<DesiredSet>> {
        let sets = self.of.remove(service).unwrap_or_default();
        self.count -= sets.len();
        sets
    }

    /// Puts one in. False where there are too many.
    pub(super) fn put(&mut self, key: &SetKey, set: DesiredSet) -> bool {
        if self.count >= TOMBS_MAX {
            tracing::warn!(
                set = %key,
                "connections to endpoints of a service that is gone are left to time out: too many \
                 services went at once"
            );
            return false;
        }
        let of = self.of.entry(key.service.clone()).or_default();
        self.count += usize::from(of.insert(key.clone(), Arc::new(set)).is_none());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::service::Protocol;

    fn key(n: usize) -> SetKey {
        let service = ObjectKey::new("default", &format!("s-{n}"));
        SetKey { service, port: "".into(), protocol: Protocol::Tcp, ipv6: false }
    }

    #[test]
    fn v8_so_many_sets_are_kept_and_each_counts_once() {
        let mut tombs = Tombs::default();
        let put = |tombs: &mut Tombs, n| tombs.put(&key(n), DesiredSet::idle(BTreeMap::new()));
        assert!(put(&mut tombs, 0));
        assert!((0..TOMBS_MAX).all(|n| put(&mut tombs, n)));
        assert!(!put(&mut tombs, TOMBS_MAX), "one too many");
        assert!(tombs.get(&key(TOMBS_MAX)).is_none() && !tombs.has(&key(TOMBS_MAX).service));
        // What goes leaves its place to one other.
        assert_eq!(tombs.open(&key(0).service).len(), 1);
        assert_eq!(tombs.open(&key(0).service).len(), 0);
        assert!(!tombs.has(&key(0).service));
        assert!(put(&mut tombs, TOMBS_MAX) && !put(&mut tombs, TOMBS_MAX + 1));
        assert_eq!((tombs.all().count(), tombs.of(&key(1).service).count()), (TOMBS_MAX, 1));
    }
}
