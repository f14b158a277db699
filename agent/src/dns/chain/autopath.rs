//! `autopath`: goes through a client's search list for it. A pod asks for `example.org` first as
//! `example.org.default.svc.cluster.local`; who knows the rest of its list can answer what it is
//! after at once.

use hickory_proto::rr::Name;

/// How many elements a search list has at most.
const MAX_SEARCH: usize = 32;

/// Whose questions are completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Autopath {
    /// In which zones.
    pub zones: Vec<Name>,
    /// By which list.
    pub search: Search,
}

/// Where the list is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Search {
    /// That of the pod that asks, which its namespace tells, and these behind it: the node's own.
    Pods(Vec<Name>),
    /// It is the same for all.
    List(Vec<Name>),
}

impl Autopath {
    /// What it says behind another one of its block: its own zones, and its own list unless the other
    /// has that of the pod that asks, as CoreDNS has it.
    #[must_use]
    pub fn behind(mut self, before: Option<Self>) -> Self {
        if let Some(pods @ Search::Pods(_)) = before.map(|before| before.search)
            && matches!(self.search, Search::List(_))
        {
            self.search = pods;
        }
        self
    }
}

impl Search {
    /// The list of a client: of a pod in that namespace of a cluster with that domain, or of one
    /// that is none of this node's pods. Empty where nothing is completed.
    pub fn of(&self, namespace: Option<&str>, domain: &Name) -> Vec<Name> {
        match self {
            Self::List(list) => list.clone(),
            Self::Pods(node) => {
                let below = |labels: &[&str]| {
                    let labels = labels.iter().map(|label| label.as_bytes());
                    Name::from_labels(labels).and_then(|name| name.append_domain(domain)).ok()
                };
                let own = namespace.and_then(|namespace| {
                    Some([below(&[namespace, "svc"])?, below(&["svc"])?, domain.clone()])
                });
                // Without a pod's own elements there is nothing to begin with.
                own.map_or_else(Vec::new, |own| own.into_iter().chain(node.clone()).collect())
            }
        }
    }
}

/// The names that a client would go on to ask for which asks for `name` first and has that search
/// list: in their order, the bare one last. `None` where `name` is not what such a client begins
/// with.
pub fn path(name: &Name, search: &[Name]) -> Option<Vec<Name>> {
    let first = search.first().filter(|first| first.zone_of(name))?;
    let own = usize::from(name.num_labels()).checked_sub(first.num_labels().into())?;
    if own == 0 {
        return None;
    }
    let base = Name::from_labels(name.iter().take(own)).ok()?;
    let root = Name::root();
    let others = search.iter().skip(1).take(MAX_SEARCH).chain([&root]);
    // What is too long to be a name does not exist.
    Some(others.filter_map(|domain| base.clone().append_domain(domain).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn names(texts: &[&str]) -> Vec<Name> {
        texts.iter().map(|text| name(text)).collect()
    }

    #[test]
    fn dns_67_the_list_of_a_pod() {
        let search = Search::Pods(names(&["corp.example."]));
        let domain = name("cluster.local.");
        let list =
            ["ns1.svc.cluster.local.", "svc.cluster.local.", "cluster.local.", "corp.example."];
        assert_eq!(search.of(Some("ns1"), &domain), names(&list));
        assert_eq!(search.of(None, &domain), [], "not for those that are not known");
        let long = "a".repeat(64);
        assert_eq!(search.of(Some(&long), &domain), [], "no namespace");
        let list = Search::List(names(&["a.example."]));
        assert_eq!(list.of(None, &domain), names(&["a.example."]));
    }

    #[test]
    fn dns_67_what_a_client_would_ask_next() {
        let search = names(&["ns1.svc.cluster.local.", "svc.cluster.local.", "cluster.local."]);
        let said = |text: &str| path(&name(text), &search);
        assert_eq!(
            said("Google.com.NS1.svc.cluster.local."),
            Some(names(&[
                "google.com.svc.cluster.local.",
                "google.com.cluster.local.",
                "google.com.",
            ]))
        );
        assert_eq!(said("google.com.ns2.svc.cluster.local."), None, "another namespace");
        assert_eq!(said("google.com."), None);
        assert_eq!(said("ns1.svc.cluster.local."), None, "nothing was asked for");
        assert_eq!(path(&name("a."), &[]), None);
        // The others are shorter or longer; what is too long is left out.
        let long = [["a".repeat(60).as_str(); 4].join("."), "b.".to_owned()].join(".");
        let search = names(&["b.", &format!("{}.", "c".repeat(60))]);
        assert_eq!(path(&name(&long), &search).unwrap().len(), 1);
    }
}
