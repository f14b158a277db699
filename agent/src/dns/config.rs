//! What the resolver is told: plain values, filled in from the agent's configuration.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use super::{
    cache::Keeping,
    chain::{Block, Chain},
    metrics::Plugins,
    native::Blocks,
    route::Route,
    tls,
    vitals::Places,
    zone::{PodNames, Trees, naming::Naming, parts::Parts},
};
use crate::model::node::Cidr;

/// The configuration of the DNS role. [`Config::default`] is the contract's: a cluster that says
/// nothing gets these addresses, ports and bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The domain below which Services have names, without a dot at the end.
    pub cluster_domain: String,
    /// The addresses of the Service `kube-dns`, which pods have in their `resolv.conf`.
    pub cluster_addresses: Vec<IpAddr>,
    /// Addresses that mean "the resolver of my own node" on every node.
    pub node_local_addresses: Vec<IpAddr>,
    /// The port at [`cluster_addresses`](Self::cluster_addresses) and
    /// [`node_local_addresses`](Self::node_local_addresses), UDP and TCP.
    pub port: u16,
    /// The name of the node, whose addresses carry the peer port.
    pub node_name: String,
    /// The port at the node's own addresses at which other nodes' pods are answered while their
    /// own resolver is away; `None` opens none.
    pub peer_port: Option<u16>,
    /// Ranges of pods' addresses beside those of the Node objects: who is in one is answered at the
    /// peer port.
    pub pod_ranges: Vec<Cidr>,
    /// Whether names of pods made of their addresses (`10-244-0-7.default.pod`) are answered.
    pub pod_names: PodNames,
    /// How long clients may keep names of the cluster, in seconds.
    pub ttl: u32,
    /// Whether a name below the cluster domain that does not exist is asked of upstreams.
    pub names_fall_through: bool,
    /// In which trees an address that no Service and no endpoint has is asked of upstreams.
    pub addresses_fall_through: Trees,
    /// Where something else holds.
    pub parts: Parts,
    /// Which objects have names, and which.
    pub naming: Naming,
    /// What is done with names outside the cluster domain. A name that no route has is refused.
    pub routes: Vec<Route>,
    /// The server blocks, which the routes name by their places: steps beside looking names up.
    pub blocks: Vec<Block>,
    /// Where clients are answered over TLS too, if anywhere.
    pub tls: Option<tls::Listener>,
    /// Whether this agent connects the node's pods, and so knows whose address one is.
    pub connects_pods: bool,
    /// Which file says more.
    pub source: Source,
    /// Where it is kept what that said when it could last be used; nowhere where nothing is named.
    pub data_dir: Option<PathBuf>,
    /// Bounds of the way to the upstreams.
    pub forward: Forwarding,
    /// Where it is told how the resolver is.
    pub vitals: Places,
    /// How long it serves on when the agent is told to stop, and says that it is not ready.
    pub lameduck: Duration,
    /// Memory for what is kept of the upstreams' answers, in octets.
    pub cache_octets: usize,
    /// Bounds of connections.
    pub tcp: Tcp,
    /// Threads that answer datagrams, each with sockets of its own.
    pub threads: usize,
}

/// Threads where nothing is said: each answers a hundred thousand questions a second.
const THREADS_MAX: usize = 4;

/// One thread for each CPU that this process may run on, up to a bound.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS_MAX)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            cluster_addresses: vec![
                Ipv4Addr::new(10, 96, 0, 10).into(),
                Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0xa).into(),
            ],
            node_local_addresses: vec![
                Ipv4Addr::new(169, 254, 20, 10).into(),
                Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 0x10).into(),
            ],
            port: 53,
            node_name: String::new(),
            peer_port: Some(8053),
            pod_ranges: Vec::new(),
            pod_names: PodNames::default(),
            ttl: 5,
            names_fall_through: false,
            addresses_fall_through: Trees::BOTH,
            parts: Parts::default(),
            naming: Naming::default(),
            routes: vec![Route::default()],
            blocks: Vec::new(),
            tls: None,
            connects_pods: true,
            source: Source::Here,
            data_dir: None,
            forward: Forwarding::default(),
            vitals: Places::default(),
            lameduck: Duration::ZERO,
            cache_octets: 8 << 20,
            tcp: Tcp::default(),
            threads: default_threads(),
        }
    }
}

