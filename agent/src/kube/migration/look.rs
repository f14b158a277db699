//! What the API server tells of kube-proxy, of CoreDNS, and of how far each node is. Nothing is
//! changed by looking.

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Node, Pod, PodSpec, Service},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::{Api, Client, api::ListParams};
use serde::Serialize;

use super::{BEFORE, LABEL, REPORT, Report, affinity};
use crate::{config, model::node::KubeProxy};

/// The name of the program, of its container's image, and of the label of its pods.
const NAME: &str = "kube-proxy";
/// Where kubeadm keeps kube-proxy, CoreDNS and the Service of cluster DNS.
const NAMESPACE: &str = "kube-system";
/// The label and annotation of windows' nodes, on which no Mizzen runs.
const OS: &str = "kubernetes.io/os";

/// Why it can't be seen what there is.
#[derive(Debug, thiserror::Error)]
#[error(
    "list {what} at the API server, which takes a user who may list nodes, pods, services, \
     configmaps and daemonsets"
)]
pub struct LookError {
    what: &'static str,
    #[source]
    source: Box<kube::Error>,
}

/// kube-proxy, as a DaemonSet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// The DaemonSet's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The ConfigMap with its configuration.
    pub config_map: Option<String>,
    /// `iptables`, `nftables` or `ipvs`; empty where its configuration does not say.
    pub mode: String,
    /// Fields of its configuration that Mizzen does not follow, and why; or why it can't be read.
    pub without_effect: Vec<String>,
    /// Whether it is restricted to nodes where it is wanted.
    pub restricted: bool,
    /// Whether its pods are as its template says.
    pub rolled_out: bool,
}

/// Cluster DNS as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// The addresses of the Service `kube-dns`.
    pub addresses: Vec<String>,
    /// Pods behind it that are not Mizzen's.
    pub pods: usize,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSeen {
    /// Its name.
    pub name: String,
    /// Its label.
    #[serde(serialize_with = "phase")]
    pub phase: Option<KubeProxy>,
    /// What its agent says.
    pub report: Option<Report>,
    /// Pods of kube-proxy's DaemonSet on it.
    pub proxy_pods: usize,
    /// How many of these are ready and not about to end.
    pub proxy_ready: usize,
}

#[expect(clippy::ref_option, clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn phase<S: serde::Serializer>(of: &Option<KubeProxy>, to: S) -> Result<S::Ok, S::Error> {
    of.map(KubeProxy::value).serialize(to)
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
    /// kube-proxy's DaemonSets: one, as a rule.
    pub proxies: Vec<Proxy>,
    /// Pods of kube-proxy that no DaemonSet made, such as kops' static ones.
    pub loose: Vec<String>,
    /// Nodes that Mizzen can run on, by name.
    pub nodes: Vec<NodeSeen>,
    /// Cluster DNS.
    pub dns: Option<Dns>,
    /// When it was looked, in seconds after 1970.
    #[serde(skip)]
    pub now_s: u64,
}

impl Seen {
    /// Looks.
    pub async fn now(client: &Client) -> Result<Self, LookError> {
        let sets: Vec<DaemonSet> = list(client, "daemonsets", "").await?;
        let sets: Vec<_> = sets.into_iter().filter(is_proxy).collect();
        let labelled = format!("k8s-app={NAME}");
        let mut pods: Vec<Pod> = list(client, "pods", &labelled).await?;
        let loose = pods.iter().filter(|pod| !is_daemon(&pod.metadata));
        let loose = loose.map(|pod| name(&pod.metadata)).collect();
        pods.retain(|pod| is_daemon(&pod.metadata));
        let mut proxies = Vec::new();
        for set in &sets {
            let selector = set.spec.as_ref().map(|spec| selector(&spec.selector));
            let selector = selector.filter(|found| *found != labelled);
            if let Some(other) = selector {
                pods.extend(list::<Pod>(client, "pods", &other).await?);
            }
            proxies.push(proxy(client, set).await?);
        }
        let nodes: Vec<Node> = list(client, "nodes", "").await?;
        let nodes = nodes.iter().filter(|node| !is_windows(node));
        let mut nodes: Vec<_> = nodes.map(|node| node_seen(node, &pods)).collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self { proxies, loose, nodes, dns: dns(client).await?, now_s: super::now_s() })
    }

    /// kube-proxy, where it is clear which it is.
    pub fn proxy(&self) -> Option<&Proxy> {
        if let [proxy] = &self.proxies[..] { Some(proxy) } else { None }
    }
}

/// All objects of a kind with these labels.
async fn list<K>(client: &Client, what: &'static str, labels: &str) -> Result<Vec<K>, LookError>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let listed = Api::<K>::all(client.clone()).list(&ListParams::default().labels(labels)).await;
    let listed = listed.map_err(|source| LookError { what, source: Box::new(source) })?;
    Ok(listed.items)
}

fn name(of: &ObjectMeta) -> String {
    of.name.clone().unwrap_or_default()
}

