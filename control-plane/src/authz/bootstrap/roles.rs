//! The roles of users and components, and who has them.

use super::{EVENTS, READ, READ_WRITE, Row, Rule, To, WRITE, named, on, paths, role};

const CORE: &str = "";
const APPS: &str = "apps";
const AUTHENTICATION: &str = "authentication.k8s.io";
const AUTHORIZATION: &str = "authorization.k8s.io";
const AUTOSCALING: &str = "autoscaling";
const BATCH: &str = "batch";
const CERTIFICATES: &str = "certificates.k8s.io";
const COORDINATION: &str = "coordination.k8s.io";
const DISCOVERY: &str = "discovery.k8s.io";
const EXTENSIONS: &str = "extensions";
const NETWORKING: &str = "networking.k8s.io";
const NODE: &str = "node.k8s.io";
const POLICY: &str = "policy";
const RBAC: &str = "rbac.authorization.k8s.io";
const RESOURCE: &str = "resource.k8s.io";
const STORAGE: &str = "storage.k8s.io";

const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const LIST_WATCH: &[&str] = &["list", "watch"];
const PATCH_UPDATE: &[&str] = &["patch", "update"];
const GET_UPDATE: &[&str] = &["get", "update"];

/// What approves certificates of a signer.
const fn approver(signer: &'static [&'static str]) -> Rule {
    named(&CERTIFICATES, &["signers"], signer, &["approve"])
}

const ADMIN: &[Rule] = &[
    on(&AUTHORIZATION, &["localsubjectaccessreviews"], CREATE),
    on(&RBAC, &["rolebindings", "roles"], READ_WRITE),
];

const EDIT: &[Rule] = &[
    on(
        &CORE,
        &[
            "pods/attach",
            "pods/exec",
            "pods/portforward",
            "pods/proxy",
            "secrets",
            "services/proxy",
        ],
        READ,
    ),
    on(&CORE, &["serviceaccounts"], &["impersonate"]),
    on(&CORE, &["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"], WRITE),
    on(&CORE, &["pods/eviction"], CREATE),
    on(
        &CORE,
        &[
            "configmaps",
            "events",
            "persistentvolumeclaims",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "secrets",
            "serviceaccounts",
            "services",
            "services/proxy",
        ],
        WRITE,
    ),
    on(&CORE, &["serviceaccounts/token"], CREATE),
    on(
        &APPS,
        &[
            "daemonsets",
            "deployments",
            "deployments/rollback",
            "deployments/scale",
            "replicasets",
            "replicasets/scale",
            "statefulsets",
            "statefulsets/scale",
        ],
        WRITE,
    ),
    on(&AUTOSCALING, &["horizontalpodautoscalers"], WRITE),
    on(&BATCH, &["cronjobs", "jobs"], WRITE),
    on(
        &EXTENSIONS,
        &[
            "daemonsets",
            "deployments",
            "deployments/rollback",
            "deployments/scale",
            "ingresses",
            "networkpolicies",
            "replicasets",
            "replicasets/scale",
            "replicationcontrollers/scale",
        ],
        WRITE,
    ),
    on(&POLICY, &["poddisruptionbudgets"], WRITE),
    on(&NETWORKING, &["ingresses", "networkpolicies"], WRITE),
    on(&COORDINATION, &["leases"], READ_WRITE),
    on(&RESOURCE, &["resourceclaims", "resourceclaimtemplates"], WRITE),
];

