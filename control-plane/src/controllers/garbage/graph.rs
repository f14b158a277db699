//! Who names whom as an owner.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::hash::{Hash, Hasher};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::ApiResource;

use super::decide;
use crate::controllers::key::Key;
use crate::controllers::world::{Kind, KindVisitor, World};

/// An object of a cached kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(super) resource: ApiResource,
    pub(super) key: Key,
}

impl Node {
    fn order(&self) -> (&str, &str, &Key) {
        (&self.resource.group, &self.resource.kind, &self.key)
    }

    /// The object's metadata, if it is still there.
    pub(super) fn meta(&self, world: &World) -> Option<ObjectMeta> {
        let mut reader = MetaReader { world, node: self, found: None };
        World::for_each_kind(&mut reader);
        reader.found
    }
}

impl Ord for Node {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for Node {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Node {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.order().hash(state);
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.resource.kind, self.key)
    }
}

struct MetaReader<'a> {
    world: &'a World,
    node: &'a Node,
    found: Option<ObjectMeta>,
}

impl KindVisitor for MetaReader<'_> {
    fn visit<K: Kind>(&mut self) {
        let resource = &self.node.resource;
        if K::kind(&()) == resource.kind.as_str() && K::group(&()) == resource.group.as_str() {
            self.found = self.world.get::<K>(&self.node.key).map(|object| object.meta().clone());
        }
    }
}

/// The dependents of every owner, by the owner's uid.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    dependents: HashMap<String, BTreeSet<Node>>,
}

impl Graph {
    /// The objects that name the owner of that uid.
    pub(super) fn dependents(&self, uid: &str) -> Vec<Node> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Takes in a change of `node` and returns what has to be looked at because of it.
    pub(super) fn changed(
        &mut self,
        node: &Node,
        old: Option<&ObjectMeta>,
        new: Option<&ObjectMeta>,
    ) -> Vec<Node> {
        let mut concerned = Vec::new();
        let (before, now) = (owners(old), owners(new));
        for owner in before.difference(&now) {
            if let Some(nodes) = self.dependents.get_mut(*owner) {
                nodes.remove(node);
                if nodes.is_empty() {
                    self.dependents.remove(*owner);
                }
            }
        }
        for owner in now.difference(&before) {
            self.dependents.entry((*owner).to_owned()).or_default().insert(node.clone());
        }
        if (!now.is_empty() && now != before) || new.is_some_and(decide::waits_for_dependents) {
            concerned.push(node.clone());
        }
        // A dependent that goes, or blocks no more, may be the last that its owner waits for.
        let left = new.is_none() || before != now || blocking(old) != blocking(new);
        if left && let Some(old) = old {
            concerned.extend(blocked_owners(old));
        }
        let uid = |meta: Option<&ObjectMeta>| meta.and_then(|meta| meta.uid.clone());
        if let Some(gone) = uid(old).filter(|gone| uid(new).as_ref() != Some(gone)) {
            concerned.extend(self.dependents(&gone));
        }
        concerned
    }
}

/// The owners that may not go before the object.
fn blocking(meta: Option<&ObjectMeta>) -> BTreeSet<&str> {
    let references = meta.and_then(|meta| meta.owner_references.as_deref()).unwrap_or_default();
    let blocking = references.iter().filter(|owner| owner.block_owner_deletion == Some(true));
    blocking.map(|owner| owner.uid.as_str()).collect()
}

fn owners(meta: Option<&ObjectMeta>) -> BTreeSet<&str> {
    let references = meta.and_then(|meta| meta.owner_references.as_deref()).unwrap_or_default();
    references.iter().map(|owner| owner.uid.as_str()).collect()
}

/// The owners that may not go before the object, as nodes. Whether they wait is seen when they
/// are looked at; the plural is right for the kinds that are cached, and no others are looked at.
fn blocked_owners(meta: &ObjectMeta) -> Vec<Node> {
    let namespace = meta.namespace.clone().unwrap_or_default();
    let references = meta.owner_references.iter().flatten();
    let blocked = references.filter(|owner| owner.block_owner_deletion == Some(true));
    blocked
        .map(|owner| {
            let (group, version) =
                owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
            let resource = ApiResource {
                group: group.to_owned(),
                version: version.to_owned(),
                api_version: owner.api_version.clone(),
                kind: owner.kind.clone(),
                plural: format!("{}s", owner.kind.to_lowercase()),
            };
            Node { resource, key: Key::new(namespace.clone(), owner.name.clone()) }
        })
        .collect()
}
