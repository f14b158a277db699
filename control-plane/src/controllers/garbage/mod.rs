//! Deletes what nobody owns any more: ReplicaSets of a deleted Deployment, their pods, the slices
//! of a deleted Service; of every kind that the world holds, which are all but events.
//!
//! The graph is the index of ownerReferences in the caches ([`graph`]); the decision about one
//! object is a pure function of the states of its owners ([`decide`]). An owner that the caches
//! do not know is asked for at the API server before anything is deleted: a cache may be late.
//! Foreground deletion and orphaning are the finalizers that the API server puts on the owner.

mod decide;
mod graph;

use std::any::TypeId;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::discovery::{Scope, pinned_kind};
use kube::{Api, Client};

use self::decide::{Dependent, Owner};
use self::graph::{Graph, Node};
use super::engine::{Controller, Failure, LookError};
use super::key::Key;
use super::queue::Queue;
use super::world::{Kind, KindVisitor, World};
use super::write::{Outcome, Target};

/// The garbage collector.
pub(crate) struct Garbage {
    world: Arc<World>,
    client: Client,
    graph: Arc<Mutex<Graph>>,
}

impl Garbage {
    /// A collector over the graph that [`Garbage::subscribe`] made.
    pub(crate) fn new(world: Arc<World>, client: Client, graph: Arc<Mutex<Graph>>) -> Self {
        Self { world, client, graph }
    }

    /// Builds the graph from all changes of all kinds, and has looked at: dependents that come,
    /// dependents of owners that go, owners whose deletion waits for their dependents.
    pub(crate) fn subscribe(world: &mut World, queue: &Arc<Queue<Node>>) -> Arc<Mutex<Graph>> {
        let graph = Arc::default();
        World::for_each_kind(&mut Subscriber { world, queue, graph: &graph });
        graph
    }

    /// The states of an object's owners.
    async fn owners(&self, node: &Node, meta: &ObjectMeta) -> Result<Vec<Owner>, LookError> {
        let mut owners = Vec::new();
        for reference in meta.owner_references.iter().flatten() {
            owners.push(match self.cached(node, reference) {
                Some(meta) => Owner::of(&meta),
                None => self.asked_for(node, reference).await?,
            });
        }
        Ok(owners)
    }

    fn cached(&self, node: &Node, reference: &OwnerReference) -> Option<ObjectMeta> {
        let mut lookup = Lookup {
            world: &self.world,
            kind: &reference.kind,
            api_version: &reference.api_version,
            namespace: &node.key.namespace,
            name: &reference.name,
            found: None,
        };
        World::for_each_kind(&mut lookup);
        lookup.found.filter(|meta| meta.uid.as_ref() == Some(&reference.uid))
    }

    async fn asked_for(&self, node: &Node, reference: &OwnerReference) -> Result<Owner, LookError> {
        let error = |source| LookError::Read {
            what: format!("{} {}, the owner of {node}", reference.kind, reference.name),
            source: Box::new(source),
        };
        let Some((resource, scope)) = self.resource(reference).await.map_err(error)? else {
            // A kind that the API server does not know: nothing can be said of its objects.
            return Ok(Owner::Present);
        };
        let api: Api<DynamicObject> = match scope {
            Scope::Cluster => Api::all_with(self.client.clone(), &resource),
            // An owner in a namespace is in the dependent's own.
            Scope::Namespaced if node.key.namespace.is_empty() => return Ok(Owner::Misplaced),
            Scope::Namespaced => {
                Api::namespaced_with(self.client.clone(), &node.key.namespace, &resource)
            }
        };
        let owner = api.get_opt(&reference.name).await.map_err(error)?;
        let owner = owner.filter(|owner| owner.metadata.uid.as_ref() == Some(&reference.uid));
        Ok(owner.map_or(Owner::Absent, |owner| Owner::of(&owner.metadata)))
    }

