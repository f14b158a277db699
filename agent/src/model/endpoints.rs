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
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// `hints.forZones`.
    pub zones: Vec<Arc<str>>,
    /// `hints.forNodes`.
    pub nodes: Vec<Arc<str>>,
}

/// Where an endpoint is, and whom it is meant for. Many have the same, and share it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Site {
    /// The node it runs on; an endpoint without one counts as remote.
    pub node: Option<Arc<str>>,
    /// `hints`.
    pub hints: Hints,
}

impl Site {
    /// A node, and no hints.
    pub fn on(node: &str) -> Arc<Self> {
        Arc::new(Self { node: Some(node.into()), hints: Hints::default() })
    }
}

/// The name of the pod behind an endpoint, or none: a place in the text that its slice has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodName {
    /// Where it begins in the upper 24 bits, how long it is in the lower 8 (names of pods have 253
    /// octets at most).
    place: u32,
}

/// The names of a slice's pods, one behind the other: one piece of memory for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlicePods {
    text: String,
}

impl SlicePods {
    /// Adds a name. One that no pod can have is none, as is one behind so much text as no slice
    /// has.
    pub fn add(&mut self, name: &str) -> PodName {
        let (start, length) = (u32::try_from(self.text.len()), u8::try_from(name.len()));
        let (Ok(start @ ..0x0100_0000), Ok(length)) = (start, length) else {
            return PodName::default();
        };
        self.text.push_str(name);
        PodName { place: start << 8 | u32::from(length) }
    }

    /// Lets go of the memory that more names would have.
    #[must_use]
    pub fn complete(mut self) -> Self {
        self.text.shrink_to_fit();
        self
    }

    fn get(&self, name: PodName) -> Option<&str> {
        let start = (name.place >> 8) as usize;
        let end = start + (name.place & 0xff) as usize;
        self.text.get(start..end).filter(|name| !name.is_empty())
    }
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
    /// Where it is, and whom it is meant for.
    pub site: Arc<Site>,
    /// `hostname`, for names of headless services.
    pub hostname: Option<Arc<str>>,
    /// The pod behind it, which is in the namespace of its slice: see [`EndpointSlice::pod`].
    pub pod: PodName,
}

impl Endpoint {
    /// A ready endpoint of which nothing is known but its address.
    pub fn ready_at(address: IpAddr) -> Self {
        Self {
            address,
            ready: true,
            serving: true,
            terminating: false,
            site: Arc::default(),
            hostname: None,
            pod: PodName::default(),
        }
    }

    /// The node it runs on.
    pub fn node(&self) -> Option<&Arc<str>> {
        self.site.node.as_ref()
    }

    /// Whether it runs on that node.
    pub fn is_on(&self, node: &str) -> bool {
        self.site.node.as_deref() == Some(node)
    }

    /// The zones that it is meant for.
    pub fn hint_zones(&self) -> &[Arc<str>] {
        &self.site.hints.zones
    }

    /// The nodes that it is meant for.
    pub fn hint_nodes(&self) -> &[Arc<str>] {
        &self.site.hints.nodes
    }
}

/// An EndpointSlice of one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: ObjectKey,
    /// The service it belongs to, which its label names.
    pub service: ObjectKey,
    /// Whether the addresses are IPv6.
    pub ipv6: bool,
    /// The ports.
    pub ports: Vec<EndpointPort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The names of their pods.
    pub pods: SlicePods,
    /// When the change of pods or service happened that the slice was last written for: annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`, where the network programming latency
    /// begins.
    pub trigger_time: Option<SystemTime>,
}

impl EndpointSlice {
    /// A slice of a service that has nothing in it.
    pub fn new(service: ObjectKey, name: &str, ipv6: bool) -> Self {
        Self {
            key: ObjectKey::of(Arc::clone(&service.namespace), name.into()),
            service,
            ipv6,
            ports: Vec::new(),
            endpoints: Vec::new(),
            pods: SlicePods::default(),
            trigger_time: None,
        }
    }

    /// Name of the pod behind an endpoint of it.
    pub fn pod(&self, endpoint: &Endpoint) -> Option<&str> {
        self.pods.get(endpoint.pod)
    }

    /// Whether an endpoint of it is this pod.
    pub fn is_pod(&self, endpoint: &Endpoint, pod: &ObjectKey) -> bool {
        self.key.namespace == pod.namespace && self.pod(endpoint) == Some(&pod.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_small() {
        assert_eq!(size_of::<Endpoint>(), 48, "there are a hundred thousand of them");
    }

    #[test]
    fn names_of_pods_are_given_back_and_impossible_ones_are_none() {
        let mut pods = SlicePods::default();
        let [one, none, other] = ["web-0", "", "web-10"].map(|name| pods.add(name));
        let long = pods.add(&"x".repeat(256));
        let longest = pods.add(&"y".repeat(253));
        let pods = pods.complete();
        let got = [one, none, other, long, PodName::default()].map(|name| pods.get(name));
        assert_eq!(got, [Some("web-0"), None, Some("web-10"), None, None]);
        assert_eq!(pods.get(longest).map(str::len), Some(253));
    }

    #[test]
    fn a_slice_with_more_text_than_any_has_lacks_names_and_nothing_else() {
        let mut pods = SlicePods { text: "z".repeat(0x00ff_ffff) };
        let last = pods.add("last");
        let late = pods.add("late");
        assert_eq!((pods.get(last), pods.get(late)), (Some("last"), None));
    }
}
