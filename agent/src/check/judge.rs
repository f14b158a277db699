//! What the facts mean. Pure.

use std::collections::BTreeSet;

use mizzen_ebpf_abi::counters::Counter;

use super::{DatapathFacts, Facts, Finding, Host, Verdict, pod_network};
use crate::{
    datapath::{Features, Interface, LOOPBACK_PROGRAM, Place},
    podnet::datapath::{LOST, Lost},
    status::State,
};

/// Share of a table's bound from which an operator should know, in percent.
const PRESSURE_WARNING: u64 = 80;

/// The findings, in a fixed order.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = parts(facts);
    match &facts.pod_network {
        None => {}
        Some(Ok(facts)) => findings.extend(pod_network::judge(facts)),
        Some(Err(error)) => findings.push(unknown("pods", error)),
    }
    let Some(datapath) = &facts.datapath else {
        if facts.pod_network.is_some() {
            findings.extend(LOST.map(without));
        }
        findings.push(ok("services", "the services role is off: nothing is translated here"));
        return findings;
    };
    findings.extend(kernel(&facts.host, datapath.features, datapath.packet_links));
    findings.push(sockets(datapath));
    findings.push(packets(datapath));
    findings.push(tables(datapath));
    findings.push(altered(datapath));
    findings.extend(pressure(datapath));
    findings.extend(counted(datapath));
    findings.extend(settings(&facts.host));
    findings.extend(ports(&facts.host, datapath));
    findings.extend(datapath.foreign_cni.then(policies));
    findings
}

/// What pods lack without programs.
fn without(lost: Lost) -> Finding {
    warn("pod programs", format!("no {}: {}", lost.what, lost.loss), lost.remedy)
}

/// What holds for network policies beside another CNI plugin.
fn policies() -> Finding {
    warn(
        "policies",
        "another CNI plugin connects the pods, and what is translated packet by packet passes \
         netfilter's FORWARD chain by: network policies in iptables or nftables don't see it",
        "nothing where that plugin has no policies, or keeps them as programs at the pods' own \
         links; else keep clients of node ports and load balancers out before the node, or by \
         loadBalancerSourceRanges",
    )
}

fn finding(
    check: &str,
    verdict: Verdict,
    said: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    Finding { check: check.to_owned(), verdict, said: said.into(), remedy: remedy.into() }
}

pub(super) fn ok(check: &str, said: impl Into<String>) -> Finding {
    finding(check, Verdict::Ok, said, "")
}

pub(super) fn warn(check: &str, said: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(check, Verdict::Warn, said, remedy)
}

pub(super) fn fail(check: &str, said: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(check, Verdict::Fail, said, remedy)
}

fn parts(facts: &Facts) -> Vec<Finding> {
    let part = |(name, state): (&&'static str, &State)| match state {
        State::Ready => None,
        State::Waiting(reason) => Some(fail(
            "agent",
            format!("{name} waits: {reason}"),
            "see to what it waits for; until then what the kernel holds stays in force",
        )),
        State::Degraded(reason) => {
            Some(fail("agent", format!("{name}: {reason}"), "the reason says what to do"))
        }
    };
    let mut findings: Vec<Finding> = facts.parts.iter().filter_map(part).collect();
    if findings.is_empty() {
        findings.push(ok("agent", format!("all {} parts are ready", facts.parts.len())));
    }
    findings
}

fn kernel(host: &Host, features: Features, packet_links: bool) -> Vec<Finding> {
    let lacks = [
        (features.loops, "5.17", "UDP sockets may change their backend when others come or go"),
        (features.set_retval, "5.18", "refused connections fail with EPERM, not ECONNREFUSED"),
        (packet_links, "6.6", "packet programs are filters, which others can remove unnoticed"),
    ];
    let mut findings: Vec<Finding> = lacks
        .into_iter()
        .filter(|(has, ..)| !has)
        .map(|(_, since, loss)| warn("kernel", loss, format!("run Linux {since} or later")))
        .collect();
    if host.jit == Some(false) {
        findings.push(warn(
            "kernel",
            "eBPF programs are interpreted: every packet and connection costs several times more",
            "sysctl -w net.core.bpf_jit_enable=1, then start the agent again",
        ));
    }
    if host.statistics == Some(true) {
        findings.push(warn(
            "kernel",
            "every run of an eBPF program is timed, which costs more than many of them do",
            "sysctl -w kernel.bpf_stats_enabled=0",
        ));
    }
    if findings.is_empty() {
        findings.push(ok("kernel", format!("Linux {} has all that is used", host.release)));
    }
    findings
}

