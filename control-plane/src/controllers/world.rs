//! The caches of all kinds that controllers read, and the watches that fill them.
//!
//! There is one watch per kind, however many controllers read it. Every change, whether the watch
//! told it or we wrote it, goes to the subscribers of its kind, which put keys into queues.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{
    ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet,
};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, LimitRange, Namespace, Node, PersistentVolume, PersistentVolumeClaim,
    Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, NetworkPolicy, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment};
use kube::core::DynamicObject;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cache::{Cache, Change};
use super::every_namespace::ROOT_CA;
use super::key::Key;
use super::trim;
use super::write::Target;

/// Called with every change of a kind.
type Subscriber<K> = Box<dyn Fn(&World, &Change<K>) + Send + Sync>;

/// The cache of one kind and who wants to hear of its changes.
pub(crate) struct Shelf<K> {
    pub(crate) cache: Cache<K>,
    subscribers: Vec<Subscriber<K>>,
}

impl<K: Resource + Clone + Debug> Default for Shelf<K> {
    fn default() -> Self {
        Self { cache: Cache::default(), subscribers: Vec::new() }
    }
}

/// Worlds of one process, each with watches of its own: what several of them hold, they hold once.
/// What is kept of an object at a revision is the same in all, so any copy will do.
#[derive(Clone, Default)]
pub struct Neighbours(Arc<Mutex<Vec<Weak<World>>>>);

impl Neighbours {
    /// All but one.
    fn others(&self, one: &World) -> Vec<Arc<World>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = all.iter().filter_map(Weak::upgrade);
        others.filter(|other| !std::ptr::eq(&raw const **other, one)).collect()
    }
}

/// A kind that the world holds.
pub(crate) trait Kind:
    Resource<DynamicType = (), Scope: 'static>
    + Clone
    + Debug
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
    /// Where the world keeps objects of this kind.
    fn shelf(world: &World) -> &Shelf<Self>;
    /// The same, before the world is shared.
    fn shelf_mut(world: &mut World) -> &mut Shelf<Self>;
    /// Drops what no controller reads.
    fn trim(&mut self) {
        self.managed_fields_mut().clear();
    }
}

macro_rules! world {
    ($($field:ident: $kind:ident $(trim $trim:expr)?),* $(,)?) => {
        /// Everything that controllers see.
        #[derive(Default)]
        pub(crate) struct World {
            $($field: Shelf<$kind>,)*
            neighbours: Neighbours,
        }

        $(impl Kind for $kind {
            fn shelf(world: &World) -> &Shelf<Self> {
                &world.$field
            }
            fn shelf_mut(world: &mut World) -> &mut Shelf<Self> {
                &mut world.$field
            }
            $(fn trim(&mut self) {
                self.managed_fields_mut().clear();
                let trim: fn(&mut $kind) = $trim;
                trim(self);
            })?
        })*

        impl World {
            /// Takes in the answer to a write of ours, if the world holds its kind.
            pub(crate) fn answered(&self, target: &Target, object: DynamicObject) {
                $(if is_kind::<$kind>(target) {
                    // What cannot be read here will come by the watch, which reports it.
                    if let Ok(object) = object.try_parse::<$kind>() {
                        self.written(object);
                    }
                    return;
                })*
            }

            /// Takes in that an object is gone because we deleted it.
            pub(crate) fn deleted(&self, target: &Target, uid: &str) {
                $(if is_kind::<$kind>(target) {
                    let change = self.cache::<$kind>().removed(&target.key, uid);
                    if let Some(change) = change {
                        self.tell(&change);
                    }
                })*
            }

            /// Returns when every cache has its first list.
            pub(crate) async fn synced(&self) {
                $(self.cache::<$kind>().synced().await;)*
            }

            /// Calls the visitor with every kind that the world holds.
            pub(crate) fn for_each_kind(visitor: &mut impl KindVisitor) {
                $(visitor.visit::<$kind>();)*
            }
        }
    };
}

world! {
    pods: Pod trim trim::pod,
    nodes: Node,
    services: Service,
    endpoint_slices: EndpointSlice,
    replica_sets: ReplicaSet,
    deployments: Deployment,
    daemon_sets: DaemonSet,
    revisions: ControllerRevision,
    endpoints: Endpoints,
    namespaces: Namespace,
    leases: Lease,
    config_maps: ConfigMap trim |map| {
        if map.metadata.name.as_deref() != Some(ROOT_CA) {
            map.data = None;
            map.binary_data = None;
        }
    },
    service_accounts: ServiceAccount,
    cluster_roles: ClusterRole,
    budgets: PodDisruptionBudget,
    service_cidrs: ServiceCIDR,
    stateful_sets: StatefulSet,
    replication_controllers: ReplicationController,
    // Of these the garbage collector alone wants to know, and no more than whose they are.
    secrets: Secret trim |secret| {
        secret.data = None;
        secret.string_data = None;
    },
    claims: PersistentVolumeClaim trim |claim| (claim.spec, claim.status) = (None, None),
    volumes: PersistentVolume trim |volume| (volume.spec, volume.status) = (None, None),
    pod_templates: PodTemplate trim |template| template.template = None,
    quotas: ResourceQuota trim |quota| (quota.spec, quota.status) = (None, None),
    limit_ranges: LimitRange trim |range| range.spec = None,
    jobs: Job trim |job| (job.spec, job.status) = (None, None),
    cron_jobs: CronJob trim |job| (job.spec, job.status) = (None, None),
    autoscalers: HorizontalPodAutoscaler trim |of| (of.spec, of.status) = (None, None),
    ingresses: Ingress trim |ingress| (ingress.spec, ingress.status) = (None, None),
    ingress_classes: IngressClass,
    network_policies: NetworkPolicy trim |policy| policy.spec = None,
    roles: Role trim |role| role.rules = None,
    role_bindings: RoleBinding trim |binding| binding.subjects = None,
    cluster_role_bindings: ClusterRoleBinding trim |binding| binding.subjects = None,
    signing_requests: CertificateSigningRequest trim |request| request.status = None,
    storage_classes: StorageClass,
    drivers: CSIDriver,
    attachments: VolumeAttachment,
}