impl Config {
    /// Of which zones what is done, by the names of CoreDNS's plugins.
    pub fn plugins(&self) -> Plugins {
        let domain = format!("{}.", self.cluster_domain.trim_end_matches('.'));
        let mut all = Plugins::from([(domain, "kubernetes")]);
        for route in &self.routes {
            let chain = self.blocks.get(route.block).map(|block| &block.chain);
            let does = |has: fn(&Chain) -> bool| chain.is_some_and(has);
            let done = [
                ("forward", !route.upstreams.is_empty()),
                ("cache", route.keeping != Keeping::NOTHING),
                ("errors", route.errors.is_some()),
                ("loadbalance", route.loadbalance),
                ("minimal", does(|chain| chain.minimal)),
                ("bufsize", does(|chain| chain.payload.is_some())),
                ("log", does(|chain| !chain.log.is_empty())),
                ("dns64", does(|chain| chain.dns64.is_some())),
                ("rewrite", does(|chain| !chain.rewrites.is_empty())),
                ("autopath", does(|chain| chain.autopath.is_some())),
                ("acl", does(|chain| !chain.access.is_empty())),
                ("template", does(|chain| !chain.templates.is_empty())),
            ];
            let done = done.into_iter().filter(|(_, is)| *is);
            all.extend(done.map(|(name, _)| (route.zone.to_string(), name)));
        }
        let tables = self.blocks.iter().filter(|block| block.hosts.is_some());
        let zones = tables.flat_map(|block| &block.zones);
        all.extend(zones.map(|zone| (zone.to_string(), "hosts")));
        all
    }

    /// What server blocks are too long for, a block each.
    pub fn excesses(&self) -> impl Iterator<Item = String> {
        self.blocks.iter().filter_map(|block| {
            let excess = block.hosts.as_ref()?.excess()?;
            let zones: Vec<_> = block.zones.iter().map(ToString::to_string).collect();
            Some(format!("the server block {}: {excess}", zones.join(" ")))
        })
    }
}

/// A file that is followed: what it says takes the place of what the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// None.
    #[default]
    Here,
    /// A `resolv.conf`, whose name servers are asked for all names that are not the cluster's.
    ResolvConf(PathBuf),
    /// A Corefile.
    Corefile(PathBuf),
    /// None, but server blocks of the configuration, which may name files.
    Blocks(Blocks),
}

/// Bounds of the way to the upstreams. Clients give up after five seconds (glibc, musl), so the
/// last try has to be over before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// How long one upstream may take before the next one is asked as well.
    pub attempt: Duration,
    /// How long all tries may take together.
    pub total: Duration,
    /// Questions under way at once to the upstreams of one route that names no other number. One
    /// client leaves about a quarter of them to others (of four or fewer none). As many more wait for
    /// their turn: the newest of the client that has fewest is next, and when there are more, the
    /// oldest of the client that has most waiting fails with an explanation.
    pub max_in_flight: usize,
    /// How long one may wait for its turn, as a part of [`total`](Self::total).
    pub patience: Duration,
}

impl Default for Forwarding {
    fn default() -> Self {
        Self {
            attempt: Duration::from_millis(900),
            total: Duration::from_millis(3800),
            // Each has a socket, and up to five where upstreams are slow: the agent has as many
            // descriptors as the system admits to it.
            max_in_flight: 400,
            patience: Duration::from_secs(1),
        }
    }
}

/// Bounds of TCP connections from clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Connections at once, all clients together. For one more the one that has been idle for longest
    /// is closed, and where none is idle the one that comes.
    pub max_connections: usize,
    /// Connections at once from one address, likewise.
    pub max_per_source: usize,
    /// Questions of one connection under way at once; more are read when one is answered.
    pub max_pipelined: usize,
    /// How long a connection may be silent between questions.
    pub idle: Duration,
    /// How long a message that has begun may take to arrive, and an answer to be taken.
    pub transfer: Duration,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            max_connections: 256,
            max_per_source: 32,
            max_pipelined: 32,
            idle: Duration::from_secs(10),
            transfer: Duration::from_secs(3),
        }
    }
}

/// The addresses at which `config` has the resolver listen on [`Config::port`] and that this node
/// therefore holds as its own. While the role is on, the datapath must not translate that port at
/// these addresses: packets to them are for this node's resolver.
pub fn served_addresses(config: &Config) -> Vec<IpAddr> {
    let mut addresses = config.cluster_addresses.clone();
    for address in &config.node_local_addresses {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
    addresses
}
