//! What the pod network needs of the datapath when a pod comes or goes. Implemented by
//! `crate::datapath` where its programs are loaded, and by [`NoDatapath`] where they are not.

use std::{
    collections::BTreeMap,
    fs::File,
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use mizzen_ebpf_abi::{
    addr::Addr,
    node::{Endpoint, PodNetns},
    service::FrontendKey,
};

use super::bandwidth::Bucket;
use crate::{metrics::Metrics, model::node::Cidr, released::Announcer};

/// A pod's attachment, as the datapath has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodLink {
    /// Name of the host's end of the veth.
    pub ifname: String,
    /// Index of the host's end.
    pub ifindex: u32,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Link-layer address of the pod's end.
    pub pod_mac: [u8; 6],
    /// Link-layer address of the host's end.
    pub host_mac: [u8; 6],
    /// Whether the pod's sockets are translated, or left to the packet path; `None` where that is
    /// not known, and stays as it is.
    pub socket_translation: Option<bool>,
    /// Whether what it receives waits in a queue at the host's end, for its bandwidth is limited.
    pub queued: bool,
    /// How much it may send, where that is limited: by its own queue, and where it took that away by
    /// a program.
    pub sends: Option<Bucket>,
}

/// What the tables say of pods at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Hash `ENDPOINTS`.
    pub endpoints: BTreeMap<Addr, Endpoint>,
    /// Hash `POD_NETNS`.
    pub namespaces: BTreeMap<u64, PodNetns>,
    /// The word of `SOCKET_OPTIONS`.
    pub options: u32,
}

impl Survey {
    /// The namespace that is known to be that of a pod with one of these addresses.
    pub fn namespace_of(&self, addresses: &[IpAddr]) -> Option<(u64, &PodNetns)> {
        let is = |known: &PodNetns| {
            let mut addresses = addresses.iter().map(|address| Addr::from(*address));
            addresses.any(|address| address == known.ipv4 || address == known.ipv6)
        };
        self.namespaces.iter().find(|(_, known)| is(known)).map(|(cookie, known)| (*cookie, known))
    }
}

/// Attaches the datapath to pods. All calls are idempotent.
pub trait PodDatapath: Send + Sync {
    /// Attaches the packet programs to the host's end, and makes the pod's addresses known, and
    /// that it is the one in `netns`; without, what is known of its namespace stays.
    fn attach(&self, link: &PodLink, netns: Option<&File>) -> Result<(), PodDatapathError>;
    /// Forgets the pod's addresses and namespace; the programs go with the link. Success where it
    /// is unknown.
    fn detach(&self, link: &PodLink) -> Result<(), PodDatapathError>;

    /// Forgets what is known of a device of a pod that has another now.
    fn forget_device(&self, _link: &PodLink) -> Result<(), PodDatapathError> {
        Ok(())
    }

    /// What of a pod that is attached is not as [`Self::attach`] left it; changes nothing.
    fn missing(&self, _link: &PodLink) -> Result<Option<String>, PodDatapathError> {
        Ok(None)
    }

    /// Whether all these frontends are in the tables of services, whomever they lead to.
    fn has_frontends(&self, _frontends: &[FrontendKey]) -> Result<bool, PodDatapathError> {
        Ok(false)
    }

    /// What the tables say of pods.
    fn survey(&self) -> Result<Survey, PodDatapathError> {
        Ok(Survey::default())
    }

    /// Something of a pod that is no table's or program's was found altered, and mended.
    fn note_healed(&self, _ifname: &str, _what: &'static str) {}

    /// Whether packets can be tunnelled to other nodes.
    fn has_tunnels(&self) -> bool {
        false
    }

    /// Attaches the programs to the tunnel's device, or finds them attached. How many were not.
    fn attach_tunnel(&self, _ifname: &str, _ifindex: u32) -> Result<usize, PodDatapathError> {
        Ok(0)
    }

    /// Has the table of peers say behind which node addresses are, by that node's end of the
    /// tunnel. How many entries were otherwise.
    fn sync_peers(&self, _peers: &BTreeMap<Cidr, IpAddr>) -> Result<usize, PodDatapathError> {
        Ok(0)
    }

    /// Has the table of what is tunnelled say by which device pods' packets to these ranges go. How
    /// many entries were otherwise.
    fn sync_tunnelled(&self, _devices: &BTreeMap<Cidr, u32>) -> Result<usize, PodDatapathError> {
        Ok(0)
    }

    /// Mends what somebody else altered of a pod that is attached, by the tables as they are in
    /// `seen`: its addresses, its programs, and what is known of its namespace; where nothing is
    /// known any more, that it is the one in `netns`. Gives the names of the maps, and `program`.
    fn mend(
        &self,
        _link: &PodLink,
        _netns: Option<&File>,
        _seen: &Survey,
    ) -> Result<Vec<&'static str>, PodDatapathError> {
        Ok(Vec::new())
    }
}

/// A datapath, beside which someone wants to know of the addresses that pods have no more, and what
/// was mended is counted.
pub struct Announced {
    datapath: Arc<dyn PodDatapath>,
    released: Announcer,
    metrics: Arc<Metrics>,
}