const VIEW: &[Rule] = &[
    on(
        &CORE,
        &[
            "configmaps",
            "endpoints",
            "persistentvolumeclaims",
            "persistentvolumeclaims/status",
            "pods",
            "replicationcontrollers",
            "replicationcontrollers/scale",
            "serviceaccounts",
            "services",
            "services/status",
        ],
        READ,
    ),
    on(
        &CORE,
        &[
            "bindings",
            "events",
            "limitranges",
            "namespaces/status",
            "pods/log",
            "pods/status",
            "replicationcontrollers/status",
            "resourcequotas",
            "resourcequotas/status",
        ],
        READ,
    ),
    on(&CORE, &["namespaces"], READ),
    on(&DISCOVERY, &["endpointslices"], READ),
    on(
        &APPS,
        &[
            "controllerrevisions",
            "daemonsets",
            "daemonsets/status",
            "deployments",
            "deployments/scale",
            "deployments/status",
            "replicasets",
            "replicasets/scale",
            "replicasets/status",
            "statefulsets",
            "statefulsets/scale",
            "statefulsets/status",
        ],
        READ,
    ),
    on(&AUTOSCALING, &["horizontalpodautoscalers", "horizontalpodautoscalers/status"], READ),
    on(&BATCH, &["cronjobs", "cronjobs/status", "jobs", "jobs/status"], READ),
    on(
        &EXTENSIONS,
        &[
            "daemonsets",
            "daemonsets/status",
            "deployments",
            "deployments/scale",
            "deployments/status",
            "ingresses",
            "ingresses/status",
            "networkpolicies",
            "replicasets",
            "replicasets/scale",
            "replicasets/status",
            "replicationcontrollers/scale",
        ],
        READ,
    ),
    on(&POLICY, &["poddisruptionbudgets", "poddisruptionbudgets/status"], READ),
    on(&NETWORKING, &["ingresses", "ingresses/status", "networkpolicies"], READ),
    on(&RESOURCE, &["resourceclaims", "resourceclaims/status", "resourceclaimtemplates"], READ),
];

const CONTROLLER_MANAGER: &[Rule] = &[
    EVENTS,
    on(&COORDINATION, &["leases"], CREATE),
    named(&COORDINATION, &["leases"], &["kube-controller-manager"], GET_UPDATE),
    on(&CORE, &["secrets", "serviceaccounts"], CREATE),
    on(&CORE, &["secrets"], &["delete"]),
    on(&CORE, &["configmaps", "namespaces", "secrets", "serviceaccounts"], GET),
    on(&CORE, &["secrets", "serviceaccounts"], &["update"]),
    on(&AUTHENTICATION, &["tokenreviews"], CREATE),
    on(&AUTHORIZATION, &["subjectaccessreviews"], CREATE),
    on(&"*", &["*"], LIST_WATCH),
    on(&CORE, &["serviceaccounts/token"], CREATE),
];

const SCHEDULER: &[Rule] = &[
    EVENTS,
    on(&COORDINATION, &["leases"], &["create", "list", "watch"]),
    named(&COORDINATION, &["leases"], &["kube-scheduler"], GET_UPDATE),
    on(&CORE, &["nodes"], READ),
    on(&CORE, &["pods"], &["delete", "get", "list", "watch"]),
    on(&CORE, &["bindings", "pods/binding"], CREATE),
    on(&CORE, &["pods/status"], PATCH_UPDATE),
    on(&CORE, &["replicationcontrollers", "services"], READ),
    Rule { groups: &["apps", "extensions"], ..on(&APPS, &["replicasets"], READ) },
    on(&APPS, &["statefulsets"], READ),
    on(&POLICY, &["poddisruptionbudgets"], READ),
    on(&CORE, &["persistentvolumeclaims", "persistentvolumes"], READ),
    on(&AUTHENTICATION, &["tokenreviews"], CREATE),
    on(&AUTHORIZATION, &["subjectaccessreviews"], CREATE),
    on(&STORAGE, &["csinodes"], READ),
    on(&CORE, &["namespaces"], READ),
    on(&STORAGE, &["csidrivers"], READ),
    on(&STORAGE, &["csistoragecapacities"], READ),
    on(&STORAGE, &["volumeattachments"], READ),
];

const NODES: &[Rule] = &[
    on(&AUTHENTICATION, &["tokenreviews"], CREATE),
    on(&AUTHORIZATION, &["localsubjectaccessreviews", "subjectaccessreviews"], CREATE),
    on(&CORE, &["services"], READ),
    on(&CORE, &["nodes"], &["create", "get", "list", "watch"]),
    on(&CORE, &["nodes/status"], PATCH_UPDATE),
    on(&CORE, &["nodes"], PATCH_UPDATE),
    on(&CORE, &["events"], &["create", "patch", "update"]),
    on(&CORE, &["pods"], READ),
    on(&CORE, &["pods"], &["create", "delete"]),
    on(&CORE, &["pods/status"], PATCH_UPDATE),
    on(&CORE, &["pods/eviction"], CREATE),
    on(&CORE, &["configmaps", "secrets"], READ),
    on(&CORE, &["persistentvolumeclaims", "persistentvolumes"], GET),
    on(&CORE, &["endpoints"], GET),
    on(&CERTIFICATES, &["certificatesigningrequests"], &["create", "get", "list", "watch"]),
    on(&COORDINATION, &["leases"], &["create", "delete", "get", "patch", "update"]),
    on(&STORAGE, &["volumeattachments"], GET),
    on(&CORE, &["serviceaccounts/token"], CREATE),
    on(&CORE, &["persistentvolumeclaims/status"], &["get", "patch", "update"]),
    on(&STORAGE, &["csidrivers"], READ),
    on(&STORAGE, &["csinodes"], &["create", "delete", "get", "patch", "update"]),
    on(&NODE, &["runtimeclasses"], READ),
];