/// Labels that have to be so, as a list's parameter.
fn selector(of: &LabelSelector) -> String {
    let labels = of.match_labels.iter().flatten();
    labels.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// By the program or the image of a container, on nodes of Linux.
fn is_proxy(set: &DaemonSet) -> bool {
    let Some(spec) = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()) else {
        return false;
    };
    let windows = spec.node_selector.iter().flatten().any(|(key, os)| key == OS && os == "windows");
    let last = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let runs = spec.containers.iter().any(|container| {
        let image = container.image.as_deref().map(last).unwrap_or_default();
        let program = container.command.iter().flatten().next().map(|path| last(path));
        image.split([':', '@']).next() == Some(NAME) || program.as_deref() == Some(NAME)
    });
    runs && !windows
}

fn is_daemon(of: &ObjectMeta) -> bool {
    of.owner_references.iter().flatten().any(|owner| owner.kind == "DaemonSet")
}

fn is_windows(node: &Node) -> bool {
    node.metadata.labels.iter().flatten().any(|(key, os)| key == OS && os == "windows")
}

async fn proxy(client: &Client, set: &DaemonSet) -> Result<Proxy, LookError> {
    let namespace = set.metadata.namespace.clone().unwrap_or_default();
    let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let maps: Vec<String> = pod.map(mounted).unwrap_or_default();
    let mut found = Proxy {
        name: name(&set.metadata),
        config_map: None,
        mode: String::new(),
        without_effect: Vec::new(),
        restricted: is_restricted(set),
        rolled_out: is_rolled_out(set),
        namespace,
    };
    let api = Api::<ConfigMap>::namespaced(client.clone(), &found.namespace);
    for map in maps {
        let read = api.get_opt(&map).await;
        let read =
            read.map_err(|source| LookError { what: "configmaps", source: Box::new(source) })?;
        let data = read.and_then(|map| map.data).unwrap_or_default();
        // Its key is `config.conf` by kubeadm and kind, `config` on EKS, and others elsewhere.
        let Some(text) = data.values().find(|text| config::is_kube_proxys(text)) else { continue };
        found.config_map = Some(map);
        found.mode = mode(text);
        found.without_effect = match config::kube_proxy_notes(text) {
            Ok(notes) => notes.iter().map(|note| format!("{}: {}", note.field, note.why)).collect(),
            Err(error) => vec![format!("it can't be read: {error}")],
        };
    }
    Ok(found)
}

/// The ConfigMaps that a pod mounts.
fn mounted(pod: &PodSpec) -> Vec<String> {
    let maps = pod.volumes.iter().flatten().filter_map(|volume| volume.config_map.as_ref());
    maps.map(|map| map.name.clone()).collect()
}

/// What a configuration says of the mode.
fn mode(text: &str) -> String {
    let read: Result<serde_json::Value, _> = serde_yaml_ng::from_str(text);
    read.ok().and_then(|config| Some(config["mode"].as_str()?.to_owned())).unwrap_or_default()
}

/// Whether it runs where it is wanted alone, and knows what it was before.
fn is_restricted(set: &DaemonSet) -> bool {
    let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let affinity = pod.and_then(|pod| serde_json::to_value(&pod.affinity).ok());
    set.metadata.annotations.iter().flatten().any(|(key, _)| key == BEFORE)
        && affinity.is_some_and(|affinity| affinity::is_restricted(&affinity))
}

fn is_rolled_out(set: &DaemonSet) -> bool {
    let Some(status) = &set.status else { return false };
    let wanted = status.desired_number_scheduled;
    status.observed_generation == set.metadata.generation
        && status.updated_number_scheduled.unwrap_or(0) == wanted
        && status.number_available.unwrap_or(0) == wanted
}

fn node_seen(node: &Node, pods: &[Pod]) -> NodeSeen {
    let name = name(&node.metadata);
    let label = node.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL));
    let report = node.metadata.annotations.as_ref().and_then(|notes| notes.get(REPORT));
    let here = pods
        .iter()
        .filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&name));
    NodeSeen {
        phase: label.and_then(|value| KubeProxy::of_value(value)),
        report: report.and_then(|text| serde_json::from_str(text).ok()),
        proxy_pods: here.clone().count(),
        proxy_ready: here.filter(|pod| is_ready(pod)).count(),
        name,
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    pod.metadata.deletion_timestamp.is_none() && ready.any(|condition| condition.status == "True")
}

/// By the Service that kubeadm and others name so.
async fn dns(client: &Client) -> Result<Option<Dns>, LookError> {
    let services = Api::<Service>::namespaced(client.clone(), NAMESPACE);
    let service = services.get_opt("kube-dns").await;
    let service =
        service.map_err(|source| LookError { what: "services", source: Box::new(source) })?;
    let Some(spec) = service.and_then(|service| service.spec) else { return Ok(None) };
    let pods: Vec<Pod> = list(client, "pods", "k8s-app=kube-dns").await?;
    Ok(Some(Dns { addresses: spec.cluster_ips.unwrap_or_default(), pods: pods.len() }))
}