/// What puts back what somebody detached.
const REATTACH: &str = "the agent puts it back within seconds; if it stays away, something on this \
                        node detaches it: `bpftool link` and the agent's log tell";

fn sockets(datapath: &DatapathFacts) -> Finding {
    let places = match &datapath.places {
        Ok(places) => places,
        Err(error) => return unknown("sockets", error),
    };
    let of_sockets = || places.iter().filter(|place| place.interface.is_none());
    let missing: Vec<&str> =
        of_sockets().filter(|place| !place.in_force).map(|place| &*place.program).collect();
    let (count, cgroup) = (of_sockets().count(), datapath.cgroup.display());
    if missing.is_empty() {
        return ok("sockets", format!("{count} programs are attached to {cgroup}"));
    }
    let missing = missing.join(", ");
    fail("sockets", format!("not attached to {cgroup}: {missing}"), REATTACH)
}

fn packets(datapath: &DatapathFacts) -> Finding {
    const CHECK: &str = "packets";
    let (places, uplinks) = match (&datapath.places, &datapath.uplinks) {
        (Ok(places), Ok(uplinks)) => (places, uplinks),
        (Err(error), _) | (_, Err(error)) => return unknown(CHECK, error),
    };
    if !uplinks.without_ethernet.is_empty() {
        let names: Vec<&str> = uplinks.without_ethernet.iter().map(|link| &*link.name).collect();
        return fail(
            CHECK,
            format!(
                "{} without an Ethernet header: packets of services that pass it are not \
                 translated",
                names.join(", ")
            ),
            "let clients reach this node by an Ethernet device, or name those by --uplink",
        );
    }
    let uplinks = &uplinks.devices;
    if uplinks.is_empty() {
        return fail(
            CHECK,
            "no device leads to other hosts: nobody outside reaches services by this node",
            "name the device by --uplink, or give the Node an InternalIP that a device has",
        );
    }
    let names: Vec<&str> = uplinks.iter().map(|uplink| &*uplink.name).collect();
    let names = names.join(", ");
    if !datapath.packet_links {
        return ok(CHECK, format!("filters on {names}, which this kernel does not let us look at"));
    }
    let of_packets = || places.iter().filter(|place| place.interface.is_some());
    let detached = |place: &&Place| !place.in_force;
    let missing: Vec<String> = of_packets()
        .filter(detached)
        .map(|place| format!("{} of device {}", place.program, place.interface.unwrap_or(0)))
        .chain(bare(places, uplinks))
        .chain(missing_at_loopback(datapath.resolver, places))
        .collect();
    if missing.is_empty() {
        let pods = of_packets().filter(|place| place.program == "tc_pod_ingress").count();
        return ok(CHECK, format!("programs are attached to {names} and to {pods} pods' devices"));
    }
    fail(CHECK, format!("not attached: {}", missing.join(", ")), REATTACH)
}

/// The uplinks that have no program.
fn bare<'a>(
    places: &'a [Place],
    uplinks: &'a BTreeSet<Interface>,
) -> impl Iterator<Item = String> + 'a {
    let on = |uplink: &Interface, program: &str| {
        places.iter().any(|place| place.interface == Some(uplink.index) && place.program == program)
    };
    ["tc_uplink_ingress", "tc_uplink_egress"].into_iter().flat_map(move |program| {
        let bare = uplinks.iter().filter(move |uplink| !on(uplink, program));
        bare.map(move |uplink| format!("{program} of {}", uplink.name))
    })
}

/// The program of the loopback interface, where it belongs there and is not.
fn missing_at_loopback(belongs: bool, places: &[Place]) -> Option<String> {
    let is_there = places.iter().any(|place| place.program == LOOPBACK_PROGRAM);
    (belongs && !is_there).then(|| format!("{LOOPBACK_PROGRAM} of lo"))
}

fn unknown(check: &str, error: &str) -> Finding {
    fail(check, format!("can't be told: {error}"), "see the agent's log")
}

fn tables(datapath: &DatapathFacts) -> Finding {
    match &datapath.differences {
        Ok(0) => ok("tables", "they are what the cluster's objects ask for"),
        Ok(steps) => fail(
            "tables",
            format!("{steps} steps from what the cluster's objects ask for"),
            "`mizzen diff` lists them; the agent makes up for them within seconds, else \
             `mizzen status` tells why it can't",
        ),
        Err(error) => unknown("tables", error),
    }
}

