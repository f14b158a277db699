//! Pods that asked, by annotation, to have their sockets left alone: what they dial is then
//! translated packet by packet. An annotation that changes counts at once, for connections that
//! are made from then on.

use std::{collections::BTreeSet, sync::PoisonError, time::Duration};

use mizzen_cni::wire::Pod;

use super::{
    journal::Phase,
    pods::{Pods, chain},
};
use crate::model::{ObjectKey, snapshot::Snapshot};

/// How long a call that is at work on a pod may hold up its annotation.
const PATIENCE: Duration = Duration::from_secs(1);

impl Pods {
    /// Follows the pods' annotations; what could not be done, to be tried again.
    pub fn follow_annotations(&self, snapshot: &Snapshot) -> Result<(), String> {
        if !snapshot.synced.pods {
            return Ok(());
        }
        let now: BTreeSet<ObjectKey> = snapshot.opted_out_pods.keys().cloned().collect();
        let before = {
            let mut held = self.opted_out.lock().unwrap_or_else(PoisonError::into_inner);
            if held.as_ref() == Some(&now) {
                return Ok(());
            }
            held.replace(now.clone())
        };
        let changed = |key: &ObjectKey| {
            before.as_ref().is_none_or(|before| before.contains(key) != now.contains(key))
        };
        for (attachment, entry) in self.entries() {
            if !changed(&key(&entry.pod)) {
                continue;
            }
            let outcome = match self.claims.claim(&attachment, PATIENCE) {
                None => Err(format!("another call is at work on {attachment}")),
                Some(_claim) => match self.ledger().get(&attachment).cloned() {
                    Some(entry) if entry.phase == Phase::Live => {
                        let link = self.pod_link(&attachment, &entry, entry.ifindex);
                        self.datapath.attach(&link, None).map_err(|error| chain(&error))
                    }
                    _ => Ok(()),
                },
            };
            outcome.inspect_err(|_| {
                *self.opted_out.lock().unwrap_or_else(PoisonError::into_inner) = None;
            })?;
        }
        Ok(())
    }

    /// Whether a pod's sockets are translated; `None` where that is not known yet.
    pub(super) fn socket_translation(&self, pod: &Pod) -> Option<bool> {
        let held = self.opted_out.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().map(|opted_out| !opted_out.contains(&key(pod)))
    }
}

fn key(pod: &Pod) -> ObjectKey {
    ObjectKey::new(&pod.namespace, &pod.name)
}
