//! The objects of the manifests.

use anyhow::Result;
use serde_json::{Value, json};

use super::privileges::{CAPABILITIES, rules};

/// The name of all objects, and the label that finds the pods.
const NAME: &str = "mizzen-agent";
/// The version of the product, and of its image.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Where the agent's metrics are.
const METRICS_PORT: u16 = 10249;
/// Where resolvers answer the clients of other nodes (`dnsPeerPort`).
const DNS_PEER_PORT: u16 = 8053;

/// Stands above the plain manifest.
pub(super) const NOTE: &str = "\
#
# The whole of Mizzen for a cluster: services, pod network and DNS on every node (docs/install.md).
# In the ConfigMap, name the API servers' own addresses (apiServer), and switch off what something
# else does. Import the image on each node (`cargo xtask image`), or name a registry's.
";
/// Stands above the one for metrics.
pub(super) const METRICS_NOTE: &str = "\
#
# For Prometheus with its operator. The agent's metrics are on 127.0.0.1 by default: set
# metricsBindAddress to \"[::]:10249\" in the ConfigMap, and keep strangers from that port.
";

/// Above the Service of cluster DNS.
pub(super) const CLUSTER_DNS_NOTE: &str = "\
#
# Cluster DNS led to the agents: to each node's own by its agent, and to the others' while that is
# away. In a cluster that has CoreDNS, when the agents serve names (`dns: true`):
#   kubectl replace -f deploy/cluster-dns.yaml
# and then take CoreDNS away. `replace`, since `apply` would leave the old selector's labels beside
# these; the Service keeps its addresses. In a new cluster write into it the `clusterIP` that kubelets
# name to pods (`clusterDNS`), and create it.
";

/// A folder of the node that a field of the agent's configuration names, and that its pod has at the
/// same place.
pub(super) struct Folder {
    /// The field.
    pub(super) field: &'static str,
    /// Where it is where nobody says.
    pub(super) default: &'static str,
    /// The volume's name.
    pub(super) volume: &'static str,
}

/// All of these, that with the agent's socket first.
pub(super) const FOLDERS: [Folder; 4] = [
    Folder { field: "stateDir", default: "/run/mizzen", volume: "run" },
    Folder { field: "dataDir", default: "/var/lib/mizzen", volume: "data" },
    Folder { field: "cniConfDir", default: "/etc/cni/net.d", volume: "cni-conf" },
    Folder { field: "cniBinDir", default: "/opt/cni/bin", volume: "cni-bin" },
];

/// What the open places are filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Open {
    /// The defaults.
    Plain,
    /// Words for Helm, in the form that [`super::chart`] turns into its own.
    Chart,
}

/// The chart's values, and with them what the plain manifests have.
pub(super) fn values() -> Value {
    json!({
        "image": {"repository": NAME, "tag": VERSION, "pullPolicy": "IfNotPresent"},
        "config": {
            "apiVersion": "mizzen.dev/v1alpha1",
            "kind": "AgentConfiguration",
            "apiServer": [],
            "services": true,
            "cni": true,
            "dns": true,
        },
        "bpffs": {"path": "/sys/fs/bpf", "mount": false},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "priorityClassName": "system-node-critical",
        // The tables of the packet path count too: up to 84 MB of flows on large nodes. There is no
        // limit, because tables that grow beyond one would fail.
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "tolerations": [{"operator": "Exists"}],
    })
}

impl Open {
    /// The value at a path such as `image.tag`.
    fn value(self, path: &str) -> Value {
        match self {
            Self::Plain => {
                let pointer = format!("/{}", path.replace('.', "/"));
                values().pointer(&pointer).cloned().unwrap_or_default()
            }
            Self::Chart => format!("HELM(.Values.{path})").into(),
        }
    }

    /// Where a folder is.
    fn folder(self, folder: &Folder) -> Value {
        match self {
            Self::Plain => folder.default.into(),
            Self::Chart => {
                format!("HELM(.Values.config.{} {})", folder.field, folder.default).into()
            }
        }
    }

    fn namespace(self) -> Value {
        match self {
            Self::Plain => "kube-system".into(),
            Self::Chart => "HELM(.Release.Namespace)".into(),
        }
    }

    fn image(self) -> Value {
        match self {
            Self::Plain => format!("{NAME}:{VERSION}").into(),
            Self::Chart => "HELMRAW(.Values.image.repository):HELMRAW(.Values.image.tag)".into(),
        }
    }

