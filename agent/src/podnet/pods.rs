//! What the agent does for each CNI call.
//!
//! Every step can be done twice, and every failure leaves either nothing or a journaled
//! attachment that [`Pods::reconcile`] unmakes later.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs::File,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use mizzen_cni::{
    protocol::error::{
        CHECK_FAILED, INVALID_CONFIG, IO_FAILURE, LIMITED, OPERATION_FAILED, TRY_AGAIN_LATER,
        UNAVAILABLE, UNKNOWN_CONTAINER,
    },
    wire::{Attachment, Failure, Link, Pod, Remembered, Requested},
};

use super::{
    bandwidth::Bucket,
    claims::{Claim, Claims},
    conflist::NETWORK,
    datapath::{PodDatapath, PodLink},
    interface,
    ipam::AllocateError,
    journal::{Entry, Phase},
    ledger::{Ledger, Reservation, ReserveError, link_spec},
    link::{self, LinkError},
    netlink::{Netlink, NetlinkError},
    netns::{self, NetnsId},
    remembered::{self, InPod},
    steps::{self, Observer, Step},
    teardown::Leaving,
};
use crate::{
    host_ports::HostPorts,
    model::{ObjectKey, node::Cidr},
};

/// The pods of this node.
pub struct Pods {
    /// Holds the journals.
    pub(super) state_dir: PathBuf,
    ledger: Mutex<Ledger>,
    pub(super) claims: Claims,
    pub(super) datapath: Arc<dyn PodDatapath>,
    /// Links that an agent made whose journal is lost, by name.
    pub(super) strangers: Mutex<BTreeMap<String, PodLink>>,
    /// Pods that left and whose links are still there.
    pub(super) leaving: Leaving,
    /// Held by who does what DELs were noted.
    pub(super) draining: Mutex<()>,
    /// Pods whose sockets are left alone; `None` until they are known.
    pub(super) opted_out: Mutex<Option<BTreeSet<ObjectKey>>>,
    /// Those who see to host ports.
    pub(super) host_ports: OnceLock<Arc<HostPorts>>,
    pub(super) at_step: Observer,
    started: Instant,
    pub(super) mtu: AtomicU32,
    /// Why no pod can be connected now.
    waiting: Mutex<Option<String>>,
    /// Why pods are cut off from the rest of the cluster.
    cut: Mutex<Option<String>>,
}

/// An ADD: which attachment, for whom, where.
#[derive(Debug)]
pub struct Addition {
    /// The CNI network's name.
    pub network: String,
    /// Which.
    pub attachment: Attachment,
    /// For whom.
    pub pod: Pod,
    /// The pod's namespace.
    pub netns: File,
    /// What else is asked for.
    pub requested: Requested,
}

/// A pod that is connected, and nobody was told of it yet. Until this is dropped, no other call
/// can change it.
pub struct Added<'a> {
    /// Its link.
    pub link: Link,
    pods: &'a Pods,
    claim: Claim<'a>,
    /// It was connected before, and somebody may have been told of it then.
    is_repeated: bool,
}

impl Added<'_> {
    /// Disconnects it again: to the runtime, which got no answer, the ADD has failed. One that only
    /// repeated an answer leaves the pod as it was.
    pub fn undo(self) {
        let attachment = self.claim.attachment();
        if self.is_repeated {
            return;
        }
        tracing::warn!(%attachment, "undoing an ADD whose plugin has gone");
        let entry = self.pods.ledger().get(attachment).cloned();
        if let Some(entry) = entry {
            let _logged = self.pods.remove(attachment, &entry);
        }
    }
}

impl Pods {
    /// The pods that the journal at `path` knows of. Addresses in `excluded` are given to none.
    pub fn open(
        path: &Path,
        boot: &str,
        excluded: Vec<Cidr>,
        datapath: Arc<dyn PodDatapath>,
    ) -> io::Result<Self> {
        Ok(Self {
            state_dir: path.parent().unwrap_or(Path::new(".")).to_owned(),
            ledger: Mutex::new(Ledger::open(path, boot, excluded, Duration::ZERO)?),
            claims: Claims::default(),
            datapath,
            strangers: Mutex::default(),
            leaving: Leaving::default(),
            draining: Mutex::default(),
            opted_out: Mutex::default(),
            host_ports: OnceLock::new(),
            at_step: steps::unobserved,
            started: Instant::now(),
            mtu: AtomicU32::new(super::DEFAULT_MTU),
            waiting: Mutex::new(Some("the agent has just started".into())),
            cut: Mutex::default(),
        })
    }

