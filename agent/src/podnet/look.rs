//! The pod network as it is at a moment, beside what it should be: for `mizzen pods`, `routes` and
//! `check`. Reads the kernel and the journal, changes nothing, and needs nothing of the running pod
//! network but these.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use mizzen_cni::wire::Attachment;

use super::{
    JOURNAL,
    interface::{self, Interface, Neighbour},
    journal::{Entry, Phase, Replayed},
    keeper,
    ledger::link_spec,
    link,
    message::{Via, host_route},
    mtu,
    netlink::{Netlink, NetlinkError},
    netns,
    pods::chain,
    probe::{Answers, Reached},
    remembered::InPod,
    routes::{self, Present},
    sysctl, tunnel,
    ways::{self, Ways},
};
use crate::model::{node::Cidr, snapshot::Snapshot};

/// Which pod network is looked at.
#[derive(Clone, Debug)]
pub struct Place {
    /// The Node.
    pub node: String,
    /// Where the journal is.
    pub state_dir: PathBuf,
    /// UDP port of the tunnels; 0: there are none.
    pub vxlan_port: u16,
    /// MTU of pods as configured; `None`: the uplink's.
    pub mtu: Option<u32>,
}

/// A pod's attachment.
#[derive(Clone, Debug)]
pub struct PodSeen {
    /// Which.
    pub attachment: Attachment,
    /// What the journal says of it.
    pub entry: Entry,
    /// What of it on the node is otherwise than ADD left it; each with what mends it.
    pub wrong: Vec<(String, String)>,
    /// What is otherwise inside the pod, the first thing of it; not looked for in all pods.
    pub wrong_inside: Option<String>,
}

/// The tunnel's device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSeen {
    /// What it should be.
    pub mtu: u32,
    /// The device as it is, if at all: its MTU, and whether it is up and of the right kind.
    pub found: Option<(u32, bool)>,
    /// Settings that do not hold, as `sysctl` takes them.
    pub altered: Vec<String>,
}

/// How many pods' namespaces are entered in one look.
const ENTERED_MAX: usize = 256;

/// All of it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The interfaces, by index.
    pub interfaces: BTreeMap<u32, Interface>,
    /// The node's ranges, by the journal.
    pub ranges: Vec<Cidr>,
    /// Attachments in the order of their pods.
    pub pods: Vec<PodSeen>,
    /// The uplink's MTU, and the one that pods should have.
    pub mtu: (u32, u32),
    /// How other nodes should be reached.
    pub ways: Ways,
    /// Routes that are wanted and not there, or that somebody else holds; with what should be.
    pub missing_routes: Vec<(Cidr, Via, bool)>,
    /// The tunnel, where some node is reached by it.
    pub tunnel: Option<TunnelSeen>,
}

/// Looks, in the network namespace of the calling thread.
pub fn look(place: &Place, snapshot: &Snapshot) -> Result<Seen, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let interfaces = interface::interfaces(&mut netlink)?;
    let addresses = interface::addresses(&mut netlink)?;
    let present = interface::routes(&mut netlink)?;
    let neighbours = interface::permanent_neighbours(&mut netlink)?.into_iter().collect();
    let tunnel = tunnel::find(&mut netlink, place.vxlan_port)?;
    let own = snapshot.nodes.get(place.node.as_str());
    let internal_ips = own.map(|node| node.internal_ips.as_slice()).unwrap_or_default();
    let uplink = mtu::of_uplink(&interfaces, &addresses, internal_ips);
    let on_link = keeper::on_link(&interfaces, &addresses);
    let ways = ways::ways(&snapshot.nodes, &place.node, &on_link, place.vxlan_port != 0);
    let in_tunnel = mtu::of_tunnel(uplink, ways.overhead());
    let of_pods = place.mtu.unwrap_or(if ways.need_tunnel() { in_tunnel } else { uplink });
    let journal = journal(place);
    let pods = pods(&journal, &interfaces, &present, &neighbours, of_pods);
    let ifindex = tunnel.map(|device| device.ifindex);
    Ok(Seen {
        missing_routes: missing(&ways.routes(ifindex), &present),
        tunnel: ways.need_tunnel().then(|| TunnelSeen {
            mtu: in_tunnel,
            found: tunnel.map(|device| (device.mtu, device.is_usable())),
            altered: tunnel.map_or_else(Vec::new, |_| sysctl::altered_of_host_end(tunnel::IFNAME)),
        }),
        interfaces: interfaces.into_iter().map(|found| (found.ifindex, found)).collect(),
        ranges: journal.ranges,
        pods,
        mtu: (uplink, of_pods),
        ways,
    })
}

/// Asks the other nodes whether packets to their pods arrive.
pub fn reach(seen: &Seen, answers: &Answers) -> BTreeMap<Cidr, Reached> {
    let ranges: Vec<Cidr> =
        seen.ways.ways.iter().filter(|way| way.kind.is_ok()).map(|way| way.range).collect();
    answers.ask(&ranges, seen.mtu.1)
}

