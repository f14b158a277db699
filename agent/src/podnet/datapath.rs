//! What the pod network needs of the datapath when a pod comes or goes. Implemented by
//! `crate::datapath` where its programs are loaded, and by [`NoDatapath`] where they are not.

use std::{fs::File, net::IpAddr, sync::Arc};

use tokio::sync::mpsc;

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
}

/// Attaches the datapath to pods. Both calls are idempotent.
pub trait PodDatapath: Send + Sync {
    /// Attaches the packet programs to the host's end, and makes the pod's addresses known, and
    /// that it is the one in `netns`; without, what is known of its namespace stays.
    fn attach(&self, link: &PodLink, netns: Option<&File>) -> Result<(), PodDatapathError>;
    /// Forgets the pod's addresses and namespace; the programs go with the link. Success where it
    /// is unknown.
    fn detach(&self, link: &PodLink) -> Result<(), PodDatapathError>;
}

/// A datapath, beside which someone wants to know of the addresses that pods have no more.
pub struct Announced {
    datapath: Arc<dyn PodDatapath>,
    released: mpsc::Sender<Vec<IpAddr>>,
}

impl Announced {
    /// Announces what is detached from `datapath`.
    pub fn new(datapath: Arc<dyn PodDatapath>, released: mpsc::Sender<Vec<IpAddr>>) -> Self {
        Self { datapath, released }
    }
}

impl PodDatapath for Announced {
    fn attach(&self, link: &PodLink, netns: Option<&File>) -> Result<(), PodDatapathError> {
        self.datapath.attach(link, netns)
    }

    /// Pods go on going where nobody listens in time: that only ends connections sooner.
    fn detach(&self, link: &PodLink) -> Result<(), PodDatapathError> {
        if self.released.try_send(link.addresses.clone()).is_err() {
            tracing::debug!(ifname = link.ifname, "released addresses were not announced");
        }
        self.datapath.detach(link)
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
