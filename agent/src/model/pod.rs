//! Pods, as far as they ask something of this agent: of the others nothing is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::{ObjectKey, service::Protocol};

/// A pod of this node whose sockets are left alone (`mizzen.dev/socket-translation: "false"`): the
/// packet path does its translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptedOutPod {
    /// Namespace and name.
    pub key: ObjectKey,
}

/// A port of this node that leads to a pod (`hostPort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// Its protocol.
    pub protocol: Protocol,
    /// The address of the node (`hostIP`): an unspecified one is every address of its family, none
    /// is every address.
    pub address: Option<IpAddr>,
    /// The node's port, host byte order.
    pub port: u16,
    /// The pod's port, host byte order.
    pub container_port: u16,
}

/// A pod of this node that has host ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPortPod {
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Its host ports.
    pub ports: BTreeSet<HostPort>,
    /// Of two pods that ask for one port, the one with the greater number came later.
    pub serial: u64,
}

/// This node's pods that have host ports. Only the pod network knows their addresses before the API
/// server does.
pub type HostPortPods = BTreeMap<ObjectKey, Arc<HostPortPod>>;
