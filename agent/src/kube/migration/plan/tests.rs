//! The way there and back, from wherever it was left.

use super::*;
use crate::kube::migration::{FRESH_S, Report, look::Proxy};

const NOW_S: u64 = 1_800_000_000;

fn node(name: &str, phase: Option<KubeProxy>) -> NodeSeen {
    let pods = usize::from(phase != Some(KubeProxy::Removed));
    let name = name.to_owned();
    NodeSeen {
        name,
        ready: true,
        phase,
        report: None,
        proxy_pods: pods,
        proxy_ready: pods,
        connects_pods: false,
        names_asked: None,
        names_answer: None,
    }
}

fn report(phase: KubeProxy) -> Report {
    let (about, said) = (phase.value().to_owned(), Vec::new());
    Report { about, done: true, said, at: NOW_S, connects_pods: None }
}

/// As kubeadm has it.
pub(crate) fn proxy() -> Proxy {
    Proxy {
        namespace: "kube-system".to_owned(),
        name: "kube-proxy".to_owned(),
        config_map: None,
        mode: String::new(),
        without_effect: Vec::new(),
        restricted: false,
        rolled_out: true,
        observed: true,
        direction: None,
        uid: "of-kube-proxy".to_owned(),
    }
}

pub(crate) fn cluster(nodes: &[(&str, Option<KubeProxy>)], restricted: bool) -> Seen {
    let proxy = Proxy { restricted, ..proxy() };
    let nodes = nodes.iter().map(|(name, phase)| node(name, *phase)).collect();
    Seen { proxies: vec![proxy], loose: Vec::new(), nodes, dns: None, core_dns: None, now_s: NOW_S }
}

fn word(step: &Step) -> String {
    match step {
        Step::Label { node, phase } => format!("{node} {}", phase.value()),
        Step::Unlabel { node } => format!("{node} -"),
        Step::Restrict => "restrict".to_owned(),
        Step::Restore => "restore".to_owned(),
        other => other.words(),
    }
}

fn words(seen: &Seen, way: Way, only: &[&str]) -> Vec<String> {
    let only: Vec<_> = only.iter().map(|&name| name.to_owned()).collect();
    steps(seen, way, &only).iter().map(word).collect()
}

#[test]
fn a_node_after_another_and_nothing_on_the_next_before() {
    let seen = cluster(&[("a", None), ("b", None)], false);
    let there = words(&seen, Way::There, &[]);
    let expected =
        ["a runs", "b runs", "restrict", "a leaving", "a removed", "b leaving", "b removed"];
    assert_eq!(there, expected);
    // Only one node: kube-proxy stays on the other.
    let one = words(&seen, Way::There, &["b"]);
    assert_eq!(one, ["a runs", "b runs", "restrict", "b leaving", "b removed"]);
}

#[test]
fn kube_proxy_stays_until_the_agent_serves_and_is_looked_for_until_it_ended() {
    let mut seen = cluster(&[("a", Some(KubeProxy::Runs))], true);
    let waits = |seen: &Seen| matches!(next(seen, Way::There, &[]), Next::Wait(_));
    assert!(waits(&seen), "no report");
    let told = |phase: KubeProxy, done| {
        let said = vec!["why".to_owned()];
        Some(Report { done, said, ..report(phase) })
    };
    seen.nodes[0].report = told(KubeProxy::Runs, false);
    let Next::Wait(wait) = next(&seen, Way::There, &[]) else { panic!() };
    assert_eq!((wait.node.as_str(), &wait.said[..]), ("a", &["why".to_owned()][..]));
    seen.nodes[0].report = told(KubeProxy::Runs, true);
    let late = Seen { now_s: NOW_S + FRESH_S + 1, ..seen.clone() };
    assert!(waits(&late), "an agent that said so once may be gone");
    let leaving = Step::Label { node: "a".to_owned(), phase: KubeProxy::Leaving };
    assert_eq!(next(&seen, Way::There, &[]), Next::Do(leaving.clone()));
    assume(&mut seen, &leaving);
    assert!(waits(&seen), "its pod is there");
    seen.nodes[0].proxy_ready = 0;
    assert!(waits(&seen), "a pod that is about to end is one");
    seen.nodes[0].proxy_pods = 0;
    let removed = Step::Label { node: "a".to_owned(), phase: KubeProxy::Removed };
    assert_eq!(next(&seen, Way::There, &[]), Next::Do(removed.clone()));
    assume(&mut seen, &removed);
    assert!(waits(&seen), "the report is about something before");
    seen.nodes[0].report = told(KubeProxy::Removed, true);
    assert_eq!(next(&seen, Way::There, &[]), Next::Done);
    assert_eq!(progress(&seen, Way::There, &[]), (1, 1));
}

