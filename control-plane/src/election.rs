//! Which of several control planes runs controllers and scheduler: whoever holds a Lease in
//! `kube-system` (KEP-589, as client-go does it).
//!
//! A candidate believes its own clock alone: a Lease has run out when it has not changed for as
//! long as it says *since this candidate saw it*. Whoever leads gives up leading when it could
//! not renew for [`RENEW_WITHIN`], which is before anybody else may begin.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Error};
use tokio_util::sync::CancellationToken;

/// For how long a Lease holds without being renewed, in seconds.
const DURATION_SECONDS: i32 = 15;
/// For how long a leader that can't renew goes on.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// How often it is renewed, and looked at by the others.
const RETRY: Duration = Duration::from_secs(2);
/// The namespace of the Leases.
const NAMESPACE: &str = "kube-system";

/// A candidate for one Lease.
pub(crate) struct Candidate {
    leases: Api<Lease>,
    /// The Lease's name, as Kubernetes has it: `kube-scheduler`, `kube-controller-manager`.
    name: &'static str,
    /// Who it is; no other candidate has this name.
    identity: String,
    seen: Option<Seen>,
}

/// A Lease as it was when it was last found changed.
struct Seen {
    spec: LeaseSpec,
    at: Instant,
}

/// What a look at the Lease leads to.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// There is none, or it has run out, or it was given back: take it.
    Take,
    /// It is this candidate's own: renew it.
    Renew,
    /// Somebody else has it.
    Wait,
}

/// Decides by the Lease and by how long ago it changed.
fn decide(spec: &LeaseSpec, unchanged_for: Duration, identity: &str) -> Step {
    let holder = spec.holder_identity.as_deref().unwrap_or_default();
    if holder == identity {
        return Step::Renew;
    }
    let seconds = spec.lease_duration_seconds.unwrap_or(DURATION_SECONDS);
    let holds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if holder.is_empty() || unchanged_for >= holds { Step::Take } else { Step::Wait }
}

impl Candidate {
    /// A candidate for the Lease `name`, by a client that may create it and get and update it.
    pub(crate) fn new(client: Client, name: &'static str, identity: String) -> Self {
        Self { leases: Api::namespaced(client, NAMESPACE), name, identity, seen: None }
    }

    /// Has `work` done whenever this candidate leads, until `stop`. The token that `work` gets is
    /// cancelled when it leads no longer; it has to end then.
    pub(crate) async fn run<W>(
        mut self,
        stop: CancellationToken,
        work: impl Fn(CancellationToken) -> W,
    ) where
        W: Future<Output = ()>,
    {
        while self.is_elected(&stop).await {
            tracing::info!(lease = self.name, identity = self.identity, "leading");
            let leading = stop.child_token();
            tokio::join!(work(leading.clone()), self.lead(leading));
            if stop.is_cancelled() {
                self.give_back().await;
                return;
            }
            tracing::warn!(lease = self.name, identity = self.identity, "leading no longer");
        }
    }

    /// Waits until it leads. `false` if it shall stop.
    async fn is_elected(&mut self, stop: &CancellationToken) -> bool {
        loop {
            match self.attempt().await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "cannot ask for the lease");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// Renews until it can't, or until it shall stop. Ends `leading`.
    async fn lead(&mut self, leading: CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = leading.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
            let left = RENEW_WITHIN.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => break,
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.name, %error, "cannot renew the lease");
                }
                Err(_elapsed) => break,
            }
            if renewed.elapsed() >= RENEW_WITHIN {
                break;
            }
        }
        leading.cancel();
    }

    /// Takes or renews the Lease, if it may. Whether it leads then.
    async fn attempt(&mut self) -> Result<bool, Error> {
        let Some(lease) = self.leases.get_opt(self.name).await? else {
            return settle(self.leases.create(&PostParams::default(), &self.fresh()).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let seen = match self.seen.take() {
            Some(seen) if seen.spec == spec => seen,
            _ => Seen { spec, at: Instant::now() },
        };
        let step = decide(&seen.spec, seen.at.elapsed(), &self.identity);
        let next = self.next(&seen.spec, &step);
        self.seen = Some(seen);
        if step == Step::Wait {
            return Ok(false);
        }
        // By its resource version: of two that take it at once one is refused.
        let lease = Lease { spec: Some(next), ..lease };
        settle(self.leases.replace(self.name, &PostParams::default(), &lease).await)
    }

    /// The Lease as it is once this candidate has it.
    fn next(&self, spec: &LeaseSpec, step: &Step) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let taken = *step == Step::Take;
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: now.clone(),
            acquire_time: if taken { now } else { spec.acquire_time.clone() },
            lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + i32::from(taken)),
            ..spec.clone()
        }
    }

    fn fresh(&self) -> Lease {
        let metadata = ObjectMeta { name: Some(self.name.to_owned()), ..ObjectMeta::default() };
        let mut spec = self.next(&LeaseSpec::default(), &Step::Take);
        spec.lease_transitions = Some(0);
        Lease { metadata, spec: Some(spec) }
    }

    /// Lets the next one begin at once.
    async fn give_back(&self) {
        let given = async {
            let lease = self.leases.get(self.name).await?;
            let spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(&self.identity) {
                return Ok(());
            }
            let spec = LeaseSpec { holder_identity: Some(String::new()), ..spec };
            let lease = Lease { spec: Some(spec), ..lease };
            self.leases.replace(self.name, &PostParams::default(), &lease).await.map(drop)
        };
        match tokio::time::timeout(RETRY, given).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error: Error = error;
                tracing::warn!(lease = self.name, %error, "lease not given back");
            }
            Err(_elapsed) => tracing::warn!(lease = self.name, "lease not given back in time"),
        }
    }
}

/// Whether a write made its candidate the leader. Another that came first is no error.
fn settle(written: Result<Lease, Error>) -> Result<bool, Error> {
    match written {
        Ok(_) => Ok(true),
        Err(Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: &str) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_nobody_has_it_or_its_holder_is_silent() {
        let after = Duration::from_secs;
        assert_eq!(decide(&held_by("a"), after(0), "a"), Step::Renew);
        // Late, and yet nobody came in between: it is still its own.
        assert_eq!(decide(&held_by("a"), after(60), "a"), Step::Renew);
        assert_eq!(decide(&held_by("b"), after(14), "a"), Step::Wait);
        assert_eq!(decide(&held_by("b"), after(15), "a"), Step::Take);
        assert_eq!(decide(&held_by(""), after(0), "a"), Step::Take);
        assert_eq!(decide(&LeaseSpec::default(), after(0), "a"), Step::Take);
    }
}
