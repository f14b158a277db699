//! The one loop that joins it all: snapshots and facts in, plans out, and the only writer of the
//! tables.
//!
//! Nothing is written before everything is known: an agent that has heard of Services and not of
//! their endpoints would take the endpoints away. After a plan that failed nothing is assumed: the
//! tables are read and compared anew, with back-off.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    apply::maps::{Capacities, Maps, Room},
    desired::{Change, Desired, LocalAddress, NodeFacts, SetKey, Settings},
    diff::{
        Known, diff, diff_and_settle,
        late::late,
        plan::{Op, Plan, Refused},
        restore::restore,
    },
    host_ports::{Asked, HostPorts},
    metrics::Metrics,
    model::snapshot::{Snapshot, Synced},
    released::Released,
    resets,
    serve::{rows, wire},
    status::{Board, State},
    supervisor::TaskError,
    traffic::accounts::Accounts,
};

mod deletions;
mod release;
mod review;
mod trouble;

use deletions::Deletions;
use release::Releases;
use review::{REVIEW, Review};
use trouble::{Scope, Trouble};

/// The part on the board.
pub const PART: &str = "services";

/// Puts the programs where traffic is, when the tables are filled. Called again and again: it
/// mends what was detached by hand, and follows devices that come and go.
pub trait Attach: Send {
    /// Attaches what is not attached, and says how many programs that were. `addresses` are those
    /// by which others reach the node.
    fn attach(&mut self, addresses: &[IpAddr]) -> Result<usize, TaskError>;
}

/// Nothing to attach.
#[derive(Debug)]
pub struct AttachNothing;

impl Attach for AttachNothing {
    fn attach(&mut self, _: &[IpAddr]) -> Result<usize, TaskError> {
        Ok(0)
    }
}

/// When, and for which interfaces, the programs were last put in place.
struct Attached {
    at: Instant,
    interfaces: BTreeSet<LocalAddress>,
    addresses: Vec<IpAddr>,
}

/// A question to the loop, which alone knows.
#[derive(Debug)]
pub enum Query {
    /// The services' sets.
    Services(oneshot::Sender<Vec<wire::Service>>),
    /// What the tables lead to.
    Backends(oneshot::Sender<Result<Vec<wire::Frontend>, String>>),
    /// What differs between the tables and what they should be.
    Diff(oneshot::Sender<Result<wire::Diff, String>>),
    /// What can't be done as asked.
    Warnings(oneshot::Sender<Vec<String>>),
    /// What service ports and their backends were sent, but for connections that live.
    Traffic(oneshot::Sender<Result<Accounts, String>>),
    /// The addresses by which others reach the node.
    UplinkAddresses(oneshot::Sender<Vec<IpAddr>>),
    /// Which service ports these sets are of.
    Owners(BTreeSet<u32>, oneshot::Sender<BTreeMap<u32, SetKey>>),
}

/// What the loop reads.
#[derive(Debug)]
pub struct Inputs {
    /// The cluster.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The node; `None` until it is known.
    pub facts: watch::Receiver<Option<Arc<NodeFacts>>>,
    /// Questions.
    pub queries: mpsc::Receiver<Query>,
    /// Addresses that this node's pods have no more.
    pub released: Released,
    /// The pods' host ports.
    pub host_ports: Arc<HostPorts>,
}

impl Inputs {
    /// The node's own facts, where all of them are known.
    fn facts(&mut self, asked: Option<&Asked>) -> Option<Arc<NodeFacts>> {
        let facts = self.facts.borrow_and_update().clone()?;
        let pods = &asked?.pods;
        if pods.is_empty() {
            return Some(facts);
        }
        Some(Arc::new(NodeFacts { host_ports: Arc::clone(pods), ..NodeFacts::clone(&facts) }))
    }
}

/// The loop's state.
pub struct Reconciler {
    maps: Box<dyn Maps>,
    attach: Box<dyn Attach>,
    /// When that was last seen to.
    attached: Option<Attached>,
    desired: Desired,
    /// What the tables hold; `None` where it has to be read.
    known: Option<Known>,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    /// What no table outgrows.
    max: Capacities,
    trouble: Trouble,
    review: Review,
    deletions: Deletions,
    releases: Releases,
}

