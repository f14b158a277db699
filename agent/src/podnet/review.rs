//! What the pod network looks at every few seconds though nothing changed: what the datapath knows
//! of each pod, and the programs on its link. Links, routes and namespaces, of which the kernel
//! tells, are [`super::heal`]'s.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use mizzen_cni::wire::Attachment;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    bandwidth::{self, End},
    blocking,
    datapath::PodDatapathError,
    journal::{Entry, Phase},
    ledger::link_spec,
    netns::{self, NetnsId},
    pods::{Pods, chain},
};

/// How often that is.
const REVIEW: Duration = Duration::from_secs(5);
/// Namespaces that are looked for in one look: each may take a walk over all processes.
const SEARCHES_MAX: usize = 4;
/// Of the limited pods whose namespace is not among those, each has its turn in so many looks.
const SEARCH_TURNS: u64 = 12;

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
        let (mut mended, mut searches, mut limited) = (0, 0, 0);
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
            mended += self.mend_bandwidth(&attachment, &entry, &mut limited);
        }
        for link in strangers {
            mended += self.datapath.mend(&link, None, &seen)?.len();
        }
        Ok(mended)
    }

    /// Limits the ends of a pod's link again that somebody freed: how many those were. `searched`
    /// counts the namespaces that were looked for in this look; which pods' these are changes from
    /// one look to the next.
    fn mend_bandwidth(
        &self,
        attachment: &Attachment,
        entry: &Entry,
        searched: &mut usize,
    ) -> usize {
        if entry.requested.bandwidth.is_unlimited() {
            return 0;
        }
        let spec = link_spec(attachment, entry);
        let mut outcomes = vec![bandwidth::mend(&spec, End::Host)];
        let looks = self.now().as_secs() / REVIEW.as_secs();
        let turn = (entry.serial + looks).is_multiple_of(SEARCH_TURNS);
        if entry.requested.bandwidth.egress.is_some() && (*searched < SEARCHES_MAX || turn) {
            *searched += 1;
            if let Some(netns) = netns::find(entry.netns) {
                outcomes.push(netns::inside(&netns, || bandwidth::mend(&spec, End::Pod)));
            }
        }
        let mut mended = 0;
        for outcome in outcomes {
            match outcome {
                Ok(false) => {}
                Ok(true) => {
                    self.datapath.note_healed(&spec.host_ifname, "bandwidth");
                    mended += 1;
                }
                Err(error) => {
                    tracing::warn!(%attachment, error = chain(&error), "limit a pod's bandwidth");
                }
            }
        }
        mended
    }
}