    /// The agent's configuration as text.
    fn config(self) -> Value {
        match self {
            Self::Plain => CONFIG.into(),
            Self::Chart => "HELMTEXT(.Values.config)".into(),
        }
    }
}

/// The configuration in the plain manifest: what the chart has as `config`.
const CONFIG: &str = "\
apiVersion: mizzen.dev/v1alpha1
kind: AgentConfiguration
# The API servers' own addresses, as https://192.0.2.1:6443: needed while services are on, for a
# Service's address can't be reached before the agent serves. Or have kube-proxy's configuration
# name them, where kubeadm made the cluster:
#   kubeProxyConfig: /var/lib/kube-proxy/config.conf
apiServer: []
# What the agent does. Everything else: docs/configuration.md.
services: true
cni: true
dns: true
";

fn metadata(open: Open, namespaced: bool) -> Value {
    let mut metadata = json!({"name": NAME, "labels": labels()});
    if namespaced {
        metadata["namespace"] = open.namespace();
    }
    metadata
}

fn labels() -> Value {
    json!({"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "mizzen"})
}

fn selector() -> Value {
    json!({"app.kubernetes.io/name": NAME})
}

/// The agent and what it needs.
pub(super) fn agent(open: Open) -> Vec<Value> {
    let role =
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAME});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(open, true)}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": metadata(open, false), "rules": rules(),
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": metadata(open, false), "roleRef": role,
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": open.namespace()}],
        }),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(open, true),
            "data": {"agent.yaml": open.config()},
        }),
        daemon_set(open),
    ]
}

fn daemon_set(open: Open) -> Value {
    let mut of_pods = json!({"labels": labels()});
    if open == Open::Chart {
        // Pods are exchanged when it changes.
        of_pods["annotations"] = json!({"checksum/config": "HELMSUM(.Values.config)"});
    }
    json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata(open, true),
        "spec": {
            "selector": {"matchLabels": selector()},
            // The new agent takes over from the old one, which then leaves.
            "updateStrategy": {
                "type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {"metadata": of_pods, "spec": pod(open)},
        },
    })
}

fn pod(open: Open) -> Value {
    let mut pod = json!({
        "serviceAccountName": NAME,
        "hostNetwork": true,
        // By the processes of pods it finds their network namespaces and sockets.
        "hostPID": true,
        "dnsPolicy": "Default",
        "priorityClassName": open.value("priorityClassName"),
        "nodeSelector": open.value("nodeSelector"),
        "tolerations": open.value("tolerations"),
        // The longest dnsLameduckSeconds, and five seconds for each of the three stages.
        "terminationGracePeriodSeconds": 75,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container(open)],
        "volumes": volumes(open),
    });
    if open == Open::Chart {
        // Under a condition: see the chart.
        pod["initContainers"] = json!([bpffs_mounter(open)]);
    }
    pod
}

/// For nodes on which nothing mounts the bpf file system. Only what a privileged container mounts is
/// the node's too.
fn bpffs_mounter(open: Open) -> Value {
    let path = open.value("bpffs.path");
    json!({
        "name": "mount-bpffs",
        "image": open.image(),
        "imagePullPolicy": open.value("image.pullPolicy"),
        "args": ["mount-bpffs", path],
        "securityContext": {"privileged": true, "runAsUser": 0, "readOnlyRootFilesystem": true},
        "volumeMounts": [
            {"name": "bpffs", "mountPath": path, "mountPropagation": "Bidirectional"},
        ],
    })
}

fn container(open: Open) -> Value {
    let state_dir = open.folder(&FOLDERS[0]);
    let probe =
        |verb: &str| json!({"command": ["/usr/bin/mizzen-agent", verb, "--state-dir", state_dir]});
    json!({
        "name": "agent",
        "image": open.image(),
        "imagePullPolicy": open.value("image.pullPolicy"),
        "args": ["run", "--config", "/etc/mizzen/agent.yaml"],
        "env": [
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            // For `kubectl exec … -- mizzen status`.
            {"name": "MIZZEN_STATE_DIR", "value": state_dir},
        ],
        "resources": open.value("resources"),
        "securityContext": security(),
        "readinessProbe": {"exec": probe("ready"), "periodSeconds": 5, "timeoutSeconds": 6},
        // Not at port 10256, which is kube-proxy's while it runs.
        "livenessProbe": {
            "exec": probe("live"),
            "initialDelaySeconds": 60, "periodSeconds": 20, "timeoutSeconds": 6,
            "failureThreshold": 3,
        },
        "volumeMounts": mounts(open),
    })
}

