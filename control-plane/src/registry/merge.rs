//! How lists and maps of our kinds merge under a strategic merge patch: the `patchStrategy` and
//! `patchMergeKey` of Kubernetes' API types. What is not named here is merged if it is a map and
//! replaced if it is a list.

/// Fields of one type that merge in a special way, by JSON name.
pub type Fields = [(&'static str, Field)];

/// How a field merges.
#[derive(Clone, Copy)]
pub enum Field {
    /// A struct with special fields of its own.
    Struct(&'static Fields),
    /// A struct of which a patch keeps only the keys that `$retainKeys` names.
    Retain(&'static Fields),
    /// A list of structs that are the same when the key field is; the type of the items.
    List(&'static str, &'static Fields),
    /// As [`Field::List`], and items obey `$retainKeys`.
    ListRetain(&'static str, &'static Fields),
    /// A list of plain values merged as a set.
    Set,
}

impl Field {
    /// The special fields below this one.
    pub fn fields(self) -> &'static Fields {
        match self {
            Self::Struct(fields)
            | Self::Retain(fields)
            | Self::List(_, fields)
            | Self::ListRetain(_, fields) => fields,
            Self::Set => &[],
        }
    }
}

/// The rule for `name` among `fields`.
pub fn field(fields: &'static Fields, name: &str) -> Option<Field> {
    fields.iter().find(|(known, _)| *known == name).map(|(_, field)| *field)
}

const META: Field =
    Field::Struct(&[("finalizers", Field::Set), ("ownerReferences", Field::List("uid", &[]))]);
const CONDITIONS: (&str, Field) = ("conditions", Field::List("type", &[]));

const CONTAINER: &Fields = &[
    ("env", Field::List("name", &[])),
    ("ports", Field::List("containerPort", &[])),
    ("volumeDevices", Field::List("devicePath", &[])),
    ("volumeMounts", Field::List("mountPath", &[])),
];

const POD_SPEC: &Fields = &[
    ("containers", Field::List("name", CONTAINER)),
    ("ephemeralContainers", Field::List("name", CONTAINER)),
    ("hostAliases", Field::List("ip", &[])),
    ("imagePullSecrets", Field::List("name", &[])),
    ("initContainers", Field::List("name", CONTAINER)),
    ("resourceClaims", Field::ListRetain("name", &[])),
    ("schedulingGates", Field::List("name", &[])),
    ("topologySpreadConstraints", Field::List("topologyKey", &[])),
    ("volumes", Field::ListRetain("name", &[])),
];

const TEMPLATE: (&str, Field) =
    ("template", Field::Struct(&[("metadata", META), ("spec", Field::Struct(POD_SPEC))]));

/// Kinds with nothing special below `metadata`, and conditions in the status.
pub const PLAIN: &Fields = &[("metadata", META), ("status", Field::Struct(&[CONDITIONS]))];

/// Pods.
pub const POD: &Fields = &[
    ("metadata", META),
    ("spec", Field::Struct(POD_SPEC)),
    (
        "status",
        Field::Struct(&[
            CONDITIONS,
            ("hostIPs", Field::List("ip", &[])),
            ("podIPs", Field::List("ip", &[])),
            ("resourceClaimStatuses", Field::ListRetain("name", &[])),
        ]),
    ),
];

/// Nodes.
pub const NODE: &Fields = &[
    ("metadata", META),
    ("spec", Field::Struct(&[("podCIDRs", Field::Set)])),
    ("status", Field::Struct(&[("addresses", Field::List("type", &[])), CONDITIONS])),
];

/// Services.
pub const SERVICE: &Fields = &[
    ("metadata", META),
    ("spec", Field::Struct(&[("ports", Field::List("port", &[]))])),
    ("status", Field::Struct(&[CONDITIONS])),
];

/// Deployments.
pub const DEPLOYMENT: &Fields = &[
    ("metadata", META),
    ("spec", Field::Struct(&[("strategy", Field::Retain(&[])), TEMPLATE])),
    ("status", Field::Struct(&[CONDITIONS])),
];

/// ReplicaSets.
pub const REPLICA_SET: &Fields = &[
    ("metadata", META),
    ("spec", Field::Struct(&[TEMPLATE])),
    ("status", Field::Struct(&[CONDITIONS])),
];

/// ServiceAccounts.
pub const SERVICE_ACCOUNT: &Fields = &[
    ("imagePullSecrets", Field::List("name", &[])),
    ("metadata", META),
    ("secrets", Field::List("name", &[])),
];
