//! What the API server tells of kube-proxy, of CoreDNS, and of how far each node is. Nothing is
//! changed by looking.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Node, Pod, PodSpec, Service},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::ListParams};
use serde::Serialize;

use super::{
    BEFORE, LABEL, NAMES_ANSWER, NAMES_ASKED, REPORT, Report, affinity,
    core_dns::{self, CoreDns},
    direction::Direction,
    names::Answer,
};
use crate::{
    config,
    kube::{client::may_pass, node_condition},
    model::node::KubeProxy,
};

/// The name of the program, of its container's image, and of the label of its pods.
const NAME: &str = "kube-proxy";
/// Where kubeadm keeps kube-proxy, CoreDNS and the Service of cluster DNS.
const NAMESPACE: &str = "kube-system";
/// A label of the agents' pods, by which deploy/cluster-dns.yaml finds them.
const AGENTS: (&str, &str) = ("app.kubernetes.io/name", "mizzen-agent");
/// The label and annotation of windows' nodes, on which no Mizzen runs.
const OS: &str = "kubernetes.io/os";
/// Labels of nodes on which no DaemonSet of Linux runs: Windows, virtual kubelets, EKS Fargate.
const NO_DAEMONS: [(&str, &str); 3] =
    [(OS, "windows"), ("type", "virtual-kubelet"), ("eks.amazonaws.com/compute-type", "fargate")];

/// Why it can't be seen what there is.
#[derive(Debug, thiserror::Error)]
#[error(
    "read {what} at the API server, which takes a user who may get and list nodes, pods, services, \
     configmaps and daemonsets"
)]
pub struct LookError {
    what: &'static str,
    #[source]
    source: Box<kube::Error>,
}

impl LookError {
    fn of(what: &'static str) -> impl Fn(kube::Error) -> Self {
        move |source| Self { what, source: Box::new(source) }
    }

    /// Whether the same may go well a moment later.
    pub fn may_pass(&self) -> bool {
        may_pass(&self.source)
    }
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
    /// Whether its controller goes by its template as it is. What it does of it may take for ever:
    /// nodes are not ready, or pods are exchanged when somebody deletes them (`OnDelete`).
    pub observed: bool,
    /// Which way a run says that it leads the cluster.
    pub direction: Option<Direction>,
    /// Which object it is.
    #[serde(skip)]
    pub uid: String,
}

/// Cluster DNS as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dns {
    /// The addresses of the Service `kube-dns`.
    pub addresses: Vec<String>,
    /// Pods behind it that are not Mizzen's.
    pub pods: usize,
    /// Whether the Service leads to CoreDNS, by the label of its pods, and not to the agents.
    pub by_core_dns: bool,
    /// Whether it leads to the agents' pods, and one of them is ready.
    pub by_agents: bool,
}

impl Dns {
    /// The addresses at which pods ask.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter_map(|text| text.parse().ok())
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeSeen {
    /// Its name.
    pub name: String,
    /// Whether its kubelet says that it is; nobody there does anything else.
    pub ready: bool,
    /// Its label.
    #[serde(serialize_with = "phase")]
    pub phase: Option<KubeProxy>,
    /// What its agent says.
    pub report: Option<Report>,
    /// Pods of kube-proxy's DaemonSet on it.
    pub proxy_pods: usize,
    /// How many of these are ready and not about to end.
    pub proxy_ready: usize,
    /// Whether Mizzen connects its pods.
    pub connects_pods: bool,
    /// The number by which its agent is asked whether it answers names.
    pub names_asked: Option<u64>,
    /// What that answers.
    pub names_answer: Option<Answer>,
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
    /// CoreDNS's Deployments, where they are to go or to come back.
    pub core_dns: Option<Vec<CoreDns>>,
    /// When it was looked, in seconds after 1970.
    #[serde(skip)]
    pub now_s: u64,
}

impl Seen {
    /// Looks at all of it; at CoreDNS's Deployments where that is asked for.
    pub async fn now(client: &Client, with_core_dns: bool) -> Result<Self, LookError> {
        let sets: Vec<DaemonSet> = list(client, "daemonsets", &ListParams::default()).await?;
        let sets: Vec<_> = sets.into_iter().filter(is_proxy).collect();
        let labelled = ListParams::default().labels(&format!("k8s-app={NAME}"));
        let loose: Vec<Pod> = list(client, "pods", &labelled).await?;
        let loose = loose.iter().filter(|pod| !is_daemon(&pod.metadata));
        let loose = loose.map(|pod| name(&pod.metadata)).collect();
        let (mut proxies, mut pods) = (Vec::new(), Vec::new());
        for set in &sets {
            let proxy = proxy(client, set).await?;
            pods.extend(pods_of(client, &proxy, &ListParams::default()).await?);
            proxies.push(proxy);
        }
        let nodes: Vec<Node> = list(client, "nodes", &ListParams::default()).await?;
        let nodes = nodes.iter().filter(|node| runs_daemons(node));
        let mut nodes: Vec<_> = nodes.map(|node| node_seen(node, &pods)).collect();
        nodes.sort_by(|one, other| one.name.cmp(&other.name));
        let dns = dns(client).await?;
        let core_dns = if with_core_dns { Some(core_dns(client).await?) } else { None };
        Ok(Self { proxies, loose, nodes, dns, core_dns, now_s: super::now_s() })
    }