    async fn resource(
        &self,
        reference: &OwnerReference,
    ) -> Result<Option<(ApiResource, Scope)>, kube::Error> {
        let mut known = KnownKind { reference, found: None };
        World::for_each_kind(&mut known);
        if known.found.is_some() {
            return Ok(known.found);
        }
        let (group, version) =
            reference.api_version.split_once('/').unwrap_or(("", &reference.api_version));
        let kind = GroupVersionKind::gvk(group, version, &reference.kind);
        match pinned_kind(&self.client, &kind).await {
            Ok((resource, can)) => Ok(Some((resource, can.scope))),
            Err(kube::Error::Discovery(_)) => Ok(None),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn dependents(&self, uid: &str) -> Vec<Dependent> {
        let nodes = self.graph.lock().unwrap_or_else(PoisonError::into_inner).dependents(uid);
        nodes
            .into_iter()
            .filter_map(|node| {
                let meta = node.meta(&self.world)?;
                Some(Dependent { target: Target { resource: node.resource, key: node.key }, meta })
            })
            .collect()
    }
}

impl Controller for Garbage {
    type Key = Node;
    const NAME: &'static str = "garbage-collector";
    const WORKERS: usize = 16;

    async fn look(&self, node: &Node, _: Option<&Failure>) -> Result<Outcome, LookError> {
        let Some(meta) = node.meta(&self.world) else { return Ok(Outcome::default()) };
        let target = Target { resource: node.resource.clone(), key: node.key.clone() };
        if decide::waits_for_dependents(&meta) {
            let dependents =
                |meta: &ObjectMeta| self.dependents(meta.uid.as_deref().unwrap_or_default());
            let mut writes = Vec::new();
            // Each write carries the revision that was seen: the second comes with the next look.
            if decide::is_in_circle(&meta, &dependents) {
                writes.extend(decide::unblocked(&target, &meta));
            }
            if writes.is_empty() {
                writes = decide::leaving_owner(&target, &meta, &dependents(&meta));
            }
            return Ok(writes.into());
        }
        let owners = self.owners(node, &meta).await?;
        Ok(decide::dependent(&target, &meta, &owners).into_iter().collect::<Vec<_>>().into())
    }
}

struct Subscriber<'a> {
    world: &'a mut World,
    queue: &'a Arc<Queue<Node>>,
    graph: &'a Arc<Mutex<Graph>>,
}

impl KindVisitor for Subscriber<'_> {
    fn visit<K: Kind>(&mut self) {
        let (queue, graph) = (Arc::clone(self.queue), Arc::clone(self.graph));
        let resource = ApiResource::erase::<K>(&());
        self.world.subscribe::<K>(move |_, change| {
            let Some(latest) = change.latest() else { return };
            let node = Node { resource: resource.clone(), key: Key::of(&**latest) };
            let old = change.old.as_ref().map(|object| object.meta());
            let new = change.new.as_ref().map(|object| object.meta());
            let mut graph = graph.lock().unwrap_or_else(PoisonError::into_inner);
            queue.add_all(graph.changed(&node, old, new));
        });
    }
}

struct Lookup<'a> {
    world: &'a World,
    kind: &'a str,
    api_version: &'a str,
    namespace: &'a str,
    name: &'a str,
    found: Option<ObjectMeta>,
}

impl KindVisitor for Lookup<'_> {
    fn visit<K: Kind>(&mut self) {
        if K::kind(&()) != self.kind || K::api_version(&()) != self.api_version {
            return;
        }
        let cache = self.world.cache::<K>();
        let owner = cache
            .get(&Key::new(self.namespace, self.name))
            .or_else(|| cache.get(&Key::new("", self.name)));
        self.found = owner.map(|owner| owner.meta().clone());
    }
}

struct KnownKind<'a> {
    reference: &'a OwnerReference,
    found: Option<(ApiResource, Scope)>,
}

impl KindVisitor for KnownKind<'_> {
    fn visit<K: Kind>(&mut self) {
        let same = K::kind(&()) == self.reference.kind.as_str()
            && K::api_version(&()) == self.reference.api_version.as_str();
        if same {
            let cluster = TypeId::of::<K::Scope>() == TypeId::of::<ClusterResourceScope>();
            let scope = if cluster { Scope::Cluster } else { Scope::Namespaced };
            self.found = Some((ApiResource::erase::<K>(&()), scope));
        }
    }
}
