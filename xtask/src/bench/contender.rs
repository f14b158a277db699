//! Who is compared: each makes a triple's node serve the catalogue in its own way.

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result};

use super::{
    catalogue, interrupt,
    rules::{self, Node},
    sockets,
    triple::{self, At, Triple},
    world::World,
};
use crate::{cluster::up, invoke};

/// How the name of a way begins that concerns no service, on a node with services.
pub const BESIDE: &str = "direct beside";

/// Makes a node serve services.
pub trait Contender {
    /// What it is called in the figures.
    fn label(&self) -> String;
    /// Has the triple's node serve the first `size` services of the catalogue.
    fn settle(&self, world: &World, triple: &Triple, size: u32) -> Result<()>;
}

/// A node without any service: what it forwards costs what forwarding costs.
#[derive(Debug)]
pub struct Bare;

impl Contender for Bare {
    fn label(&self) -> String {
        "bare".into()
    }

    fn settle(&self, _: &World, _: &Triple, _: u32) -> Result<()> {
        Ok(())
    }
}

/// Rules in kube-proxy's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Its nftables mode.
    Nft,
    /// Its iptables mode.
    Iptables,
}

impl Contender for Rules {
    fn label(&self) -> String {
        match self {
            Self::Nft => "nftables".into(),
            Self::Iptables => iptables_backend(),
        }
    }

    fn settle(&self, world: &World, triple: &Triple, size: u32) -> Result<()> {
        let services: Vec<_> = catalogue::services(size).collect();
        let node = Node { address: triple.host.ipv4, pods: triple::PODS };
        let (text, program, flag) = match self {
            Self::Nft => (rules::nft::ruleset(&services, &node), "nft", "--file"),
            Self::Iptables => {
                (rules::iptables::ruleset(&services, &node), "iptables-restore", "--noflush")
            }
        };
        let path = world.layout.dir.join(format!("{program}-{size}"));
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        let path = path.display().to_string();
        triple.capture(At::Node, &[program, flag, &path]).map(drop)
    }
}

/// `iptables (nf_tables)` or `iptables (legacy)`: they are two things.
fn iptables_backend() -> String {
    let version = invoke::capture(&mut invoke::command("iptables", ["--version"]));
    let backend = version.unwrap_or_default();
    let backend = backend.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    format!("iptables ({})", backend.map_or("unknown", |(backend, _)| backend))
}

/// A contender at its place.
#[derive(Clone, Debug)]
pub struct Seat {
    /// What it is called.
    pub label: String,
    /// How many services it serves.
    pub size: u32,
    /// Where.
    pub triple: Triple,
}

impl Seat {
    /// A way through the triple by the service that is called at this size.
    pub fn by_service(&self, port: u16) -> Way {
        // Only the first service has other ports.
        let number = if port == catalogue::ECHO_PORT { catalogue::target(self.size) } else { 0 };
        self.way(SocketAddr::from((catalogue::cluster_ip(number), port)), self.label.clone())
    }

    /// A way by the first service, which has every port.
    pub fn by_first_service(&self, port: u16) -> Way {
        self.way(SocketAddr::from((catalogue::cluster_ip(0), port)), self.label.clone())
    }

    /// A way by any of the services.
    pub fn by_number(&self, number: u32) -> Way {
        let at = (catalogue::cluster_ip(number), catalogue::ECHO_PORT);
        self.way(SocketAddr::from(at), self.label.clone())
    }

    /// Waits until the service that is called at this size answers.
    pub fn await_answer(&self) -> Result<()> {
        let way = self.by_service(catalogue::ECHO_PORT);
        up::wait(&self.triple.layout, "the first answer by a service", || {
            interrupt::check()?;
            Ok(sockets::load(&way, "connect", 1).map(drop).map_err(|e| format!("{e:#}")))
        })
    }

    /// A way to the backend itself.
    pub fn direct(&self, port: u16) -> Way {
        let label =
            if self.size == 0 { self.label.clone() } else { format!("{BESIDE} {}", self.label) };
        self.way(SocketAddr::from((triple::BACKENDS[0], port)), label)
    }

    fn way(&self, target: SocketAddr, label: String) -> Way {
        Way { label, size: self.size, triple: self.triple.clone(), target }
    }
}

/// From a client to a target.
#[derive(Clone, Debug)]
pub struct Way {
    /// What it is called in the figures.
    pub label: String,
    /// How many services the node serves.
    pub size: u32,
    /// Where.
    pub triple: Triple,
    /// What is dialled.
    pub target: SocketAddr,
}
