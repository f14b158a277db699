//! Gives every node a range of pod addresses per family: `spec.podCIDR` and `spec.podCIDRs`.
//!
//! A range is never given twice. The allocator is filled from all nodes before the first
//! decision, so that a restart changes nothing; a range that was decided on stays reserved for its
//! node until the node is gone, even when the answer to the write got lost. The search for a free
//! range goes round and round, so that a range rests for as long as possible before it is used
//! again: peers may remember routes to the node that had it.

mod allocator;

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;

use self::allocator::{Allocator, Exhausted};
use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::pod_facts::whole_seconds;
use super::queue::Queue;
use super::world::World;
use super::write::{Outcome, Target, Write};
use crate::cidr::Cidr;

/// A range to divide among nodes, and into parts of what prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) range: Cidr,
    pub(crate) node_prefix: u8,
}

/// The reason of the condition that a node without ranges has.
const EXHAUSTED: &str = "CIDRNotAvailable";
/// The reason of the condition once there are ranges again.
const ASSIGNED: &str = "CIDRAssigned";

/// The controller of `spec.podCIDRs`.
pub(crate) struct NodeIpam {
    world: Arc<World>,
    queue: Arc<Queue<Key>>,
    allocator: Mutex<Allocator>,
}

impl NodeIpam {
    /// A controller that divides these pools.
    pub(crate) fn new(world: Arc<World>, queue: Arc<Queue<Key>>, pools: Vec<Pool>) -> Self {
        Self { world, queue, allocator: Mutex::new(Allocator::new(pools)) }
    }

    /// Has every change of a node looked at.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Key>>) {
        let queue = Arc::clone(queue);
        world.subscribe::<Node>(move |_, change| {
            queue.add_all(change.key());
        });
    }

    /// Notes the ranges that all nodes have. Before this no range may be given.
    pub(crate) fn learn(&self) {
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        for node in self.world.cache::<Node>().all() {
            allocator.observe(&node.name_any(), &ranges_of(&node));
        }
    }
}

impl Controller for NodeIpam {
    type Key = Key;
    const NAME: &'static str = "node-ipam";
    const WORKERS: usize = 1;

    async fn look(&self, key: &Key, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let mut allocator = self.allocator.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(node) = self.world.get::<Node>(key) else {
            if allocator.forget(&key.name) {
                // What became free may be what others wait for.
                let waiting = self.world.cache::<Node>().all();
                let waiting = waiting.iter().filter(|node| ranges_of(node).is_empty());
                self.queue.add_all(waiting.map(|node| Key::of(&**node)));
            }
            return Ok(Outcome::default());
        };
        allocator.observe(&key.name, &ranges_of(&node));
        Ok(reconcile(&node, &mut allocator, Timestamp::now()).into())
    }
}

/// The writes that give a node its ranges, which the allocator then holds for it.
fn reconcile(node: &Node, allocator: &mut Allocator, now: Timestamp) -> Vec<Write> {
    let condition = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .and_then(|all| all.iter().find(|one| one.type_ == "NetworkUnavailable"));
    let reason = condition.and_then(|condition| condition.reason.as_deref());
    let told = |reason: &str, status: &str, message: &str| {
        let now = Time(whole_seconds(now));
        Write::StrategicPatch {
            target: Target::of(node),
            subresource: Some("status"),
            patch: json!({"status": {"conditions": [{
                "type": "NetworkUnavailable",
                "status": status,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": now,
                "lastTransitionTime": now,
            }]}}),
        }
    };
    if !ranges_of(node).is_empty() {
        if reason == Some(EXHAUSTED) {
            return vec![told(ASSIGNED, "False", "The node has pod address ranges.")];
        }
        return Vec::new();
    }
    match allocator.assign(&node.name_any()) {
        Ok(ranges) => {
            let ranges: Vec<String> = ranges.iter().map(Cidr::to_string).collect();
            vec![Write::MergePatch {
                target: Target::of(node),
                subresource: None,
                patch: json!({
                    "metadata": {"resourceVersion": node.metadata.resource_version},
                    "spec": {"podCIDR": ranges.first(), "podCIDRs": ranges},
                }),
            }]
        }
        Err(_) if reason == Some(EXHAUSTED) => Vec::new(),
        Err(Exhausted { pool }) => {
            let message = format!(
                "No free /{} is left in {}: remove nodes, or give the control plane a larger \
                 --cluster-cidr.",
                pool.node_prefix, pool.range
            );
            tracing::warn!(node = node.name_any(), range = %pool.range, "pod addresses exhausted");
            let condition = told(EXHAUSTED, "True", &message);
            vec![condition, Write::warn(node, NodeIpam::NAME, EXHAUSTED, message)]
        }
    }
}

