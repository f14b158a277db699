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
    pub fn of<'a>(ready: impl Iterator<Item = &'a Endpoint> + Clone, place: Place<'_>) -> Self {
        [Self::SameNode, Self::SameZone]
            .into_iter()
            .find(|topology| {
                let mut endpoints = ready.clone();
                let hinted = endpoints.all(|endpoint| !topology.hints(endpoint).is_empty());
                hinted && ready.clone().any(|endpoint| topology.allows(endpoint, place))
            })
            .unwrap_or(Self::Ignored)
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
            Self::SameNode => &endpoint.hint_nodes,
            Self::SameZone => &endpoint.hint_zones,
        }
    }
}
