//! `/v1/check`: gathers what [`crate::check`] judges.

use std::{collections::BTreeSet, io};

use tokio::{sync::oneshot, task::spawn_blocking};

use super::{Facts, http::Answer};
use crate::{
    check::{DatapathFacts, Facts as Checked, Host, Report, Verdict, judge},
    datapath::{Places, Uplinks, find_uplinks},
    metrics::ProgramCounters,
    reconcile::Query,
};

/// Looks at one node's datapath.
#[derive(Clone, Debug)]
pub struct Checker {
    /// Where programs are.
    pub places: Places,
    /// The configured uplinks; empty where they are found.
    pub uplinks: Vec<String>,
    /// First and last source port of masqueraded flows.
    pub snat_ports: (u16, u16),
    /// Whether another CNI plugin connects the pods.
    pub foreign_cni: bool,
    /// Whether this node answers for cluster DNS.
    pub resolver: bool,
}

/// What blocks while it is read.
struct Read {
    places: io::Result<Vec<crate::datapath::Place>>,
    uplinks: Result<Uplinks, String>,
    host: Host,
}

/// `/v1/check`.
pub(super) async fn check(facts: &Facts) -> Answer {
    let (checker, snapshot) = (facts.checker.clone(), facts.health.snapshots.borrow().clone());
    // Where nobody attaches programs the addresses of the Node object do.
    let addresses = facts.ask(Query::UplinkAddresses).await.unwrap_or_else(|| {
        let node = snapshot.nodes.get(&*facts.node);
        node.map_or_else(Vec::new, |node| node.internal_ips.clone())
    });
    let read = spawn_blocking(move || {
        let ipv6 = addresses.iter().any(std::net::IpAddr::is_ipv6);
        let names = checker.as_ref().map_or(&[][..], |checker| &checker.uplinks);
        let uplinks = find_uplinks(names, &addresses).map_err(|error| error.to_string());
        let devices: Vec<_> =
            uplinks.iter().flat_map(|uplinks| &uplinks.devices).cloned().collect();
        let places = checker.map_or_else(|| Ok(Vec::new()), |checker| checker.places.read());
        Read { host: Host::read(&devices, ipv6), places, uplinks }
    });
    let Ok(Read { places, uplinks, host }) = read.await else {
        return Answer::text("the agent is stopping").with(hyper::StatusCode::SERVICE_UNAVAILABLE);
    };
    let datapath = match &facts.checker {
        None => None,
        Some(checker) => Some(DatapathFacts {
            features: checker.places.features(),
            packet_links: Places::has_packet_links(),
            cgroup: checker.places.cgroup().to_owned(),
            places: places.map_err(|error| error.to_string()),
            uplinks,
            differences: differences(facts).await,
            usage: facts.metrics.tables.usage(),
            healed: facts.metrics.tables.healed_in_all(),
            counters: facts.programs.as_deref().map(ProgramCounters::read).unwrap_or_default(),
            snat_ports: checker.snat_ports,
            node_ports: node_ports(&snapshot),
            foreign_cni: checker.foreign_cni,
            resolver: checker.resolver,
        }),
    };
    let pod_network = match &facts.pods {
        None => None,
        Some(pods) => Some(pods.facts().await),
    };
    let findings = judge(&Checked { parts: facts.board.parts(), datapath, host, pod_network });
    let healthy = findings.iter().all(|finding| finding.verdict != Verdict::Fail);
    Answer::json(&Report { node: facts.node.clone(), healthy, findings })
}

/// How many steps the tables are away from what they should be.
async fn differences(facts: &Facts) -> Result<usize, String> {
    let query = |reply: oneshot::Sender<_>| Query::Diff(reply);
    match facts.ask(query).await {
        Some(diff) => diff.map(|diff| diff.steps.len()),
        None => Err("the agent is stopping".to_owned()),
    }
}

fn node_ports(snapshot: &crate::model::snapshot::Snapshot) -> BTreeSet<u16> {
    let ours = snapshot.services.values().filter(|service| !service.foreign_proxy);
    ours.flat_map(|service| service.ports.iter().filter_map(|port| port.node_port)).collect()
}
