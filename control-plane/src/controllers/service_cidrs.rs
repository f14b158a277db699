//! ServiceCIDRs (KEP-1880): says that their addresses may be given out, and keeps one that is being
//! deleted for as long as a Service has an address of it that no other ServiceCIDR has.
//!
//! The API server gives out addresses; this controller alone decides when a range may go. It reads
//! from its cache which addresses Services have, and before it lets a range go, from the API server
//! which IPAddresses there are.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::queue::Queue;
use super::world::World;
use super::write::{Outcome, Target, Write};
use crate::cidr::Cidr;
use crate::registry::service::addresses::MANAGED_BY;

/// The finalizer by which a range stays.
const FINALIZER: &str = "networking.k8s.io/service-cidr-finalizer";
/// How long a range that nobody needs stays after its deletion: as long as a request that found it
/// whole may still take an address of it.
const GRACE: Duration = Duration::from_secs(10);
/// When to look again for IPAddresses whose end nothing tells us of.
const AGAIN: Duration = Duration::from_secs(10);
/// What the condition Ready says.
const READY: (&str, &str, &str) = ("True", "", "Kubernetes Service CIDR is ready");
const IN_USE: (&str, &str, &str) = (
    "False",
    "Terminating",
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR",
);

/// The controller of ServiceCIDRs.
pub(crate) struct ServiceCidrs {
    world: Arc<World>,
    client: Client,
}

impl ServiceCidrs {
    /// A controller that reads ranges and Services from `world`, and IPAddresses by `client`.
    pub(crate) fn new(world: Arc<World>, client: Client) -> Self {
        Self { world, client }
    }

    /// Has a range looked at when it changes, and those that are being deleted when another one
    /// does, or a Service.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let ranges = Arc::clone(queue);
        world.subscribe::<ServiceCIDR>(move |world, change| {
            ranges.add_all(change.key());
            ranges.add_all(leaving(world));
        });
        let services = Arc::clone(queue);
        world.subscribe::<Service>(move |world, _| services.add_all(leaving(world)));
    }

    /// The addresses that IPAddresses of Services name.
    async fn addresses(&self) -> Result<Vec<IpAddr>, LookError> {
        let selector = format!("{}={}", MANAGED_BY.0, MANAGED_BY.1);
        let api = Api::<IPAddress>::all(self.client.clone());
        let listed = api.list_metadata(&ListParams::default().labels(&selector)).await;
        let listed = listed.map_err(|source| LookError::Read {
            what: "the IPAddresses of Services".to_owned(),
            source: Box::new(source),
        })?;
        Ok(listed.iter().filter_map(|one| one.name_any().parse().ok()).collect())
    }
}

impl Controller for ServiceCidrs {
    type Key = Key;
    const NAME: &'static str = "service-cidrs";

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let Some(range) = self.world.get::<ServiceCIDR>(key) else { return Ok(Outcome::default()) };
        let Some(deleted) = range.metadata.deletion_timestamp.as_ref() else {
            return Ok(keep(&range));
        };
        let all = self.world.cache::<ServiceCIDR>().all();
        let services = self.world.cache::<Service>().all();
        let known = services.iter().flat_map(|service| addresses_of(service));
        let since = Timestamp::now().duration_since(deleted.0);
        let since = Duration::try_from(since).unwrap_or_default();
        let found = if needed(&range, &all, known) {
            Use::Needed
        } else if since < GRACE {
            Use::Perhaps(GRACE.saturating_sub(since))
        } else if needed(&range, &all, self.addresses().await?.into_iter()) {
            Use::Needed
        } else {
            Use::None
        };
        Ok(let_go(&range, found))
    }
}

/// Whether anybody needs a range that is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Somebody does.
    Needed,
    /// Nobody is known of; that is sure after this time.
    Perhaps(Duration),
    /// Nobody does.
    None,
}

/// Keys of the ranges that are being deleted.
fn leaving(world: &World) -> Vec<Key> {
    let ranges = world.cache::<ServiceCIDR>().matching(is_leaving);
    ranges.iter().map(|range| Key::of(&**range)).collect()
}

fn is_leaving(range: &ServiceCIDR) -> bool {
    range.metadata.deletion_timestamp.is_some()
}

fn ranges_of(range: &ServiceCIDR) -> impl Iterator<Item = Cidr> {
    let texts = range.spec.iter().flat_map(|spec| spec.cidrs.iter().flatten());
    texts.filter_map(|text| text.parse().ok())
}

fn addresses_of(service: &Service) -> impl Iterator<Item = IpAddr> {
    let spec = service.spec.iter().filter(|spec| spec.type_.as_deref() != Some("ExternalName"));
    let texts = spec.flat_map(|spec| spec.cluster_ips.iter().flatten());
    texts.filter_map(|text| text.parse().ok())
}

/// Whether one of the addresses is in the range and in none that stays.
fn needed(
    range: &ServiceCIDR,
    all: &[Arc<ServiceCIDR>],
    mut addresses: impl Iterator<Item = IpAddr>,
) -> bool {
    let own: Vec<Cidr> = ranges_of(range).collect();
    let stay = all.iter().filter(|other| !is_leaving(other));
    let stay: Vec<Cidr> = stay.flat_map(|other| ranges_of(other)).collect();
    let has = |ranges: &[Cidr], one| ranges.iter().any(|range| range.offset(one).is_some());
    addresses.any(|one| has(&own, one) && !has(&stay, one))
}

/// What a range that stays has to say and to have.
fn keep(range: &ServiceCIDR) -> Outcome {
    let mut writes = Vec::new();
    if !range.finalizers().iter().any(|one| one == FINALIZER) {
        let finalizers: Vec<&str> =
            range.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
        writes.push(finalize(range, &finalizers));
    }
    writes.extend(say(range, READY));
    writes.into()
}

