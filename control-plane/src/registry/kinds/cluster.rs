//! Rows of the groups networking.k8s.io, storage.k8s.io, node.k8s.io, certificates.k8s.io and
//! events.k8s.io.

use super::super::columns;
use super::super::rules::{Default, Fill, Rule, Test};
use super::super::{Kind, Scope, Subresource};
use super::super::{certificate, event, networking, storage};
use super::NAMESPACED;

/// A kind of the cluster.
const CLUSTER: Kind = Kind { scope: Scope::Cluster, ..NAMESPACED };
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

pub(super) static KINDS: &[Kind] = &[
    Kind {
        group: "certificates.k8s.io",
        kind: "CertificateSigningRequest",
        plural: "certificatesigningrequests",
        singular: "certificatesigningrequest",
        short_names: &["csr"],
        subresources: &[Subresource::Approval, Subresource::Status],
        selectable: &[("spec.signerName", "/spec/signerName", "")],
        rules: &[Rule("spec.usages", Test::Required(""))],
        columns: columns::CERTIFICATE_SIGNING_REQUEST,
        strategy: &certificate::Requests,
        ..CLUSTER
    },
    Kind {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        create_on_update: true,
        selectable: &[
            ("reason", "/reason", ""),
            ("regarding.kind", "/involvedObject/kind", ""),
            ("regarding.namespace", "/involvedObject/namespace", ""),
            ("regarding.name", "/involvedObject/name", ""),
            ("regarding.uid", "/involvedObject/uid", ""),
            ("regarding.apiVersion", "/involvedObject/apiVersion", ""),
            ("regarding.resourceVersion", "/involvedObject/resourceVersion", ""),
            ("regarding.fieldPath", "/involvedObject/fieldPath", ""),
            ("reportingController", "/reportingComponent", ""),
            ("type", "/type", ""),
        ],
        columns: columns::EVENT,
        view: Some(&event::VIEW),
        ..NAMESPACED
    },
    Kind {
        group: "networking.k8s.io",
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        subresources: &[Subresource::Status],
        counts_generations: true,
        rules: networking::INGRESS_RULES,
        columns: columns::INGRESS,
        strategy: &networking::Ingresses,
        ..NAMESPACED
    },
    Kind {
        group: "networking.k8s.io",
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        counts_generations: true,
        rules: &[
            Rule("spec.controller", Test::Required("")),
            Rule("spec.controller", Test::Check(networking::controller_fault)),
            Rule("spec.parameters.scope", Test::OneOf(&["Cluster", "Namespace"])),
        ],
        defaults: &[],
        immutable: &["/spec/controller"],
        columns: columns::INGRESS_CLASS,
        strategy: &networking::Classes,
        ..CLUSTER
    },
    Kind {
        group: "networking.k8s.io",
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        rules: &[
            Rule("metadata.name", Test::Check(networking::address_name_fault)),
            Rule("spec.parentRef", Test::Required("")),
            Rule("spec.parentRef.group", Test::Name(super::super::NameRule::Subdomain)),
            Rule("spec.parentRef.resource", Test::Required("")),
            Rule("spec.parentRef.name", Test::Required("")),
        ],
        immutable: &["/spec/parentRef"],
        names: super::super::NameRule::Any,
        columns: columns::IP_ADDRESS,
        strategy: &networking::Addresses,
        ..CLUSTER
    },
    Kind {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        counts_generations: true,
        rules: &[
            Rule("spec.podSelector", Test::Selector),
            Rule("spec.policyTypes[*]", Test::OneOf(&["Egress", "Ingress"])),
            Rule("spec.ingress[*].ports[*].protocol", Test::OneOf(PROTOCOLS)),
            Rule("spec.egress[*].ports[*].protocol", Test::OneOf(PROTOCOLS)),
            Rule("spec.ingress[*].from[*].podSelector", Test::Selector),
            Rule("spec.ingress[*].from[*].namespaceSelector", Test::Selector),
            Rule("spec.egress[*].to[*].podSelector", Test::Selector),
            Rule("spec.egress[*].to[*].namespaceSelector", Test::Selector),
        ],
        defaults: &[
            Default("spec.ingress[*].ports[*].protocol", Fill::Text("TCP")),
            Default("spec.egress[*].ports[*].protocol", Fill::Text("TCP")),
        ],
        columns: columns::NETWORK_POLICY,
        strategy: &networking::Policies,
        ..NAMESPACED
    },
    Kind {
        group: "node.k8s.io",
        kind: "RuntimeClass",
        plural: "runtimeclasses",
        singular: "runtimeclass",
        rules: &[
            Rule("handler", Test::Required("")),
            Rule("handler", Test::Name(super::super::NameRule::Label)),
            Rule("overhead.podFixed{*}", Test::Quantity),
        ],
        immutable: &["/handler"],
        columns: columns::RUNTIME_CLASS,
        ..CLUSTER
    },
    Kind {
        group: "storage.k8s.io",
        kind: "CSIDriver",
        plural: "csidrivers",
        singular: "csidriver",
        returns_deleted: true,
        rules: &[
            Rule("spec.volumeLifecycleModes[*]", Test::OneOf(&["Ephemeral", "Persistent"])),
            Rule("spec.fsGroupPolicy", Test::OneOf(&["File", "None", "ReadWriteOnceWithFSType"])),
        ],
        defaults: &[
            Default("spec.attachRequired", Fill::Flag(true)),
            Default("spec.podInfoOnMount", Fill::Flag(false)),
            Default("spec.requiresRepublish", Fill::Flag(false)),
            Default("spec.storageCapacity", Fill::Flag(false)),
            Default("spec.seLinuxMount", Fill::Flag(false)),
            Default("spec.fsGroupPolicy", Fill::Text("ReadWriteOnceWithFSType")),
            Default("spec.volumeLifecycleModes", Fill::One("Persistent")),
        ],
        immutable: &["/spec/attachRequired", "/spec/volumeLifecycleModes"],
        columns: columns::CSI_DRIVER,
        ..CLUSTER
    },
    Kind {
        group: "storage.k8s.io",
        kind: "CSINode",
        plural: "csinodes",
        singular: "csinode",
        returns_deleted: true,
        rules: &[
            Rule("spec.drivers[*].name", Test::Required("")),
            Rule("spec.drivers[*].nodeID", Test::Required("")),
            Rule("spec.drivers[*].allocatable.count", Test::NotNegative),
        ],
        columns: columns::CSI_NODE,
        ..CLUSTER
    },
    Kind {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        returns_deleted: true,
        rules: &[
            Rule("provisioner", Test::Required("")),
            Rule("reclaimPolicy", Test::OneOf(&["Delete", "Retain"])),
            Rule("volumeBindingMode", Test::OneOf(&["Immediate", "WaitForFirstConsumer"])),
        ],
        defaults: &[
            Default("reclaimPolicy", Fill::Text("Delete")),
            Default("volumeBindingMode", Fill::Text("Immediate")),
        ],
        immutable: &["/volumeBindingMode"],
        columns: columns::STORAGE_CLASS,
        strategy: &storage::Classes,
        ..CLUSTER
    },
    Kind {
        group: "storage.k8s.io",
        kind: "VolumeAttachment",
        plural: "volumeattachments",
        singular: "volumeattachment",
        subresources: &[Subresource::Status],
        returns_deleted: true,
        rules: &[
            Rule("spec.attacher", Test::Required("")),
            Rule("spec.nodeName", Test::Required("")),
            Rule(
                "spec.source",
                Test::Required(
                    "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
                ),
            ),
        ],
        immutable: &["/spec"],
        columns: columns::VOLUME_ATTACHMENT,
        strategy: &storage::Attachments,
        ..CLUSTER
    },
    Kind {
        group: "storage.k8s.io",
        kind: "VolumeAttributesClass",
        plural: "volumeattributesclasses",
        singular: "volumeattributesclass",
        short_names: &["vac"],
        returns_deleted: true,
        rules: &[
            Rule("driverName", Test::Required("")),
            Rule("parameters", Test::Required("must contain at least one key/value pair")),
        ],
        immutable: &["/driverName", "/parameters"],
        columns: columns::VOLUME_ATTRIBUTES_CLASS,
        ..CLUSTER
    },
];
