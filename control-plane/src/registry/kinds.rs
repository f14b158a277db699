//! The rows.

mod apps;
mod cluster;
mod core;

use super::columns::{self, Column};
use super::rules::{Default, Fill, Rule, Test};
use super::strategy::Plain;
use super::{
    Kind, NameRule, Review, Scope, Subresource, configuration, counters, endpoints, event,
    namespace, networking, node, pod, priority, rbac, service, workload,
};

/// A namespaced kind of the core group with nothing special.
pub(super) const NAMESPACED: Kind = Kind {
    group: "",
    version: "v1",
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    scope: Scope::Namespaced,
    subresources: &[],
    verbs: &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
    review: None,
    names: NameRule::Subdomain,
    counts_generations: false,
    unconditional_update: true,
    create_on_update: false,
    returns_deleted: false,
    orphans: false,
    time_to_live: None,
    selectable: &[],
    required: &[],
    immutable: &[],
    rules: &[],
    counters: &[],
    defaults: &[],
    template: None,
    deprecated: "",
    view: None,
    columns: NAME_AND_AGE,
    strategy: &Plain,
};

/// A kind of which nothing is kept: a question and its answer.
const REVIEW: Kind = Kind { scope: Scope::Cluster, verbs: &["create"], ..NAMESPACED };

/// Columns of a kind that has none of its own.
const NAME_AND_AGE: &[Column] = &[columns::NAME, columns::AGE];

/// All kinds, in the order in which discovery lists the groups.
pub static TABLES: &[&[Kind]] = &[ALL, core::KINDS, apps::KINDS, cluster::KINDS];

