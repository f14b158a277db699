//! Who may do what: a pure decision over a request's attributes and the rules in force.
//!
//! ```text
//! request attributes ──> system:masters? ──> Node authorizer ──> RBAC ──> allowed, or no opinion
//!                                                 ▲                ▲
//!                             graph of pods ──────┘                └────── roles and bindings
//! ```
//!
//! The first that allows wins, and what nobody allows is refused: there are no rules that deny.
//! Deciding reads memory only and takes no lock for longer than that; [`live`] keeps the state up
//! to date with the store (ADR 32).

pub mod aggregation;
pub mod bootstrap;
pub mod escalation;
pub mod live;
pub mod node;
pub mod rbac;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

pub use live::Authorizer;

/// The group that may do everything, whatever the rules say.
pub const MASTERS: &str = "system:masters";
/// The group of everybody whose credentials were accepted.
pub const AUTHENTICATED: &str = "system:authenticated";
/// The group of everybody who showed none.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of everybody who showed no credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// What the names of service accounts begin with.
pub const SERVICE_ACCOUNT_PREFIX: &str = "system:serviceaccount:";

/// Who sends a request, as its credentials say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// What tells users of one name apart over time; empty where nothing does.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else the credentials say.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user of some groups, without uid.
    pub fn new(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        Self { name: name.to_owned(), groups, ..Self::default() }
    }

    /// Who shows no credentials.
    pub fn anonymous() -> Self {
        Self::new(ANONYMOUS, &[UNAUTHENTICATED])
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }
}

/// The user name of a service account.
pub fn service_account_name(namespace: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_PREFIX}{namespace}:{name}")
}

/// What a request wants to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, `create`, …; of a path the method in lower case.
    pub verb: &'a str,
    /// API group; empty for the core group.
    pub group: &'a str,
    /// Version of the group.
    pub version: &'a str,
    /// Resource; empty where a path is asked for.
    pub resource: &'a str,
    /// Subresource.
    pub subresource: &'a str,
    /// Namespace; empty for the whole cluster.
    pub namespace: &'a str,
    /// Name of the object; empty for collections.
    pub name: &'a str,
    /// Path, where no resource is asked for.
    pub path: &'a str,
    /// What the field selector demands to be equal.
    pub fields: &'a [(String, String)],
}

impl Attributes<'_> {
    /// Whether a resource is asked for, not a path.
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }
}

/// The outcome. The reason is for people, and made only when somebody reads it.
#[derive(Clone, Debug)]
pub enum Decision {
    /// Go on.
    Allow(Why),
    /// Nobody allows it.
    NoOpinion(Why),
}

impl Decision {
    /// Whether the request may go on.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow(_))
    }

    /// The reason.
    pub fn why(&self) -> &Why {
        match self {
            Self::Allow(why) | Self::NoOpinion(why) => why,
        }
    }
}

/// Why a decision is what it is.
#[derive(Clone, Debug)]
pub enum Why {
    /// There is nothing to say.
    Silent,
    /// A binding grants it to its subject of this index.
    Granted(Arc<rbac::Binding>, usize),
    /// In words.
    Said(String),
}

impl fmt::Display for Why {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent => Ok(()),
            Self::Granted(binding, subject) => binding.grant(*subject, formatter),
            Self::Said(text) => formatter.write_str(text),
        }
    }
}

/// Decides by the rules and the graph given.
pub fn decide(
    user: &User,
    asked: &Attributes<'_>,
    rules: &rbac::Rules,
    graph: &node::Graph,
) -> Decision {
    if user.is_in(MASTERS) {
        return Decision::Allow(Why::Silent);
    }
    let by_node = node::decide(user, asked, graph, bootstrap::node_rules());
    if by_node.is_allowed() {
        return by_node;
    }
    match (by_node, rules.decide(user, asked)) {
        (_, allowed @ Decision::Allow(_)) => allowed,
        (Decision::NoOpinion(Why::Said(first)), Decision::NoOpinion(Why::Said(second))) => {
            Decision::NoOpinion(Why::Said(format!("{first}\n{second}")))
        }
        (said @ Decision::NoOpinion(Why::Said(_)), _) | (_, said) => said,
    }
}

/// What a user is told who may not do it.
pub fn refusal(user: &User, asked: &Attributes<'_>) -> String {
    let Attributes { verb, group, resource, namespace, .. } = asked;
    if !asked.is_resource() {
        return format!("User {:?} cannot {verb} path {:?}", user.name, asked.path);
    }
    let resource = match asked.subresource {
        "" => (*resource).to_owned(),
        subresource => format!("{resource}/{subresource}"),
    };
    let place = match *namespace {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    format!(
        "User {:?} cannot {verb} resource {resource:?} in API group {group:?} {place}",
        user.name
    )
}

#[cfg(test)]
mod tests;
