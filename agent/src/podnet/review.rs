//! What the pod network looks at every few seconds though nothing changed: what the datapath knows
//! of each pod, and the programs on its link. Links, routes and namespaces, of which the kernel
//! tells, are [`super::heal`]'s.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    blocking,
    datapath::PodDatapathError,
    journal::Phase,
    netns::{self, NetnsId},
    pods::{Pods, chain},
};

/// How often that is.
const REVIEW: Duration = Duration::from_secs(5);
/// Namespaces that are looked for in one look: each may take a walk over all processes.
const SEARCHES_MAX: usize = 4;

/// Looks until cancelled.
pub(super) async fn run(pods: Arc<Pods>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(REVIEW) => {}
        }
        let pods = Arc::clone(&pods);
        blocking(move || {
            if let Err(error) = pods.review() {
                tracing::warn!(error = chain(&error), "pods could not be looked at");
            }
        })
        .await;
    }
}

impl Pods {
    /// Mends what somebody else altered of the pods in the datapath. How many things that were.
    pub fn review(&self) -> Result<usize, PodDatapathError> {
        // First the pods and then the tables: what a pod has was written before it was noted to be
        // live. One that goes meanwhile is told below.
        let mut entries = self.entries();
        entries.retain(|(_, entry)| entry.phase == Phase::Live && entry.ifindex != 0);
        let strangers: Vec<_> = self.strangers().values().cloned().collect();
        let seen = self.datapath.survey()?;
        // Of several interfaces of one pod, the first says which pod is in a namespace.
        let named = entries.iter().filter(|(_, e)| seen.namespace_of(&e.addresses).is_some());
        let mut named: BTreeSet<NetnsId> = named.map(|(_, entry)| entry.netns).collect();
        let (mut mended, mut searches) = (0, 0);
        for (attachment, entry) in entries {
            // Whoever holds the claim is at work on it; afterwards it may be another.
            let Some(_claim) = self.claims.claim(&attachment, Duration::ZERO) else { continue };
            if self.ledger().get(&attachment) != Some(&entry) {
                continue;
            }
            let is_lost = searches < SEARCHES_MAX && named.insert(entry.netns);
            searches += usize::from(is_lost);
            let netns = is_lost.then(|| netns::find(entry.netns)).flatten();
            let link = self.pod_link(&attachment, &entry, entry.ifindex);
            mended += self.datapath.mend(&link, netns.as_ref(), &seen)?.len();
        }
        for link in strangers {
            mended += self.datapath.mend(&link, None, &seen)?.len();
        }
        Ok(mended)
    }
}