/// An agent of which a rollback was asked has maybe no services any more, though it said so of late.
#[test]
fn what_an_agent_said_before_the_way_turned_twice_counts_for_nothing() {
    let mut seen = cluster(&[("a", Some(KubeProxy::Runs))], true);
    seen.nodes[0].report = Some(report(KubeProxy::Runs));
    for (way, phase) in [(Way::Back, KubeProxy::Returning), (Way::There, KubeProxy::Runs)] {
        let Next::Do(step) = next(&seen, way, &[]) else { panic!("{way:?}") };
        assert_eq!(step, Step::Label { node: "a".to_owned(), phase });
        assume(&mut seen, &step);
    }
    let Next::Wait(wait) = next(&seen, Way::There, &[]) else { panic!() };
    assert!(wait.node == "a" && wait.said[0].contains("no agent"), "{wait:?}");
    // And the other way: kube-proxy would be put back beside services in force.
    let mut seen = cluster(&[("a", Some(KubeProxy::Returning))], true);
    seen.nodes[0].report = Some(report(KubeProxy::Returning));
    for way in [Way::There, Way::Back] {
        let Next::Do(step) = next(&seen, way, &[]) else { panic!("{way:?}") };
        assume(&mut seen, &step);
    }
    assert_eq!(seen.nodes[0].phase, Some(KubeProxy::Returning));
    assert!(matches!(next(&seen, Way::Back, &[]), Next::Wait(_)));
    assert_eq!(progress(&seen, Way::Back, &[]), (0, 1));
}

#[test]
fn a_kube_proxy_that_somebody_put_back_goes_again_and_its_rules_with_it() {
    let mut seen = cluster(&[("a", Some(KubeProxy::Removed))], false);
    seen.nodes[0].report = Some(report(KubeProxy::Removed));
    (seen.nodes[0].proxy_pods, seen.nodes[0].proxy_ready) = (1, 1);
    let there = ["a runs", "restrict", "a leaving", "a removed"];
    assert_eq!(words(&seen, Way::There, &[]), there);
    // Or all goes back, and Mizzen's services out of force before the labels.
    assert_eq!(words(&seen, Way::Back, &[]), ["a returning", "a -"]);
    seen.nodes[0].phase = Some(KubeProxy::Runs);
    assert_eq!(words(&seen, Way::Back, &[]), ["a -"], "it never went");
}

/// As after an upgrade by kubeadm, where the agent of one node is gone: kube-proxy alone serves there.
#[test]
fn a_kube_proxy_that_is_back_stays_where_mizzen_does_not_serve() {
    let removed = Some(KubeProxy::Removed);
    for (phase, restricted) in
        [(KubeProxy::Removed, false), (KubeProxy::Leaving, false), (KubeProxy::Removed, true)]
    {
        let mut seen = cluster(&[("a", removed), ("b", Some(phase))], restricted);
        for node in &mut seen.nodes {
            (node.proxy_pods, node.proxy_ready) = (1, 1);
        }
        // What that agent said when it last ran; it says nothing more.
        seen.nodes[1].report = Some(Report { at: 0, ..report(phase) });
        for only in [vec!["a".to_owned()], Vec::new()] {
            let mut seen = seen.clone();
            let end = loop {
                match next(&seen, Way::There, &only) {
                    Next::Do(step) => assume(&mut seen, &step),
                    Next::Wait(wait) if wait.node == "a" => fulfil(&mut seen, &wait),
                    end => break end,
                }
            };
            let b = &seen.nodes[1];
            assert_eq!((b.phase, b.proxy_pods), (Some(KubeProxy::Runs), 1), "{phase:?} {only:?}");
            assert_eq!(seen.nodes[0].phase, removed, "it serves on the other");
            assert!(seen.proxies[0].restricted, "{phase:?} {only:?}");
            if only.is_empty() {
                assert!(matches!(&end, Next::Wait(wait) if wait.node == "b"), "{end:?}");
            } else {
                assert_eq!(end, Next::Done);
            }
        }
        // And where its kubelet is away, it is left as it is.
        seen.nodes[1].ready = false;
        let steps = words(&seen, Way::There, &[]);
        assert!(!steps.iter().any(|step| step == "b leaving"), "{steps:?}");
    }
}

