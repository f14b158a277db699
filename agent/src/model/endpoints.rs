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

/// One endpoint of a slice.
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
    /// `hints.forZones`.
    pub hint_zones: Vec<Arc<str>>,
    /// `hints.forNodes`.
    pub hint_nodes: Vec<Arc<str>>,
    /// Namespace and name of the pod behind it.
    pub pod: Option<ObjectKey>,
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
            hint_zones: Vec::new(),
            hint_nodes: Vec::new(),
            pod: None,
        }
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
