//! Role-based access control: roles, bindings, and what they allow.
//!
//! Bindings are found by subject, so that a decision looks only at those of the user and of the
//! user's groups, however many there are in the cluster.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, RoleRef, Subject,
};

use super::{Attributes, Decision, User, Why, service_account_name};

/// The API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// The rules of a role.
pub type PolicyRules = Arc<[PolicyRule]>;

/// A binding, of a namespace or of the cluster.
#[derive(Debug, PartialEq)]
pub struct Binding {
    /// Namespace; empty for a ClusterRoleBinding.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// The role that it grants.
    pub role: RoleRef,
    /// Whom it grants it to.
    pub subjects: Vec<Subject>,
}

impl Binding {
    /// Why a request is allowed.
    pub(super) fn grant(&self, subject: usize, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = if self.namespace.is_empty() {
            ("ClusterRoleBinding", self.name.clone())
        } else {
            ("RoleBinding", format!("{}/{}", self.name, self.namespace))
        };
        let RoleRef { kind: role_kind, name: role, .. } = &self.role;
        write!(formatter, "RBAC: allowed by {kind} {name:?} of {role_kind} {role:?} to ")?;
        let Some(subject) = self.subjects.get(subject) else { return Ok(()) };
        match (subject.kind.as_str(), &subject.namespace) {
            ("ServiceAccount", Some(namespace)) => {
                write!(formatter, "ServiceAccount \"{}/{namespace}\"", subject.name)
            }
            (kind, _) => write!(formatter, "{kind} {:?}", subject.name),
        }
    }
}

/// Whom a binding is found by.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Key<T> {
    User(T),
    Group(T),
}

/// What bindings of a user are looked for by.
fn keys_of(user: &User) -> impl Iterator<Item = Key<&str>> {
    let groups = user.groups.iter().map(|group| Key::Group(group.as_str()));
    std::iter::once(Key::User(user.name.as_str())).chain(groups)
}

fn key_of(subject: &Subject, namespace: &str) -> Option<Key<String>> {
    match subject.kind.as_str() {
        "User" => Some(Key::User(subject.name.clone())),
        "Group" => Some(Key::Group(subject.name.clone())),
        "ServiceAccount" => {
            let own = subject.namespace.as_deref().filter(|own| !own.is_empty());
            let namespace = own.unwrap_or(namespace);
            let known = !namespace.is_empty();
            known.then(|| Key::User(service_account_name(namespace, &subject.name)))
        }
        _ => None,
    }
}

/// Bindings with the index of the subject meant.
type Bound = Vec<(Arc<Binding>, usize)>;

/// Bindings of one namespace, or of the cluster.
#[derive(Debug, Default)]
struct Bindings {
    by_name: HashMap<String, Arc<Binding>>,
    of_users: HashMap<String, Bound>,
    of_groups: HashMap<String, Bound>,
}

impl Bindings {
    fn put(&mut self, binding: Binding) {
        self.remove(&binding.name);
        let binding = Arc::new(binding);
        for (index, subject) in binding.subjects.iter().enumerate() {
            let bound = match key_of(subject, &binding.namespace) {
                Some(Key::User(name)) => self.of_users.entry(name).or_default(),
                Some(Key::Group(name)) => self.of_groups.entry(name).or_default(),
                None => continue,
            };
            bound.push((Arc::clone(&binding), index));
        }
        self.by_name.insert(binding.name.clone(), binding);
    }

    fn remove(&mut self, name: &str) {
        let Some(old) = self.by_name.remove(name) else { return };
        for key in old.subjects.iter().filter_map(|subject| key_of(subject, &old.namespace)) {
            let (map, name) = match key {
                Key::User(name) => (&mut self.of_users, name),
                Key::Group(name) => (&mut self.of_groups, name),
            };
            if let Some(bound) = map.get_mut(&name) {
                bound.retain(|(binding, _)| !Arc::ptr_eq(binding, &old));
                if bound.is_empty() {
                    map.remove(&name);
                }
            }
        }
    }

    fn of(&self, key: &Key<&str>) -> &[(Arc<Binding>, usize)] {
        let found = match key {
            Key::User(name) => self.of_users.get(*name),
            Key::Group(name) => self.of_groups.get(*name),
        };
        found.map_or(&[], Vec::as_slice)
    }
}

/// All roles and bindings.
#[derive(Debug, Default)]
pub struct Rules {
    cluster_roles: HashMap<String, PolicyRules>,
    roles: HashMap<String, HashMap<String, PolicyRules>>,
    cluster_bindings: Bindings,
    bindings: HashMap<String, Bindings>,
}

/// A role that a binding grants and that does not exist.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}.rbac.authorization.k8s.io {name:?} not found")]
pub struct NoSuchRole {
    /// `clusterrole` or `role`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
}

impl Rules {
    /// Takes in a cluster role.
    pub fn put_cluster_role(&mut self, role: ClusterRole) {
        let name = role.metadata.name.unwrap_or_default();
        self.cluster_roles.insert(name, role.rules.unwrap_or_default().into());
    }

    /// Takes in a role.
    pub fn put_role(&mut self, role: Role) {
        let namespace = role.metadata.namespace.unwrap_or_default();
        let name = role.metadata.name.unwrap_or_default();
        let rules = role.rules.unwrap_or_default().into();
        self.roles.entry(namespace).or_default().insert(name, rules);
    }

    /// Takes in a cluster role binding.
    pub fn put_cluster_binding(&mut self, binding: ClusterRoleBinding) {
        self.cluster_bindings.put(Binding {
            namespace: String::new(),
            name: binding.metadata.name.unwrap_or_default(),
            role: binding.role_ref,
            subjects: binding.subjects.unwrap_or_default(),
        });
    }

