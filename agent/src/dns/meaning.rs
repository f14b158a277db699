//! Server blocks, as a Corefile and the agent's own configuration have them alike, and what they
//! come to: routes, steps and settings. Pure.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use hickory_proto::{op::ResponseCode, rr::Name};

use super::{
    cache::Keeping,
    chain::{Block, Chain},
    config::Config,
    forward::error_log::Errors,
    hosts::Hosts,
    route::{Policy, Route, Upstream},
    tls,
    vitals::Told,
    zone::{
        PodNames, Trees,
        naming::Naming,
        parts::{Part, Parts},
    },
};

/// What server blocks have to fit, from the rest of the agent's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The cluster domain.
    pub domain: Name,
    /// The port on which the agent answers.
    pub port: u16,
    /// The addresses at which it does: who asks there asks us.
    pub addresses: Vec<IpAddr>,
    /// Those of them that mean "my own node" on every node.
    pub node_local: Vec<IpAddr>,
    /// Whether it connects the node's pods.
    pub connects_pods: bool,
}

/// A server block as it is written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerBlock {
    /// The zones that it is for.
    pub zones: Vec<Name>,
    /// What it does beside looking names up.
    pub chain: Chain,
    /// Names that are answered without asking anyone.
    pub hosts: Option<Hosts>,
    /// How names of the cluster are answered.
    pub kubernetes: Option<Kubernetes>,
    /// For how long answers are kept; without it they are not.
    pub keeping: Option<Keeping>,
    /// Whether the addresses of a name are said in turns.
    pub loadbalance: bool,
    /// Who is asked.
    pub forwards: Vec<Forward>,
    /// Where it is answered over TLS too.
    pub tls: Option<tls::Listener>,
    /// What is said of questions that nobody answers.
    pub errors: Option<Errors>,
    /// Where the resolver tells how it is.
    pub told: Told,
}

/// How names of the cluster are answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubernetes {
    /// Those of pods.
    pub pods: PodNames,
    /// How long clients may keep them, in seconds.
    pub ttl: u32,
    /// Whether one that does not exist is asked of upstreams.
    pub names_fall_through: bool,
    /// In which trees the same is done with addresses that no Service and no endpoint has.
    pub addresses_fall_through: Trees,
    /// The zones that it is for, as they are written.
    pub zones: Vec<Name>,
    /// Those in which what does not exist is asked of upstreams, likewise.
    pub through: Vec<Name>,
    /// Which objects have names, and which.
    pub naming: Naming,
    /// What of it is written; the rest is as it is where nothing is said.
    pub written: BTreeSet<Saying>,
}

/// What is said of all of the cluster's names and addresses alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Saying {
    /// How names of pods are answered.
    Pods,
    /// How long clients may keep names.
    Ttl,
    /// Which objects have names, and which.
    Naming,
}

impl Saying {
    /// All of it.
    pub const ALL: [Self; 3] = [Self::Pods, Self::Ttl, Self::Naming];

    /// The options that say it, as a Corefile has them.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Pods => &["pods"],
            Self::Ttl => &["ttl"],
            Self::Naming => &[
                "namespaces",
                "labels",
                "namespace_labels",
                "endpoint_pod_names",
                "noendpoints",
                "ignore",
            ],
        }
    }
}

/// Why two directives don't go together.
pub const CONTRADICTION: &str = "it is said otherwise where the cluster domain is: the agent answers \
                                 all of the cluster's names and addresses alike";

impl Kubernetes {
    /// What this one says otherwise than `other`.
    fn contradicts(&self, other: &Self) -> Option<Saying> {
        let differs = |saying: &Saying| match saying {
            Saying::Pods => self.pods != other.pods,
            Saying::Ttl => self.ttl != other.ttl,
            Saying::Naming => self.naming != other.naming,
        };
        self.written.iter().copied().find(differs)
    }

    /// What the directives of `blocks` come to: how names are answered says the block that has
    /// `domain`, and what becomes of addresses that nobody has, the blocks that have their trees.
    fn of(blocks: &[ServerBlock], domain: &Name) -> Option<Self> {
        let mut this = blocks.get(of_names(blocks, domain)?)?.kubernetes.clone()?;
        let falls_through = |tree: &str| {
            let tree = Name::from_labels([tree, "arpa"].map(str::as_bytes)).unwrap_or_default();
            home(blocks, &tree)?.kubernetes.as_ref().map(|of| of.addresses_fall_through)
        };
        this.addresses_fall_through = Trees {
            v4: falls_through("in-addr").is_none_or(|trees| trees.v4),
            v6: falls_through("ip6").is_none_or(|trees| trees.v6),
        };
        Some(this)
    }
}

