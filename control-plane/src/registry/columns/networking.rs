//! Columns of ingresses, policies, endpoints and other kinds of the cluster's edges.

use serde_json::Value;

use super::{AGE, Column, NAME, NONE, Object, age, labels, or_none, text};
use crate::api::clock;
use crate::registry::selector::Selector;

/// Endpoints.
pub const ENDPOINTS: &[Column] = &[NAME, text("Endpoints", |one, _| endpoints(one).into()), AGE];

/// Endpoints that a cell shows.
const SHOWN: usize = 3;

fn endpoints(object: &Object) -> String {
    let mut all = Vec::new();
    for subset in object.list("/subsets") {
        let addresses = subset["addresses"].as_array().map_or(&[][..], Vec::as_slice);
        let ips = || addresses.iter().filter_map(|one| one["ip"].as_str());
        let ports = subset["ports"].as_array().map_or(&[][..], Vec::as_slice);
        if ports.is_empty() {
            all.extend(ips().map(str::to_owned));
        }
        for port in ports {
            let port = &port["port"];
            all.extend(ips().map(|ip| {
                if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
            }));
        }
    }
    if all.is_empty() {
        return NONE.to_owned();
    }
    match all.len().saturating_sub(SHOWN) {
        0 => all.join(","),
        more => format!("{} + {more} more...", all[..SHOWN].join(",")),
    }
}

/// Ingresses.
pub const INGRESS: &[Column] = &[
    NAME,
    text("Class", |ingress, _| {
        let class = [
            ingress.text("/spec/ingressClassName"),
            ingress.text("/metadata/annotations/kubernetes.io~1ingress.class"),
        ];
        or_none(class.into_iter().find(|class| !class.is_empty()).unwrap_or_default())
    }),
    text("Hosts", |ingress, _| hosts(ingress).into()),
    text("Address", |ingress, _| {
        let points = ingress.list("/status/loadBalancer/ingress").iter();
        let points = points.filter_map(|one| one["ip"].as_str().or(one["hostname"].as_str()));
        points.collect::<Vec<_>>().join(",").into()
    }),
    text("Ports", |ingress, _| {
        if ingress.list("/spec/tls").is_empty() { "80".into() } else { "80, 443".into() }
    }),
    AGE,
];

fn hosts(ingress: &Object) -> String {
    let hosts = ingress.list("/spec/rules").iter().filter_map(|rule| rule["host"].as_str());
    let hosts: Vec<&str> = hosts.filter(|host| !host.is_empty()).collect();
    match hosts.len() {
        0 => "*".to_owned(),
        1..=SHOWN => hosts.join(","),
        all => format!("{} + {} more...", hosts[..SHOWN].join(","), all - SHOWN),
    }
}

/// IngressClasses.
pub const INGRESS_CLASS: &[Column] = &[
    NAME,
    text("Controller", |class, _| class.text("/spec/controller").into()),
    text("Parameters", |class, _| {
        let of = |field: &str| class.text(&format!("/spec/parameters/{field}")).to_owned();
        match (of("kind"), of("apiGroup")) {
            (kind, _) if kind.is_empty() => NONE.into(),
            (kind, group) if group.is_empty() => format!("{kind}/{}", of("name")).into(),
            (kind, group) => format!("{kind}.{group}/{}", of("name")).into(),
        }
    }),
    AGE,
];

/// IPAddresses.
pub const IP_ADDRESS: &[Column] = &[
    NAME,
    text("ParentRef", |address, _| {
        let of = |field: &str| address.text(&format!("/spec/parentRef/{field}")).to_owned();
        let parts = [of("group"), of("resource"), of("namespace"), of("name")];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/").into()
    }),
    AGE,
];

/// NetworkPolicies.
pub const NETWORK_POLICY: &[Column] = &[
    NAME,
    text("Pod-Selector", |policy, _| {
        let selector =
            policy.at("/spec/podSelector").and_then(|one| Selector::from_object(one).ok());
        or_none(&selector.map(|one| one.to_string()).unwrap_or_default())
    }),
    AGE,
];

/// ResourceQuotas.
pub const RESOURCE_QUOTA: &[Column] = &[
    NAME,
    text("Request", |quota, _| used(quota, false).into()),
    text("Limit", |quota, _| used(quota, true).into()),
    AGE,
];

/// `pods: 1/10, services: 0/5`, of limits or of everything else.
fn used(quota: &Object, limits: bool) -> String {
    let hard = quota.at("/status/hard").and_then(Value::as_object);
    let one = |(name, hard): (&String, &Value)| {
        let used = quota.at("/status/used").and_then(|used| used[name].as_str()).unwrap_or("0");
        format!("{name}: {used}/{}", hard.as_str().unwrap_or_default())
    };
    let wanted = |(name, _): &(&String, &Value)| {
        (name.starts_with("limits.") || name.contains(".limits.")) == limits
    };
    hard.into_iter().flatten().filter(wanted).map(one).collect::<Vec<_>>().join(", ")
}

/// RuntimeClasses.
pub const RUNTIME_CLASS: &[Column] =
    &[NAME, text("Handler", |class, _| class.text("/handler").into()), AGE];

/// CertificateSigningRequests.
pub const CERTIFICATE_SIGNING_REQUEST: &[Column] = &[
    NAME,
    AGE,
    text("SignerName", |request, _| request.text("/spec/signerName").into()),
    text("Requestor", |request, _| request.text("/spec/username").into()),
    text("RequestedDuration", |request, _| match request.integer("/spec/expirationSeconds") {
        Some(seconds) => super::duration(seconds).into(),
        None => NONE.into(),
    }),
    text("Condition", |request, _| condition(request).into()),
];

fn condition(request: &Object) -> String {
    let has = |kind: &str| request.list("/status/conditions").iter().any(|one| one["type"] == kind);
    let mut state = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state.push_str(",Failed");
    }
    if !request.text("/status/certificate").is_empty() {
        state.push_str(",Issued");
    }
    state
}

/// ControllerRevisions.
pub const CONTROLLER_REVISION: &[Column] = &[
    NAME,
    text("Controller", |revision, _| {
        let owners = revision.list("/metadata/ownerReferences").iter();
        let owner = owners.into_iter().find(|owner| owner["controller"] == true);
        owner.map_or_else(
            || NONE.into(),
            |owner| {
                let text = |field: &str| owner[field].as_str().unwrap_or_default();
                let group = text("apiVersion").split_once('/').map_or("", |(group, _)| group);
                let kind = text("kind").to_lowercase();
                match group {
                    "" => format!("{kind}/{}", text("name")).into(),
                    group => format!("{kind}.{group}/{}", text("name")).into(),
                }
            },
        )
    }),
    super::number("Revision", |revision, _| revision.integer("/revision").unwrap_or(0).into()),
    AGE,
];

/// PodTemplates.
pub const POD_TEMPLATE: &[Column] = &[
    NAME,
    text("Containers", |one, _| super::workload::containers(one, "/template", "name")),
    text("Images", |one, _| super::workload::containers(one, "/template", "image")),
    text("Pod Labels", |one, _| {
        labels(one.at("/template/metadata/labels").and_then(Value::as_object))
    }),
];

/// Kinds of which only the name and the time of creation are printed.
pub const NAME_AND_CREATED: &[Column] = &[
    NAME,
    Column {
        name: "Created At",
        kind: "date",
        priority: 0,
        cell: |object, _| {
            let created = object.text("/metadata/creationTimestamp");
            clock::parse(created).map_or_else(|| age(created, 0).into(), |_| created.into())
        },
    },
];