/// The kinds that a cluster can't do without.
static ALL: &[Kind] = &[
    Kind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        rules: &[Rule("data", Test::Keys), Rule("binaryData", Test::Keys)],
        strategy: &configuration::ConfigMaps,
        columns: columns::CONFIG_MAP,
        ..NAMESPACED
    },
    Kind {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        columns: columns::EVENT,
        strategy: &event::Events,
        time_to_live: Some(3600),
        create_on_update: true,
        selectable: &[
            ("involvedObject.kind", "/involvedObject/kind", ""),
            ("involvedObject.namespace", "/involvedObject/namespace", ""),
            ("involvedObject.name", "/involvedObject/name", ""),
            ("involvedObject.uid", "/involvedObject/uid", ""),
            ("involvedObject.apiVersion", "/involvedObject/apiVersion", ""),
            ("involvedObject.resourceVersion", "/involvedObject/resourceVersion", ""),
            ("involvedObject.fieldPath", "/involvedObject/fieldPath", ""),
            ("reason", "/reason", ""),
            ("reportingComponent", "/reportingComponent", ""),
            ("source", "/source/component", ""),
            ("type", "/type", ""),
        ],
        ..NAMESPACED
    },
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        scope: Scope::Cluster,
        subresources: &[Subresource::Finalize, Subresource::Status],
        // Not all at once.
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        names: NameRule::Label,
        selectable: &[("status.phase", "/status/phase", "")],
        columns: columns::NAMESPACE,
        strategy: &namespace::Namespaces,
        ..NAMESPACED
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        scope: Scope::Cluster,
        subresources: &[Subresource::Status],
        selectable: &[("spec.unschedulable", "/spec/unschedulable", "false")],
        rules: node::RULES,
        columns: columns::NODE,
        strategy: &node::Nodes,
        ..NAMESPACED
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            Subresource::Binding,
            Subresource::Eviction,
            Subresource::Exec,
            Subresource::Log,
            Subresource::Status,
        ],
        counts_generations: true,
        returns_deleted: true,
        selectable: &[
            ("spec.nodeName", "/spec/nodeName", ""),
            ("spec.restartPolicy", "/spec/restartPolicy", ""),
            ("spec.schedulerName", "/spec/schedulerName", ""),
            ("spec.serviceAccountName", "/spec/serviceAccountName", ""),
            ("spec.hostNetwork", "/spec/hostNetwork", "false"),
            ("status.phase", "/status/phase", ""),
            ("status.podIP", "/status/podIP", ""),
            ("status.podIPs", "/status/podIP", ""),
            ("status.nominatedNodeName", "/status/nominatedNodeName", ""),
        ],
        columns: columns::POD,
        strategy: &pod::Pods,
        ..NAMESPACED
    },
    Kind {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        selectable: &[("type", "/type", "")],
        rules: &[Rule("data", Test::Keys)],
        columns: columns::SECRET,
        strategy: &configuration::Secrets,
        ..NAMESPACED
    },
    Kind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        subresources: &[Subresource::Token],
        returns_deleted: true,
        columns: columns::SERVICE_ACCOUNT,
        ..NAMESPACED
    },
    Kind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[Subresource::Status],
        names: NameRule::Label1035,
        returns_deleted: true,
        selectable: &[("spec.clusterIP", "/spec/clusterIP", ""), ("spec.type", "/spec/type", "")],
        columns: columns::SERVICE,
        strategy: &service::Services,
        ..NAMESPACED
    },
    Kind {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[Subresource::Scale, Subresource::Status],
        counts_generations: true,
        required: &["/spec/selector", "/spec/template"],
        immutable: &["/spec/selector"],
        rules: workload::DEPLOYMENT_RULES,
        counters: counters::DEPLOYMENT,
        columns: columns::DEPLOYMENT,
        strategy: &workload::Deployments,
        ..NAMESPACED
    },
    Kind {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[Subresource::Scale, Subresource::Status],
        counts_generations: true,
        selectable: &[("status.replicas", "/status/replicas", "0")],
        required: &["/spec/selector", "/spec/template"],
        immutable: &["/spec/selector"],
        counters: counters::REPLICA_SET,
        columns: columns::REPLICA_SET,
        strategy: &workload::ReplicaSets,
        ..NAMESPACED
    },
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        unconditional_update: false,
        create_on_update: true,
        rules: &[
            Rule("spec.leaseDurationSeconds", Test::Positive),
            Rule("spec.leaseTransitions", Test::NotNegative),
        ],
        columns: columns::LEASE,
        ..NAMESPACED
    },
    Kind {
        group: "discovery.k8s.io",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        counts_generations: true,
        required: &["/addressType"],
        immutable: &["/addressType"],
        rules: endpoints::SLICE_RULES,
        defaults: &[
            Default("ports[*].name", Fill::Text("")),
            Default("ports[*].protocol", Fill::Text("TCP")),
        ],
        columns: columns::ENDPOINT_SLICE,
        strategy: &endpoints::Slices,
        ..NAMESPACED
    },
    Kind {
        group: "networking.k8s.io",
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        scope: Scope::Cluster,
        subresources: &[Subresource::Status],
        columns: columns::SERVICE_CIDR,
        strategy: &networking::Ranges,
        ..NAMESPACED
    },
    Kind {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        review: Some(Review::Own),
        ..REVIEW
    },
    Kind {
        group: "authentication.k8s.io",
        kind: "TokenReview",
        plural: "tokenreviews",
        singular: "tokenreview",
        review: Some(Review::Token),
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        scope: Scope::Namespaced,
        review: Some(Review::LocalAccess),
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        review: Some(Review::OwnAccess),
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        review: Some(Review::OwnRules),
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        review: Some(Review::Access),
        ..REVIEW
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        scope: Scope::Cluster,
        names: NameRule::PathSegment,
        columns: columns::ROLE_BINDING,
        strategy: &rbac::CLUSTER_ROLE_BINDINGS,
        ..NAMESPACED
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        scope: Scope::Cluster,
        names: NameRule::PathSegment,
        columns: columns::ROLE,
        strategy: &rbac::CLUSTER_ROLES,
        ..NAMESPACED
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        names: NameRule::PathSegment,
        columns: columns::ROLE_BINDING,
        strategy: &rbac::ROLE_BINDINGS,
        ..NAMESPACED
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "Role",
        plural: "roles",
        singular: "role",
        names: NameRule::PathSegment,
        columns: columns::ROLE,
        strategy: &rbac::ROLES,
        ..NAMESPACED
    },
    Kind {
        group: "scheduling.k8s.io",
        kind: "PriorityClass",
        plural: "priorityclasses",
        singular: "priorityclass",
        short_names: &["pc"],
        scope: Scope::Cluster,
        columns: columns::PRIORITY_CLASS,
        strategy: &priority::PriorityClasses,
        ..NAMESPACED
    },
];