    /// Looks at one node, kube-proxy's pods on it, and its DaemonSet, which is all that changes while
    /// that node is waited for; without a name at the DaemonSet alone. False where one of them has
    /// gone, so that all has to be looked at.
    pub async fn refresh(&mut self, client: &Client, node: &str) -> Result<bool, LookError> {
        let [proxy] = &mut self.proxies[..] else { return Ok(false) };
        let sets = Api::<DaemonSet>::namespaced(client.clone(), &proxy.namespace);
        let set = sets.get_opt(&proxy.name).await.map_err(LookError::of("daemonsets"))?;
        let Some(set) = set.filter(|set| uid(&set.metadata) == proxy.uid) else { return Ok(false) };
        proxy.follow(&set);
        if !node.is_empty() {
            let nodes = Api::<Node>::all(client.clone());
            let found = nodes.get_opt(node).await.map_err(LookError::of("nodes"))?;
            let known = self.nodes.iter_mut().find(|known| known.name == node);
            let (Some(found), Some(known)) = (found, known) else { return Ok(false) };
            let here = ListParams::default().fields(&format!("spec.nodeName={node}"));
            *known = node_seen(&found, &pods_of(client, proxy, &here).await?);
        }
        if self.core_dns.is_some() {
            self.core_dns = Some(core_dns(client).await?);
        }
        self.now_s = super::now_s();
        Ok(true)
    }

    /// kube-proxy, where it is clear which it is.
    pub fn proxy(&self) -> Option<&Proxy> {
        if let [proxy] = &self.proxies[..] { Some(proxy) } else { None }
    }
}

/// All objects of a kind that are asked for.
async fn list<K>(
    client: &Client,
    what: &'static str,
    wanted: &ListParams,
) -> Result<Vec<K>, LookError>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let listed = Api::<K>::all(client.clone()).list(wanted).await.map_err(LookError::of(what))?;
    Ok(listed.items)
}

/// The pods that kube-proxy's DaemonSet has: those that say so. What its selector admits may be any
/// others' too.
async fn pods_of(
    client: &Client,
    proxy: &Proxy,
    wanted: &ListParams,
) -> Result<Vec<Pod>, LookError> {
    let pods = Api::<Pod>::namespaced(client.clone(), &proxy.namespace);
    let mut pods = pods.list(wanted).await.map_err(LookError::of("pods"))?.items;
    pods.retain(|pod| is_of(&pod.metadata, proxy));
    Ok(pods)
}

fn is_of(of: &ObjectMeta, proxy: &Proxy) -> bool {
    let mut owners = of.owner_references.iter().flatten();
    owners.any(|owner| owner.controller == Some(true) && owner.uid == proxy.uid)
}

fn uid(of: &ObjectMeta) -> String {
    of.uid.clone().unwrap_or_default()
}