/// What `blocks` say of parts of the names in `domain` and of the trees of addresses. Each has the
/// names that are in no longer zone of another's: one without `kubernetes` that forwards them takes
/// them from the index, and one with it may keep, or let through, what does not exist there alone.
fn parts(blocks: &[ServerBlock], domain: &Name) -> Parts {
    let is_part = |zone: &Name| {
        let tree = is_reverse(zone) && zone.num_labels() > 2;
        tree || domain.zone_of(zone) && zone.num_labels() > domain.num_labels()
    };
    let mut all = Vec::new();
    for block in blocks {
        let mut note = |zone, part| {
            if is_part(zone) && home(blocks, zone).is_some_and(|home| std::ptr::eq(home, block)) {
                all.push((zone, part));
            }
        };
        let Some(kubernetes) = &block.kubernetes else {
            let asks = |zone: &&Name| block.forwards.iter().any(|forward| forward.asks_in(zone));
            block.zones.iter().filter(asks).for_each(|zone| note(zone, Part::Elsewhere));
            continue;
        };
        for own in &block.zones {
            for zone in kubernetes.zones.iter().filter_map(|zone| narrower(own, zone)) {
                if kubernetes.through.iter().any(|from| from.zone_of(zone)) {
                    note(zone, Part::FallsThrough);
                    continue;
                }
                note(zone, Part::Denied);
                let within = kubernetes.through.iter().filter(|through| zone.zone_of(through));
                within.for_each(|through| note(through, Part::FallsThrough));
            }
        }
    }
    Parts::new(all)
}

/// Of two zones the one that is in the other.
fn narrower<'a>(one: &'a Name, other: &'a Name) -> Option<&'a Name> {
    if one.zone_of(other) {
        return Some(other);
    }
    other.zone_of(one).then_some(one)
}

/// Of `blocks` the one that has `name`.
fn home<'a>(blocks: &'a [ServerBlock], name: &Name) -> Option<&'a ServerBlock> {
    let length = |block: &&ServerBlock| {
        let zones = block.zones.iter().filter(|zone| zone.zone_of(name));
        zones.map(Name::num_labels).max()
    };
    blocks.iter().filter(|block| length(block).is_some()).max_by_key(length)
}

/// The place of the block whose directive says how the cluster's names are answered: the one that
/// has them, or where that has none the first that has one.
fn of_names(blocks: &[ServerBlock], domain: &Name) -> Option<usize> {
    let own = home(blocks, domain).filter(|block| block.kubernetes.is_some());
    blocks.iter().position(|block| match own {
        Some(own) => std::ptr::eq(block, own),
        None => block.kubernetes.is_some(),
    })
}

/// The place of a block whose `kubernetes` says something otherwise than the one that counts, and
/// what.
pub fn contradiction(blocks: &[ServerBlock], domain: &Name) -> Option<(usize, Saying)> {
    let own = blocks.get(of_names(blocks, domain)?)?.kubernetes.as_ref()?;
    blocks
        .iter()
        .enumerate()
        .find_map(|(place, block)| Some((place, block.kubernetes.as_ref()?.contradicts(own)?)))
}

/// Who is asked for the names of a zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// The zone.
    pub from: Name,
    /// Who is asked; nobody where all that were named are this agent itself.
    pub upstreams: Vec<Upstream>,
    /// With whom it begins.
    pub policy: Policy,
    /// Whether upstreams are asked by TCP alone.
    pub by_tcp: bool,
    /// Codes after which the next upstream is asked, beside those that say nothing of the name.
    pub failover: Vec<ResponseCode>,
    /// Codes after which the next `forward` of the block that has the name is tried.
    pub next: Vec<ResponseCode>,
    /// Zones in it that it passes over: the next that has them is asked.
    pub except: Vec<Name>,
    /// How many questions may be under way at once.
    pub max_concurrent: Option<usize>,
}

impl Forward {
    /// The zone in which it forwards, where the block is for `zone`.
    fn within(&self, zone: &Name) -> Option<Name> {
        if self.from.zone_of(zone) {
            return Some(zone.clone());
        }
        zone.zone_of(&self.from).then(|| self.from.clone())
    }

    /// Whether somebody is asked for names in `zone`.
    fn asks_in(&self, zone: &Name) -> bool {
        !self.upstreams.is_empty() && self.within(zone).is_some()
    }

