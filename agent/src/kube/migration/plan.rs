//! What is to be done next, by what there is. Pure: whoever is stopped and begins anew comes to the
//! same.

use serde::{Deserialize, Serialize};

use super::{
    core_dns,
    look::{Dns, NodeSeen, Seen},
    names::Answer,
};
use crate::{migrate::plan::Obstacle, model::node::KubeProxy};

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// From kube-proxy to Mizzen.
    #[serde(rename = "apply")]
    There,
    /// From Mizzen to kube-proxy.
    #[serde(rename = "rollback")]
    Back,
}

impl Way {
    /// What the operator says to go it.
    pub fn verb(self) -> &'static str {
        match self {
            Self::There => "apply",
            Self::Back => "rollback",
        }
    }
}

/// Something that is written at the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A node's label. What its agent reported before counts no more.
    Label {
        /// The Node.
        node: String,
        /// The label's value.
        phase: KubeProxy,
    },
    /// A node's label and its agent's report go.
    Unlabel {
        /// The Node.
        node: String,
    },
    /// kube-proxy's DaemonSet runs where labels want it, and keeps what it asked for before.
    Restrict,
    /// kube-proxy's DaemonSet is as it was before.
    Restore,
    /// A node's agent is asked whether it answers names.
    AskNames {
        /// The Node.
        node: String,
        /// The number of the question: seconds after 1970.
        at: u64,
    },
    /// It is asked no more.
    ForgetNames {
        /// The Node.
        node: String,
    },
    /// CoreDNS's Deployment has no pods, and keeps how many it had.
    ScaleDown {
        /// The Deployment's namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// How many it has.
        replicas: i32,
    },
    /// It has as many as before.
    ScaleBack {
        /// The Deployment's namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// How many it had.
        replicas: i32,
    },
}

/// Something that others do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// Where; empty: not on one node.
    pub node: String,
    /// What for.
    pub what: String,
    /// What is known of it.
    pub said: Vec<String>,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This is to be written.
    Do(Step),
    /// This is to be waited for.
    Wait(Wait),
    /// These nodes are not ready and have a part of the way before them; the others have not.
    Left(Vec<String>),
    /// Nothing is done while these are there.
    Obstructed(Vec<Obstacle>),
    /// It is as it should be.
    Done,
}

impl Step {
    /// As the operator reads it.
    pub fn words(&self) -> String {
        match self {
            Self::Label { node, phase } => {
                let what = match phase {
                    KubeProxy::Runs => "kube-proxy runs here; have Mizzen serve beside it",
                    KubeProxy::Leaving => "have kube-proxy end; its connections go on",
                    KubeProxy::Removed => "have the agent remove what kube-proxy left, and look",
                    KubeProxy::Returning => {
                        "have kube-proxy run, and then the agent take Mizzen's services out of force"
                    }
                };
                format!("{node}: {what} (label {}={})", super::LABEL, phase.value())
            }
            Self::Unlabel { node } => {
                format!("{node}: remove the label {} and the agent's report", super::LABEL)
            }
            Self::Restrict => format!(
                "let kube-proxy's DaemonSet run only where the label {} wants it; what it asked for \
                 before is kept in its annotation {}",
                super::LABEL,
                super::BEFORE
            ),
            Self::Restore => "put kube-proxy's DaemonSet back as it was before".to_owned(),
            Self::AskNames { node, .. } => {
                format!(
                    "{node}: ask the agent whether it answers names (label {})",
                    super::NAMES_ASKED
                )
            }
            Self::ForgetNames { node } => {
                format!("{node}: remove the label {} and the answer", super::NAMES_ASKED)
            }
            Self::ScaleDown { namespace, name, replicas } => format!(
                "scale CoreDNS's Deployment {namespace}/{name} from {replicas} pods to 0, since every \
                 node's agent answers names; how many it had is kept in its annotation {}, and its \
                 ConfigMap stays",
                super::KEPT_REPLICAS
            ),
            Self::ScaleBack { namespace, name, replicas } => {
                format!("scale CoreDNS's Deployment {namespace}/{name} back to {replicas} pods")
            }
        }
    }
}

