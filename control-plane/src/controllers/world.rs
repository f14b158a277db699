//! The caches of all kinds that controllers read, and the watches that fill them.
//!
//! There is one watch per kind, however many controllers read it. Every change, whether the watch
//! told it or we wrote it, goes to the subscribers of its kind, which put keys into queues.

use std::fmt::Debug;
use std::sync::Arc;

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
use k8s_openapi::api::networking::v1::{Ingress, IngressClass, NetworkPolicy};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment};
use kube::core::DynamicObject;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cache::{Cache, Change};
use super::every_namespace::ROOT_CA;
use super::key::Key;
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
    pods: Pod,
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
    // Of these the garbage collector alone wants to know, and no more than whose they are.
    secrets: Secret trim |secret| {
        secret.data = None;
        secret.string_data = None;
    },
    claims: PersistentVolumeClaim trim |claim| (claim.spec, claim.status) = (None, None),
    volumes: PersistentVolume trim |volume| (volume.spec, volume.status) = (None, None),
    pod_templates: PodTemplate trim |template| template.template = None,
    replication_controllers: ReplicationController trim |of| (of.spec, of.status) = (None, None),
    quotas: ResourceQuota trim |quota| (quota.spec, quota.status) = (None, None),
    limit_ranges: LimitRange trim |range| range.spec = None,
    stateful_sets: StatefulSet trim |set| (set.spec, set.status) = (None, None),
    jobs: Job trim |job| (job.spec, job.status) = (None, None),
    cron_jobs: CronJob trim |job| (job.spec, job.status) = (None, None),
    autoscalers: HorizontalPodAutoscaler trim |of| (of.spec, of.status) = (None, None),
    budgets: PodDisruptionBudget trim |budget| (budget.spec, budget.status) = (None, None),
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
        if let Some(change) = self.cache::<K>().written(object) {
            self.tell(&change);
        }
    }

    /// The object of that key, if it is cached.
    pub(crate) fn get<K: Kind>(&self, key: &Key) -> Option<Arc<K>> {
        self.cache::<K>().get(key)
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
                        for change in world.cache::<K>().watched(event.modify(K::trim)) {
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
