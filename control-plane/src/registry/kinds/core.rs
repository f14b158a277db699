//! Rows of the core group besides the best-known: storage, quotas, and what came before.

use super::super::columns;
use super::super::counters;
use super::super::endpoints;
use super::super::limits;
use super::super::quota;
use super::super::rules::{Default, Fill, Rule, Test};
use super::super::storage;
use super::super::template::Template;
use super::super::workload;
use super::super::{Kind, NameRule, Scope, Subresource};
use super::NAMESPACED;

/// Ways to mount a volume.
const ACCESS_MODES: &[&str] =
    &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];

pub(super) static KINDS: &[Kind] = &[
    Kind {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        returns_deleted: false,
        deprecated: "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
        rules: endpoints::RULES,
        defaults: &[Default("subsets[*].ports[*].protocol", Fill::Text("TCP"))],
        columns: columns::ENDPOINTS,
        strategy: &endpoints::Endpoints,
        ..NAMESPACED
    },
    Kind {
        kind: "LimitRange",
        plural: "limitranges",
        singular: "limitrange",
        short_names: &["limits"],
        rules: limits::RULES,
        columns: columns::NAME_AND_CREATED,
        strategy: &limits::LimitRanges,
        ..NAMESPACED
    },
    Kind {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        scope: Scope::Cluster,
        subresources: &[Subresource::Status],
        returns_deleted: true,
        rules: &[
            Rule("spec.accessModes", Test::Required("")),
            Rule("spec.accessModes[*]", Test::OneOf(ACCESS_MODES)),
            Rule("spec.capacity", Test::Required("")),
            Rule("spec.capacity{*}", Test::PositiveQuantity),
            Rule("spec.volumeMode", Test::OneOf(VOLUME_MODES)),
            Rule("spec.storageClassName", Test::Name(NameRule::Subdomain)),
            Rule(
                "spec.persistentVolumeReclaimPolicy",
                Test::OneOf(&["Delete", "Recycle", "Retain"]),
            ),
        ],
        defaults: &[
            Default("spec.persistentVolumeReclaimPolicy", Fill::Text("Retain")),
            Default("spec.volumeMode", Fill::Text("Filesystem")),
        ],
        immutable: &["/spec/volumeMode"],
        columns: columns::PERSISTENT_VOLUME,
        strategy: &storage::Volumes,
        ..NAMESPACED
    },
    Kind {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        subresources: &[Subresource::Status],
        returns_deleted: true,
        rules: &[
            Rule("spec.accessModes", Test::Required("at least 1 access mode is required")),
            Rule("spec.accessModes[*]", Test::OneOf(ACCESS_MODES)),
            Rule("spec.volumeMode", Test::OneOf(VOLUME_MODES)),
            Rule("spec.selector", Test::Selector),
            Rule("spec.storageClassName", Test::Name(NameRule::Subdomain)),
        ],
        defaults: &[Default("spec.volumeMode", Fill::Text("Filesystem"))],
        columns: columns::PERSISTENT_VOLUME_CLAIM,
        strategy: &storage::Claims,
        ..NAMESPACED
    },
    Kind {
        kind: "PodTemplate",
        plural: "podtemplates",
        singular: "podtemplate",
        returns_deleted: true,
        counts_generations: true,
        template: Some(Template { at: "/template", restart: &["Always", "OnFailure", "Never"] }),
        columns: columns::POD_TEMPLATE,
        ..NAMESPACED
    },
    Kind {
        kind: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        orphans: true,
        short_names: &["rc"],
        categories: &["all"],
        subresources: &[Subresource::Scale, Subresource::Status],
        counts_generations: true,
        selectable: &[("status.replicas", "/status/replicas", "0")],
        rules: &[
            Rule("spec.selector", Test::Required("")),
            Rule("spec.template", Test::Required("")),
            Rule("spec.replicas", Test::NotNegative),
            Rule("spec.minReadySeconds", Test::NotNegative),
        ],
        counters: counters::REPLICA_SET,
        template: Some(Template { at: "/spec/template", restart: &["Always"] }),
        columns: columns::REPLICATION_CONTROLLER,
        strategy: &workload::ReplicationControllers,
        ..NAMESPACED
    },
    Kind {
        kind: "ResourceQuota",
        plural: "resourcequotas",
        singular: "resourcequota",
        short_names: &["quota"],
        subresources: &[Subresource::Status],
        returns_deleted: true,
        immutable: &["/spec/scopes"],
        columns: columns::RESOURCE_QUOTA,
        strategy: &quota::Quotas,
        ..NAMESPACED
    },
];
