//! Topology: which endpoints traffic prefers for being near (KEP-2433, KEP-4444, KEP-3015).
//!
//! Whoever writes EndpointSlices decides, and says by hints for which nodes and zones an endpoint
//! is meant. A node uses the hints whole or not at all: as soon as a ready endpoint has none, or
//! none is meant for this node's place, every endpoint counts (reference B92-B94).

use std::sync::Arc;

use crate::model::endpoints::Endpoint;

/// Where this node is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The node's name.
    pub node: &'a str,
    /// Its zone, where it has one.
    pub zone: Option<&'a str>,
}

/// Which hints of a port's endpoints this node goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// None.
    Ignored,
    /// Those for nodes.
    SameNode,
    /// Those for zones.
    SameZone,
}

impl Topology {
    /// What the ready endpoints of a port allow: the nearest of which all have a hint, and one a
    /// hint for this place.
    pub fn of(ready: &[&Endpoint], place: Place<'_>) -> Self {
        let applies = |topology: &Self| {
            ready.iter().all(|endpoint| !topology.hints(endpoint).is_empty())
                && ready.iter().any(|endpoint| topology.allows(endpoint, place))
        };
        [Self::SameNode, Self::SameZone].into_iter().find(applies).unwrap_or(Self::Ignored)
    }

    /// Whether an endpoint is meant for this place.
    pub fn allows(self, endpoint: &Endpoint, place: Place<'_>) -> bool {
        let here = match self {
            Self::Ignored => return true,
            Self::SameNode => Some(place.node),
            Self::SameZone => place.zone,
        };
        here.is_some_and(|here| self.hints(endpoint).iter().any(|hint| **hint == *here))
    }

    fn hints(self, endpoint: &Endpoint) -> &[Arc<str>] {
        match self {
            Self::Ignored => &[],
            Self::SameNode => endpoint.hint_nodes(),
            Self::SameZone => endpoint.hint_zones(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::endpoints::{Hints, Site};

    /// An endpoint with hints for zones and for nodes, each with blanks between.
    fn endpoint(zones: &str, nodes: &str) -> Endpoint {
        let words = |text: &str| text.split_whitespace().map(Arc::from).collect();
        let hints = Hints { zones: words(zones), nodes: words(nodes) };
        let site = Arc::new(Site { node: None, hints });
        Endpoint { site, ..Endpoint::ready_at([10, 1, 2, 3].into()) }
    }

    /// Which endpoints, by number, a node `here` in `zone` uses.
    fn used(zone: Option<&str>, hints: &[(&str, &str)]) -> Vec<usize> {
        let place = Place { node: "here", zone };
        let endpoints: Vec<_> = hints.iter().map(|(zones, nodes)| endpoint(zones, nodes)).collect();
        let topology = Topology::of(&endpoints.iter().collect::<Vec<_>>(), place);
        (0..endpoints.len()).filter(|n| topology.allows(&endpoints[*n], place)).collect()
    }

    #[test]
    fn b90_b97_zone_hints_leave_the_zones_endpoints() {
        assert_eq!(used(Some("a"), &[("a", ""), ("b", ""), ("c", ""), ("a", "")]), [0, 3]);
    }

    #[test]
    fn b92_a_node_without_zone_uses_all() {
        assert_eq!(used(None, &[("a", ""), ("b", "")]), [0, 1]);
        assert_eq!(used(Some(""), &[("a", ""), ("b", "")]), [0, 1]);
    }

    #[test]
    fn b93_one_endpoint_without_hints_switches_them_off() {
        assert_eq!(used(Some("a"), &[("a", ""), ("b", ""), ("", ""), ("a", "")]), [0, 1, 2, 3]);
        assert_eq!(used(Some("a"), &[("a", "here"), ("a", "")]), [0, 1], "the zone's count then");
    }

    #[test]
    fn b94_a_zone_without_endpoints_uses_all() {
        assert_eq!(used(Some("z"), &[("a", ""), ("b", "")]), [0, 1]);
    }

    #[test]
    fn b95_an_endpoint_may_be_meant_for_several_zones() {
        let hints = [("a b c", ""), ("b c", ""), ("b d", ""), ("c", "")];
        assert_eq!(used(Some("c"), &hints), [0, 1, 3]);
    }

    #[test]
    fn b98_the_same_node_goes_before_the_zone_before_all() {
        let hints = [("a", "here"), ("a", "there"), ("b", "yonder")];
        assert_eq!(used(Some("a"), &hints), [0]);
        assert_eq!(used(None, &hints), [0], "a node needs no zone for it");
        assert_eq!(used(Some("a"), &hints[1..]), [0], "the zone's");
        assert_eq!(used(Some("z"), &hints[1..]), [0, 1], "all");
    }
}
