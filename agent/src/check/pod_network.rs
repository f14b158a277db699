//! What the facts of the pod network mean: interfaces, routes, neighbours, settings, sizes, and
//! whether every other node is reached. Pure.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    Finding,
    judge::{fail, ok, warn},
};
use crate::{
    model::node::Cidr,
    podnet::{
        look::Seen,
        message::Via,
        probe::{ASKED_MAX, Heard, Reached},
        ways::{Kind, Way},
    },
};

/// The pod network, and what other nodes answered.
#[derive(Clone, Debug)]
pub struct PodNetworkFacts {
    /// As it is and as it should be.
    pub seen: Seen,
    /// What was heard of datagrams to the ranges of others.
    pub reached: BTreeMap<Cidr, Reached>,
    /// The nodes' addresses, by name.
    pub addresses: BTreeMap<Arc<str>, Vec<IpAddr>>,
}

/// The findings, in a fixed order.
pub(super) fn judge(facts: &PodNetworkFacts) -> Vec<Finding> {
    let mut findings = pods(&facts.seen);
    findings.extend(routes(&facts.seen));
    findings.extend(tunnel(&facts.seen));
    findings.extend(peers(facts));
    findings
}

/// What the agent does about most of what is found.
const HEALS: &str = "the agent mends it within a second; if it stays, something on this node undoes \
                     it (`ip monitor` shows what), by hand:";

fn pods(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "pods";
    let wrong = seen.pods.iter().flat_map(|pod| {
        let name = format!("{}/{}", pod.entry.pod.namespace, pod.entry.pod.name);
        pod.wrong.iter().map(move |(what, remedy)| {
            fail(CHECK, format!("pod {name}: {what}"), format!("{HEALS} {remedy}"))
        })
    });
    let mut findings: Vec<Finding> = wrong.collect();
    findings.extend(seen.pods.iter().filter_map(|pod| {
        let name = format!("{}/{}", pod.entry.pod.namespace, pod.entry.pod.name);
        let what = pod.wrong_inside.as_ref()?;
        let remedy = "delete the pod, so that it is made anew; where it comes back, what the pod runs \
                      with CAP_NET_ADMIN changes that";
        Some(fail(CHECK, format!("pod {name}: {what}"), remedy))
    }));
    if findings.is_empty() {
        let (count, mtu) = (seen.pods.len(), seen.mtu.1);
        let said = format!(
            "links, routes, neighbours and settings of {count} pods are right, packets of {mtu} \
             bytes at most"
        );
        findings.push(ok(CHECK, said));
    }
    findings
}

fn routes(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "routes";
    let unreachable = seen.ways.ways.iter().filter_map(|way| way.kind.as_ref().err());
    let mut findings: Vec<Finding> = unreachable
        .map(|why| {
            let remedy = "give the Node an InternalIP of that family that is its own, and podCIDRs \
                          of its own; delete it where it is stale";
            fail(CHECK, why.clone(), remedy)
        })
        .collect();
    findings.extend(seen.missing_routes.iter().map(|(range, via, foreign)| {
        let ip = if range.address.is_ipv4() { "ip" } else { "ip -6" };
        if *foreign {
            let said = format!("somebody else has a route to {range}");
            return fail(CHECK, said, format!("{ip} route del {range}, and see what sets it"));
        }
        let way = shown(seen, *via);
        let remedy = format!("{HEALS} {ip} route replace {range} {way} proto 77");
        fail(CHECK, format!("there is no route to {range} {way}"), remedy)
    }));
    findings.extend(seen.missing_rules.iter().map(|range| {
        let ip = if range.address.is_ipv4() { "ip" } else { "ip -6" };
        let said = format!("what pods in {range} send to nodes behind a tunnel does not go by it");
        let remedy = format!("{HEALS} {ip} rule add from {range} lookup 77 pref 77 protocol 77");
        fail(CHECK, said, remedy)
    }));
    if findings.is_empty() {
        let tunnelled = seen.ways.ways.iter().filter(|way| way.is_tunnel()).count();
        let count = seen.ways.ways.len();
        let said = format!(
            "all routes to {count} ranges of other nodes are there, {tunnelled} by the tunnel"
        );
        findings.push(ok(CHECK, said));
    }
    findings
}

/// A route's end as `ip route` takes it.
fn shown(seen: &Seen, via: Via) -> String {
    let device = |ifindex: u32| match seen.interfaces.get(&ifindex) {
        Some(found) => found.ifname.clone(),
        None => format!("if{ifindex}"),
    };
    match via {
        Via::Gateway(gateway, ifindex) => format!("via {gateway} dev {} onlink", device(ifindex)),
        Via::Link(ifindex) => format!("dev {}", device(ifindex)),
        Via::From(ifindex, source) => format!("dev {} src {source}", device(ifindex)),
        Via::Unreachable => "unreachable".to_owned(),
    }
}

