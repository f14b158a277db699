//! The schemas of Kubernetes' types, from k8s-openapi.

use k8s_openapi::api::{
    apps, authentication, authorization, autoscaling, batch, certificates, coordination, core,
    discovery, events, networking, node, policy, rbac, scheduling, storage,
};
use k8s_openapi::apimachinery::pkg::apis::meta;
use k8s_openapi::schemars::SchemaGenerator;

macro_rules! types {
    ($($package:ident $version:ident { $($name:ident)* })*) => {
        /// Adds the schemas of a type (`core.v1.Pod`) and of all that it refers to; whether there
        /// is such a type.
        pub(super) fn add(name: &str, into: &mut SchemaGenerator) -> bool {
            match name {
                $($(
                    concat!(stringify!($package), ".", stringify!($version), ".", stringify!($name)) => {
                        into.subschema_for::<$package::$version::$name>();
                    }
                )*)*
                _ => return false,
            }
            true
        }
    };
}

types! {
    apps v1 { ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet }
    authentication v1 { SelfSubjectReview TokenRequest TokenReview }
    authorization v1 {
        LocalSubjectAccessReview SelfSubjectAccessReview SelfSubjectRulesReview SubjectAccessReview
    }
    autoscaling v1 { HorizontalPodAutoscaler Scale }
    autoscaling v2 { HorizontalPodAutoscaler }
    batch v1 { CronJob Job }
    certificates v1 { CertificateSigningRequest }
    coordination v1 { Lease }
    core v1 {
        Binding ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
        PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service
        ServiceAccount
    }
    discovery v1 { EndpointSlice }
    events v1 { Event }
    meta v1 { DeleteOptions ListMeta Status }
    networking v1 { IPAddress Ingress IngressClass NetworkPolicy ServiceCIDR }
    node v1 { RuntimeClass }
    policy v1 { Eviction PodDisruptionBudget }
    rbac v1 { ClusterRole ClusterRoleBinding Role RoleBinding }
    scheduling v1 { PriorityClass }
    storage v1 { CSIDriver CSINode StorageClass VolumeAttachment VolumeAttributesClass }
}
