//! `/v1/pods` and `/v1/routes`: the pod network of this node, as it is.

use std::{collections::BTreeMap, sync::Arc};

use hyper::StatusCode;
use mizzen_cni::wire::Limit;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::spawn_blocking};

use super::http::{Answer, Asked};
use crate::{
    check::PodNetworkFacts,
    model::snapshot::Snapshot,
    podnet::{
        journal::Phase,
        look::{self, Place, PodSeen, Seen},
        message::Via,
        probe::Answers,
        ways::{Kind, Way},
    },
};

/// Looks at the pod network.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    /// Which.
    pub place: Place,
    /// The cluster.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// What other nodes answered.
    pub answers: Arc<Answers>,
}

/// A pod's attachment: `mizzen pods`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRow {
    /// The pod's namespace; empty where the runtime did not say.
    pub namespace: String,
    /// Its name; likewise.
    pub name: String,
    /// The container ID.
    pub container: String,
    /// The interface in the pod.
    pub ifname: String,
    /// The pod's addresses.
    pub addresses: Vec<String>,
    /// The host's end of its link.
    pub host_ifname: String,
    /// Of the link, in bytes.
    pub mtu: u32,
    /// What it may receive, in bits per second; 0: as much as comes.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ingress: u64,
    /// What it may send, likewise.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub egress: u64,
    /// `connected`, `connecting`, `leaving` or `damaged`.
    pub state: String,
    /// What is damaged, each with what mends it; empty where nothing is.
    pub damage: Vec<String>,
}

/// The way to a range of another node's pods: `mizzen routes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteRow {
    /// The node.
    pub node: String,
    /// The range.
    pub range: String,
    /// `direct`, `tunnel` or `none`.
    pub way: String,
    /// The next hop with its device, or the other end of the tunnel.
    pub via: String,
    /// Of packets on that way, in bytes; 0 where there is none.
    pub mtu: u32,
    /// `ok`; `missing`: the agent is about to set it; `foreign`: somebody else has a route there.
    pub state: String,
    /// Why it is this way.
    pub reason: String,
}

/// Why a name has no row.
const NO_POD: &str = "this node's agent connected no such pod: it is on another node, in its node's \
                      own network, or another plugin's";

impl PodNetwork {
    /// `/v1/pods`.
    pub(super) async fn pods(&self, asked: &Asked) -> Answer {
        match self.look().await {
            Ok(seen) => {
                let rows: Vec<PodRow> = seen.pods.iter().map(pod).collect();
                let wanted = |row: &PodRow| super::named(asked, &row.namespace, &row.name);
                super::found(asked, rows, wanted, NO_POD)
            }
            Err(answer) => answer,
        }
    }

    /// `/v1/routes`.
    pub(super) async fn routes(&self) -> Answer {
        match self.look().await {
            Ok(seen) => Answer::json(
                &seen.ways.ways.iter().map(|way| route(&seen, way)).collect::<Vec<_>>(),
            ),
            Err(answer) => answer,
        }
    }

    /// What [`crate::check`] judges: with answers of the other nodes.
    pub(super) async fn facts(&self) -> Result<PodNetworkFacts, String> {
        let (place, snapshot) = (self.place.clone(), Arc::clone(&self.snapshots.borrow()));
        let answers = Arc::clone(&self.answers);
        let looked = spawn_blocking(move || {
            look::look(&place, &snapshot).map(|seen| {
                let reached = look::reach(&seen, &answers);
                let addresses = snapshot.nodes.values();
                let addresses =
                    addresses.map(|node| (node.name.clone(), node.internal_ips.clone()));
                PodNetworkFacts { reached, addresses: addresses.collect(), seen }
            })
        });
        match looked.await {
            Ok(facts) => facts.map_err(|error| error.to_string()),
            Err(_) => Err("the agent is stopping".to_owned()),
        }
    }

    async fn look(&self) -> Result<Seen, Answer> {
        let (place, snapshot) = (self.place.clone(), Arc::clone(&self.snapshots.borrow()));
        let unavailable = |why: String| Answer::text(why).with(StatusCode::SERVICE_UNAVAILABLE);
        match spawn_blocking(move || look::look(&place, &snapshot)).await {
            Ok(seen) => seen.map_err(|error| unavailable(error.to_string())),
            Err(_) => Err(unavailable("the agent is stopping".to_owned())),
        }
    }
}

fn pod(seen: &PodSeen) -> PodRow {
    let (attachment, entry) = (&seen.attachment, &seen.entry);
    let state = match entry.phase {
        Phase::Reserved => "connecting",
        Phase::Leaving => "leaving",
        Phase::Live if seen.wrong.is_empty() => "connected",
        Phase::Live => "damaged",
    };
    PodRow {
        namespace: entry.pod.namespace.clone(),
        name: entry.pod.name.clone(),
        container: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        addresses: entry.addresses.iter().map(ToString::to_string).collect(),
        host_ifname: attachment.host_ifname(),
        mtu: entry.mtu,
        ingress: rate(entry.requested.bandwidth.ingress),
        egress: rate(entry.requested.bandwidth.egress),
        state: state.to_owned(),
        damage: seen.wrong.iter().map(|(what, remedy)| format!("{what}; do: {remedy}")).collect(),
    }
}

fn rate(limit: Option<Limit>) -> u64 {
    limit.map_or(0, |limit| limit.rate)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(rate: &u64) -> bool {
    *rate == 0
}

/// Names of interfaces by their index.
fn ifname(seen: &Seen, ifindex: u32) -> String {
    let found = seen.interfaces.get(&ifindex).map(|found| found.ifname.clone());
    found.unwrap_or_else(|| format!("device {ifindex}"))
}

fn route(seen: &Seen, way: &Way) -> RouteRow {
    let held: BTreeMap<_, (Via, bool)> = seen
        .missing_routes
        .iter()
        .map(|(range, via, foreign)| (*range, (*via, *foreign)))
        .collect();
    let lacks_tunnel = way.is_tunnel() && !usable(seen);
    let state = match held.get(&way.range) {
        Some((_, true)) => "foreign",
        Some(_) => "missing",
        None if lacks_tunnel => "missing",
        None => "ok",
    };
    let (kind, via, mtu, reason) = match &way.kind {
        Ok(Kind::Direct { gateway, link }) => {
            let device = ifname(seen, link.ifindex);
            let mtu = seen.interfaces.get(&link.ifindex).map_or(0, |found| found.mtu);
            let reason = format!("{gateway} is on the link of {device} ({})", link.prefix);
            ("direct", format!("{gateway} dev {device}"), mtu, reason)
        }
        Ok(Kind::Tunnel { endpoint }) => {
            let mtu = seen.tunnel.as_ref().map_or(0, |tunnel| tunnel.mtu);
            let reason = format!("no address of {} is on a link of this node", way.node);
            ("tunnel", endpoint.to_string(), mtu, reason)
        }
        Err(why) => ("none", String::new(), 0, why.clone()),
    };
    RouteRow {
        node: way.node.to_string(),
        range: way.range.to_string(),
        way: kind.to_owned(),
        via,
        mtu,
        state: if way.kind.is_ok() { state } else { "missing" }.to_owned(),
        reason,
    }
}

fn usable(seen: &Seen) -> bool {
    seen.tunnel.as_ref().is_some_and(|tunnel| tunnel.found.is_some_and(|(_, usable)| usable))
}
