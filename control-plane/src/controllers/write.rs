//! What controllers want done, as data. [`super::interpreter`] is the only one that does it.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, ObjectReference, Pod, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::PropagationPolicy;
use kube::core::{ApiResource, DynamicObject};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::Value;

use super::key::Key;
use super::world::Kind;

/// The name of an object anywhere in the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Group, version, kind and plural of the object.
    pub(crate) resource: ApiResource,
    /// Namespace (empty at cluster scope) and name.
    pub(crate) key: Key,
}

impl Target {
    /// The target that an object of a known kind is.
    pub(crate) fn of<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self { resource: ApiResource::erase::<K>(&()), key: Key::of(object) }
    }
}

impl Target {
    /// The path of the collection that the object is in.
    pub(crate) fn url(&self) -> String {
        let namespace = Some(self.key.namespace.as_str()).filter(|name| !name.is_empty());
        DynamicObject::url_path(&self.resource, namespace)
    }
}

/// An object of a kind that controllers write as a whole.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Object {
    /// A pod.
    Pod(Box<Pod>),
    /// A replica set.
    ReplicaSet(Box<ReplicaSet>),
    /// A deployment.
    Deployment(Box<Deployment>),
    /// A daemon set.
    DaemonSet(Box<DaemonSet>),
    /// A revision of a daemon set.
    ControllerRevision(Box<ControllerRevision>),
    /// The endpoints of a Service, as one object.
    Endpoints(Box<Endpoints>),
    /// An endpoint slice.
    EndpointSlice(Box<EndpointSlice>),
    /// A node.
    Node(Box<Node>),
    /// A namespace.
    Namespace(Box<Namespace>),
    /// A service account.
    ServiceAccount(Box<ServiceAccount>),
    /// A config map.
    ConfigMap(Box<ConfigMap>),
    /// A cluster role.
    ClusterRole(Box<ClusterRole>),
    /// A disruption budget.
    PodDisruptionBudget(Box<PodDisruptionBudget>),
}

/// Something to do with an object whose kind does not matter.
pub(crate) trait ObjectVisitor {
    /// What comes of it.
    type Output;
    /// Does it with an object of kind `K`.
    fn visit<K: Kind + Serialize>(self, object: &K) -> impl Future<Output = Self::Output> + Send;
}

macro_rules! objects {
    ($($kind:ident),*) => {
        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        })*
        impl Object {
            /// Where the object is, or will be.
            pub(crate) fn target(&self) -> Target {
                match self { $(Self::$kind(object) => Target::of(object.as_ref()),)* }
            }

            /// Has the visitor do something with the object as what it is.
            pub(crate) async fn visit<V: ObjectVisitor>(&self, visitor: V) -> V::Output {
                match self { $(Self::$kind(object) => visitor.visit(object.as_ref()).await,)* }
            }
        }
    };
}
objects!(
    Pod,
    ReplicaSet,
    Deployment,
    DaemonSet,
    ControllerRevision,
    Endpoints,
    EndpointSlice,
    Node,
    Namespace,
    ServiceAccount,
    ConfigMap,
    ClusterRole,
    PodDisruptionBudget
);

/// One change of the cluster's state.
///
/// Everything that replaces something carries the resourceVersion (or the uid) of what was seen,
/// so that a change in between is a conflict and the controller looks again.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Write {
    /// POST.
    Create(Object),
    /// PUT of the whole object.
    Replace(Object),
    /// PUT of a subresource (`status`, `finalize`).
    ReplaceSubresource(&'static str, Object),
    /// PATCH, application/merge-patch+json.
    MergePatch { target: Target, subresource: Option<&'static str>, patch: Value },
    /// PATCH, application/strategic-merge-patch+json.
    StrategicPatch { target: Target, subresource: Option<&'static str>, patch: Value },
    /// DELETE of the object with that uid. That it is gone already is success.
    Delete(Deletion),
    /// POST of an event. That nobody hears it is no failure.
    Tell(Report),
    /// POST of the binding of the pod with that uid to a node.
    Bind { target: Target, uid: String, node: String },
    /// Creations in batches of 1, 2, 4, …: when a batch has a failure, the rest is left for later,
    /// so that a mistake (a quota, an invalid template) costs one request and not hundreds.
    /// What becomes of each is told about their owner.
    SlowStart(Vec<Object>, Owner),
    /// Writes that do not depend on each other.
    Together(Vec<Write>),
}

/// Whose pods are made, and who tells of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Owner {
    /// The owner.
    pub(crate) about: ObjectReference,
    /// The controller.
    pub(crate) component: &'static str,
}

impl Owner {
    /// An owner by its object.
    pub(crate) fn of<K: Resource<DynamicType = ()>>(object: &K, component: &'static str) -> Self {
        Self { about: object.object_ref(&()), component }
    }

    /// That a pod was made.
    pub(crate) fn made(&self, pod: &str) -> Report {
        self.report(false, "SuccessfulCreate", format!("Created pod: {pod}"))
    }

    /// That a pod could not be made.
    pub(crate) fn failed(&self, why: &str) -> Report {
        self.report(true, "FailedCreate", format!("Error creating: {why}"))
    }

    /// That a pod was deleted.
    pub(crate) fn deleted(&self, pod: &str) -> Write {
        Write::Tell(self.report(false, "SuccessfulDelete", format!("Deleted pod: {pod}")))
    }

    fn report(&self, warning: bool, reason: &'static str, message: String) -> Report {
        let about = self.about.clone();
        Report { about, warning, reason, message, component: self.component }
    }
}

/// A DELETE request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Deletion {
    /// What to delete.
    pub(crate) target: Target,
    /// The uid that it must have.
    pub(crate) uid: String,
    /// Seconds for a pod to end; `None` leaves the object's own.
    pub(crate) grace_period_seconds: Option<u32>,
    /// What becomes of dependents; `None` leaves the kind's default.
    pub(crate) propagation: Option<PropagationPolicy>,
}