impl Reconciler {
    /// A loop over `maps`, which nobody else writes.
    pub fn new(
        settings: Settings,
        maps: Box<dyn Maps>,
        attach: Box<dyn Attach>,
        board: Arc<Board>,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.arrivals.await_tables();
        Self {
            maps,
            attach,
            attached: None,
            desired: Desired::new(settings),
            known: None,
            board,
            metrics,
            max: Capacities::MAX,
            trouble: Trouble::default(),
            review: Review::default(),
            deletions: Deletions::default(),
            releases: Releases::default(),
        }
    }

    /// Has the connections of sockets to deleted endpoints ended.
    #[must_use]
    pub fn resetting(mut self, resets: resets::Queue) -> Self {
        self.deletions.resets = Some(resets);
        self
    }

    /// Runs until cancelled. The datapath stays in force.
    ///
    /// It blocks its thread while it calls bpf().
    pub async fn run(
        mut self,
        mut inputs: Inputs,
        cancel: CancellationToken,
    ) -> Result<(), TaskError> {
        let mut host_ports = inputs.host_ports.follow();
        loop {
            let snapshot = inputs.snapshots.borrow_and_update().clone();
            let asked = host_ports.borrow_and_update().clone();
            let facts = inputs.facts(asked.as_ref());
            let waits = facts.is_none() || !snapshot.synced.all();
            let reason = waits.then(|| awaited(snapshot.synced, facts.is_some()));
            inputs.host_ports.note_awaited(reason);
            if self.follow(&snapshot, facts.as_deref())
                && let Some(asked) = asked
            {
                inputs.host_ports.note_in_force(asked.revision);
            }
            // Nobody knows where an endpoint turned up when nothing is watched any more.
            let watched = inputs.snapshots.has_changed().is_ok();
            if watched {
                self.settle(Instant::now());
            }
            self.release(Instant::now());
            let due = Instant::now() + REVIEW;
            let sooner = [
                self.trouble.retry(),
                self.deletions.due().filter(|_| watched),
                self.releases.due(),
            ];
            let due = sooner.into_iter().flatten().fold(due, Instant::min);
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                // Before the endpoints that may have the addresses next.
                addresses = inputs.released.recv() => self.released(&addresses),
                Some(query) = inputs.queries.recv() => self.answer(query),
                // Before changes, which may come without end while their leavings pile up.
                outcome = self.releases.barrier() => self.barrier_over(outcome),
                Ok(()) = inputs.snapshots.changed() => {}
                Ok(()) = inputs.facts.changed() => {}
                Ok(()) = host_ports.changed() => {}
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
        // The next agent knows by the tables alone what was deleted before (`diff::late`).
        self.released(&inputs.released.take());
        self.finish();
        Ok(())
    }

    /// Brings the tables to what the snapshot and the facts ask for; whether they are there.
    pub fn follow(&mut self, snapshot: &Snapshot, facts: Option<&NodeFacts>) -> bool {
        let Some(facts) = facts.filter(|_| snapshot.synced.all()) else {
            let reason = awaited(snapshot.synced, facts.is_some());
            self.board.report(PART, State::Waiting(reason));
            return false;
        };
        let started = Instant::now();
        self.metrics.arrivals.begin_to_follow(started);
        self.review(started);
        let had_node = !self.desired.own_node_deleted();
        let mut change = if self.known.is_some() {
            self.desired.update(snapshot, facts)
        } else {
            self.desired.renew(snapshot, facts)
        };
        if had_node && self.desired.own_node_deleted() {
            tracing::warn!("the Node object of this node was deleted; what it said counts on");
        }
        self.deletions.note(std::mem::take(&mut change.deleted));
        if self.known.is_none() && self.trouble.waits(started) {
            return false; // The next attempt takes this change along.
        }
        let (outcome, scope) = match self.known.take() {
            Some(known) if self.trouble.is_due(started) => {
                (self.execute(known, self.desired.everything()), Scope::Everything)
            }
            Some(known) => (self.execute(known, change), Scope::Change),
            None => (self.execute_from_dump(change), Scope::Everything),
        };
        let outcome = outcome.and_then(|refused| self.attach(facts, started).map(|()| refused));
        let is_there = outcome.is_ok();
        if is_there {
            let shown = self.metrics.arrivals.shown(snapshot.revision);
            self.metrics.proxy.synced(started.elapsed(), &shown);
        }
        self.metrics.proxy.set_without_local(&self.desired.without_local_endpoints());
        self.metrics.proxy.set_host_ports_left_out(self.desired.host_ports_left_out());
        self.metrics.services.store(snapshot.services.len() as u64, Relaxed);
        self.conclude(outcome, scope, started);
        if matches!(scope, Scope::Everything) {
            // Nobody waits for this any more.
            self.known.iter_mut().for_each(Known::pack);
            self.desired.pack();
        }
        is_there
    }

    /// Sees to it that the programs are where traffic is.
    fn attach(&mut self, facts: &NodeFacts, now: Instant) -> Result<(), String> {
        let addresses = self.desired.uplink_addresses();
        if let Some(attached) = &self.attached
            && now.duration_since(attached.at) < REVIEW
            && attached.interfaces == facts.addresses
            && attached.addresses == addresses
        {
            return Ok(());
        }
        if self.attached.is_none() && self.trouble.waits(now) {
            return Ok(()); // It did not work a moment ago.
        }
        let same = |at: &Attached| at.interfaces == facts.addresses && at.addresses == addresses;
        let lost = self.attached.take().as_ref().is_some_and(same);
        let failed =
            |error: TaskError| format!("the programs are not attached: {}", chain(&*error));
        let attached = self.attach.attach(&addresses).map_err(failed)?;
        if lost && attached > 0 {
            tracing::warn!(programs = attached, "somebody else detached programs");
            self.metrics.tables.healed("program", attached as u64);
        }
        let interfaces = facts.addresses.clone();
        self.attached = Some(Attached { at: now, interfaces, addresses });
        Ok(())
    }

    /// Reads the tables, recognises what is its own, and brings them to what is desired.
    fn execute_from_dump(&mut self, everything: Change) -> Result<Vec<String>, String> {
        if self.trouble.has_failed() || self.releases.forgotten {
            // Whoever still reads what plans unlinked, one that was broken off too, is waited for.
            self.maps.barrier().map_err(|error| chain(&error))?;
            self.releases.forgotten = false;
        }
        let tables = self.maps.dump().map_err(|error| chain(&error))?;
        let mut known = restore(&tables, &everything, self.room());
        if self.deletions.are_unseen() {
            let spares = |key: &SetKey| self.desired.spares(&key.service);
            let unseen = late(&tables, &mut known, &everything, spares);
            self.deletions.note_unseen(unseen);
        }
        self.execute(known, everything)
    }

    /// What the tables have room for, and may grow to.
    fn room(&self) -> Room {
        Room { now: self.maps.capacities(), max: self.max }
    }

    /// Makes and applies a plan. What there was no room for comes back as text.
    fn execute(&mut self, known: Known, change: Change) -> Result<Vec<String>, String> {
        let (mut known, mut refused) = self.make(known, change)?;
        if !refused.is_empty() && !known.is_settled() && self.trouble.retry().is_none() {
            // What plans before gave up may be the room that is lacking.
            known = self.settle_releases(known)?;
            let everything = self.desired.everything();
            (known, refused) = self.make(known, everything)?;
        }
        self.metrics.sets.store(known.sets_len() as u64, Relaxed);
        self.known = Some(known);
        self.note_healed();
        Ok(refused.iter().map(ToString::to_string).collect())
    }

    fn make(
        &mut self,
        mut known: Known,
        mut change: Change,
    ) -> Result<(Known, Vec<Refused>), String> {
        self.deletions.join(&mut change, &mut known);
        let plan = diff(&change, &mut known);
        if !plan.is_empty() {
            tracing::debug!(steps = plan.ops.len(), flips = flips(&plan), "applying a plan");
            self.metrics.plans.fetch_add(1, Relaxed);
            self.carry_out(&plan, &known)?;
        }
        Ok((known, plan.refused))
    }

    /// Says on the board how it went, and when it is tried again.
    fn conclude(&mut self, outcome: Result<Vec<String>, String>, scope: Scope, started: Instant) {
        if outcome.is_ok() {
            let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.metrics.last_plan_micros.store(micros, Relaxed);
        }
        match self.trouble.note(outcome, scope) {
            None => {}
            Some(Ok(())) => self.board.report(PART, State::Ready),
            Some(Err(trouble)) => {
                // The board tells what is news; the attempts are for those who look for them.
                tracing::debug!(error = trouble, "services are not as desired");
                self.board.report(PART, State::Degraded(format!("{trouble}; it is tried again")));
            }
        }
    }

    fn answer(&mut self, query: Query) {
        // Whoever asked may have gone: that is their business.
        match query {
            Query::Services(reply) => drop(reply.send(rows::services(&self.desired))),
            Query::Backends(reply) => drop(reply.send(self.backends())),
            Query::Traffic(reply) => drop(reply.send(self.traffic())),
            Query::Diff(reply) => drop(reply.send(self.difference())),
            Query::UplinkAddresses(reply) => drop(reply.send(self.desired.uplink_addresses())),
            Query::Owners(sets, reply) => {
                let owners = self.known.as_ref().map(|known| known.owners(&sets));
                drop(reply.send(owners.unwrap_or_default()));
            }
            Query::Warnings(reply) => {
                let warning = |warning: crate::desired::Warning| {
                    format!("service {}: {}", warning.service, warning.message)
                };
                let services = self.desired.warnings().into_iter().map(warning);
                let tables = self.metrics.tables.warnings();
                let all = self.own_node_warning().into_iter().chain(services).chain(tables);
                drop(reply.send(all.collect()));
            }
        }
    }

    fn own_node_warning(&self) -> Option<String> {
        let name = &self.desired.settings().node_name;
        self.desired.own_node_deleted().then(|| {
            format!(
                "the Node object {name}, this node's, was deleted: its addresses and node ports \
                 stay in force until this agent ends; restart the kubelet to have it made again"
            )
        })
    }

    fn backends(&mut self) -> Result<Vec<wire::Frontend>, String> {
        let tables = self.maps.dump().map_err(|error| chain(&error))?;
        Ok(rows::backends(&self.desired, &tables))
    }

    /// What service ports and their backends were sent, but for connections that live.
    pub fn traffic(&mut self) -> Result<Accounts, String> {
        let sets = self.known.as_ref().map(Known::counting).unwrap_or_default();
        let mut counted = Vec::new();
        let visited = self.maps.visit_traffic(&mut |one| counted.push(one));
        visited.map_err(|error| chain(&error))?;
        Ok(Accounts::new(counted, sets))
    }

    fn difference(&mut self) -> Result<wire::Diff, String> {
        if !self.desired.snapshot().synced.all() {
            return Err("the cluster is not known yet, see `mizzen status`".to_owned());
        }
        let everything = self.desired.everything();
        self.finish(); // what is still to be released is no difference
        let tables = self.maps.dump().map_err(|error| chain(&error))?;
        let plan = diff_and_settle(&everything, &mut restore(&tables, &everything, self.room()));
        Ok(wire::Diff { steps: plan.to_string().lines().map(str::to_owned).collect() })
    }
}

/// What is still missing before anything may be written.
fn awaited(synced: Synced, facts: bool) -> String {
    let missing: Vec<&str> = [
        ("Services", synced.services),
        ("EndpointSlices", synced.slices),
        ("Nodes", synced.nodes),
        ("ServiceCIDRs", synced.service_cidrs),
        ("the node's addresses and its pods' host ports", facts),
    ]
    .into_iter()
    .filter_map(|(what, known)| (!known).then_some(what))
    .collect();
    format!("not known yet: {}; what the kernel holds stays in force", missing.join(", "))
}

fn flips(plan: &Plan) -> u64 {
    let words = |op: &Op| if let Op::Flip(words) = op { words.len() as u64 } else { 0 };
    plan.ops.iter().map(words).sum()
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests;
