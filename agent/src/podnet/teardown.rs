//! Deleting pods' links behind the answer to DEL, many at once: the kernel takes some 20 ms for one,
//! nearly all of it waiting for grace periods, and as long for many in one request.
//!
//! ```text
//! DEL: journal says "leaving" -> host ports closed -> unknown to the datapath -> link down -> answer
//!                                                      after a moment, the links of all that left ─┘
//! ```
//! With its link down a pod has no network, no route leads to it, and its addresses stay taken until
//! the link is gone. Whatever ends the agent in between leaves a record that says so, which
//! [`Pods::reconcile`] finishes. Who needs what is being freed has it freed at once, and waits for
//! that ([`Pods::tear_down`]).

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use mizzen_cni::wire::Attachment;
use tokio::{sync::Notify, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    blocking,
    journal::{Entry, Phase},
    message::{delete_leaving, set_leaving},
    netlink::Netlink,
    pods::{Pods, chain},
    steps::Step,
};

/// How long links gather. Deleting holds the kernel's lock over all devices, for which the next calls
/// would wait.
const GATHERING: Duration = Duration::from_millis(50);
/// When so many have gathered, the next DEL deletes them itself.
const GATHERED_MAX: usize = 128;

/// Pods that left and whose links are still there.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    gathered: Mutex<BTreeSet<Attachment>>,
    news: Notify,
    /// Held by who deletes: whoever gets it knows that all that left before is gone.
    at_work: Mutex<()>,
}

impl Leaving {
    fn put(&self, attachment: &Attachment) -> usize {
        let mut gathered = self.gathered();
        gathered.insert(attachment.clone());
        self.news.notify_one();
        gathered.len()
    }

    /// Its link is gone.
    pub(super) fn forget(&self, attachment: &Attachment) {
        self.gathered().remove(attachment);
    }

    /// Whether the link of this attachment is going to be deleted.
    pub(super) fn holds(&self, attachment: &Attachment) -> bool {
        self.gathered().contains(attachment)
    }

    fn gathered(&self) -> MutexGuard<'_, BTreeSet<Attachment>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes links until cancelled. Who ends the agent calls [`Pods::tear_down`] when no more calls
/// come.
pub(super) async fn run(pods: Arc<Pods>, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = pods.leaving.news.notified() => {}
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = sleep(GATHERING) => {}
        }
        let pods = Arc::clone(&pods);
        blocking(move || pods.tear_down()).await;
    }
}

impl Pods {
    /// Withdraws a pod: nothing reaches it any more, and it reaches nothing. Its link goes behind the
    /// caller's back, and then its addresses are free. Where this fails all of it is done at once, and
    /// what fails then too, later: the log is told, and a DEL succeeds all the same. The caller holds
    /// the claim.
    pub(super) fn withdraw(
        &self,
        attachment: &Attachment,
        entry: &Entry,
    ) -> Result<(), Box<dyn Error>> {
        if self.leaving.holds(attachment) {
            return Ok(());
        }
        let attempt = || -> Result<(), Box<dyn Error>> {
            self.ledger().set_phase(attachment, Phase::Leaving)?;
            (self.at_step)(Step::Leaving);
            self.ledger().disown(&entry.addresses);
            self.close_host_ports(entry);
            (self.at_step)(Step::HostPortsClosed);
            self.datapath.detach(&self.known_link(attachment, entry))?;
            (self.at_step)(Step::Detached);
            Ok(Netlink::open()?.apply(vec![set_leaving(&attachment.host_ifname())])?)
        };
        match attempt() {
            Ok(()) if self.leaving.put(attachment) < GATHERED_MAX => Ok(()),
            Ok(()) => self.tear_down_all(Some(attachment)),
            Err(error) => {
                tracing::debug!(%attachment, error = chain(&*error), "removing a pod at once");
                self.remove(attachment, entry)
            }
        }
    }

    /// Deletes the links of all that left, by one request, and frees their addresses. When it returns,
    /// that is done for every DEL that was answered before.
    pub(super) fn tear_down(&self) {
        let _logged = self.tear_down_all(None);
    }

    /// As [`Self::tear_down`]; the caller holds the claim of `claimed`, and is told how that one went.
    fn tear_down_all(&self, claimed: Option<&Attachment>) -> Result<(), Box<dyn Error>> {
        let _at_work = self.leaving.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.leaving.gathered().clone();
        if left.is_empty() {
            return Ok(());
        }
        let deleted = Netlink::open().and_then(|mut netlink| netlink.apply(vec![delete_leaving()]));
        if let Err(error) = deleted {
            tracing::warn!(error = chain(&error), "delete pods' links at once; now one by one");
        }
        let mut outcome = Ok(());
        for attachment in left {
            // Whoever holds the claim is at work on it, and leaves it to us, or makes it anew.
            let own = claimed == Some(&attachment);
            let claim = self.claims.claim(&attachment, Duration::ZERO);
            if claim.is_none() && !own {
                self.leaving.news.notify_one();
                continue;
            }
            let entry = self.ledger().get(&attachment).cloned();
            if entry.is_some_and(|entry| entry.phase == Phase::Leaving) {
                let finished = self.finish(&attachment, Ok(()));
                if own {
                    outcome = finished;
                }
            }
            self.leaving.forget(&attachment);
        }
        outcome
    }
}