fn name(of: &ObjectMeta) -> String {
    of.name.clone().unwrap_or_default()
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

/// Whether DaemonSets of Linux run there: neither on Windows, nor on what stands for a cloud's
/// service that runs each pod on a machine of its own. Nobody is to wait for those.
fn runs_daemons(node: &Node) -> bool {
    let mut labels = node.metadata.labels.iter().flatten();
    !labels.any(|(key, value)| NO_DAEMONS.contains(&(key.as_str(), value.as_str())))
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
        restricted: false,
        rolled_out: false,
        observed: false,
        direction: None,
        uid: uid(&set.metadata),
        namespace,
    };
    found.follow(set);
    let api = Api::<ConfigMap>::namespaced(client.clone(), &found.namespace);
    for map in maps {
        let read = api.get_opt(&map).await.map_err(LookError::of("configmaps"))?;
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

impl Proxy {
    /// Takes what the DaemonSet says of itself.
    fn follow(&mut self, set: &DaemonSet) {
        self.restricted = is_restricted(set);
        self.direction = Direction::of(&set.metadata);
        self.observed = is_observed(set);
        self.rolled_out = self.observed && is_rolled_out(set);
    }
}

fn is_observed(set: &DaemonSet) -> bool {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation);
    observed >= set.metadata.generation
}

fn is_rolled_out(set: &DaemonSet) -> bool {
    let Some(status) = &set.status else { return false };
    let wanted = status.desired_number_scheduled;
    status.updated_number_scheduled.unwrap_or(0) == wanted
        && status.number_available.unwrap_or(0) == wanted
}

fn node_seen(node: &Node, pods: &[Pod]) -> NodeSeen {
    let name = name(&node.metadata);
    let label = node.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL));
    let report = node.metadata.annotations.as_ref().and_then(|notes| notes.get(REPORT));
    let here = pods
        .iter()
        .filter(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&name));
    let asked = node.metadata.labels.as_ref().and_then(|labels| labels.get(NAMES_ASKED));
    let answer = node.metadata.annotations.as_ref().and_then(|notes| notes.get(NAMES_ANSWER));
    let report: Option<Report> = report.and_then(|text| serde_json::from_str(text).ok());
    NodeSeen {
        // What the agent says of itself is newer than what one has said of the node.
        connects_pods: report
            .as_ref()
            .and_then(|report| report.connects_pods)
            .unwrap_or_else(|| node_condition::is_said(node)),
        ready: is_node_ready(node),
        phase: label.and_then(|value| KubeProxy::of_value(value)),
        names_asked: asked.and_then(|text| text.parse().ok()),
        names_answer: answer.and_then(|text| serde_json::from_str(text).ok()),
        report,
        proxy_pods: here.clone().count(),
        proxy_ready: here.filter(|pod| is_ready(pod)).count(),
        name,
    }
}

/// One of which nothing is said has just come.
fn is_node_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    ready.all(|condition| condition.status == "True")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    pod.metadata.deletion_timestamp.is_none() && ready.any(|condition| condition.status == "True")
}

/// By the Service that kubeadm and others name so.
async fn dns(client: &Client) -> Result<Option<Dns>, LookError> {
    let services = Api::<Service>::namespaced(client.clone(), NAMESPACE);
    let service = services.get_opt("kube-dns").await.map_err(LookError::of("services"))?;
    let Some(spec) = service.and_then(|service| service.spec) else { return Ok(None) };
    let labelled = ListParams::default().labels("k8s-app=kube-dns");
    let pods: Vec<Pod> = list(client, "pods", &labelled).await?;
    let selector = spec.selector.unwrap_or_default();
    let by_core_dns = selector.contains_key("k8s-app");
    let by_agents = are_agents(&selector) && has_ready(client, &selector).await?;
    let addresses = spec.cluster_ips.unwrap_or_default();
    Ok(Some(Dns { addresses, pods: pods.len(), by_core_dns, by_agents }))
}

/// Whether this finds pods of Mizzen's agent.
fn are_agents(selector: &BTreeMap<String, String>) -> bool {
    selector.get(AGENTS.0).is_some_and(|name| name == AGENTS.1)
}

/// Whether a pod that this finds beside cluster DNS is ready.
async fn has_ready(
    client: &Client,
    selector: &BTreeMap<String, String>,
) -> Result<bool, LookError> {
    let labels: Vec<_> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let found = pods.list(&ListParams::default().labels(&labels.join(","))).await;
    Ok(found.map_err(LookError::of("pods"))?.items.iter().any(is_ready))
}