/// The ranges that the node has. A text that is no range cannot overlap and is left out.
fn ranges_of(node: &Node) -> Vec<Cidr> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let many = spec.pod_cidrs.as_deref().unwrap_or_default();
    let one = spec.pod_cidr.as_ref().filter(|one| !many.contains(one));
    many.iter().chain(one).filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NodeSpec;

    fn allocator(v4: &str, prefix4: u8) -> Allocator {
        Allocator::new(vec![
            Pool { range: v4.parse().unwrap(), node_prefix: prefix4 },
            Pool { range: "fd00:244::/48".parse().unwrap(), node_prefix: 64 },
        ])
    }

    fn node(name: &str) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.metadata.resource_version = Some("7".into());
        node
    }

    fn with_ranges(mut node: Node, ranges: &[&str]) -> Node {
        node.spec = Some(NodeSpec {
            pod_cidr: ranges.first().map(|range| (*range).into()),
            pod_cidrs: Some(ranges.iter().map(|range| (*range).into()).collect()),
            ..NodeSpec::default()
        });
        node
    }

    #[test]
    fn a_new_node_gets_a_range_of_each_family() {
        let mut allocator = allocator("10.244.0.0/16", 24);
        let writes = reconcile(&node("a"), &mut allocator, Timestamp::UNIX_EPOCH);
        let [Write::MergePatch { subresource: None, patch, .. }] = &writes[..] else {
            panic!("{writes:?}")
        };
        assert_eq!(
            patch,
            &json!({
                "metadata": {"resourceVersion": "7"},
                "spec": {
                    "podCIDR": "10.244.0.0/24",
                    "podCIDRs": ["10.244.0.0/24", "fd00:244::/64"],
                },
            })
        );
        // The answer got lost: the same ranges again.
        assert_eq!(reconcile(&node("a"), &mut allocator, Timestamp::UNIX_EPOCH), writes);
    }

    #[test]
    fn a_node_that_has_ranges_is_left_alone() {
        let mut allocator = allocator("10.244.0.0/16", 24);
        let node = with_ranges(node("a"), &["10.244.9.0/24"]);
        assert!(reconcile(&node, &mut allocator, Timestamp::UNIX_EPOCH).is_empty());
    }

    #[test]
    fn exhaustion_is_told_once_and_taken_back() {
        let mut allocator = allocator("10.244.0.0/24", 24);
        assert_eq!(reconcile(&node("a"), &mut allocator, Timestamp::UNIX_EPOCH).len(), 1);
        let mut late = node("b");
        let writes = reconcile(&late, &mut allocator, Timestamp::UNIX_EPOCH);
        let [Write::StrategicPatch { subresource: Some("status"), patch, .. }, Write::Tell(_)] =
            &writes[..]
        else {
            panic!("{writes:?}")
        };
        assert_eq!(patch["status"]["conditions"][0]["reason"], EXHAUSTED);
        late.status = serde_json::from_value(patch["status"].clone()).unwrap();
        assert!(reconcile(&late, &mut allocator, Timestamp::UNIX_EPOCH).is_empty());
        assert!(allocator.forget("a"));
        let writes = reconcile(&late, &mut allocator, Timestamp::UNIX_EPOCH);
        assert!(matches!(&writes[..], [Write::MergePatch { .. }]), "{writes:?}");
        let served = with_ranges(late, &["10.244.0.0/24"]);
        let writes = reconcile(&served, &mut allocator, Timestamp::UNIX_EPOCH);
        let [Write::StrategicPatch { patch, .. }] = &writes[..] else { panic!("{writes:?}") };
        assert_eq!(patch["status"]["conditions"][0]["status"], "False");
    }
}