fn mounts(open: Open) -> Vec<Value> {
    let mounted = |name: &str, path: Value| json!({"name": name, "mountPath": path});
    let follows = |mut mount: Value| {
        mount["mountPropagation"] = "HostToContainer".into();
        mount
    };
    let read_only = |mut mount: Value| {
        mount["readOnly"] = true.into();
        mount
    };
    let mut mounts = vec![
        read_only(mounted("config", "/etc/mizzen".into())),
        read_only(mounted("kube-proxy", "/var/lib/kube-proxy".into())),
        read_only(mounted("coredns", "/etc/coredns".into())),
        follows(mounted("bpffs", open.value("bpffs.path"))),
        read_only(follows(mounted("cgroup", "/sys/fs/cgroup".into()))),
        follows(mounted("netns", "/run/netns".into())),
    ];
    mounts.extend(FOLDERS.iter().map(|folder| mounted(folder.volume, open.folder(folder))));
    mounts.push(mounted("tmp", "/tmp".into()));
    mounts
}

fn volumes(open: Open) -> Vec<Value> {
    let of_node = |name: &str, path: Value, kind: &str| json!({"name": name, "hostPath": {"path": path, "type": kind}});
    let mut volumes = vec![
        json!({"name": "config", "configMap": {"name": NAME}}),
        kube_proxy_configuration(),
        // With `corefile: /etc/coredns/Corefile`, CoreDNS's own goes on to hold.
        json!({"name": "coredns", "configMap": {"name": "coredns", "optional": true}}),
        of_node("bpffs", open.value("bpffs.path"), "Directory"),
        of_node("cgroup", "/sys/fs/cgroup".into(), "Directory"),
        of_node("netns", "/run/netns".into(), "DirectoryOrCreate"),
    ];
    let folders = FOLDERS.iter();
    volumes.extend(
        folders.map(|folder| of_node(folder.volume, open.folder(folder), "DirectoryOrCreate")),
    );
    volumes.push(json!({"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}));
    volumes
}

/// kube-proxy's configuration, where there is one: `config.conf` of kubeadm and kind, `config` of EKS.
fn kube_proxy_configuration() -> Value {
    let of = |name: &str| json!({"configMap": {"name": name, "optional": true}});
    let sources = [of("kube-proxy"), of("kube-proxy-config")];
    json!({"name": "kube-proxy", "projected": {"sources": sources}})
}

/// See docs/privileges.md. `allowPrivilegeEscalation: false` can't stand beside SYS_ADMIN.
fn security() -> Value {
    let capabilities: Vec<_> = CAPABILITIES.iter().map(|capability| capability.name).collect();
    json!({
        "runAsUser": 0,
        "readOnlyRootFilesystem": true,
        "appArmorProfile": {"type": "Unconfined"},
        "seLinuxOptions": {"type": "spc_t", "level": "s0"},
        "capabilities": {"drop": ["ALL"], "add": capabilities},
    })
}

/// The Service of cluster DNS, with the agents' resolvers behind it: each answers the clients of
/// other nodes at its peer port.
pub(super) fn cluster_dns() -> Value {
    let port = |name, protocol| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": DNS_PEER_PORT});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": {
                "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
            },
        },
        "spec": {
            "selector": selector(),
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    })
}

/// Where Prometheus finds the agents.
pub(super) fn metrics(open: Open) -> Vec<Value> {
    vec![
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata(open, true),
            "spec": {
                "clusterIP": "None", "selector": selector(),
                "ports": [{"name": "metrics", "port": METRICS_PORT, "targetPort": METRICS_PORT}],
            },
        }),
        json!({
            "apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor",
            "metadata": metadata(open, true),
            "spec": {
                "selector": {"matchLabels": selector()},
                "endpoints": [
                    {"port": "metrics", "path": "/metrics", "interval": "30s"},
                    {"port": "metrics", "path": "/metrics/services", "interval": "60s"},
                ],
            },
        }),
    ]
}

/// The documents as YAML.
pub(super) fn yaml(documents: &[Value]) -> Result<String> {
    let texts = documents.iter().map(serde_yaml_ng::to_string);
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    Ok(texts.iter().flat_map(|text| ["---\n", text]).collect())
}