/// Something to do for each kind.
pub(crate) trait KindVisitor {
    /// Does it for the kind `K`.
    fn visit<K: Kind>(&mut self);
}

/// Whether the target is an object of kind `K`.
pub(crate) fn is_kind<K: Kind>(target: &Target) -> bool {
    target.resource.kind == K::kind(&()) && target.resource.group == K::group(&())
}

impl World {
    /// The objects of kind `K`.
    pub(crate) fn cache<K: Kind>(&self) -> &Cache<K> {
        &K::shelf(self).cache
    }

    /// Has `subscriber` called with every change of the kind `K`.
    pub(crate) fn subscribe<K: Kind>(
        &mut self,
        subscriber: impl Fn(&World, &Change<K>) + Send + Sync + 'static,
    ) {
        K::shelf_mut(self).subscribers.push(Box::new(subscriber));
    }

    /// Takes in an object as the API server answered it.
    pub(crate) fn written<K: Kind>(&self, mut object: K) {
        object.trim();
        if let Some(change) = self.cache::<K>().written(self.shared(object)) {
            self.tell(&change);
        }
    }

    /// The object of that key, if it is cached.
    pub(crate) fn get<K: Kind>(&self, key: &Key) -> Option<Arc<K>> {
        self.cache::<K>().get(key)
    }

    /// Makes the world one of these, once it knows whom to tell of changes.
    pub(crate) fn beside(mut self, neighbours: &Neighbours) -> Arc<Self> {
        self.neighbours = neighbours.clone();
        let world = Arc::new(self);
        let mut all = neighbours.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&world));
        drop(all);
        world
    }

    /// The object as a neighbour holds it, if one does.
    fn shared<K: Kind>(&self, object: K) -> Arc<K> {
        let key = Key::of(&object);
        let held = self.neighbours.others(self).into_iter().find_map(|other| {
            // No lock of ours is held meanwhile: they may be asking us.
            other.cache::<K>().same(&key, &object)
        });
        held.unwrap_or_else(|| Arc::new(object))
    }

    fn tell<K: Kind>(&self, change: &Change<K>) {
        for subscriber in &K::shelf(self).subscribers {
            subscriber(self, change);
        }
    }

    /// Starts the watch of the kind `K` in `tasks`. It never gives up; `cancel` ends it.
    pub(crate) fn watch<K: Kind>(
        self: &Arc<Self>,
        client: &Client,
        tasks: &mut JoinSet<()>,
        cancel: &CancellationToken,
    ) {
        let world = Arc::clone(self);
        let api = Api::<K>::all(client.clone());
        let cancel = cancel.clone();
        tasks.spawn(async move {
            let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
            loop {
                let event = tokio::select! {
                    () = cancel.cancelled() => return,
                    event = events.next() => event,
                };
                match event {
                    Some(Ok(event)) => {
                        let event = match event.modify(K::trim) {
                            Event::Apply(object) => Event::Apply(world.shared(object)),
                            Event::InitApply(object) => Event::InitApply(world.shared(object)),
                            Event::Delete(object) => Event::Delete(Arc::new(object)),
                            Event::Init => Event::Init,
                            Event::InitDone => Event::InitDone,
                        };
                        for change in world.cache::<K>().watched(event) {
                            world.tell(&change);
                        }
                    }
                    Some(Err(error)) => {
                        let kind = K::kind(&());
                        tracing::warn!(%kind, %error, "watch interrupted, trying again");
                    }
                    None => return,
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(version: u64, image: &str) -> Pod {
        let pod = serde_json::json!({
            "metadata": {"name": "a", "namespace": "default", "uid": "1", "resourceVersion": version.to_string()},
            "spec": {"containers": [{"name": "a", "image": image}]},
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn neighbours_hold_an_object_once() {
        let neighbours = Neighbours::default();
        let (one, other) = (World::default().beside(&neighbours), World::default());
        let other = other.beside(&neighbours);
        let key = Key::new("default", "a");
        let held = |world: &World| world.get::<Pod>(&key).unwrap();
        one.written(pod(3, "x"));
        other.written(pod(3, "x"));
        assert!(Arc::ptr_eq(&held(&one), &held(&other)));
        // One is ahead: the other holds what it knows, until it hears of it.
        one.written(pod(4, "x"));
        assert_eq!(held(&other).metadata.resource_version.as_deref(), Some("3"));
        other.written(pod(4, "x"));
        assert!(Arc::ptr_eq(&held(&one), &held(&other)));
        drop(one);
        other.written(pod(5, "x"));
        assert_eq!(Arc::strong_count(&held(&other)), 2, "its own, and the one looked at");
    }

    #[test]
    fn of_pods_only_what_is_read_is_kept() {
        let world = World::default();
        world.written(pod(3, "x"));
        let held = world.get::<Pod>(&Key::new("default", "a")).unwrap();
        let container = &held.spec.as_ref().unwrap().containers[0];
        assert_eq!((container.name.as_str(), &container.image), ("a", &None));
    }
}
