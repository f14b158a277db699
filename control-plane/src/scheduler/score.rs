//! Where a pod should run, of the nodes where it can.
//!
//! Four views, each from 0 to 100, with the weights that they have in Kubernetes: taints that
//! only ask to stay away (3), the pod's wishes (2), distance from pods of the same controller
//! (2), and the free share of CPU and memory (1). Of equals the node with the fewest pods is
//! taken, then the first by name.

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::{Node, PodSpec};

use super::affinity;
use super::cluster::{Needs, NodeInfo};
use crate::controllers::taints;

/// The best of these nodes; `None` if there are none.
pub(super) fn best<'c>(
    spec: &PodSpec,
    needs: &Needs,
    nodes: &[(&'c str, &'c NodeInfo)],
) -> Option<&'c str> {
    let views = nodes.iter().map(|(name, info)| (*name, View::new(spec, needs, info)));
    let views: Vec<(&str, View)> = views.collect();
    let most = |number: fn(&View) -> i64| views.iter().map(|(_, view)| number(view)).max();
    let most_repelling = most(|view| view.repelling).unwrap_or(0);
    let most_siblings = most(|view| view.siblings).unwrap_or(0);
    let most_wanted = most(|view| view.preference).unwrap_or(0);
    let total = |view: &View| {
        3 * fewer_is_better(view.repelling, most_repelling)
            + 2 * more_is_better(view.preference, most_wanted)
            + 2 * fewer_is_better(view.siblings, most_siblings)
            + view.free
    };
    let ranked = views.iter().map(|(name, view)| (total(view), Reverse(view.pods), Reverse(*name)));
    ranked.max().map(|(_, _, Reverse(name))| name)
}

/// What a node looks like to a pod, before nodes are compared.
struct View {
    /// Taints with the effect PreferNoSchedule that the pod does not tolerate.
    repelling: i64,
    /// The weight of the wishes that the node meets.
    preference: i64,
    /// Pods of the same controller.
    siblings: i64,
    /// The share of CPU and memory that stays free, in percent.
    free: i64,
    pods: i64,
}

impl View {
    fn new(spec: &PodSpec, needs: &Needs, info: &NodeInfo) -> Self {
        let node = info.node.as_deref();
        Self {
            repelling: node.map_or(0, |node| repelling(spec, node)),
            preference: node.map_or(0, |node| affinity::preference(spec, node)),
            siblings: needs
                .group
                .as_ref()
                .and_then(|group| info.groups.get(group))
                .copied()
                .unwrap_or(0),
            free: least_allocated(needs, info),
            pods: info.pods,
        }
    }
}

fn repelling(spec: &PodSpec, node: &Node) -> i64 {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let repels = taints::of(node).iter().filter(|taint| {
        taint.effect == "PreferNoSchedule" && !taints::is_tolerated(taint, tolerations)
    });
    i64::try_from(repels.count()).unwrap_or(i64::MAX)
}

/// The mean of the free shares of CPU and memory with the pod on the node, in percent.
fn least_allocated(needs: &Needs, info: &NodeInfo) -> i64 {
    let free = |name: &str| {
        let all = i128::from(info.allocatable.get(name));
        let used = i128::from(info.estimated.get(name)) + i128::from(needs.estimated.get(name));
        let percent = if all == 0 || used > all { 0 } else { (all - used) * 100 / all };
        i64::try_from(percent).unwrap_or(0)
    };
    i64::midpoint(free("cpu"), free("memory"))
}

fn fewer_is_better(number: i64, most: i64) -> i64 {
    if most == 0 { 100 } else { (most - number) * 100 / most }
}

fn more_is_better(number: i64, most: i64) -> i64 {
    if most == 0 { 0 } else { number * 100 / most }
}