fn tunnel(seen: &Seen) -> Vec<Finding> {
    const CHECK: &str = "tunnel";
    let Some(tunnel) = &seen.tunnel else { return Vec::new() };
    let device = match tunnel.found {
        Some((mtu, true)) if mtu == tunnel.mtu => {
            ok(CHECK, format!("mizzen.vxlan is up and takes packets of {mtu} bytes"))
        }
        Some((mtu, true)) => fail(
            CHECK,
            format!("mizzen.vxlan takes packets of {mtu} bytes, not of {}", tunnel.mtu),
            format!("{HEALS} ip link set mizzen.vxlan mtu {}", tunnel.mtu),
        ),
        Some((_, false)) => fail(
            CHECK,
            "mizzen.vxlan is down, or not the device that it should be",
            format!("{HEALS} ip link set mizzen.vxlan up, else ip link del mizzen.vxlan"),
        ),
        None => fail(
            CHECK,
            "there is no device mizzen.vxlan, by which some nodes are reached",
            "the agent makes it at once; where it can't, `mizzen status` (part cni) says why: often \
             another VXLAN device has the port (ip -d link show type vxlan), see --vxlan-port",
        ),
    };
    let settings = tunnel.altered.iter().map(|setting| {
        let said = format!("{setting} does not hold");
        fail(CHECK, said, format!("{HEALS} sysctl -w {setting}"))
    });
    std::iter::once(device).chain(settings).collect()
}

fn peers(facts: &PodNetworkFacts) -> Vec<Finding> {
    const CHECK: &str = "peers";
    let reachable = || facts.seen.ways.ways.iter().filter(|way| way.kind.is_ok());
    let heard = reachable().filter_map(|way| Some((way, facts.reached.get(&way.range)?)));
    let mut findings: Vec<Finding> =
        heard.filter_map(|(way, reached)| peer(CHECK, facts, way, reached)).collect();
    let (all, asked) = (reachable().count(), facts.reached.len());
    if all > asked {
        let said = format!("{asked} of {all} ranges were asked, {ASKED_MAX} at most");
        findings.push(warn(CHECK, said, "look at the others from their own nodes"));
    }
    if findings.is_empty() {
        let said = match asked {
            0 => "there are no other nodes with pods".to_owned(),
            _ => format!("packets of every size reach all {asked} ranges of other nodes"),
        };
        findings.push(ok(CHECK, said));
    }
    findings
}

/// What is wrong with the way to a node's pods.
fn peer(check: &str, facts: &PodNetworkFacts, way: &Way, reached: &Reached) -> Option<Finding> {
    let (node, range, mtu) = (&way.node, way.range, facts.seen.mtu.1);
    let by = match &way.kind {
        Ok(Kind::Direct { gateway, .. }) => format!("directly by {gateway}"),
        Ok(Kind::Tunnel { endpoint }) => format!("by the tunnel to {endpoint}"),
        Err(_) => return None,
    };
    let is_its = |from: &IpAddr| {
        let known = facts.addresses.get(node).is_some_and(|addresses| addresses.contains(from));
        known || range.contains(*from)
    };
    match (&reached.small, &reached.large) {
        (Heard::From(from), _) if !is_its(from) => Some(fail(
            check,
            format!(
                "packets to {range} of node {node} ({by}) end at {from}, which is not that node"
            ),
            format!("see the routes of {from}, and that {node} is a Node with these addresses"),
        )),
        (Heard::From(_), Heard::From(_)) => None,
        (Heard::From(_), large) => Some(fail(
            check,
            format!(
                "small packets reach {range} of node {node} ({by}), those of {mtu} bytes do not{}",
                if *large == Heard::TooBig { ": a link on the way is narrower" } else { "" }
            ),
            "set --mtu on all nodes to what the way takes, less 50 bytes for a tunnel (70 over IPv6)",
        )),
        (Heard::NotSent(why), _) => Some(fail(
            check,
            format!("nothing can be sent to {range} of node {node} ({by}): {why}"),
            "see the routes above, and whether a firewall of this node refuses it",
        )),
        (Heard::Nothing | Heard::TooBig, _) => {
            let port = if way.is_tunnel() { " (UDP, --vxlan-port)" } else { "" };
            Some(fail(
                check,
                format!("node {node} does not answer for {range} ({by})"),
                format!(
                    "see that its agent runs and is ready, that it reaches this node, and that no \
                     firewall between them drops packets of pods{port} or ICMP errors"
                ),
            ))
        }
    }
}