/// What the agents of this boot noted.
fn journal(place: &Place) -> Replayed {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let bytes = fs::read(place.state_dir.join(JOURNAL)).unwrap_or_default();
    Replayed::from_lines(&bytes, boot.trim())
}

/// The routes that are wanted and not there, and whether somebody else has one in their place.
fn missing(wanted: &BTreeMap<Cidr, Via>, present: &[Present]) -> Vec<(Cidr, Via, bool)> {
    let plan = routes::plan(wanted, present);
    let held =
        |range: &Cidr| present.iter().any(|found| found.destination == *range && !found.ours);
    let set = plan.set.into_iter().map(|(range, via)| (range, via, false));
    let foreign = wanted.iter().filter(|(range, _)| held(range));
    set.chain(foreign.map(|(range, via)| (*range, *via, true))).collect()
}

fn pods(
    journal: &Replayed,
    interfaces: &[Interface],
    routes: &[Present],
    neighbours: &BTreeSet<Neighbour>,
    mtu: u32,
) -> Vec<PodSeen> {
    let routes: BTreeSet<(Cidr, Option<Via>)> =
        routes.iter().map(|route| (route.destination, route.via)).collect();
    let mut pods: Vec<PodSeen> = journal
        .entries
        .iter()
        .map(|(attachment, entry)| {
            let found = interfaces.iter().find(|one| one.ifname == attachment.host_ifname());
            let wrong = match (found, entry.phase) {
                (_, Phase::Reserved | Phase::Leaving) => Vec::new(),
                (Some(found), Phase::Live) => {
                    wrong(attachment, entry, found, &routes, neighbours, mtu)
                }
                (None, Phase::Live) => vec![(
                    format!("its link {} is gone", attachment.host_ifname()),
                    "the agent makes it anew at once, unless the pod's namespace is gone too"
                        .to_owned(),
                )],
            };
            let wrong_inside = None;
            PodSeen { attachment: attachment.clone(), entry: entry.clone(), wrong, wrong_inside }
        })
        .collect();
    look_inside(&mut pods, interfaces);
    pods.sort_by(|a, b| {
        let key = |pod: &PodSeen| (pod.entry.pod.namespace.clone(), pod.entry.pod.name.clone());
        key(a).cmp(&key(b))
    });
    pods
}

/// Looks at the other ends of the links that are there, where their namespaces can be found.
fn look_inside(pods: &mut [PodSeen], interfaces: &[Interface]) {
    let has_link = |pod: &&mut PodSeen| {
        let ifname = pod.attachment.host_ifname();
        pod.entry.phase == Phase::Live && interfaces.iter().any(|found| found.ifname == ifname)
    };
    let mut linked: Vec<_> = pods.iter_mut().filter(has_link).take(ENTERED_MAX).collect();
    let found = netns::find_all(&linked.iter().map(|pod| pod.entry.netns).collect());
    for pod in &mut linked {
        let Some(netns) = found.get(&pod.entry.netns) else { continue };
        let in_pod = InPod::made(&pod.entry.addresses);
        let seen = link::verify_inside(&link_spec(&pod.attachment, &pod.entry), &in_pod, netns);
        pod.wrong_inside = seen.err().map(|error| chain(&error));
    }
}

/// What of a pod on the node is otherwise than ADD left it, each with what mends it.
fn wrong(
    attachment: &Attachment,
    entry: &Entry,
    found: &Interface,
    routes: &BTreeSet<(Cidr, Option<Via>)>,
    neighbours: &BTreeSet<Neighbour>,
    mtu: u32,
) -> Vec<(String, String)> {
    let spec = link_spec(attachment, entry);
    let (ifname, ifindex) = (&spec.host_ifname, found.ifindex);
    let mut wrong = Vec::new();
    if !found.up {
        wrong.push((format!("{ifname} is down"), format!("ip link set {ifname} up")));
    }
    if found.mac != Some(spec.host_mac) {
        let mac = spec.host_mac;
        let remedy = format!("ip link set {ifname} address {mac}, and see what changes it (udev)");
        wrong.push((format!("{ifname} has another link-layer address than {mac}"), remedy));
    }
    if found.mtu != mtu {
        let said = format!("{ifname} takes packets of {} bytes, not of {mtu}", found.mtu);
        wrong.push((said, format!("ip link set {ifname} mtu {mtu}, and eth0 in the pod likewise")));
    }
    for address in spec.addresses.iter().copied() {
        if !routes.contains(&(host_route(address), Some(Via::Link(ifindex)))) {
            let remedy = format!("ip route replace {address} dev {ifname} proto 77");
            wrong.push((format!("there is no route to {address}"), remedy));
        }
        if !neighbours.contains(&Neighbour { ifindex, address, mac: spec.pod_mac }) {
            let remedy = format!(
                "ip neigh replace {address} lladdr {} dev {ifname} nud permanent",
                spec.pod_mac
            );
            wrong.push((format!("there is no neighbour {address}"), remedy));
        }
    }
    let altered = sysctl::altered_of_host_end(ifname);
    let settings = altered
        .into_iter()
        .map(|setting| (format!("{setting} does not hold"), format!("sysctl -w {setting}")));
    wrong.extend(settings);
    wrong
}