    /// Takes in a role binding.
    pub fn put_binding(&mut self, binding: RoleBinding) {
        let namespace = binding.metadata.namespace.unwrap_or_default();
        self.bindings.entry(namespace.clone()).or_default().put(Binding {
            namespace,
            name: binding.metadata.name.unwrap_or_default(),
            role: binding.role_ref,
            subjects: binding.subjects.unwrap_or_default(),
        });
    }

    /// Forgets a cluster role.
    pub fn remove_cluster_role(&mut self, name: &str) {
        self.cluster_roles.remove(name);
    }

    /// Forgets a role.
    pub fn remove_role(&mut self, namespace: &str, name: &str) {
        if let Some(roles) = self.roles.get_mut(namespace) {
            roles.remove(name);
            if roles.is_empty() {
                self.roles.remove(namespace);
            }
        }
    }

    /// Forgets a cluster role binding.
    pub fn remove_cluster_binding(&mut self, name: &str) {
        self.cluster_bindings.remove(name);
    }

    /// Forgets a role binding.
    pub fn remove_binding(&mut self, namespace: &str, name: &str) {
        if let Some(bindings) = self.bindings.get_mut(namespace) {
            bindings.remove(name);
            if bindings.by_name.is_empty() {
                self.bindings.remove(namespace);
            }
        }
    }

    /// The rules of the role that a binding in `namespace` refers to.
    pub fn of_role(&self, role: &RoleRef, namespace: &str) -> Result<&PolicyRules, NoSuchRole> {
        let (kind, found) = if role.kind == "Role" {
            let roles = self.roles.get(namespace);
            ("role", roles.and_then(|roles| roles.get(&role.name)))
        } else {
            ("clusterrole", self.cluster_roles.get(&role.name))
        };
        found.ok_or_else(|| NoSuchRole { kind, name: role.name.clone() })
    }

    /// Calls `visit` with every rule that holds for a user in a namespace (the cluster's alone
    /// where that is empty), and with roles that are missing, until it returns false.
    fn visit<'a>(
        &'a self,
        user: &User,
        namespace: &str,
        mut visit: impl FnMut(&'a (Arc<Binding>, usize), Result<&'a PolicyRule, NoSuchRole>) -> bool,
    ) {
        let in_namespace = self.bindings.get(namespace).filter(|_| !namespace.is_empty());
        for bindings in std::iter::once(&self.cluster_bindings).chain(in_namespace) {
            for key in keys_of(user) {
                for bound in bindings.of(&key) {
                    let goes_on = match self.of_role(&bound.0.role, &bound.0.namespace) {
                        Ok(rules) => rules.iter().all(|rule| visit(bound, Ok(rule))),
                        Err(missing) => visit(bound, Err(missing)),
                    };
                    if !goes_on {
                        return;
                    }
                }
            }
        }
    }

    /// Whether some rule allows what is asked.
    pub fn decide(&self, user: &User, asked: &Attributes<'_>) -> Decision {
        let mut granted = None;
        let mut missing: Vec<String> = Vec::new();
        self.visit(user, asked.namespace, |(binding, subject), rule| {
            match rule {
                Ok(rule) if allows(rule, asked) => {
                    granted = Some(Why::Granted(Arc::clone(binding), *subject));
                }
                Ok(_) => {}
                Err(role) => missing.push(role.to_string()),
            }
            granted.is_none()
        });
        match (granted, &missing[..]) {
            (Some(why), _) => Decision::Allow(why),
            (None, []) => Decision::NoOpinion(Why::Silent),
            (None, [one]) => Decision::NoOpinion(Why::Said(format!("RBAC: {one}"))),
            (None, many) => Decision::NoOpinion(Why::Said(format!("RBAC: [{}]", many.join(", ")))),
        }
    }

    /// All rules that hold for a user in a namespace, and which roles are missing.
    pub fn of_user(&self, user: &User, namespace: &str) -> (Vec<PolicyRule>, Vec<NoSuchRole>) {
        let (mut rules, mut missing) = (Vec::new(), Vec::new());
        self.visit(user, namespace, |_, rule| {
            match rule {
                Ok(rule) => rules.push(rule.clone()),
                Err(role) => missing.push(role),
            }
            true
        });
        (rules, missing)
    }
}

/// Whether a list holds the text or a star.
fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|one| one == "*" || one == wanted)
}

fn items(list: Option<&Vec<String>>) -> &[String] {
    list.map_or(&[], Vec::as_slice)
}

/// Whether a rule allows what is asked.
pub fn allows(rule: &PolicyRule, asked: &Attributes<'_>) -> bool {
    if !has(&rule.verbs, asked.verb) {
        return false;
    }
    if !asked.is_resource() {
        return items(rule.non_resource_urls.as_ref()).iter().any(|url| is_below(url, asked.path));
    }
    let names = items(rule.resource_names.as_ref());
    has(items(rule.api_groups.as_ref()), asked.group)
        && items(rule.resources.as_ref())
            .iter()
            .any(|one| covers_resource(one, asked.resource, asked.subresource))
        && (names.is_empty() || names.iter().any(|name| name == asked.name))
}

/// Whether a rule's URL is the path, or ends with a star and begins like it.
pub(super) fn is_below(url: &str, path: &str) -> bool {
    url == path || url.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

/// Whether a rule's resource (`pods`, `pods/log`, `*/log`, `*`) is the one asked for.
fn covers_resource(of_rule: &str, resource: &str, subresource: &str) -> bool {
    match of_rule.split_once('/') {
        _ if of_rule == "*" => true,
        None => subresource.is_empty() && of_rule == resource,
        Some((kind, sub)) => sub == subresource && (kind == resource || kind == "*"),
    }
}
