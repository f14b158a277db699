//! EndpointSlices as the dataplane and the resolver need them.

use std::{cmp::Ordering, fmt, net::IpAddr, num::NonZeroU32, sync::Arc, time::SystemTime};

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

/// The names of an endpoint, or none: a place in what its slice has of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointNames {
    /// Where they begin, counted from one.
    place: Option<NonZeroU32>,
}

/// The names of a slice's endpoints, one behind the other: one piece of memory for all of them.
/// Pods of a ReplicaSet are called alike but for their last letters, and most slices have no other:
/// of a pod's name only that is held in which it differs from the first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceNames {
    /// Of each endpoint with names: how much of its pod's name is that of the first endpoint's,
    /// then the rest of that name and the hostname, each behind its length.
    octets: Vec<u8>,
}

/// The name of a pod, in two parts.
#[derive(Clone, Copy, Debug)]
pub struct PodName<'a> {
    begin: &'a str,
    rest: &'a str,
}

impl SliceNames {
    /// Adds the names of an endpoint, empty where it has none. One that is longer than names can be
    /// is none.
    pub fn add(&mut self, pod: &str, hostname: &str) -> EndpointNames {
        let length = |name: &str| u8::try_from(name.len()).unwrap_or(0);
        let (pod, hostname) = (&pod[..length(pod).into()], &hostname[..length(hostname).into()]);
        let place = u32::try_from(self.octets.len() + 1).ok().and_then(NonZeroU32::new);
        if pod.is_empty() && hostname.is_empty() || place.is_none() {
            return EndpointNames::default();
        }
        let first = self.first().unwrap_or_default();
        let same = pod.chars().zip(first.chars()).take_while(|(a, b)| a == b);
        let same: usize = same.map(|(letter, _)| letter.len_utf8()).sum();
        // No more than the name has, of which the length fits.
        self.octets.push(u8::try_from(same).unwrap_or(0));
        for part in [&pod[same..], hostname] {
            self.octets.push(length(part));
            self.octets.extend_from_slice(part.as_bytes());
        }
        EndpointNames { place }
    }

    /// Lets go of the memory that more names would have.
    #[must_use]
    pub fn complete(mut self) -> Self {
        self.octets.shrink_to_fit();
        self
    }

    fn pod(&self, names: EndpointNames) -> Option<PodName<'_>> {
        let at = names.at()?;
        let same = usize::from(*self.octets.get(at)?);
        let begin = if same == 0 { "" } else { self.first()?.get(..same)? };
        let name = PodName { begin, rest: self.part(at + 1)? };
        (!name.is_empty()).then_some(name)
    }

    fn hostname(&self, names: EndpointNames) -> Option<&str> {
        let rest = names.at()? + 1;
        let hostname = rest + 1 + usize::from(*self.octets.get(rest)?);
        self.part(hostname).filter(|name| !name.is_empty())
    }

    /// The first pod's name, with which others begin.
    fn first(&self) -> Option<&str> {
        self.part(1)
    }

    /// The text behind its length there.
    fn part(&self, at: usize) -> Option<&str> {
        let length = usize::from(*self.octets.get(at)?);
        std::str::from_utf8(self.octets.get(at + 1..at + 1 + length)?).ok()
    }
}

impl EndpointNames {
    fn at(self) -> Option<usize> {
        usize::try_from(self.place?.get() - 1).ok()
    }
}

impl<'a> PodName<'a> {
    fn is_empty(&self) -> bool {
        self.begin.is_empty() && self.rest.is_empty()
    }

    fn octets(&self) -> impl Iterator<Item = u8> + use<'a> {
        self.begin.bytes().chain(self.rest.bytes())
    }
}

impl<'a> From<&'a str> for PodName<'a> {
    fn from(name: &'a str) -> Self {
        Self { begin: name, rest: "" }
    }
}

impl PartialEq for PodName<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.octets().eq(other.octets())
    }
}

impl Eq for PodName<'_> {}

