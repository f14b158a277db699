//! CoreDNS, once every node's agent answers names: its Deployments are scaled to nothing, and back.
//! What they have besides stays, the ConfigMap too: agents may read it (`corefile`).
//!
//! Whether agents answer is asked anew each time: a label of the Node has a number, and its agent
//! answers with it in an annotation ([`super::names`]). An answer counts at the addresses of the Service
//! that pods ask: at others nobody would be asked.

use std::net::IpAddr;

use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams},
};
use serde::Serialize;
use serde_json::json;

use super::{
    FRESH_S, KEPT_REPLICAS,
    look::{Dns, NodeSeen, Seen},
    plan::{Next, Step, Wait},
};
use crate::migrate::plan::Obstacle;

/// Where it is, and what finds it, by kubeadm, kops, kind and others.
const NAMESPACE: &str = "kube-system";
const LABEL: &str = "k8s-app=kube-dns";

/// A Deployment of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CoreDns {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How many pods it asks for.
    pub replicas: i32,
    /// How many it asked for before it was scaled to none.
    pub before: Option<i32>,
}

impl CoreDns {
    fn of(deployment: &Deployment) -> Self {
        let metadata = &deployment.metadata;
        let kept = metadata.annotations.as_ref().and_then(|notes| notes.get(KEPT_REPLICAS));
        let asked = deployment.spec.as_ref().and_then(|spec| spec.replicas);
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            // One is the API's default.
            replicas: asked.unwrap_or(1),
            before: kept.and_then(|text| text.parse().ok()),
        }
    }
}

/// All Deployments of it.
pub(super) async fn list(client: &Client) -> Result<Vec<CoreDns>, kube::Error> {
    let api = Api::<Deployment>::namespaced(client.clone(), NAMESPACE);
    let found = api.list(&ListParams::default().labels(LABEL)).await?;
    Ok(found.items.iter().map(CoreDns::of).collect())
}