/// The cluster roles, by name.
pub(super) const CLUSTER_ROLES: &[Row] = &[
    Row { made_of: Some("admin"), ..role("admin", &[]) },
    role("cluster-admin", &[on(&"*", &["*"], &["*"]), Rule { verbs: &["*"], ..paths(&["*"]) }]),
    Row { made_of: Some("edit"), part_of: Some("admin"), ..role("edit", &[]) },
    Row { part_of: Some("admin"), ..role("system:aggregate-to-admin", ADMIN) },
    Row { part_of: Some("edit"), ..role("system:aggregate-to-edit", EDIT) },
    Row { part_of: Some("view"), ..role("system:aggregate-to-view", VIEW) },
    role(
        "system:auth-delegator",
        &[
            on(&AUTHENTICATION, &["tokenreviews"], CREATE),
            on(&AUTHORIZATION, &["subjectaccessreviews"], CREATE),
        ],
    ),
    role(
        "system:basic-user",
        &[
            on(&AUTHORIZATION, &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], CREATE),
            on(&AUTHENTICATION, &["selfsubjectreviews"], CREATE),
        ],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        &[on(&CERTIFICATES, &["certificatesigningrequests/nodeclient"], CREATE)],
    ),
    role(
        "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        &[on(&CERTIFICATES, &["certificatesigningrequests/selfnodeclient"], CREATE)],
    ),
    role(
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        &[approver(&["kubernetes.io/kube-apiserver-client"])],
    ),
    role(
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        &[approver(&["kubernetes.io/kube-apiserver-client-kubelet"])],
    ),
    role(
        "system:certificates.k8s.io:kubelet-serving-approver",
        &[approver(&["kubernetes.io/kubelet-serving"])],
    ),
    role(
        "system:certificates.k8s.io:legacy-unknown-approver",
        &[approver(&["kubernetes.io/legacy-unknown"])],
    ),
    role(
        "system:discovery",
        &[paths(&[
            "/api",
            "/api/*",
            "/apis",
            "/apis/*",
            "/healthz",
            "/livez",
            "/openapi",
            "/openapi/*",
            "/readyz",
            "/version",
            "/version/",
        ])],
    ),
    role(
        "system:heapster",
        &[
            on(&CORE, &["events", "namespaces", "nodes", "pods"], READ),
            on(&EXTENSIONS, &["deployments"], READ),
        ],
    ),
    role("system:kube-aggregator", &[on(&CORE, &["endpoints", "services"], READ)]),
    role("system:kube-controller-manager", CONTROLLER_MANAGER),
    role(
        "system:kube-dns",
        &[
            on(&CORE, &["endpoints", "services"], LIST_WATCH),
            on(&DISCOVERY, &["endpointslices"], LIST_WATCH),
        ],
    ),
    role("system:kube-scheduler", SCHEDULER),
    role(
        "system:kubelet-api-admin",
        &[
            on(&CORE, &["nodes"], READ),
            on(&CORE, &["nodes"], &["proxy"]),
            on(
                &CORE,
                &[
                    "nodes/configz",
                    "nodes/healthz",
                    "nodes/log",
                    "nodes/metrics",
                    "nodes/pods",
                    "nodes/proxy",
                    "nodes/stats",
                ],
                &["*"],
            ),
        ],
    ),
    role(
        "system:monitoring",
        &[paths(&[
            "/healthz",
            "/healthz/*",
            "/livez",
            "/livez/*",
            "/metrics",
            "/metrics/slis",
            "/readyz",
            "/readyz/*",
        ])],
    ),
    role("system:node", NODES),
    role(
        "system:node-bootstrapper",
        &[on(&CERTIFICATES, &["certificatesigningrequests"], &["create", "get", "list", "watch"])],
    ),
    role(
        "system:node-problem-detector",
        &[on(&CORE, &["nodes"], GET), on(&CORE, &["nodes/status"], &["patch"]), EVENTS],
    ),
    role(
        "system:node-proxier",
        &[
            on(&CORE, &["endpoints", "services"], LIST_WATCH),
            on(&CORE, &["nodes"], READ),
            EVENTS,
            on(&DISCOVERY, &["endpointslices"], LIST_WATCH),
            on(&NETWORKING, &["servicecidrs"], LIST_WATCH),
        ],
    ),
    role(
        "system:persistent-volume-provisioner",
        &[
            on(&CORE, &["persistentvolumes"], &["create", "delete", "get", "list", "watch"]),
            on(&CORE, &["persistentvolumeclaims"], &["get", "list", "update", "watch"]),
            on(&STORAGE, &["storageclasses"], READ),
            on(&CORE, &["events"], &["watch"]),
            EVENTS,
        ],
    ),
    role(
        "system:public-info-viewer",
        &[paths(&["/healthz", "/livez", "/readyz", "/version", "/version/"])],
    ),
    role(
        "system:service-account-issuer-discovery",
        &[paths(&["/.well-known/openid-configuration", "/openid/v1/jwks"])],
    ),
    role(
        "system:volume-scheduler",
        &[
            on(&CORE, &["persistentvolumes"], &["get", "list", "patch", "update", "watch"]),
            on(&STORAGE, &["storageclasses"], READ),
            on(&CORE, &["persistentvolumeclaims"], &["get", "list", "patch", "update", "watch"]),
        ],
    ),
    Row { made_of: Some("view"), part_of: Some("edit"), ..role("view", &[]) },
];