#[test]
fn back_puts_all_back_and_removes_every_trace() {
    let seen = cluster(&[("a", Some(KubeProxy::Removed)), ("b", Some(KubeProxy::Leaving))], true);
    let back = words(&seen, Way::Back, &[]);
    assert_eq!(back, ["a returning", "b returning", "restore", "a -", "b -"]);
    // Of one node alone: the DaemonSet stays restricted for the sake of the other.
    assert_eq!(words(&seen, Way::Back, &["b"]), ["b returning"]);
    // Nothing was begun.
    let untouched = cluster(&[("a", None)], false);
    assert_eq!(next(&untouched, Way::Back, &[]), Next::Done);
    // The rules have to be there, and the pod that wrote them.
    let mut waits = cluster(&[("a", Some(KubeProxy::Returning))], true);
    waits.nodes[0].proxy_ready = 0;
    waits.nodes[0].report = Some(report(KubeProxy::Returning));
    assert!(matches!(next(&waits, Way::Back, &[]), Next::Wait(_)));
}

#[test]
fn a_node_that_is_not_ready_is_left_and_the_others_go_on() {
    let mut seen = cluster(&[("a", None), ("b", None), ("c", None)], false);
    seen.nodes[1].ready = false;
    let there = words(&seen, Way::There, &[]);
    // Also where it is: kube-proxy stays there.
    let labels = ["a runs", "b runs", "c runs", "restrict"];
    assert_eq!(there[..4], labels);
    assert_eq!(there[4..], ["a leaving", "a removed", "c leaving", "c removed"]);
    // Wherever it was when it stopped.
    for phase in [KubeProxy::Runs, KubeProxy::Leaving, KubeProxy::Removed, KubeProxy::Returning] {
        let mut seen = cluster(&[("b", Some(phase))], true);
        seen.nodes[0].ready = false;
        seen.nodes[0].proxy_pods = 0;
        assert_eq!(next(&seen, Way::There, &[]), Next::Left(vec!["b".to_owned()]), "{phase:?}");
        seen.nodes[0].ready = true;
        assert!(!matches!(next(&seen, Way::There, &[]), Next::Left(_)), "{phase:?}");
    }
    // What had been done there is done.
    let mut done = cluster(&[("b", Some(KubeProxy::Removed))], true);
    done.nodes[0].ready = false;
    done.nodes[0].report = Some(Report { at: 0, ..report(KubeProxy::Removed) });
    assert_eq!(next(&done, Way::There, &[]), Next::Done);
}

#[test]
fn a_node_that_is_not_ready_goes_back_later_and_the_daemon_set_waits_for_it() {
    let removed = Some(KubeProxy::Removed);
    let mut seen = cluster(&[("a", removed), ("b", removed)], true);
    seen.nodes[1].ready = false;
    assert_eq!(words(&seen, Way::Back, &[]), ["a returning", "b returning"]);
    for node in &mut seen.nodes {
        node.phase = Some(KubeProxy::Returning);
    }
    seen.nodes[0].proxy_ready = 1;
    seen.nodes[0].report = Some(report(KubeProxy::Returning));
    assert_eq!(next(&seen, Way::Back, &[]), Next::Left(vec!["b".to_owned()]));
    // It went back before it stopped being ready: its pod is not, and nothing is to be done there.
    seen.nodes[1].report = Some(report(KubeProxy::Returning));
    seen.nodes[1].proxy_ready = 0;
    assert_eq!(next(&seen, Way::Back, &[]), Next::Do(Step::Restore));
}

/// Pods are exchanged when somebody deletes them, or on nodes that are away, never.
#[test]
fn back_does_not_wait_for_pods_that_nobody_exchanges() {
    let mut seen = cluster(&[("a", Some(KubeProxy::Returning))], false);
    seen.nodes[0].report = Some(report(KubeProxy::Returning));
    seen.proxies[0].rolled_out = false;
    assert_eq!(next(&seen, Way::Back, &[]), Next::Do(Step::Unlabel { node: "a".to_owned() }));
    seen.proxies[0].observed = false;
    assert!(matches!(next(&seen, Way::Back, &[]), Next::Wait(_)), "it goes by the labels still");
}