/// What comes next on the way. Where `only` has names, other nodes stay where they are.
pub fn next(seen: &Seen, way: Way, only: &[String]) -> Next {
    let mut obstacles = obstacles(seen, only);
    if way == Way::Back && obstacles.is_empty() {
        obstacles.extend(connected_by_mizzen(seen, only));
    }
    if !obstacles.is_empty() {
        return Next::Obstructed(obstacles);
    }
    // CoreDNS is the whole cluster's.
    let core_dns = seen.core_dns.as_deref().filter(|_| only.is_empty());
    match (way, core_dns) {
        (Way::There, Some(found)) => match there(seen, only) {
            Next::Done => core_dns::there(seen, found),
            other => other,
        },
        (Way::There, None) => there(seen, only),
        (Way::Back, Some(found)) => core_dns::back(seen, found).unwrap_or_else(|| back(seen, only)),
        (Way::Back, None) => back(seen, only),
    }
}

fn there(seen: &Seen, only: &[String]) -> Next {
    let Some(proxy) = seen.proxy() else { return Next::Done };
    if let Some(node) = seen.nodes.iter().find(|node| node.phase.is_none()) {
        // Of those that joined since, kube-proxy has been kept away.
        let phase = if proxy.restricted { KubeProxy::Removed } else { KubeProxy::Runs };
        return label(node, phase);
    }
    // Somebody put it back. It may be the only one that serves there, so it stays, also where nothing
    // else is to be done, until Mizzen is seen to serve.
    if let Some(node) = seen.nodes.iter().find(|node| is_back(node, proxy.restricted)) {
        return label(node, KubeProxy::Runs);
    }
    if !proxy.restricted {
        return Next::Do(Step::Restrict);
    }
    let mut left = Vec::new();
    for node in in_scope(seen, only) {
        let next = match node.phase {
            Some(KubeProxy::Removed) if reports(node, KubeProxy::Removed) => continue,
            // kube-proxy's rules and Mizzen's programs stay as they are there.
            _ if !node.ready => {
                left.push(node.name.clone());
                continue;
            }
            Some(KubeProxy::Removed) => agent(node, "the agent to remove what kube-proxy left"),
            Some(KubeProxy::Leaving) if node.proxy_pods == 0 => label(node, KubeProxy::Removed),
            Some(KubeProxy::Leaving) => Next::Wait(Wait {
                node: node.name.clone(),
                what: "kube-proxy's pod to end".to_owned(),
                said: Vec::new(),
            }),
            Some(KubeProxy::Runs) if serves_now(node, seen.now_s) => {
                label(node, KubeProxy::Leaving)
            }
            Some(KubeProxy::Runs) => agent(node, "Mizzen to serve beside kube-proxy"),
            // It was on its way back.
            Some(KubeProxy::Returning) | None => label(node, KubeProxy::Runs),
        };
        return next;
    }
    end(left)
}

/// The end of the way, but for nodes that are not ready.
fn end(left: Vec<String>) -> Next {
    if left.is_empty() { Next::Done } else { Next::Left(left) }
}

fn back(seen: &Seen, only: &[String]) -> Next {
    let Some(proxy) = seen.proxy() else { return Next::Done };
    let mut left = Vec::new();
    for node in in_scope(seen, only) {
        // From there kube-proxy never went.
        if !proxy.restricted && matches!(node.phase, None | Some(KubeProxy::Runs)) {
            continue;
        }
        if node.phase != Some(KubeProxy::Returning) {
            return label(node, KubeProxy::Returning);
        }
        if !node.ready {
            // It goes back by itself as soon as it is.
            left.extend((!reports(node, KubeProxy::Returning)).then(|| node.name.clone()));
            continue;
        }
        if node.proxy_ready == 0 {
            return Next::Wait(Wait {
                node: node.name.clone(),
                what: "kube-proxy's pod to be ready".to_owned(),
                said: Vec::new(),
            });
        }
        if !reports(node, KubeProxy::Returning) {
            return agent(node, "the agent to take Mizzen's services out of force");
        }
    }
    if !left.is_empty() {
        // Those have Mizzen's services in force: the DaemonSet goes on to leave them alone.
        return Next::Left(left);
    }
    if !proxy.restricted {
        // Nothing was begun, or all but this was put back.
        let labelled = seen.nodes.iter().find(|node| node.phase.is_some());
        if labelled.is_some() && !proxy.observed {
            return Next::Wait(Wait {
                node: String::new(),
                what: "the DaemonSets' controller to go by kube-proxy's as it was before"
                    .to_owned(),
                said: Vec::new(),
            });
        }
        let step = |node: &NodeSeen| Step::Unlabel { node: node.name.clone() };
        return labelled.map_or(Next::Done, |node| Next::Do(step(node)));
    }
    if in_scope(seen, only).count() < seen.nodes.len() {
        Next::Done
    } else {
        Next::Do(Step::Restore)
    }
}