impl Announced {
    /// Announces what is detached from `datapath`.
    pub fn new(datapath: Arc<dyn PodDatapath>, released: Announcer, metrics: Arc<Metrics>) -> Self {
        Self { datapath, released, metrics }
    }
}

impl PodDatapath for Announced {
    fn attach(&self, link: &PodLink, netns: Option<&File>) -> Result<(), PodDatapathError> {
        self.datapath.attach(link, netns)
    }

    /// Pods go on going where nobody listens in time: that only ends connections sooner.
    fn detach(&self, link: &PodLink) -> Result<(), PodDatapathError> {
        let left_out = self.released.announce(&link.addresses);
        if left_out > 0 {
            self.metrics.resets.failures.fetch_add(left_out as u64, Relaxed);
            tracing::warn!(ifname = link.ifname, "connections to the pod are left to time out");
        }
        self.datapath.detach(link)
    }

    fn has_tunnels(&self) -> bool {
        self.datapath.has_tunnels()
    }

    fn attach_tunnel(&self, ifname: &str, ifindex: u32) -> Result<usize, PodDatapathError> {
        self.datapath.attach_tunnel(ifname, ifindex)
    }

    fn sync_peers(&self, peers: &BTreeMap<Cidr, IpAddr>) -> Result<usize, PodDatapathError> {
        self.datapath.sync_peers(peers)
    }

    fn sync_tunnelled(&self, devices: &BTreeMap<Cidr, u32>) -> Result<usize, PodDatapathError> {
        self.datapath.sync_tunnelled(devices)
    }

    fn forget_device(&self, link: &PodLink) -> Result<(), PodDatapathError> {
        self.datapath.forget_device(link)
    }

    fn missing(&self, link: &PodLink) -> Result<Option<String>, PodDatapathError> {
        self.datapath.missing(link)
    }

    fn has_frontends(&self, frontends: &[FrontendKey]) -> Result<bool, PodDatapathError> {
        self.datapath.has_frontends(frontends)
    }

    fn survey(&self) -> Result<Survey, PodDatapathError> {
        self.datapath.survey()
    }

    fn note_healed(&self, ifname: &str, what: &'static str) {
        tracing::warn!(ifname, what, "somebody else altered what pods have");
        self.metrics.tables.healed(what, 1);
    }

    fn mend(
        &self,
        link: &PodLink,
        netns: Option<&File>,
        seen: &Survey,
    ) -> Result<Vec<&'static str>, PodDatapathError> {
        let mended = self.datapath.mend(link, netns, seen)?;
        for what in &mended {
            self.note_healed(&link.ifname, what);
        }
        Ok(mended)
    }
}

/// Why a pod could not be attached.
#[derive(Debug, thiserror::Error)]
#[error("{operation} for pod interface {ifname}")]
pub struct PodDatapathError {
    /// What was tried.
    pub operation: &'static str,
    /// The host's end of the pod's veth.
    pub ifname: String,
    /// Why it failed.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// What pods lack where their programs are not loaded, as the operator chose: nothing is wrong with
/// such a node, so no part is degraded for it. `mizzen check` warns of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// In a word or two.
    pub what: &'static str,
    /// What comes of it.
    pub loss: &'static str,
    /// What does it instead.
    pub remedy: &'static str,
}

/// All of it.
pub const LOST: [Lost; 4] = [
    Lost {
        what: "tunnels",
        loss: "pods of nodes that are on no common link don't reach each other",
        remedy: "have all nodes on one link, or routers that know each node's podCIDRs",
    },
    Lost {
        what: "masquerading",
        loss: "what pods send beyond the cluster keeps their addresses, and is not answered where \
               nobody leads those back",
        remedy: "masquerade by rules of your own (`nft`, ip-masq-agent), or have a router that knows \
                 the pods' addresses",
    },
    Lost {
        what: "host ports",
        loss: "pods' `hostPort` leads nowhere: the configuration does not offer `portMappings`",
        remedy: "have pods with host ports use `hostNetwork`, or a Service of type NodePort",
    },
    Lost {
        what: "limits of what pods send",
        loss: "`kubernetes.io/egress-bandwidth` is kept by the pod's own queue alone, which a pod with \
               NET_ADMIN can remove",
        remedy: "give pods that are limited no NET_ADMIN",
    },
];

/// That pods have no programs, for the log.
pub fn without_programs() -> String {
    let lost = LOST.map(|lost| format!("no {}: {}", lost.what, lost.loss)).join("; ");
    format!(
        "pods have no programs, which are loaded with the services role (`services: false`): {lost}; \
         set `services: true`, or see `mizzen check` for what does it instead"
    )
}

/// The datapath of an agent whose services role is off.
#[derive(Debug)]
pub struct NoDatapath;

impl PodDatapath for NoDatapath {
    fn attach(&self, _: &PodLink, _: Option<&File>) -> Result<(), PodDatapathError> {
        Ok(())
    }

    fn detach(&self, _: &PodLink) -> Result<(), PodDatapathError> {
        Ok(())
    }
}