async fn core_dns(client: &Client) -> Result<Vec<CoreDns>, LookError> {
    core_dns::list(client).await.map_err(LookError::of("deployments"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(metadata: &serde_json::Value, status: &serde_json::Value) -> DaemonSet {
        serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
    }

    #[test]
    fn a_template_that_its_controller_goes_by_may_never_be_rolled_out() {
        let status = |observed: u64, updated: u64| {
            json!({"observedGeneration": observed, "desiredNumberScheduled": 3,
                   "currentNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": 2,
                   "updatedNumberScheduled": updated, "numberAvailable": updated})
        };
        let mut proxy = super::super::plan::tests::proxy();
        for (observed, updated, expected) in
            [(1, 3, (false, false)), (2, 2, (true, false)), (2, 3, (true, true))]
        {
            proxy.follow(&set(&json!({"generation": 2}), &status(observed, updated)));
            assert_eq!((proxy.observed, proxy.rolled_out), expected, "{observed} {updated}");
        }
        proxy.follow(&serde_json::from_value(json!({"metadata": {"generation": 1}})).unwrap());
        assert!(!proxy.observed);
    }

    #[test]
    fn nobody_waits_for_nodes_without_daemon_sets() {
        let node = |labels: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"labels": labels}})).unwrap()
        };
        for (labels, expected) in [
            (json!({}), true),
            (json!({OS: "linux", "type": "worker"}), true),
            (json!({"eks.amazonaws.com/compute-type": "ec2"}), true),
            (json!({OS: "windows"}), false),
            (json!({OS: "linux", "type": "virtual-kubelet"}), false),
            (json!({OS: "linux", "eks.amazonaws.com/compute-type": "fargate"}), false),
        ] {
            assert_eq!(runs_daemons(&node(labels.clone())), expected, "{labels}");
        }
    }

    #[test]
    fn pods_are_those_that_name_the_daemon_set_as_theirs() {
        let proxy = super::super::plan::tests::proxy();
        let of = |owner: serde_json::Value| {
            let metadata = serde_json::from_value(json!({"ownerReferences": [owner]})).unwrap();
            is_of(&metadata, &proxy)
        };
        let owner = |uid: &str, controller: bool| {
            json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "kube-proxy", "uid": uid,
                   "controller": controller})
        };
        assert!(of(owner(&proxy.uid, true)));
        assert!(!of(owner(&proxy.uid, false)), "it does not control it");
        assert!(!of(owner("another", true)), "one of the same name");
        assert!(!is_of(&ObjectMeta::default(), &proxy));
    }

    #[test]
    fn who_connects_pods_says_so_in_the_report_or_the_condition() {
        let node = |report: Option<serde_json::Value>, reason: &str| -> Node {
            let notes = report.map(|report| json!({REPORT: report.to_string()}));
            let condition =
                json!({"type": "NetworkUnavailable", "status": "False", "reason": reason});
            let node = json!({"metadata": {"name": "n", "annotations": notes},
                              "status": {"conditions": [condition]}});
            serde_json::from_value(node).unwrap()
        };
        let report = |connects: serde_json::Value| {
            Some(json!({"for": "removed", "done": true, "said": [], "connectsPods": connects}))
        };
        for (report, reason, expected) in [
            (None, "AgentServes", true),
            (None, "CalicoIsUp", false),
            (report(json!(null)), "AgentServes", true),
            (report(json!(false)), "AgentServes", false),
            (report(json!(true)), "CalicoIsUp", true),
        ] {
            let seen = node_seen(&node(report.clone(), reason), &[]);
            assert_eq!(seen.connects_pods, expected, "{report:?} {reason}");
        }
    }

    #[test]
    fn agents_are_told_by_the_label_of_their_pods() {
        for (selector, expected) in [
            (json!({}), false),
            (json!({"k8s-app": "kube-dns"}), false),
            (json!({"app.kubernetes.io/name": "mizzen"}), false),
            (json!({"app.kubernetes.io/name": "mizzen-agent"}), true),
        ] {
            let selector = serde_json::from_value(selector).unwrap();
            assert_eq!(are_agents(&selector), expected, "{selector:?}");
        }
    }

    #[test]
    fn a_node_is_ready_as_its_kubelet_says() {
        let node = |conditions: serde_json::Value| -> Node {
            serde_json::from_value(json!({"status": {"conditions": conditions}})).unwrap()
        };
        let ready = |status: &str| json!([{"type": "Other", "status": "False"}, {"type": "Ready", "status": status}]);
        assert!(is_node_ready(&node(ready("True"))) && is_node_ready(&node(json!([]))));
        assert!(!is_node_ready(&node(ready("False"))) && !is_node_ready(&node(ready("Unknown"))));
    }
}