    /// Tells `observer` of each step.
    #[must_use]
    pub fn observed_by(self, observer: Observer) -> Self {
        Self { at_step: observer, ..self }
    }

    /// The node's ranges as last known.
    pub fn ranges(&self) -> Vec<Cidr> {
        self.ledger().ranges().to_vec()
    }

    /// Says which ranges the node has.
    pub fn set_ranges(&self, ranges: &[Cidr]) -> io::Result<()> {
        self.ledger().set_ranges(ranges)
    }

    /// Says which MTU new links get.
    pub fn set_mtu(&self, mtu: u32) {
        self.mtu.store(mtu, Ordering::Relaxed);
    }

    /// Says whether pods can be connected, and if not, why.
    pub fn set_waiting(&self, reason: Option<String>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Says why pods are cut off from the rest of the cluster, where they are.
    pub fn set_cut(&self, reason: Option<String>) {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Connects a pod.
    pub fn add(&self, addition: &Addition, limit: Duration) -> Result<Added<'_>, Failure> {
        let deadline = Instant::now() + limit;
        let attachment = &addition.attachment;
        self.drain_noted(Some((attachment, deadline))).map_err(|error| {
            let is_late = error.kind() == io::ErrorKind::TimedOut;
            let code = if is_late { TRY_AGAIN_LATER } else { IO_FAILURE };
            failure(code, "can't do the DELs that were noted", error.to_string())
        })?;
        let claim = self.claim(attachment, deadline.saturating_duration_since(Instant::now()))?;
        let (link, is_repeated) = self.add_claimed(addition, deadline)?;
        Ok(Added { link, pods: self, claim, is_repeated })
    }

    /// The link, and whether it was there before.
    fn add_claimed(&self, addition: &Addition, deadline: Instant) -> Result<(Link, bool), Failure> {
        let attachment = &addition.attachment;
        if let Some(reason) = self.waiting() {
            return Err(failure(TRY_AGAIN_LATER, "the pod network is not ready", reason));
        }
        let netns = NetnsId::of(&addition.netns)
            .map_err(|error| failure(IO_FAILURE, "can't look at CNI_NETNS", error.to_string()))?;
        let known = self.ledger().get(attachment).cloned();
        if let Some(entry) = known {
            if entry.phase == Phase::Live
                && entry.netns == netns
                && entry.requested == addition.requested
                && is_as_made(attachment, &entry, &addition.netns)
            {
                return Ok((answer(attachment, &entry), true));
            }
            // Its record is all that says what is left of it.
            self.remove(attachment, &entry)
                .map_err(|error| failed("can't remove what the pod had before", &*error))?;
        }
        let reservation = Reservation {
            network: addition.network.clone(),
            pod: addition.pod.clone(),
            netns,
            netns_cookie: netns::cookie(&addition.netns),
            mtu: self.mtu.load(Ordering::Relaxed),
            requested: addition.requested.clone(),
        };
        let mut reserved = self.ledger().reserve(attachment, reservation.clone(), self.now());
        if matches!(reserved, Err(ReserveError::Address(_))) {
            // Addresses of pods that left just now are free when their links are gone.
            self.tear_down();
            reserved = self.ledger().reserve(attachment, reservation, self.now());
        }
        let entry = reserved.map_err(|error| reserve_failure(&error))?;
        (self.at_step)(Step::Reserved);
        self.connect(addition, &entry, deadline)
            .map(|link| (link, false))
            .inspect_err(|_| drop(self.remove(attachment, &entry)))
    }

    fn connect(
        &self,
        addition: &Addition,
        entry: &Entry,
        deadline: Instant,
    ) -> Result<Link, Failure> {
        let attachment = &addition.attachment;
        let spec = link_spec(attachment, entry);
        let mut made = link::create(&spec, &addition.netns);
        if matches!(made, Err(LinkError::PodInterfaceExists { .. })) {
            // It may be that of another container's attachment that left this namespace.
            self.tear_down();
            made = link::create(&spec, &addition.netns);
        }
        let ifindex = made.map_err(|error| failed("can't make the pod's link", &error))?;
        (self.at_step)(Step::LinkMade);
        self.datapath
            .attach(&self.pod_link(attachment, entry, ifindex), Some(&addition.netns))
            .map_err(|error| failed("can't attach the datapath to the pod", &error))?;
        self.ledger().set_ifindex(attachment, ifindex);
        (self.at_step)(Step::Attached);
        self.open_host_ports(entry, deadline)?;
        (self.at_step)(Step::HostPortsOpen);
        self.ledger()
            .set_phase(attachment, Phase::Live)
            .map_err(|error| failed("can't write the journal of pod addresses", &error))?;
        (self.at_step)(Step::Live);
        Ok(answer(attachment, entry))
    }

    /// Disconnects a pod. Only a call that is still at work on it stands in the way; what can't
    /// be unmade now is unmade later.
    pub fn del(&self, attachment: &Attachment, limit: Duration) -> Result<(), Failure> {
        let _claim = self.claim(attachment, limit)?;
        let known = self.ledger().get(attachment).cloned();
        match known {
            Some(entry) => drop(self.withdraw(attachment, &entry)),
            // Never added, or by an agent that lost its journal.
            None => {
                if let Err(error) = link::delete(&attachment.host_ifname()) {
                    tracing::warn!(%attachment, error = chain(&error), "delete an unknown pod's link");
                }
            }
        }
        Ok(())
    }

    /// Whether the pod is connected as ADD left it, and as the runtime remembers it: by the
    /// addresses alone where that is a plugin of former times that asks.
    pub fn check(
        &self,
        attachment: &Attachment,
        addresses: &[IpAddr],
        remembered: Option<&Remembered>,
        netns: &File,
        limit: Duration,
    ) -> Result<(), Failure> {
        let _claim = self.claim(attachment, limit)?;
        let unknown = || {
            let details =
                format!("{attachment} was not added by this agent since the node started");
            failure(UNKNOWN_CONTAINER, "unknown container", details)
        };
        let entry = self.ledger().get(attachment).cloned().ok_or_else(unknown)?;
        let wrong =
            |details: String| failure(CHECK_FAILED, "the pod's network is damaged", details);
        match entry.phase {
            Phase::Live => {}
            // Its DEL was answered, and what is left of it is nobody's.
            Phase::Leaving => return Err(unknown()),
            Phase::Reserved => return Err(wrong(format!("{attachment} was never connected"))),
        }
        if !NetnsId::of(netns).is_ok_and(|id| id == entry.netns) {
            return Err(wrong("CNI_NETNS is another namespace than at ADD".into()));
        }
        let told = answer(attachment, &entry);
        let lost = entry.addresses.iter().find(|address| !addresses.contains(address));
        let lost =
            lost.filter(|_| !addresses.is_empty()).map(|lost| format!("{lost} is not in it"));
        let differs = remembered.map_or(lost, |remembered| remembered::differs(remembered, &told));
        if let Some(differs) = differs {
            let msg = "the previous result is not what ADD answered";
            return Err(failure(CHECK_FAILED, msg, differs));
        }
        let in_pod = remembered.map_or_else(|| InPod::made(&entry.addresses), InPod::remembered);
        let ifindex = link::verify(&link_spec(attachment, &entry), &in_pod, netns)
            .map_err(|error| wrong(chain(&error)))?;
        let missing = self.datapath.missing(&self.pod_link(attachment, &entry, ifindex));
        let missing = missing.map_err(|error| failed("can't look at the datapath", &error))?;
        if let Some(missing) = missing {
            return Err(wrong(missing));
        }
        if !self.has_host_ports(&entry) {
            return Err(wrong("its host ports are not in force; see `mizzen status`".into()));
        }
        Ok(())
    }

    /// Disconnects every pod of `network` that is not in `valid`. What is being added meanwhile, or
    /// was since the runtime `called` (by [`mizzen_cni::wire::uptime`]), is younger than the list and
    /// stays. Links that no record is about are of the one network whose configuration the agent
    /// writes.
    pub fn gc(
        &self,
        network: &str,
        valid: &[Attachment],
        called: Option<u64>,
        limit: Duration,
    ) -> Result<(), Failure> {
        let valid: BTreeSet<_> = valid.iter().collect();
        let is_older = |entry: &Entry| match (entry.born, called) {
            (Some(born), Some(called)) => born < called,
            _ => true,
        };
        let mut stale = self.entries();
        stale.retain(|(attachment, entry)| {
            entry.network == network
                && entry.phase != Phase::Reserved
                && !valid.contains(attachment)
                && is_older(entry)
        });
        let deadline = Instant::now() + limit;
        let mut failures: Vec<_> = stale
            .iter()
            .filter_map(|(attachment, entry)| {
                let left = deadline.saturating_duration_since(Instant::now());
                self.del_stale(attachment, entry, left).err().map(|failure| failure.details)
            })
            .collect();
        if network == NETWORK {
            match self.delete_strangers(&valid) {
                Ok(refused) => failures.extend(refused),
                Err(error) => failures.push(chain(&error)),
            }
        }
        if failures.is_empty() {
            return Ok(());
        }
        Err(failure(OPERATION_FAILED, "not all could be removed", failures.join("; ")))
    }

    /// Disconnects a pod that is as it was seen: one that was added again meanwhile is younger.
    fn del_stale(
        &self,
        attachment: &Attachment,
        seen: &Entry,
        limit: Duration,
    ) -> Result<(), Failure> {
        let _claim = self.claim(attachment, limit)?;
        let known = self.ledger().get(attachment).cloned();
        if let Some(entry) = known.filter(|entry| entry.serial == seen.serial) {
            return self.withdraw(attachment, &entry).map_err(|error| {
                let details = format!("{attachment}: {}; the agent tries again", chain(&*error));
                failure(OPERATION_FAILED, "can't remove a pod", details)
            });
        }
        Ok(())
    }

    /// Whether an ADD could succeed, and what it connects could reach anybody.
    pub fn status(&self) -> Result<(), Failure> {
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(reason) = cut {
            return Err(failure(LIMITED, "pods are cut off from the cluster", reason));
        }
        if let Some(reason) = self.waiting() {
            return Err(failure(UNAVAILABLE, "the pod network is not ready", reason));
        }
        if self.ledger().exhausted().is_some() {
            self.tear_down();
        }
        match self.ledger().exhausted() {
            Some(exhausted) => {
                Err(failure(UNAVAILABLE, "no address for another pod", exhausted.to_string()))
            }
            None => Ok(()),
        }
    }

    /// Withdraws all that an attachment has, the addresses last. After a failure, of which the log is
    /// told, it stays in the ledger as leaving, for [`Self::reconcile`]. The caller holds the claim.
    pub(super) fn remove(
        &self,
        attachment: &Attachment,
        entry: &Entry,
    ) -> Result<(), Box<dyn Error>> {
        let leaving = self.ledger().set_phase(attachment, Phase::Leaving);
        (self.at_step)(Step::Leaving);
        self.close_host_ports(entry);
        (self.at_step)(Step::HostPortsClosed);
        let detached = self.datapath.detach(&self.known_link(attachment, entry));
        (self.at_step)(Step::Detached);
        let withdrawn = || -> Result<(), Box<dyn Error>> {
            leaving.map_err(|error| format!("write the journal of pod addresses: {error}"))?;
            Ok(detached?)
        };
        let finished = self.finish(attachment, withdrawn());
        self.leaving.forget(attachment);
        finished
    }

    /// Ends what withdrew a pod: its link, and then its addresses. The caller holds the claim.
    pub(super) fn finish(
        &self,
        attachment: &Attachment,
        withdrawn: Result<(), Box<dyn Error>>,
    ) -> Result<(), Box<dyn Error>> {
        let deleted = link::delete(&attachment.host_ifname());
        (self.at_step)(Step::LinkGone);
        let attempt = || -> Result<(), Box<dyn Error>> {
            withdrawn?;
            deleted?;
            let released = self.ledger().release(attachment, self.now());
            Ok(released.map_err(|error| format!("write the journal of pod addresses: {error}"))?)
        };
        let finished = attempt();
        if let Err(error) = &finished {
            tracing::warn!(%attachment, error = chain(&**error), "removing a pod later");
        }
        (self.at_step)(Step::Released);
        finished
    }

    /// The pod as the datapath knows it. An agent that did not make its link finds that by its name.
    pub(super) fn known_link(&self, attachment: &Attachment, entry: &Entry) -> PodLink {
        let found = || {
            let found = interface::find(&mut Netlink::open()?, &attachment.host_ifname())?;
            Ok::<_, NetlinkError>(found.map_or(0, |found| found.ifindex))
        };
        let ifindex = match entry.ifindex {
            0 => found().unwrap_or_else(|error| {
                tracing::warn!(%attachment, error = chain(&error), "look for a pod's link");
                0
            }),
            known => known,
        };
        self.pod_link(attachment, entry, ifindex)
    }

    /// The pod as the datapath has to know it now.
    pub(super) fn pod_link(&self, attachment: &Attachment, entry: &Entry, ifindex: u32) -> PodLink {
        let spec = link_spec(attachment, entry);
        PodLink {
            ifname: spec.host_ifname,
            ifindex,
            addresses: spec.addresses,
            pod_mac: spec.pod_mac.0,
            host_mac: spec.host_mac.0,
            socket_translation: self.socket_translation(&entry.pod),
            queued: entry.requested.bandwidth.ingress.is_some(),
            sends: entry.requested.bandwidth.egress.map(|limit| Bucket::of(limit, entry.mtu)),
        }
    }

    pub(super) fn entries(&self) -> Vec<(Attachment, Entry)> {
        let ledger = self.ledger();
        ledger.entries().map(|(attachment, entry)| (attachment.clone(), entry.clone())).collect()
    }

    fn claim(&self, attachment: &Attachment, limit: Duration) -> Result<Claim<'_>, Failure> {
        self.claims.claim(attachment, limit).ok_or_else(|| {
            let details = format!("another call for {attachment} did not end in {limit:?}");
            failure(TRY_AGAIN_LATER, "another call is at work", details)
        })
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> Option<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

fn is_as_made(attachment: &Attachment, entry: &Entry, netns: &File) -> bool {
    let in_pod = InPod::made(&entry.addresses);
    link::verify(&link_spec(attachment, entry), &in_pod, netns).is_ok()
}

fn answer(attachment: &Attachment, entry: &Entry) -> Link {
    let spec = link_spec(attachment, entry);
    Link {
        host_ifname: spec.host_ifname,
        host_mac: spec.host_mac,
        pod_mac: spec.pod_mac,
        mtu: spec.mtu,
        addresses: spec.addresses,
    }
}

fn reserve_failure(error: &ReserveError) -> Failure {
    match error {
        ReserveError::Address(AllocateError::Exhausted(exhausted)) => {
            failure(TRY_AGAIN_LATER, "no address for another pod", exhausted.to_string())
        }
        // Another pod may give it up.
        ReserveError::Address(taken @ AllocateError::Taken { .. }) => {
            failure(TRY_AGAIN_LATER, "requested IP not available", taken.to_string())
        }
        ReserveError::Address(strange @ AllocateError::NotOurs { .. }) => {
            failure(INVALID_CONFIG, "requested IP not in range", strange.to_string())
        }
        ReserveError::Journal(_) => failure(IO_FAILURE, "can't reserve addresses", chain(error)),
    }
}

fn failed(msg: &str, error: &dyn Error) -> Failure {
    failure(OPERATION_FAILED, msg, chain(error))
}

/// A refusal in the specification's terms.
pub fn failure(code: u32, msg: &str, details: impl Into<String>) -> Failure {
    Failure { code, msg: msg.to_owned(), details: details.into() }
}

/// An error and all that caused it, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