/// Scales one to none, or to what it was. Only as it was when it was read: somebody else may scale it.
pub(super) async fn scale(
    client: &Client,
    namespace: &str,
    name: &str,
    down: bool,
) -> Result<(), kube::Error> {
    let api = Api::<Deployment>::namespaced(client.clone(), namespace);
    let deployment = api.get(name).await?;
    let found = CoreDns::of(&deployment);
    let (replicas, kept) = match (down, found.before) {
        (true, before) if found.replicas > 0 => (0, Some(before.unwrap_or(found.replicas))),
        (false, Some(before)) => (before, None),
        _ => return Ok(()), // somebody else did
    };
    let patch = json!({
        "metadata": {
            "resourceVersion": deployment.metadata.resource_version,
            "annotations": {KEPT_REPLICAS: kept.map(|count| count.to_string())},
        },
        "spec": {"replicas": replicas},
    });
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// What is waited for until an agent answers as it should, whatever it lacks.
const ANSWERS: &str = "the agent to answer names";

/// What comes next, when all else of the way there is done.
pub(super) fn there(seen: &Seen, found: &[CoreDns]) -> Next {
    let Some(running) = found.iter().find(|core_dns| core_dns.replicas > 0) else {
        return forget(seen);
    };
    let asked = match asked_at(seen) {
        Ok(asked) => asked,
        Err(obstacle) => return Next::Obstructed(vec![obstacle]),
    };
    if let Some(node) = seen.nodes.iter().find(|node| !is_asked(node, seen.now_s)) {
        return Next::Do(Step::AskNames { node: node.name.clone(), at: seen.now_s });
    }
    if let Some(node) = seen.nodes.iter().find(|node| !answers(node)) {
        return Next::Wait(wait(node));
    }
    if let Some(wait) = seen.nodes.iter().find_map(|node| elsewhere(node, &asked)) {
        return Next::Wait(wait);
    }
    let CoreDns { namespace, name, replicas, .. } = running.clone();
    Next::Do(Step::ScaleDown { namespace, name, replicas })
}

/// Where each agent has to answer itself: at the addresses of the Service, but where that leads to
/// agents.
fn asked_at(seen: &Seen) -> Result<Vec<IpAddr>, Obstacle> {
    let dns = seen.dns.as_ref();
    if dns.is_some_and(|dns| dns.by_agents) {
        return Ok(Vec::new());
    }
    let addresses: Vec<_> = dns.into_iter().flat_map(Dns::ips).collect();
    if addresses.is_empty() {
        return Err(Obstacle {
            what: format!(
                "it can't be told at which addresses pods ask names: there is no Service \
                 {NAMESPACE}/kube-dns with an address"
            ),
            remedy:
                "see that the agents' `clusterDns` is what kubelets name to pods (`clusterDNS`), \
                     scale CoreDNS to no pods by hand, and run this without `--dns`"
                    .to_owned(),
        });
    }
    Ok(addresses)
}

/// For an agent to answer at these addresses too, where it answers at others.
fn elsewhere(node: &NodeSeen, asked: &[IpAddr]) -> Option<Wait> {
    let at = node.names_answer.as_ref().map_or(&[][..], |answer| &answer.at[..]);
    let words = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    let lacks: Vec<_> = asked.iter().copied().filter(|ip| !at.contains(ip)).collect();
    let answers =
        if at.is_empty() { "nowhere that it says".to_owned() } else { format!("at {}", words(at)) };
    (!lacks.is_empty()).then(|| Wait {
        node: node.name.clone(),
        what: ANSWERS.to_owned(),
        said: vec![format!(
            "it does not answer names at {}, which the Service {NAMESPACE}/kube-dns has: it answers \
             {answers}, and without CoreDNS nobody would; set the agents' `clusterDns` to {}, or have \
             the Service lead to the agents (`kubectl replace -f deploy/cluster-dns.yaml`)",
            words(&lacks),
            words(asked)
        )],
    })
}

/// What comes next, before all else of the way back; `None` where nothing does.
pub(super) fn back(seen: &Seen, found: &[CoreDns]) -> Option<Next> {
    let scaled = found.iter().find_map(|core_dns| Some((core_dns, core_dns.before?)));
    if let Some((CoreDns { namespace, name, .. }, replicas)) = scaled {
        let (namespace, name) = (namespace.clone(), name.clone());
        return Some(Next::Do(Step::ScaleBack { namespace, name, replicas }));
    }
    Some(forget(seen)).filter(|next| *next != Next::Done)
}

/// Nobody is asked any more.
fn forget(seen: &Seen) -> Next {
    let asked = seen.nodes.iter().find(|node| node.names_asked.is_some());
    asked.map_or(Next::Done, |node| Next::Do(Step::ForgetNames { node: node.name.clone() }))
}

fn is_asked(node: &NodeSeen, now_s: u64) -> bool {
    node.names_asked.is_some_and(|at| at.abs_diff(now_s) <= FRESH_S)
}

fn answers(node: &NodeSeen) -> bool {
    let answer = node.names_answer.as_ref();
    node.ready && answer.is_some_and(|it| it.answers && Some(it.asked) == node.names_asked)
}

fn wait(node: &NodeSeen) -> Wait {
    let answer = node.names_answer.as_ref().filter(|it| Some(it.asked) == node.names_asked);
    let said = match answer {
        _ if !node.ready => vec!["the node is not ready".to_owned()],
        Some(answer) => answer.said.clone(),
        None => vec![
            "no agent of this node has said anything of it: see that one runs there".to_owned(),
        ],
    };
    Wait { node: node.name.clone(), what: ANSWERS.to_owned(), said }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::{super::plan::tests::cluster, *};
    use crate::{
        kube::migration::{
            Report,
            names::Answer,
            plan::{Way, next, steps},
        },
        model::node::KubeProxy,
    };

    /// The addresses of the Service.
    const SERVICE: [IpAddr; 2] = [
        IpAddr::V4(Ipv4Addr::new(10, 100, 0, 10)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0, 0xa)),
    ];

    fn core_dns(replicas: i32, before: Option<i32>) -> Vec<CoreDns> {
        let (namespace, name) = (NAMESPACE.to_owned(), "coredns".to_owned());
        vec![CoreDns { namespace, name, replicas, before }]
    }

    /// Two nodes that are Mizzen's.
    fn seen(core_dns: Option<Vec<CoreDns>>) -> Seen {
        let removed = Some(KubeProxy::Removed);
        let mut seen = cluster(&[("a", removed), ("b", removed)], true);
        for node in &mut seen.nodes {
            let (about, said) = (KubeProxy::Removed.value().to_owned(), Vec::new());
            node.report =
                Some(Report { about, done: true, said, at: seen.now_s, connects_pods: None });
        }
        seen.core_dns = core_dns;
        seen.dns = Some(dns());
        seen
    }

    /// Of both families, and by CoreDNS.
    fn dns() -> Dns {
        let addresses = SERVICE.map(|ip| ip.to_string()).to_vec();
        Dns { addresses, pods: 2, by_core_dns: true, by_agents: false }
    }

    fn words(seen: &Seen, way: Way, only: &[&str]) -> Vec<String> {
        let only: Vec<_> = only.iter().map(|&name| name.to_owned()).collect();
        let word = |step: &Step| match step {
            Step::AskNames { node, .. } => format!("{node}?"),
            Step::ForgetNames { node } => format!("{node}."),
            Step::ScaleDown { name, replicas, .. } => format!("{name} {replicas} -> 0"),
            Step::ScaleBack { name, replicas, .. } => format!("{name} -> {replicas}"),
            other => other.words(),
        };
        steps(seen, way, &only).iter().map(word).collect()
    }

    #[test]
    fn it_goes_when_every_agent_answers_and_comes_back_as_it_was() {
        let running = seen(Some(core_dns(2, None)));
        assert_eq!(words(&running, Way::There, &[]), ["a?", "b?", "coredns 2 -> 0", "a.", "b."]);
        assert_eq!(words(&running, Way::There, &["a"]), Vec::<String>::new(), "not for one node");
        assert_eq!(words(&seen(None), Way::There, &[]), Vec::<String>::new(), "not asked for");
        let gone = seen(Some(core_dns(0, Some(2))));
        assert_eq!(words(&gone, Way::There, &[]), Vec::<String>::new());
        assert_eq!(words(&gone, Way::Back, &[])[0], "coredns -> 2");
        assert_eq!(
            next(&seen(Some(core_dns(0, None))), Way::There, &[]),
            Next::Done,
            "somebody else did"
        );
        let before = words(&seen(Some(core_dns(2, None))), Way::Back, &[]);
        assert!(!before.iter().any(|word| word.contains("coredns")), "{before:?}");
    }

    #[test]
    fn an_answer_counts_for_the_question_of_a_moment_ago() {
        let mut seen = seen(Some(core_dns(2, None)));
        let now_s = seen.now_s;
        let answer = |asked: u64, answers: bool| {
            let (said, at) = (vec!["why".to_owned()], SERVICE.to_vec());
            Some(Answer { asked, answers, said, at })
        };
        for node in &mut seen.nodes {
            (node.names_asked, node.names_answer) = (Some(now_s), answer(now_s, true));
        }
        let scales =
            |seen: &Seen| matches!(next(seen, Way::There, &[]), Next::Do(Step::ScaleDown { .. }));
        assert!(scales(&seen));
        for (asked, answered, said) in [
            (Some(now_s), answer(now_s, false), "why"),
            (Some(now_s), answer(now_s - 1, true), "no agent"),
            (Some(now_s), None, "no agent"),
        ] {
            (seen.nodes[1].names_asked, seen.nodes[1].names_answer) = (asked, answered);
            let Next::Wait(wait) = next(&seen, Way::There, &[]) else { panic!("{said}") };
            assert!(wait.node == "b" && wait.said[0].contains(said), "{wait:?}");
        }
        let late = now_s - FRESH_S - 1;
        (seen.nodes[1].names_asked, seen.nodes[1].names_answer) = (Some(late), answer(late, true));
        let again = Step::AskNames { node: "b".to_owned(), at: now_s };
        assert_eq!(next(&seen, Way::There, &[]), Next::Do(again));
        (seen.nodes[1].names_asked, seen.nodes[1].names_answer) =
            (Some(now_s), answer(now_s, true));
        seen.nodes[1].ready = false;
        let Next::Wait(wait) = next(&seen, Way::There, &[]) else { panic!() };
        assert!(wait.said[0].contains("not ready"), "{wait:?}");
    }

    /// As in a cluster with another range of Services than the default one.
    #[test]
    fn core_dns_stays_while_agents_answer_where_nobody_asks() {
        let mut seen = seen(Some(core_dns(2, None)));
        let asked = seen.now_s;
        let answered = |seen: &mut Seen, name: &str, at: &[IpAddr]| {
            for node in seen.nodes.iter_mut().filter(|node| node.name == name) {
                let (said, at) = (Vec::new(), at.to_vec());
                node.names_asked = Some(asked);
                node.names_answer = Some(Answer { asked, answers: true, said, at });
            }
        };
        let scales =
            |seen: &Seen| matches!(next(seen, Way::There, &[]), Next::Do(Step::ScaleDown { .. }));
        let other: IpAddr = Ipv4Addr::new(10, 96, 0, 10).into();
        answered(&mut seen, "a", &SERVICE);
        for (at, lacks, said) in [
            (&[other][..], "10.100.0.10, fd00:100::a", "answers at 10.96.0.10"),
            (&SERVICE[..1], "names at fd00:100::a", "answers at 10.100.0.10"),
            (&SERVICE[1..], "names at 10.100.0.10", "answers at fd00:100::a"),
            (&[], "10.100.0.10, fd00:100::a", "nowhere that it says"),
        ] {
            answered(&mut seen, "b", at);
            let Next::Wait(wait) = next(&seen, Way::There, &[]) else { panic!("{at:?}") };
            assert!(wait.node == "b" && wait.said[0].contains(lacks), "{wait:?}");
            assert!(wait.said[0].contains(said), "{wait:?}");
            assert!(wait.said[0].contains("`clusterDns` to 10.100.0.10, fd00:100::a"), "{wait:?}");
            // Where the Service leads to agents, its addresses are translated.
            let by_agents = Some(Dns { by_core_dns: false, by_agents: true, ..dns() });
            assert!(scales(&Seen { dns: by_agents, ..seen.clone() }), "{at:?}");
        }
        answered(&mut seen, "b", &[other, SERVICE[1], SERVICE[0]]);
        assert!(scales(&seen));
        for dns in [None, Some(Dns { addresses: vec!["None".to_owned()], ..dns() })] {
            let seen = Seen { dns, ..seen.clone() };
            let Next::Obstructed(obstacles) = next(&seen, Way::There, &[]) else { panic!() };
            assert!(obstacles[0].what.contains("kube-system/kube-dns"), "{obstacles:?}");
            assert_eq!(steps(&seen, Way::There, &[]), []);
            let Next::Do(Step::ForgetNames { .. }) = next(&seen, Way::Back, &[]) else { panic!() };
        }
    }
}