/// What a range that is being deleted has to say, or that it goes.
fn let_go(range: &ServiceCIDR, found: Use) -> Outcome {
    let others = range.finalizers().iter().map(String::as_str).filter(|one| *one != FINALIZER);
    let others: Vec<&str> = others.collect();
    if others.len() == range.finalizers().len() {
        return Outcome::default();
    }
    match found {
        Use::Needed => {
            Outcome { writes: say(range, IN_USE).into_iter().collect(), again_after: Some(AGAIN) }
        }
        Use::Perhaps(wait) => Outcome { writes: Vec::new(), again_after: Some(wait) },
        Use::None => vec![finalize(range, &others)].into(),
    }
}

fn finalize(range: &ServiceCIDR, finalizers: &[&str]) -> Write {
    let version = range.resource_version();
    let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
    Write::MergePatch { target: Target::of(range), subresource: None, patch }
}

/// The condition Ready, unless it says so already.
fn say(range: &ServiceCIDR, (status, reason, message): (&str, &str, &str)) -> Option<Write> {
    let conditions = range.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let found = conditions.clone().find(|one| one.type_ == "Ready");
    if found.is_some_and(|one| (one.status.as_str(), one.message.as_str()) == (status, message)) {
        return None;
    }
    let same = found.filter(|one| one.status == status);
    let since = same.map(|one| one.last_transition_time.clone());
    let ready = json!({
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since.unwrap_or_else(|| Time(Timestamp::now())),
    });
    let others = conditions.filter(|one| one.type_ != "Ready").map(|one| json!(one));
    let patch = json!({"status": {"conditions": others.chain([ready]).collect::<Vec<_>>()}});
    Some(Write::MergePatch { target: Target::of(range), subresource: Some("status"), patch })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(name: &str, cidrs: &[&str], leaving: bool) -> Arc<ServiceCIDR> {
        let mut object = json!({
            "metadata": {"name": name, "finalizers": ["example.com/x", FINALIZER]},
            "spec": {"cidrs": cidrs},
        });
        if leaving {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn patches(outcome: &Outcome) -> Vec<(Option<&'static str>, serde_json::Value)> {
        let patch = |write: &Write| match write {
            Write::MergePatch { subresource, patch, .. } => (*subresource, patch.clone()),
            other => panic!("{other:?}"),
        };
        outcome.writes.iter().map(patch).collect()
    }

    #[test]
    fn a_range_is_needed_for_what_no_other_that_stays_covers() {
        let gone = range("gone", &["10.97.0.0/24", "fd00:97::/112"], true);
        let beside = range("beside", &["10.98.0.0/24"], false);
        let wide = range("wide", &["10.97.0.0/16"], false);
        let wide_but_leaving = range("wide", &["10.97.0.0/16"], true);
        for (others, addresses, expected) in [
            (vec![], vec![], false),
            (vec![], vec!["10.96.0.1", "fd00:96::1"], false),
            (vec![], vec!["10.97.0.7"], true),
            (vec![], vec!["fd00:97::7"], true),
            (vec![&beside], vec!["10.97.0.7"], true),
            (vec![&wide], vec!["10.97.0.7"], false),
            (vec![&wide], vec!["10.97.0.7", "fd00:97::7"], true),
            (vec![&wide_but_leaving], vec!["10.97.0.7"], true),
        ] {
            let all: Vec<_> = others.into_iter().chain([&gone]).cloned().collect();
            let parsed = addresses.iter().map(|text: &&str| text.parse().unwrap());
            assert_eq!(needed(&gone, &all, parsed), expected, "{all:?} {addresses:?}");
        }
    }

    #[test]
    fn a_range_that_is_deleted_goes_when_nobody_needs_it() {
        let gone = range("gone", &["10.97.0.0/24"], true);
        let wait = Duration::from_secs(3);
        let waits = let_go(&gone, Use::Perhaps(wait));
        assert_eq!((waits.writes.len(), waits.again_after), (0, Some(wait)));
        let patch = patches(&let_go(&gone, Use::None));
        assert_eq!(patch[0].1["metadata"]["finalizers"], json!(["example.com/x"]));
        let stays = let_go(&gone, Use::Needed);
        let (subresource, patch) = &patches(&stays)[0];
        let ready = &patch["status"]["conditions"][0];
        assert_eq!((*subresource, stays.again_after), (Some("status"), Some(AGAIN)));
        assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("Terminating")));
        // It has said so already.
        let mut said = (*gone).clone();
        said.status = Some(serde_json::from_value(patch["status"].clone()).unwrap());
        assert!(let_go(&said, Use::Needed).writes.is_empty());
        // Others keep it, not we.
        said.metadata.finalizers = Some(vec!["example.com/x".to_owned()]);
        assert_eq!(let_go(&said, Use::None), Outcome::default());
    }

    #[test]
    fn a_range_that_stays_has_the_finalizer_and_is_ready() {
        let mut new = (*range("new", &["10.97.0.0/24"], false)).clone();
        new.metadata.finalizers = Some(vec!["example.com/x".to_owned()]);
        let first = keep(&new);
        let found = patches(&first);
        assert_eq!(found[0].1["metadata"]["finalizers"], json!(["example.com/x", FINALIZER]));
        assert_eq!(found[1].1["status"]["conditions"][0]["status"], "True");
        new.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
        new.status = Some(serde_json::from_value(found[1].1["status"].clone()).unwrap());
        assert_eq!(keep(&new), Outcome::default());
    }
}