fn in_scope<'a>(seen: &'a Seen, only: &'a [String]) -> impl Iterator<Item = &'a NodeSeen> {
    seen.nodes.iter().filter(move |node| only.is_empty() || only.contains(&node.name))
}

fn label(node: &NodeSeen, phase: KubeProxy) -> Next {
    Next::Do(Step::Label { node: node.name.clone(), phase })
}

fn reports(node: &NodeSeen, phase: KubeProxy) -> bool {
    node.report.as_ref().is_some_and(|report| report.is_done(phase))
}

/// Whether the node's agent serves beside kube-proxy, as it said a moment ago: one that has gone since
/// says nothing more.
fn serves_now(node: &NodeSeen, now_s: u64) -> bool {
    let report = node.report.as_ref();
    report.is_some_and(|report| report.is_done(KubeProxy::Runs) && report.is_fresh(now_s))
}

/// Whether kube-proxy runs where it had been removed, or was about to end when somebody had its
/// DaemonSet run everywhere again: it would end with the next restriction.
fn is_back(node: &NodeSeen, restricted: bool) -> bool {
    let had_to_go = match node.phase {
        Some(KubeProxy::Removed) => true,
        Some(KubeProxy::Leaving) => !restricted,
        Some(KubeProxy::Runs | KubeProxy::Returning) | None => false,
    };
    had_to_go && node.proxy_pods > 0
}

fn agent(node: &NodeSeen, what: &str) -> Next {
    let about = node.phase.map(KubeProxy::value);
    let said = node.report.as_ref().filter(|report| Some(&*report.about) == about);
    let said = said.map_or_else(
        || {
            vec![
                "no agent of this node has said anything of it: see that one runs there".to_owned(),
            ]
        },
        |report| report.said.clone(),
    );
    Next::Wait(Wait { node: node.name.clone(), what: what.to_owned(), said })
}

fn obstacles(seen: &Seen, only: &[String]) -> Vec<Obstacle> {
    let mut obstacles = Vec::new();
    if seen.proxies.is_empty() {
        obstacles.push(Obstacle {
            what: "no DaemonSet of kube-proxy is there".to_owned(),
            remedy: "where kube-proxy is a part of something else (k3s, MicroK8s), switch it off \
                     there, and run `mizzen migrate apply` on each node"
                .to_owned(),
        });
    }
    if seen.proxies.len() > 1 {
        let names = seen.proxies.iter().map(|proxy| format!("{}/{}", proxy.namespace, proxy.name));
        obstacles.push(Obstacle {
            what: format!(
                "several DaemonSets run kube-proxy: {}",
                names.collect::<Vec<_>>().join(", ")
            ),
            remedy: "take each off by hand, a node at a time, and run `mizzen migrate apply` there"
                .to_owned(),
        });
    }
    if !seen.loose.is_empty() {
        obstacles.push(Obstacle {
            what: format!("kube-proxy runs without a DaemonSet: {}", seen.loose.join(", ")),
            remedy:
                "take its static pod off each node (kops: `kubeProxy.enabled: false`), and run \
                     `mizzen migrate apply` there"
                    .to_owned(),
        });
    }
    let known = |name: &&String| seen.nodes.iter().any(|node| node.name == **name);
    for name in only.iter().filter(|name| !known(name)) {
        obstacles.push(Obstacle {
            what: format!("no node of Linux is called {name}"),
            remedy: "see `kubectl get nodes`".to_owned(),
        });
    }
    obstacles
}

/// Whether a node has a part of the way back before it.
fn is_to_go_back(node: &NodeSeen, restricted: bool) -> bool {
    let never_went = !restricted && matches!(node.phase, None | Some(KubeProxy::Runs));
    let is_back = node.phase == Some(KubeProxy::Returning) && reports(node, KubeProxy::Returning);
    !never_went && !is_back
}

/// Without Mizzen's programs pods that it connects would have no tunnels, no masquerading and no host
/// ports: their nodes would get halfway.
fn connected_by_mizzen(seen: &Seen, only: &[String]) -> Option<Obstacle> {
    let restricted = seen.proxy()?.restricted;
    let nodes = in_scope(seen, only).filter(|node| node.connects_pods);
    let nodes = nodes.filter(|node| is_to_go_back(node, restricted));
    let names: Vec<_> = nodes.map(|node| node.name.as_str()).collect();
    (!names.is_empty()).then(|| Obstacle {
        what: format!(
            "Mizzen connects the pods of {} (`cni: true`), whose tunnels, masquerading and host ports \
             would end with its services",
            names.join(", ")
        ),
        remedy: "first give pods another network: install another CNI plugin there, set `cni: false` \
                 for the agents, have each node's pods made anew (drain it), and run this again"
            .to_owned(),
    })
}

