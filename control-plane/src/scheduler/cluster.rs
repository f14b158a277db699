//! The nodes and what runs on them, with the pods that are as good as bound.
//!
//! A decision counts at once: the pod is *assumed* on its node until the watch shows it there, or
//! the binding fails. A burst of pods is so placed as if each had been bound before the next.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};

use super::resources::{self, Resources};
use crate::controllers::key::Key;
use crate::controllers::{ownership, pod_facts};

/// A port of the node that a pod takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostPort {
    pub(super) protocol: String,
    /// The address; `None` for all of them.
    pub(super) address: Option<String>,
    pub(super) port: i32,
}

impl HostPort {
    /// Whether two pods cannot have these on the same node.
    pub(super) fn conflicts(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.port == other.port
            && (self.address.is_none() || other.address.is_none() || self.address == other.address)
    }
}

/// What placing a pod takes from its node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Needs {
    pub(super) requests: Resources,
    /// For comparing nodes: see [`resources::estimated_use`].
    pub(super) estimated: Resources,
    pub(super) ports: Vec<HostPort>,
    /// The pod's controller, whose pods are kept apart.
    pub(super) group: Option<String>,
}

impl Needs {
    /// What that pod needs.
    pub(super) fn of(pod: &Pod) -> Self {
        let group = ownership::controller_of(&pod.metadata).map(|owner| owner.uid.clone());
        let Some(spec) = &pod.spec else { return Self { group, ..Self::default() } };
        let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
        let ports = ports.filter_map(|port| {
            let number = port
                .host_port
                .or_else(|| (spec.host_network == Some(true)).then_some(port.container_port));
            Some(HostPort {
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                address: port.host_ip.clone().filter(|ip| !ip.is_empty() && ip != "0.0.0.0"),
                port: number.filter(|number| *number > 0)?,
            })
        });
        Self {
            requests: resources::requests(spec),
            estimated: resources::estimated_use(spec),
            ports: ports.collect(),
            group,
        }
    }
}

/// A node and the sum of what runs on it.
#[derive(Debug, Clone, Default)]
pub(super) struct NodeInfo {
    /// The node itself; `None` while only pods name it.
    pub(super) node: Option<Arc<Node>>,
    pub(super) allocatable: Resources,
    pub(super) requested: Resources,
    pub(super) estimated: Resources,
    pub(super) pods: i64,
    pub(super) ports: Vec<HostPort>,
    /// Pods by controller.
    pub(super) groups: HashMap<String, i64>,
}

impl NodeInfo {
    fn take(&mut self, needs: &Needs) {
        self.pods += 1;
        self.requested.add(&needs.requests);
        self.estimated.add(&needs.estimated);
        self.ports.extend(needs.ports.iter().cloned());
        if let Some(group) = &needs.group {
            *self.groups.entry(group.clone()).or_insert(0) += 1;
        }
    }

    fn give_back(&mut self, needs: &Needs) {
        self.pods -= 1;
        self.requested.subtract(&needs.requests);
        self.estimated.subtract(&needs.estimated);
        for port in &needs.ports {
            if let Some(index) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(index);
            }
        }
        if let Some(group) = &needs.group
            && let Some(count) = self.groups.get_mut(group)
        {
            *count -= 1;
            if *count == 0 {
                self.groups.remove(group);
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Placed {
    uid: Option<String>,
    node: String,
    needs: Needs,
    /// Whether the watch has not shown it there yet.
    assumed: bool,
}

/// All nodes and placed pods.
#[derive(Debug, Clone, Default)]
pub(super) struct Cluster {
    nodes: BTreeMap<String, NodeInfo>,
    placed: HashMap<Key, Placed>,
}

impl Cluster {
    /// The nodes that exist, by name.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (&str, &NodeInfo)> {
        self.nodes
            .iter()
            .filter(|(_, info)| info.node.is_some())
            .map(|(name, info)| (&**name, info))
    }

    /// Takes in a node as it is now. Returns whether pods may fit that did not before.
    pub(super) fn set_node(&mut self, name: &str, node: Option<Arc<Node>>) -> bool {
        let info = self.nodes.entry(name.to_owned()).or_default();
        let helps = match (&info.node, &node) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(old), Some(new)) => differs(old, new),
        };
        let status = node.as_ref().and_then(|node| node.status.as_ref());
        let amounts = status.and_then(|it| it.allocatable.as_ref().or(it.capacity.as_ref()));
        info.allocatable = Resources::from_api(amounts);
        info.node = node;
        self.drop_if_unused(name);
        helps
    }

    /// Takes in a pod as it is now. Returns whether something became free.
    pub(super) fn set_pod(&mut self, key: &Key, pod: Option<&Pod>) -> bool {
        let present = pod.filter(|pod| !pod_facts::is_terminal(pod));
        let uid = present.and_then(|pod| pod.metadata.uid.clone());
        let Some(node) = present.and_then(pod_facts::node_name) else {
            // Not bound as far as the watch knows: an assumption about this very pod holds.
            let assumed = self.placed.get(key).is_some_and(|it| it.assumed && it.uid == uid);
            return !(assumed && present.is_some()) && self.remove(key);
        };
        let needs = present.map(Needs::of).unwrap_or_default();
        if let Some(placed) = self.placed.get_mut(key)
            && placed.uid == uid
            && placed.node == node
            && placed.needs == needs
        {
            placed.assumed = false;
            return false;
        }
        let freed = self.remove(key);
        self.place(key.clone(), Placed { uid, node: node.to_owned(), needs, assumed: false });
        freed
    }

    /// Counts the pod as placed on that node, before it is bound.
    pub(super) fn assume(&mut self, key: Key, uid: Option<String>, node: &str, needs: Needs) {
        self.remove(&key);
        self.place(key, Placed { uid, node: node.to_owned(), needs, assumed: true });
    }

    /// Whether the pod counts as placed although the watch does not show it yet.
    pub(super) fn is_assumed(&self, key: &Key) -> bool {
        self.placed.get(key).is_some_and(|placed| placed.assumed)
    }

    /// Takes an assumption back: the pod could not be bound.
    pub(super) fn forget(&mut self, key: &Key) {
        if self.is_assumed(key) {
            self.remove(key);
        }
    }

    fn place(&mut self, key: Key, placed: Placed) {
        self.nodes.entry(placed.node.clone()).or_default().take(&placed.needs);
        self.placed.insert(key, placed);
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(placed) = self.placed.remove(key) else { return false };
        if let Some(info) = self.nodes.get_mut(&placed.node) {
            info.give_back(&placed.needs);
        }
        self.drop_if_unused(&placed.node);
        true
    }

    fn drop_if_unused(&mut self, name: &str) {
        if self.nodes.get(name).is_some_and(|info| info.node.is_none() && info.pods == 0) {
            self.nodes.remove(name);
        }
    }
}

/// Whether two states of a node differ in what the filters look at; heartbeats do not.
fn differs(old: &Node, new: &Node) -> bool {
    let amounts = |node: &Node| {
        node.status.as_ref().map(|status| (status.allocatable.clone(), status.capacity.clone()))
    };
    old.spec != new.spec
        || old.metadata.labels != new.metadata.labels
        || amounts(old) != amounts(new)
}