    fn route(&self) -> Route {
        Route {
            from: self.from.clone(),
            policy: self.policy,
            by_tcp: self.by_tcp,
            failover: self.failover.clone(),
            next: self.next.clone(),
            except: self.except.clone(),
            max_concurrent: self.max_concurrent,
            upstreams: self.upstreams.clone(),
            ..Route::default()
        }
    }
}

/// What server blocks come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meaning {
    /// How names of the cluster are answered, where a block says it.
    pub kubernetes: Option<Kubernetes>,
    /// Where it is otherwise.
    pub parts: Parts,
    /// What is done with other names.
    pub routes: Vec<Route>,
    /// The blocks, which the routes name by their places.
    pub blocks: Vec<Block>,
    /// Where clients are answered over TLS too, where a block says it.
    pub tls: Option<tls::Listener>,
    /// Where the resolver tells how it is, where a block says it.
    pub told: Told,
}

impl Meaning {
    /// What `blocks` come to.
    pub fn of(blocks: Vec<ServerBlock>, served: &Served) -> Self {
        let kubernetes = Kubernetes::of(&blocks, &served.domain);
        let parts = parts(&blocks, &served.domain);
        let mut this = Self { kubernetes, parts, ..Self::default() };
        for (place, block) in blocks.into_iter().enumerate() {
            this.tls = block.tls.clone().or(this.tls);
            this.route(place, &block, served);
            this.told.extend(block.told);
            let loadbalance = block.loadbalance;
            let hosts = block.hosts.map(|mut hosts| {
                hosts.loadbalance = loadbalance;
                Arc::new(hosts)
            });
            this.blocks.push(Block { zones: block.zones, hosts, chain: block.chain });
        }
        this
    }

    fn route(&mut self, block: usize, written: &ServerBlock, served: &Served) {
        let errors = written.errors.clone().map(Arc::new);
        let keeping = written.keeping.unwrap_or(Keeping::NOTHING);
        let loadbalance = written.loadbalance;
        // Whether a zone is one in which the index answers.
        let is_ours = |zone: &Name| served.domain.zone_of(zone) || is_reverse(zone);
        for zone in &written.zones {
            let mut has_own = false;
            for (turn, forward) in written.forwards.iter().enumerate() {
                let Some(from) = forward.within(zone) else { continue };
                if forward.upstreams.is_empty() && is_ours(zone) {
                    // It led to cluster DNS, which is here; what is left is the next block's.
                    has_own = true;
                    continue;
                }
                has_own |= from == *zone;
                let route = forward.route();
                let errors = errors.clone();
                self.routes.push(Route {
                    zone: from,
                    block,
                    turn,
                    keeping,
                    loadbalance,
                    errors,
                    ..route
                });
            }
            if !has_own {
                // Behind those that forward parts of it: what is left of its names, or falls through
                // the index, is nobody's to hear of.
                let turn = written.forwards.len();
                let (zone, from) = (zone.clone(), zone.clone());
                self.routes.push(Route { zone, block, from, turn, keeping, ..Route::default() });
            }
        }
    }

    /// `config` with what the blocks say in its place.
    pub fn applied(&self, config: &Config) -> Config {
        let mut config = config.clone();
        config.names_fall_through = false;
        config.addresses_fall_through = Trees::BOTH;
        config.naming = Naming::default();
        if let Some(kubernetes) = &self.kubernetes {
            config.pod_names = kubernetes.pods;
            config.ttl = kubernetes.ttl;
            config.names_fall_through = kubernetes.names_fall_through;
            config.addresses_fall_through = kubernetes.addresses_fall_through;
            config.naming.clone_from(&kubernetes.naming);
        }
        config.parts.clone_from(&self.parts);
        config.routes.clone_from(&self.routes);
        config.blocks.clone_from(&self.blocks);
        config.tls.clone_from(&self.tls);
        self.told.apply(&mut config);
        config
    }
}

/// Whether a zone is in the trees of addresses.
pub fn is_reverse(zone: &Name) -> bool {
    let labels: Vec<&[u8]> = zone.iter().rev().take(2).collect();
    let tree =
        |name: &str| labels.get(1).is_some_and(|label| label.eq_ignore_ascii_case(name.as_bytes()));
    labels.first().is_some_and(|label| label.eq_ignore_ascii_case(b"arpa"))
        && (tree("in-addr") || tree("ip6"))
}