impl PartialOrd for PodName<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PodName<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.octets().cmp(other.octets())
    }
}

impl fmt::Display for PodName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.begin)?;
        f.write_str(self.rest)
    }
}

/// One endpoint of a slice. There are as many as pods in the cluster: each octet counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address (the first of the slice's list; consumers use no other).
    pub address: IpAddr,
    /// `conditions.ready`; unset counts as true.
    pub ready: bool,
    /// `conditions.serving`; unset counts as true, as it does for kube-proxy, whatever `ready` is.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// Where it is, and whom it is meant for.
    pub site: Arc<Site>,
    /// `hostname`, for names of headless services, and the pod behind it: see
    /// [`EndpointSlice::hostname`] and [`EndpointSlice::pod`].
    pub names: EndpointNames,
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
            names: EndpointNames::default(),
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
    /// Their names.
    pub names: SliceNames,
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
            names: SliceNames::default(),
            trigger_time: None,
        }
    }

    /// Name of the pod behind an endpoint of it; the pod is in its namespace.
    pub fn pod(&self, endpoint: &Endpoint) -> Option<PodName<'_>> {
        self.names.pod(endpoint.names)
    }

    /// `hostname` of an endpoint of it.
    pub fn hostname(&self, endpoint: &Endpoint) -> Option<&str> {
        self.names.hostname(endpoint.names)
    }

    /// Whether an endpoint of it is this pod.
    pub fn is_pod(&self, endpoint: &Endpoint, pod: &ObjectKey) -> bool {
        self.key.namespace == pod.namespace && self.pod(endpoint) == Some((&*pod.name).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_small() {
        assert_eq!(size_of::<Endpoint>(), 32, "there are a hundred thousand of them");
    }

    #[test]
    fn names_are_given_back_and_impossible_ones_are_none() {
        let (long, longest) = ("x".repeat(256), "y".repeat(255));
        let all = [
            ("web-7d4f-0", ""),
            ("", ""),
            ("web-7d4f-10", "host"),
            ("web-7d4f-0", ""),
            ("", "alone"),
            (&long, "kept"),
            (&longest, &longest),
            ("wéb", ""),
            ("wèb", ""),
            ("other", ""),
        ];
        let mut names = SliceNames::default();
        let places: Vec<_> = all.iter().map(|(pod, host)| names.add(pod, host)).collect();
        let names = names.complete();
        for ((pod, host), place) in all.into_iter().zip(places) {
            let some = |name: &str| (1..256).contains(&name.len()).then(|| name.to_owned());
            assert_eq!(names.pod(place).map(|pod| pod.to_string()), some(pod));
            assert_eq!(names.hostname(place).map(str::to_owned), some(host));
            assert_eq!(names.pod(place), some(pod).as_deref().map(PodName::from));
        }
        let none = EndpointNames::default();
        assert_eq!((names.pod(none), names.hostname(none)), (None, None));
    }

    #[test]
    fn pods_of_one_replica_set_take_little_room() {
        let mut names = SliceNames::default();
        for number in 0..100 {
            names.add(&format!("a-rather-long-name-7d4f8b9c6d-{number:05}"), "");
        }
        assert!(names.octets.len() < 900, "{} octets", names.octets.len());
    }

    #[test]
    fn names_are_ordered_as_the_texts_that_they_are() {
        let texts = ["", "a", "ab", "abc", "b", "ba"];
        let parts = |text: &'static str| -> Vec<PodName<'static>> {
            (0..=text.len()).map(|at| PodName { begin: &text[..at], rest: &text[at..] }).collect()
        };
        for (one, other) in texts.iter().flat_map(|one| texts.map(|other| (*one, other))) {
            for (a, b) in
                parts(one).into_iter().flat_map(|a| parts(other).into_iter().map(move |b| (a, b)))
            {
                assert_eq!((a.cmp(&b), a == b), (one.cmp(other), one == other));
            }
        }
    }
}
