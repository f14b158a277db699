//! Parts of the cluster's names and of the trees of addresses in which something else holds than in
//! the whole, as server blocks and their options have it.

use std::cmp::Reverse;

use hickory_proto::rr::Name;

use crate::dns::name::LowerName;

/// What holds in a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Another server block has its names, and the index is not asked.
    Elsewhere,
    /// What does not exist is denied.
    Denied,
    /// What does not exist is asked of upstreams.
    FallsThrough,
}

/// The parts, the longest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts(Vec<(LowerName, Part)>);

impl Parts {
    /// These. Of two for one zone the first counts.
    pub fn new<'a>(parts: impl IntoIterator<Item = (&'a Name, Part)>) -> Self {
        let parts = parts.into_iter().map(|(zone, part)| (LowerName::of(zone), part));
        let mut all: Vec<_> = parts.collect();
        all.sort_by_key(|(zone, _)| Reverse(zone.label_count()));
        Self(all)
    }

    /// What holds for `name` where it is in a part, and how many labels that has.
    pub fn of(&self, name: &LowerName) -> Option<(Part, usize)> {
        let found = self.0.iter().find(|(zone, _)| name.labels_below(zone).is_some());
        found.map(|(zone, part)| (*part, zone.label_count()))
    }

    /// The same where nobody can be asked for what does not exist.
    #[must_use]
    pub fn without_upstreams(mut self) -> Self {
        self.0.retain(|(_, part)| *part != Part::FallsThrough);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_part_has_the_name() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let zones = ["svc.cluster.local.", "Lab.svc.cluster.local.", "10.in-addr.arpa."];
        let zones = zones.map(name);
        let kinds = [Part::Denied, Part::Elsewhere, Part::FallsThrough];
        let parts = Parts::new(zones.iter().zip(kinds));
        let of = |text: &str| parts.of(&LowerName::of(&name(text)));
        assert_eq!(of("web.default.svc.cluster.local."), Some((Part::Denied, 3)));
        assert_eq!(of("LAB.svc.cluster.local."), Some((Part::Elsewhere, 4)));
        assert_eq!(of("xlab.svc.cluster.local."), Some((Part::Denied, 3)));
        assert_eq!(of("1.10.in-addr.arpa."), Some((Part::FallsThrough, 3)));
        assert_eq!(of("cluster.local."), None);
        let parts = parts.without_upstreams();
        assert_eq!(parts.of(&LowerName::of(&name("1.10.in-addr.arpa."))), None);
    }
}
