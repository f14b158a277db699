//! EndpointSlices as the dataplane and the resolver need them.

use std::{net::IpAddr, sync::Arc, time::SystemTime};

use super::{ObjectKey, service::Protocol};

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Matches the name of a service port.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port, host byte order.
    pub port: u16,
}

/// Whom an endpoint is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `hints.forZones`.
    pub zones: Vec<Arc<str>>,
    /// `hints.forNodes`.
    pub nodes: Vec<Arc<str>>,
}

/// One endpoint of a slice. There are as many as pods in the cluster: each octet counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address (the first of the slice's list; consumers use no other).
    pub address: IpAddr,
    /// `conditions.ready`; unset counts as true.
    pub ready: bool,
    /// `conditions.serving`; unset counts as `ready`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// The node it runs on; an endpoint without one counts as remote.
    pub node: Option<Arc<str>>,
    /// `hostname`, for names of headless services.
    pub hostname: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `hints`, which few have and which would otherwise be a third of each.
    pub hints: Option<Box<Hints>>,
    /// Name of the pod behind it, which is in the namespace of its slice.
    pub pod: Option<Box<str>>,
}

impl Endpoint {
    /// A ready endpoint of which nothing is known but its address.
    pub fn ready_at(address: IpAddr) -> Self {
        Self {
            address,
            ready: true,
            serving: true,
            terminating: false,
            node: None,
            hostname: None,
            zone: None,
            hints: None,
            pod: None,
        }
    }

    /// The zones that it is meant for.
    pub fn hint_zones(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }

    /// The nodes that it is meant for.
    pub fn hint_nodes(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }
}

/// An EndpointSlice of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// Name of the service it belongs to, from its label.
    pub service: Arc<str>,
    /// Whether the addresses are IPv6.
    pub ipv6: bool,
    /// The ports.
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// When the change of pods or service happened that the slice was last written for: annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`, where the network programming latency
    /// begins.
    pub trigger_time: Option<SystemTime>,
}

impl EndpointSlice {
    /// Whether an endpoint of it is this pod.
    pub fn is_pod(&self, endpoint: &Endpoint, pod: &ObjectKey) -> bool {
        self.key.namespace == pod.namespace && endpoint.pod.as_deref() == Some(&pod.name)
    }
}