/// Whoever is stopped after any step, turns round, and turns again, comes to the end of the way.
#[test]
fn from_everywhere_the_ends_are_reached() {
    let begun = cluster(&[("a", None), ("b", None)], false);
    let mut places = vec![begun.clone()];
    for way in [Way::There, Way::Back] {
        let mut seen = places.last().unwrap().clone();
        while !matches!(next(&seen, way, &[]), Next::Done) {
            match next(&seen, way, &[]) {
                Next::Do(step) => assume(&mut seen, &step),
                Next::Wait(wait) => fulfil(&mut seen, &wait),
                other => panic!("{other:?}"),
            }
            places.push(seen.clone());
        }
    }
    assert!(places.len() > 20, "{}", places.len());
    for place in &places {
        for way in [Way::There, Way::Back] {
            let mut seen = place.clone();
            for _ in 0..40 {
                match next(&seen, way, &[]) {
                    Next::Do(step) => assume(&mut seen, &step),
                    Next::Wait(wait) => fulfil(&mut seen, &wait),
                    Next::Done => break,
                    other @ (Next::Left(_) | Next::Obstructed(_)) => panic!("{other:?}"),
                }
            }
            assert_eq!(next(&seen, way, &[]), Next::Done, "{place:?}");
            let restricted = seen.proxies[0].restricted;
            assert_eq!(restricted, way == Way::There, "{way:?} from {place:?}");
            let phase = (way == Way::There).then_some(KubeProxy::Removed);
            assert!(seen.nodes.iter().all(|node| node.phase == phase), "{seen:?}");
        }
    }
}

#[test]
fn a_node_that_joined_later_has_nothing_to_leave() {
    let mut seen = cluster(&[("a", Some(KubeProxy::Removed)), ("new", None)], true);
    (seen.nodes[1].proxy_pods, seen.nodes[1].proxy_ready) = (0, 0);
    assert_eq!(words(&seen, Way::There, &[]), ["new removed"]);
}

#[test]
fn what_is_in_the_way_is_named_and_nothing_is_done() {
    let mut none = cluster(&[("a", None)], false);
    none.proxies.clear();
    let mut several = cluster(&[("a", None)], false);
    several.proxies.push(several.proxies[0].clone());
    let mut loose = cluster(&[("a", None)], false);
    loose.loose.push("kube-proxy-a".to_owned());
    let known = cluster(&[("a", None)], false);
    for (seen, only, expected) in [
        (none, None, "no DaemonSet"),
        (several, None, "several DaemonSets"),
        (loose, None, "without a DaemonSet: kube-proxy-a"),
        (known, Some("b"), "called b"),
    ] {
        let only: Vec<_> = only.into_iter().map(str::to_owned).collect();
        for way in [Way::There, Way::Back] {
            let Next::Obstructed(obstacles) = next(&seen, way, &only) else { panic!("{expected}") };
            assert!(obstacles[0].what.contains(expected), "{obstacles:?}");
            assert_eq!(steps(&seen, way, &only), []);
        }
    }
}

/// Before the first label: a node that got halfway would be kube-proxy's and Mizzen's.
#[test]
fn where_mizzen_connects_pods_nothing_of_the_way_back_is_begun() {
    let removed = Some(KubeProxy::Removed);
    let mut seen = cluster(&[("a", removed), ("b", removed)], true);
    seen.nodes[1].connects_pods = true;
    let Next::Obstructed(obstacles) = next(&seen, Way::Back, &[]) else { panic!() };
    assert!(obstacles[0].what.contains("the pods of b (`cni: true`)"), "{obstacles:?}");
    assert!(obstacles[0].remedy.contains("install another CNI plugin"), "{obstacles:?}");
    assert_eq!(steps(&seen, Way::Back, &[]), []);
    assert_eq!(words(&seen, Way::Back, &["a"]), ["a returning"], "it is not about the other");
    // There it is in nobody's way, and neither where there is nothing to go back from.
    seen.nodes[1].report = Some(report(KubeProxy::Removed));
    assert!(!matches!(next(&seen, Way::There, &[]), Next::Obstructed(_)));
    let mut begun = cluster(&[("a", Some(KubeProxy::Runs))], false);
    begun.nodes[0].connects_pods = true;
    assert_eq!(words(&begun, Way::Back, &[]), ["a -"]);
}