/// The user that the scheduler is.
const SCHEDULER_USER: &str = "system:kube-scheduler";

/// Who has which cluster role. The bindings have the names of the roles.
pub(super) const BINDINGS: &[(&str, &[To])] = &[
    ("cluster-admin", &[To::Group(super::super::MASTERS)]),
    ("system:basic-user", &[To::Group(super::super::AUTHENTICATED)]),
    ("system:discovery", &[To::Group(super::super::AUTHENTICATED)]),
    ("system:kube-controller-manager", &[To::User(super::controllers::USER)]),
    ("system:kube-dns", &[To::Account("kube-dns")]),
    ("system:kube-scheduler", &[To::User(SCHEDULER_USER)]),
    ("system:monitoring", &[To::Group("system:monitoring")]),
    // Nodes are known to the Node authorizer; the binding is there for who wants to add to it.
    ("system:node", &[]),
    ("system:node-proxier", &[To::User("system:kube-proxy")]),
    (
        "system:public-info-viewer",
        &[To::Group(super::super::AUTHENTICATED), To::Group(super::super::UNAUTHENTICATED)],
    ),
    ("system:service-account-issuer-discovery", &[To::Group("system:serviceaccounts")]),
    ("system:volume-scheduler", &[To::User(SCHEDULER_USER)]),
];

/// Namespace, name, rules, and who has it.
type RoleRow = (&'static str, &'static str, &'static [Rule], &'static [To]);

/// The roles of namespaces.
pub(super) const ROLES: &[RoleRow] = &[
    (
        "kube-system",
        "extension-apiserver-authentication-reader",
        &[named(&CORE, &["configmaps"], &["extension-apiserver-authentication"], READ)],
        &[To::User(super::controllers::USER), To::User(SCHEDULER_USER)],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        &[
            on(&CORE, &["configmaps"], &["watch"]),
            named(&CORE, &["configmaps"], &["kube-controller-manager"], GET_UPDATE),
        ],
        &[To::User(super::controllers::USER), To::Account("kube-controller-manager")],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-scheduler",
        &[
            on(&CORE, &["configmaps"], &["watch"]),
            named(&CORE, &["configmaps"], &["kube-scheduler"], GET_UPDATE),
        ],
        &[To::User(SCHEDULER_USER), To::Account("kube-scheduler")],
    ),
];