fn altered(datapath: &DatapathFacts) -> Finding {
    match datapath.healed {
        0 => ok("altered", "nobody else changed tables or detached programs"),
        count => warn(
            "altered",
            format!("{count} elements were altered by somebody else and mended"),
            "find out what writes to Mizzen's maps or detaches its programs: the metric \
             mizzen_healed_total names them, the agent's log the time",
        ),
    }
}

fn pressure(datapath: &DatapathFacts) -> Vec<Finding> {
    let percent = |used: u32, max: u32| u64::from(used) * 100 / u64::from(max.max(1));
    let share = |of: &crate::apply::maps::Usage| percent(of.used, of.max);
    let tight = datapath.usage.iter().filter(|usage| share(usage) >= PRESSURE_WARNING);
    let mut findings: Vec<Finding> = tight
        .map(|usage| {
            let said = format!("{} holds {} of at most {}", usage.map, usage.used, usage.max);
            let verdict = if usage.used >= usage.max { Verdict::Fail } else { Verdict::Warn };
            finding("pressure", verdict, said, "what does not fit is refused: see what fills it")
        })
        .collect();
    if findings.is_empty() {
        let fullest = datapath.usage.iter().max_by_key(|usage| share(usage));
        findings.push(match fullest {
            Some(usage) => {
                ok("pressure", format!("the fullest table is {}: {} %", usage.map, share(usage)))
            }
            None => ok("pressure", "no table was looked at yet"),
        });
    }
    findings
}

/// Counters that tell of something that should not be.
fn counted(datapath: &DatapathFacts) -> Vec<Finding> {
    const GREW: &str =
        "raise no alarm for an old count: it is since the programs were first loaded";
    let finding_of = |(counter, count): &(Counter, u64)| {
        let (verdict, what) = match counter {
            Counter::ForeignRange | Counter::ForeignBackend => {
                (Verdict::Fail, "programs met an entry of another service: please report this")
            }
            Counter::DropFlowTableFull => {
                (Verdict::Warn, "new flows were refused: too many at once")
            }
            Counter::DropNoSourcePort => {
                (Verdict::Warn, "no source port was free: widen snatPortMin to snatPortMax")
            }
            Counter::AffinityTableFull => {
                (Verdict::Warn, "clients of session affinity could not be remembered")
            }
            _ => return None,
        };
        let said = format!("{what} ({} = {count})", counter.name());
        (*count > 0).then(|| finding("counters", verdict, said, GREW))
    };
    let mut findings: Vec<Finding> = datapath.counters.iter().filter_map(finding_of).collect();
    if findings.is_empty() {
        findings.push(ok("counters", "the programs met nothing that should not be"));
    }
    findings
}

fn settings(host: &Host) -> Vec<Finding> {
    let off = host.forwarding.iter().filter(|(_, on)| **on == Some(false));
    let mut findings: Vec<Finding> = off
        .map(|(name, _)| {
            fail(
                "settings",
                format!("{name} is 0: packets for pods and by node ports are not forwarded"),
                format!("sysctl -w {name}=1, and see what resets it (/etc/sysctl.d)"),
            )
        })
        .collect();
    if findings.is_empty() {
        let filter = match host.rp_filter {
            Some(1) => "; strict reverse path filters do no harm",
            _ => "",
        };
        findings.push(ok("settings", format!("packets are forwarded{filter}")));
    }
    findings
}

/// Node ports should be nobody else's. (That masqueraded flows and the node's sockets don't share
/// source ports is the business of a part of its own, [`crate::source_ports`].)
fn ports(host: &Host, datapath: &DatapathFacts) -> Vec<Finding> {
    const CHECK: &str = "ports";
    let (first, last) = datapath.snat_ports;
    let mut findings = Vec::new();
    if let Some(port) = datapath.node_ports.range(first..=last).next() {
        findings.push(fail(
            CHECK,
            format!("node port {port} is among the source ports of masqueraded flows"),
            format!("choose other snatPortMin and snatPortMax than {first} to {last}"),
        ));
    }
    if let Some(port) = datapath.node_ports.iter().find(|port| host.gives_out(**port)) {
        findings.push(warn(
            CHECK,
            format!("the kernel may give node port {port} to a socket of this node"),
            "add the range of node ports to net.ipv4.ip_local_reserved_ports",
        ));
    }
    if findings.is_empty() {
        let said = "no node port is a source port of masqueraded flows or of the node's sockets";
        findings.push(ok(CHECK, said));
    }
    findings
}
