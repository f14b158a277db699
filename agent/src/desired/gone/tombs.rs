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
