//! Deleted endpoints on their way through the loop.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{Reconciler, Scope};
use crate::{
    desired::{Change, gone::Deleted},
    diff::{Known, plan::Reset},
    resets,
};

/// How long an endpoint that left may take to turn up in another slice.
const SETTLE: Duration = Duration::from_millis(200);
/// Sets with deleted endpoints that wait for a plan that succeeds; beyond that their flows are left
/// to time out.
const DELETED_MAX: usize = 4096;
/// Deleted endpoints of plans that failed, likewise.
const UNFINISHED_MAX: usize = 65_536;

/// What the loop remembers of them.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    /// Those that no plan has seen to yet.
    deleted: Deleted,
    /// Of those that a plan has seen to which failed: what is to be reset when one succeeds.
    unfinished: Vec<Reset>,
    /// Whether it was seen to what the tables tell of deletions from before this agent.
    looked_back: bool,
    /// When it will be known whether endpoints that left turn up elsewhere.
    settles: Option<Instant>,
    /// Ends the connections of sockets.
    pub(super) resets: Option<resets::Queue>,
}

impl Deletions {
    /// When the loop has something to do for them.
    pub(super) fn due(&self) -> Option<Instant> {
        self.settles
    }

    /// Keeps them for the next plan.
    pub(super) fn note(&mut self, deleted: Deleted) {
        for (set, endpoints) in deleted {
            if self.deleted.len() < DELETED_MAX || self.deleted.contains_key(&set) {
                self.deleted.entry(set).or_default().extend(endpoints);
            } else {
                tracing::warn!(
                    ?set,
                    "connections to deleted endpoints of a service are left to time out: too many \
                     were deleted at once"
                );
            }
        }
    }

    /// Whether the tables may tell of deletions that no agent saw: before the first plan.
    pub(super) fn are_unseen(&self) -> bool {
        !self.looked_back
    }

    /// Has the next plan see to such deletions, or one after it that succeeds.
    pub(super) fn note_unseen(&mut self, resets: Vec<Reset>) {
        self.looked_back = true;
        if !resets.is_empty() {
            let endpoints = resets.len();
            tracing::info!(endpoints, "endpoints were deleted while no agent ran");
            self.take_back(resets);
        }
    }

    /// Has the next plan see to them.
    pub(super) fn join(&mut self, change: &mut Change, known: &mut Known) {
        change.deleted = std::mem::take(&mut self.deleted);
        known.resume(std::mem::take(&mut self.unfinished));
    }

    /// Takes back what a plan was to reset that failed.
    pub(super) fn take_back(&mut self, resets: Vec<Reset>) {
        self.unfinished.extend(resets);
        if self.unfinished.len() > UNFINISHED_MAX {
            let endpoints = self.unfinished.len() - UNFINISHED_MAX;
            tracing::warn!(endpoints, "connections to deleted endpoints are left to time out");
        }
        self.unfinished.truncate(UNFINISHED_MAX);
    }

    /// Has sockets destroyed, now that the tables lead nobody to the endpoints.
    pub(super) fn reset(&self, resets: Vec<Reset>) {
        if let Some(queue) = self.resets.as_ref().filter(|_| !resets.is_empty()) {
            queue.push(resets);
        }
    }
}

impl Reconciler {
    /// Gives up endpoints that left, when it is time.
    pub fn settle(&mut self, now: Instant) {
        if self.deletions.settles.is_some_and(|at| at <= now) {
            let change = self.desired.settle();
            self.follow_deleted(change);
            self.deletions.settles = None;
        }
        if self.desired.unsettled() && self.deletions.settles.is_none() {
            self.deletions.settles = Some(now + SETTLE);
        }
    }

    /// Takes note that this node's pods have these addresses no more.
    pub fn released(&mut self, addresses: &BTreeSet<IpAddr>) {
        let change = self.desired.released(addresses);
        self.follow_deleted(change);
    }

    /// Makes what a change by deleted endpoints asks for; where the tables are not known, the next
    /// attempt takes it along.
    fn follow_deleted(&mut self, mut change: Change) {
        let started = Instant::now();
        self.deletions.note(std::mem::take(&mut change.deleted));
        if change.is_empty() {
            return;
        }
        if let Some(known) = self.known.take() {
            let outcome = self.execute(known, change);
            self.conclude(outcome, Scope::Change, started);
        }
    }
}