/// Something to tell people about an object: `kubectl describe` shows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    /// The object.
    pub(crate) about: ObjectReference,
    /// Whether something is wrong.
    pub(crate) warning: bool,
    /// One word, in Kubernetes' terms.
    pub(crate) reason: &'static str,
    /// The same in a sentence.
    pub(crate) message: String,
    /// Who tells it.
    pub(crate) component: &'static str,
}

impl Write {
    /// An event about an object.
    pub(crate) fn tell<K: Resource<DynamicType = ()>>(
        about: &K,
        component: &'static str,
        reason: &'static str,
        message: String,
    ) -> Self {
        let about = about.object_ref(&());
        Self::Tell(Report { about, warning: false, reason, message, component })
    }

    /// An event about something that is wrong with an object.
    pub(crate) fn warn<K: Resource<DynamicType = ()>>(
        about: &K,
        component: &'static str,
        reason: &'static str,
        message: String,
    ) -> Self {
        let about = about.object_ref(&());
        Self::Tell(Report { about, warning: true, reason, message, component })
    }

    /// PUT of the object's status.
    pub(crate) fn replace_status(object: impl Into<Object>) -> Self {
        Self::ReplaceSubresource("status", object.into())
    }

    /// DELETE with the defaults of the kind.
    pub(crate) fn delete<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self::Delete(Deletion {
            target: Target::of(object),
            uid: object.meta().uid.clone().unwrap_or_default(),
            grace_period_seconds: None,
            propagation: None,
        })
    }

    /// DELETE of an owner's pods, and that it was done.
    pub(crate) fn delete_pods<'a>(pods: impl Iterator<Item = &'a Pod>, owner: &Owner) -> Vec<Self> {
        let both = pods.map(|pod| (Self::delete(pod), owner.deleted(&pod.name_any())));
        let (deletions, told): (Vec<Self>, Vec<Self>) = both.unzip();
        let some = |writes: Vec<Self>| (!writes.is_empty()).then_some(Self::Together(writes));
        some(deletions).into_iter().chain(some(told)).collect()
    }

    /// DELETE at once, without waiting for anybody to confirm.
    pub(crate) fn delete_now<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self::Delete(Deletion {
            target: Target::of(object),
            uid: object.meta().uid.clone().unwrap_or_default(),
            grace_period_seconds: Some(0),
            propagation: None,
        })
    }
}

/// What a controller wants after a look at one key.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Writes, in order; the first failure ends them.
    pub(crate) writes: Vec<Write>,
    /// When to look again although nothing has changed: the passing of time is no event.
    pub(crate) again_after: Option<std::time::Duration>,
}

impl From<Vec<Write>> for Outcome {
    fn from(writes: Vec<Write>) -> Self {
        Self { writes, again_after: None }
    }
}

/// The sizes of slow start batches for `total` creations: 1, 2, 4, … and the rest.
pub(crate) fn slow_start_batches(total: usize) -> impl Iterator<Item = usize> {
    let mut left = total;
    let mut next = 1;
    std::iter::from_fn(move || {
        let batch = next.min(left);
        left -= batch;
        next *= 2;
        (batch > 0).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::slow_start_batches;

    #[test]
    fn slow_start_doubles_and_adds_up() {
        assert_eq!(slow_start_batches(0).count(), 0);
        assert_eq!(slow_start_batches(1).collect::<Vec<_>>(), [1]);
        assert_eq!(slow_start_batches(10).collect::<Vec<_>>(), [1, 2, 4, 3]);
        assert_eq!(slow_start_batches(500).sum::<usize>(), 500);
    }
}
