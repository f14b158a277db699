//! The roles of controllers.

use super::{EVENTS, READ, Row, Rule, on, role};

/// The user that our controllers are.
pub(super) const USER: &str = "system:kube-controller-manager";

const CORE: &str = "";
const APPS: &str = "apps";
const BATCH: &str = "batch";
const DISCOVERY: &str = "discovery.k8s.io";
const NETWORKING: &str = "networking.k8s.io";
const POLICY: &str = "policy";
const RBAC: &str = "rbac.authorization.k8s.io";

const UPDATE: &[&str] = &["update"];
const WATCHED: &[&str] = &["get", "list", "update", "watch"];

/// The cluster roles. Each is bound to the service account of its last word, and to [`USER`].
pub(super) const CLUSTER_ROLES: &[Row] = &[
    role(
        "system:controller:clusterrole-aggregation-controller",
        &[on(&RBAC, &["clusterroles"], &["escalate", "get", "list", "patch", "update", "watch"])],
    ),
    role(
        "system:controller:cronjob-controller",
        &[
            on(&BATCH, &["cronjobs"], WATCHED),
            on(&BATCH, &["jobs"], &["create", "delete", "get", "list", "patch", "update", "watch"]),
            on(&BATCH, &["cronjobs/finalizers", "cronjobs/status"], UPDATE),
            on(&CORE, &["pods"], &["delete", "list"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:daemon-set-controller",
        &[
            on(&APPS, &["daemonsets"], READ),
            on(&APPS, &["daemonsets/finalizers", "daemonsets/status"], UPDATE),
            on(&CORE, &["nodes"], &["list", "watch"]),
            on(&CORE, &["pods"], &["create", "delete", "list", "patch", "watch"]),
            on(&CORE, &["pods/binding"], &["create"]),
            on(
                &APPS,
                &["controllerrevisions"],
                &["create", "delete", "get", "list", "patch", "update", "watch"],
            ),
            EVENTS,
        ],
    ),
    role(
        "system:controller:deployment-controller",
        &[
            on(&APPS, &["deployments"], WATCHED),
            on(&APPS, &["deployments/finalizers", "deployments/status"], UPDATE),
            on(
                &APPS,
                &["replicasets"],
                &["create", "delete", "get", "list", "patch", "update", "watch"],
            ),
            on(&CORE, &["pods"], WATCHED),
            EVENTS,
        ],
    ),
    role(
        "system:controller:disruption-controller",
        &[
            on(&APPS, &["deployments", "replicasets", "statefulsets"], READ),
            on(&CORE, &["replicationcontrollers", "pods"], READ),
            on(&POLICY, &["poddisruptionbudgets"], READ),
            on(&POLICY, &["poddisruptionbudgets/status"], UPDATE),
            on(&CORE, &["pods/status"], &["patch", "update"]),
            Rule { verbs: &["get"], ..on(&"*", &["*/scale"], &[]) },
            EVENTS,
        ],
    ),
    role(
        "system:controller:endpoint-controller",
        &[
            on(&CORE, &["pods", "services"], READ),
            on(&CORE, &["endpoints"], &["create", "delete", "get", "list", "update"]),
            on(&CORE, &["endpoints/restricted"], &["create"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:endpointslice-controller",
        &[
            on(&CORE, &["nodes", "pods", "services"], READ),
            on(&CORE, &["services/finalizers"], UPDATE),
            on(&DISCOVERY, &["endpointslices"], &["create", "delete", "get", "list", "update"]),
            on(&DISCOVERY, &["endpointslices/restricted"], &["create"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:endpointslicemirroring-controller",
        &[
            on(&CORE, &["endpoints", "services"], READ),
            on(&CORE, &["endpoints/finalizers", "services/finalizers"], UPDATE),
            on(&DISCOVERY, &["endpointslices"], &["create", "delete", "get", "list", "update"]),
            on(&DISCOVERY, &["endpointslices/restricted"], &["create"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:generic-garbage-collector",
        &[EVENTS, on(&"*", &["*"], &["delete", "get", "list", "patch", "update", "watch"])],
    ),
    role(
        "system:controller:job-controller",
        &[
            on(&BATCH, &["jobs"], &["get", "list", "patch", "update", "watch"]),
            on(&BATCH, &["jobs/finalizers", "jobs/status"], UPDATE),
            on(&CORE, &["pods"], &["create", "delete", "list", "patch", "watch"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:namespace-controller",
        &[
            on(&CORE, &["namespaces"], &["delete", "get", "list", "watch"]),
            on(&CORE, &["namespaces/finalize", "namespaces/status"], UPDATE),
            on(&"*", &["*"], &["delete", "deletecollection", "get", "list"]),
        ],
    ),
    role(
        "system:controller:node-controller",
        &[
            on(&CORE, &["nodes"], &["delete", "get", "list", "patch", "update"]),
            on(&CORE, &["nodes/status"], &["patch", "update"]),
            on(&CORE, &["pods"], &["delete", "get", "list"]),
            on(&CORE, &["pods/status"], &["patch", "update"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:pod-garbage-collector",
        &[
            on(&CORE, &["pods"], &["delete", "list", "watch"]),
            on(&CORE, &["nodes"], &["get", "list"]),
            on(&CORE, &["pods/status"], &["patch"]),
        ],
    ),
    role(
        "system:controller:replicaset-controller",
        &[
            on(&APPS, &["replicasets"], WATCHED),
            on(&APPS, &["replicasets/finalizers", "replicasets/status"], UPDATE),
            on(&CORE, &["pods"], &["create", "delete", "list", "patch", "watch"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:replication-controller",
        &[
            on(&CORE, &["replicationcontrollers"], WATCHED),
            on(
                &CORE,
                &["replicationcontrollers/finalizers", "replicationcontrollers/status"],
                UPDATE,
            ),
            on(&CORE, &["pods"], &["create", "delete", "list", "patch", "watch"]),
            EVENTS,
        ],
    ),
    role(
        "system:controller:root-ca-cert-publisher",
        &[on(&CORE, &["configmaps"], &["create", "update"]), EVENTS],
    ),
    role(
        "system:controller:service-account-controller",
        &[on(&CORE, &["serviceaccounts"], &["create"]), EVENTS],
    ),
    role(
        "system:controller:service-cidrs-controller",
        &[
            on(&NETWORKING, &["servicecidrs"], &["get", "list", "patch", "update", "watch"]),
            on(
                &NETWORKING,
                &["servicecidrs/finalizers", "servicecidrs/status"],
                &["patch", "update"],
            ),
            on(&NETWORKING, &["ipaddresses"], READ),
            EVENTS,
        ],
    ),
    role(
        "system:controller:statefulset-controller",
        &[
            on(&CORE, &["pods"], READ),
            on(&APPS, &["statefulsets"], READ),
            on(&APPS, &["statefulsets/finalizers", "statefulsets/status"], UPDATE),
            on(&CORE, &["pods"], &["create", "delete", "patch", "update"]),
            on(
                &APPS,
                &["controllerrevisions"],
                &["create", "delete", "get", "list", "patch", "update", "watch"],
            ),
            on(&CORE, &["persistentvolumeclaims"], &["create", "delete", "get", "patch", "update"]),
            EVENTS,
        ],
    ),
];