/// How many nodes are where the way leads, of how many.
pub fn progress(seen: &Seen, way: Way, only: &[String]) -> (usize, usize) {
    let end = |node: &&NodeSeen| match way {
        Way::There => reports(node, KubeProxy::Removed) && node.phase == Some(KubeProxy::Removed),
        Way::Back => {
            node.phase.is_none()
                || reports(node, KubeProxy::Returning) && node.phase == Some(KubeProxy::Returning)
        }
    };
    (in_scope(seen, only).filter(end).count(), in_scope(seen, only).count())
}

/// All steps that are left, as far as can be told: what would be done if others did at once what they
/// are waited for.
pub fn steps(seen: &Seen, way: Way, only: &[String]) -> Vec<Step> {
    let mut seen = seen.clone();
    let mut steps = Vec::new();
    // At most five to a node, and two; of names two to a node, and one to a Deployment. Between each
    // of them a wait.
    let deployments = seen.core_dns.as_ref().map_or(0, Vec::len);
    for _ in 0..2 * (7 * seen.nodes.len() + 2 + deployments) {
        match next(&seen, way, only) {
            Next::Do(step) => {
                assume(&mut seen, &step);
                steps.push(step);
            }
            Next::Wait(wait) => fulfil(&mut seen, &wait),
            Next::Obstructed(_) | Next::Left(_) | Next::Done => break,
        }
    }
    steps
}

/// As if a step had been done.
fn assume(seen: &mut Seen, step: &Step) {
    match step {
        Step::Label { node, phase } => phase_of(seen, node, Some(*phase)),
        Step::Unlabel { node } => phase_of(seen, node, None),
        Step::Restrict | Step::Restore => {
            for proxy in &mut seen.proxies {
                proxy.restricted = *step == Step::Restrict;
                proxy.observed = false;
            }
        }
        Step::AskNames { node, at } => names_of(seen, node, Some(*at)),
        Step::ForgetNames { node } => names_of(seen, node, None),
        Step::ScaleDown { name, .. } | Step::ScaleBack { name, .. } => {
            let all = seen.core_dns.iter_mut().flatten();
            for core_dns in all.filter(|core_dns| core_dns.name == *name) {
                let before = core_dns.before.unwrap_or(core_dns.replicas);
                (core_dns.replicas, core_dns.before) = match step {
                    Step::ScaleDown { .. } => (0, Some(before)),
                    _ => (before, None),
                };
            }
        }
    }
}

/// As if a node had another label, or none.
fn phase_of(seen: &mut Seen, name: &str, phase: Option<KubeProxy>) {
    for node in seen.nodes.iter_mut().filter(|node| node.name == name) {
        let left = node.report.as_ref().and_then(super::Report::withdrawn);
        (node.phase, node.report) = (phase, left.filter(|_| phase.is_some()));
    }
}

/// As if a node's agent had been asked, or was no more.
fn names_of(seen: &mut Seen, name: &str, asked: Option<u64>) {
    for node in seen.nodes.iter_mut().filter(|node| node.name == name) {
        (node.names_asked, node.names_answer) = (asked, None);
    }
}

/// As if what is waited for had come.
fn fulfil(seen: &mut Seen, wait: &Wait) {
    for proxy in seen.proxies.iter_mut().filter(|_| wait.node.is_empty()) {
        proxy.observed = true;
    }
    let asked_at: Vec<_> = seen.dns.iter().flat_map(Dns::ips).collect();
    for node in seen.nodes.iter_mut().filter(|node| node.name == wait.node) {
        let (said, at) = (Vec::new(), asked_at.clone());
        node.names_answer = node.names_asked.map(|asked| Answer { asked, answers: true, said, at });
        let Some(phase) = node.phase else { continue };
        let wanted = matches!(phase, KubeProxy::Runs | KubeProxy::Returning);
        (node.proxy_pods, node.proxy_ready) = (wanted.into(), wanted.into());
        let about = phase.value().to_owned();
        let (said, connects_pods) = (Vec::new(), Some(node.connects_pods));
        node.report =
            Some(super::Report { about, done: true, said, at: seen.now_s, connects_pods });
    }
}

#[cfg(test)]
pub(super) mod tests;
