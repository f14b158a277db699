//! What is done with names, zone by zone: plain data.

use std::{fmt, net::SocketAddr, sync::Arc};

use hickory_proto::{op::ResponseCode, rr::Name};

use super::{
    cache::{Keeping, is_failure},
    chain::{Block, Chain},
    direct::Scope,
    forward::error_log::Errors,
    hosts::Hosts,
    name::LowerName,
    tls::Peer,
};

/// With which of several upstreams a question begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// With the first of the configuration.
    #[default]
    Sequential,
    /// With each in turn.
    RoundRobin,
    /// With any.
    Random,
}

/// Who is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Where.
    pub address: SocketAddr,
    /// Over TLS, where that is how.
    pub tls: Option<Arc<Peer>>,
}

impl fmt::Display for Upstream {
    /// As in a Corefile, with the port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls.is_some() { "tls://" } else { "" })?;
        self.address.fmt(f)
    }
}

impl From<SocketAddr> for Upstream {
    /// In the clear.
    fn from(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }
}

/// What is done with the names of a zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The zone.
    pub zone: Name,
    /// The server block that it is of, by its place.
    pub block: usize,
    /// The names that its upstreams are asked for where the block's steps lead out of the zone.
    pub from: Name,
    /// Who is asked. With nobody, its names fail.
    pub upstreams: Vec<Upstream>,
    /// With whom it begins.
    pub policy: Policy,
    /// Whether upstreams are asked by TCP alone.
    pub by_tcp: bool,
    /// Which of its block's it is, as that has them.
    pub turn: usize,
    /// Codes after which the next upstream is asked, beside those that say nothing of the name.
    pub failover: Vec<ResponseCode>,
    /// Codes after which the block's next route for the name is gone by, if there is one.
    pub next: Vec<ResponseCode>,
    /// Zones in it whose names it passes over: the next one of its block that has them is theirs.
    pub except: Vec<Name>,
    /// How many questions may be under way at once, where it is said.
    pub max_concurrent: Option<usize>,
    /// For how long answers are kept.
    pub keeping: Keeping,
    /// Whether the addresses of a name are said in turns.
    pub loadbalance: bool,
    /// What is said of questions that nobody answers.
    pub errors: Option<Arc<Errors>>,
}

impl Default for Route {
    /// The route of all names to nobody.
    fn default() -> Self {
        Self {
            zone: Name::root(),
            block: 0,
            from: Name::root(),
            upstreams: Vec::new(),
            policy: Policy::default(),
            by_tcp: false,
            turn: 0,
            failover: Vec::new(),
            next: Vec::new(),
            except: Vec::new(),
            max_concurrent: None,
            keeping: Keeping::default(),
            loadbalance: true,
            errors: None,
        }
    }
}

impl Route {
    /// The route of all names to these upstreams.
    pub fn to(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams: upstreams.into_iter().map(Upstream::from).collect(), ..Self::default() }
    }

    /// Whether another upstream may know better than one that answers with `code`.
    pub fn fails_over(&self, code: ResponseCode) -> bool {
        is_failure(code) || self.failover.contains(&code)
    }
}

/// Routes and server blocks in the order in which they are looked through: of blocks that with the
/// longest zone first, as CoreDNS does it, and in a block its routes as they are written. Without
/// blocks, the routes with the longest zones first.
#[derive(Debug)]
pub struct Routes {
    all: Vec<Zone>,
    /// The zones of server blocks, with the blocks' places; the longest first.
    zones: Vec<(LowerName, usize)>,
    /// By the blocks' places.
    blocks: Vec<Held>,
    /// Whether any block has steps: who has none pays for none.
    have_steps: bool,
    /// Whether any has a table, likewise.
    have_hosts: bool,
    direct: Scope,
}

/// What a server block does before the index and upstreams are asked.
#[derive(Debug)]
struct Held {
    /// Its steps, where it has any.
    chain: Option<Arc<Chain>>,
    hosts: Option<Arc<Hosts>>,
}

impl Held {
    fn of(block: &Block) -> Self {
        let chain = (!block.chain.is_empty()).then(|| Arc::new(block.chain.clone()));
        Self { chain, hosts: block.hosts.clone() }
    }

    /// What it leaves to the index of the names in `domain`: completing search lists concerns names
    /// that don't exist, leaving out what is beside an answer none of what is said directly, other
    /// steps may concern any.
    fn leaves(&self, domain: &Name) -> Scope {
        if self.hosts.as_ref().is_some_and(|hosts| hosts.concern(domain)) {
            return Scope::Nothing;
        }
        match &self.chain {
            None => Scope::All,
            Some(chain) => {
                let rest = Chain { autopath: None, minimal: false, ..(**chain).clone() };
                match &chain.autopath {
                    _ if !rest.is_empty() => Scope::Nothing,
                    Some(_) => Scope::Existing,
                    None => Scope::All,
                }
            }
        }
    }
}

#[derive(Debug)]
struct Zone {
    name: LowerName,
    from: LowerName,
    except: Vec<LowerName>,
    route: Route,
}

impl Zone {
    /// Whether the name is one of which its upstreams are not asked.
    fn passes_over(&self, name: &LowerName) -> bool {
        self.except.iter().any(|except| name.labels_below(except).is_some())
    }
}

impl Routes {
    /// These routes of these blocks, beside the index of the names in `domain`. Of two for one zone
    /// the first counts.
    pub fn new(routes: Vec<Route>, blocks: &[Block], domain: &Name) -> Self {
        let zone = |route: Route| Zone {
            name: LowerName::of(&route.zone),
            from: LowerName::of(&route.from),
            except: route.except.iter().map(LowerName::of).collect(),
            route,
        };
        let mut all: Vec<_> = routes.into_iter().map(zone).collect();
        // Stable, so that the first of equals stays the first. Of a route that is one for each zone of
        // its block, the longest zone has the name.
        all.sort_by_key(|zone| {
            let written = (zone.route.block, zone.route.turn);
            let length = std::cmp::Reverse(zone.name.label_count());
            if blocks.is_empty() { ((0, 0), length) } else { (written, length) }
        });
        let mut zones: Vec<_> = blocks
            .iter()
            .enumerate()
            .flat_map(|(place, block)| {
                block.zones.iter().map(move |zone| (LowerName::of(zone), place))
            })
            .collect();
        zones.sort_by_key(|(zone, _)| std::cmp::Reverse(zone.label_count()));
        let blocks: Vec<_> = blocks.iter().map(Held::of).collect();
        let have_steps = blocks.iter().any(|held| held.chain.is_some());
        let have_hosts = blocks.iter().any(|held| held.hosts.is_some());
        let mut this = Self { all, zones, blocks, have_steps, have_hosts, direct: Scope::All };
        this.direct = this.left_to_the_index(domain);
        this
    }

    /// What the blocks leave to the index: the one that has `domain`, and those for parts of it.
    fn left_to_the_index(&self, domain: &Name) -> Scope {
        let lower = LowerName::of(domain);
        let parts = self.zones.iter().filter(|(zone, _)| zone.labels_below(&lower).is_some());
        let places = self.block_of(&lower).into_iter().chain(parts.map(|(_, place)| *place));
        let scopes = places.filter_map(|place| Some(self.blocks.get(place)?.leaves(domain)));
        scopes.min().unwrap_or(Scope::All)
    }

    /// The place of the block that has `name`.
    fn block_of(&self, name: &LowerName) -> Option<usize> {
        let mut zones = self.zones.iter();
        zones.find(|(zone, _)| name.labels_below(zone).is_some()).map(|(_, place)| *place)
    }

    /// The steps of the block that has `name`, and the block's place; `None` where it has none.
    pub fn steps(&self, name: &Name) -> Option<(usize, Arc<Chain>)> {
        if !self.have_steps {
            return None;
        }
        let place = self.block_of(&LowerName::of(name))?;
        Some((place, Arc::clone(self.blocks.get(place)?.chain.as_ref()?)))
    }

    /// The table of the block that has `name`, or where the steps of `block` came to the name, of
    /// that, if the name is in its zones.
    pub fn hosts(&self, name: &LowerName, block: Option<usize>) -> Option<&Hosts> {
        let place = block.or_else(|| self.block_of(name))?;
        let hosts = self.blocks.get(place)?.hosts.as_deref()?;
        let mut zones = self.zones.iter().filter(|(_, of)| *of == place);
        zones.any(|(zone, _)| name.labels_below(zone).is_some()).then_some(hosts)
    }

    /// What of the index's answers nobody here has a word in.
    pub fn direct(&self) -> Scope {
        self.direct
    }

    /// The route of a name that the steps of `block` came to, and its place: the block's own where
    /// it has one for such names.
    pub fn find_in(&self, block: usize, name: &LowerName) -> Option<(usize, &Route)> {
        let of_block = |zone: &Zone| {
            zone.route.block == block
                && (name.labels_below(&zone.name).is_some()
                    || name.labels_below(&zone.from).is_some())
        };
        match self.first(name, of_block) {
            Some(found) => Some((found, &self.all[found].route)),
            None => self.find(name),
        }
    }

    /// The place of the first route that `has` the name and does not pass over it; where each does,
    /// of the first.
    fn first(&self, name: &LowerName, has: impl Fn(&Zone) -> bool) -> Option<usize> {
        let those = || self.all.iter().enumerate().filter(|(_, zone)| has(zone));
        let found = those().find(|(_, zone)| !zone.passes_over(name)).or_else(|| those().next());
        found.map(|(at, _)| at)
    }

    /// The route at `place`.
    pub fn at(&self, place: usize) -> Option<&Route> {
        self.all.get(place).map(|zone| &zone.route)
    }

    /// All of them; what [`find`](Self::find) gives is a place in this order.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.all.iter().map(|zone| &zone.route)
    }

    /// The route of a name, and its place: one of the block that has the name.
    pub fn find(&self, name: &LowerName) -> Option<(usize, &Route)> {
        let is_in = |zone: &Zone| name.labels_below(&zone.name).is_some();
        let found = if self.zones.is_empty() {
            self.first(name, is_in)?
        } else {
            // One that forwarded to this agent itself alone, for what the index answers, leaves what
            // falls through to the next.
            let mut those = self.zones.iter().filter(|(zone, _)| name.labels_below(zone).is_some());
            let of_block =
                |place| self.first(name, |zone| zone.route.block == place && is_in(zone));
            those.find_map(|(_, place)| of_block(*place))?
        };
        Some((found, &self.all[found].route))
    }

    /// The route by which `name` goes on where the last of those at `gone`, by which it went, was
    /// answered with `code`: of the same block the next one that has the name.
    pub fn next(&self, gone: &[usize], name: &LowerName, code: ResponseCode) -> Option<usize> {
        let last = *gone.last()?;
        let from = self.all.get(last).filter(|zone| zone.route.next.contains(&code))?;
        let is_out = name.labels_below(&from.name).is_none();
        let has = |zone: &Zone| {
            name.labels_below(if is_out { &zone.from } else { &zone.name }).is_some()
                && zone.route.block == from.route.block
                && gone.iter().all(|at| self.all[*at].route.turn != zone.route.turn)
        };
        let mut later = self.all.iter().enumerate().skip(last + 1);
        later.find(|(at, zone)| has(zone) && self.asks_for(*at, name)).map(|(at, _)| at)
    }

    /// Whether upstreams are asked for a name that goes by the route at `place`.
    pub fn asks_for(&self, place: usize, name: &LowerName) -> bool {
        self.all
            .get(place)
            .is_some_and(|zone| !zone.route.upstreams.is_empty() && !zone.passes_over(name))
    }

    /// Whether any block has a table.
    pub fn have_hosts(&self) -> bool {
        self.have_hosts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn the_longest_zone_has_the_name() {
        let at = |address: &str| vec![address.parse().unwrap()];
        let routes = Routes::new(
            vec![
                Route { except: vec![name("internal.")], ..Route::to(at("192.0.2.1:53")) },
                Route { zone: name("corp."), ..Route::to(at("192.0.2.2:53")) },
                Route { zone: name("Lab.corp."), ..Route::to(at("192.0.2.3:53")) },
                Route { zone: name("lab.corp."), ..Route::default() },
            ],
            &[],
            &Name::root(),
        );
        let upstream = |text: &str| {
            let lower = LowerName::of(&name(text));
            let (place, route) = routes.find(&lower).unwrap();
            routes.asks_for(place, &lower).then(|| route.upstreams[0].address.to_string())
        };
        let is = |text: &str| Some(format!("192.0.2.{text}:53"));
        assert_eq!(upstream("example.org."), is("1"));
        assert_eq!(upstream("CORP."), is("2"));
        assert_eq!(upstream("xcorp."), is("1"));
        assert_eq!(upstream("a.lab.corp."), is("3"));
        assert_eq!(upstream("a.internal."), None);
        let corp = Route { zone: name("corp."), ..Route::default() };
        let only = Routes::new(vec![corp], &[], &Name::root());
        assert!(only.find(&LowerName::of(&name("example.org."))).is_none());
    }

    /// Block, turn, zone, the number of its upstream or 0 for none, and what it passes over.
    type Written<'a> = (usize, usize, &'a str, u8, &'a [&'a str]);

    /// These routes of blocks for these zones.
    fn numbered(blocks: &[&str], routes: &[Written<'_>]) -> Routes {
        let block = |zone: &&str| Block { zones: vec![name(zone)], ..Block::default() };
        let blocks: Vec<_> = blocks.iter().map(block).collect();
        let route = |(block, turn, zone, number, except): &Written<'_>| {
            let upstream = (*number > 0).then(|| ([192, 0, 2, *number], 53).into());
            Route {
                zone: name(zone),
                from: name(zone),
                block: *block,
                turn: *turn,
                except: except.iter().map(|zone| name(zone)).collect(),
                ..Route::to(upstream.into_iter().collect())
            }
        };
        Routes::new(routes.iter().map(route).collect(), &blocks, &name("cluster.local."))
    }

    /// Who is asked for a name, by the number; 0 for nobody.
    fn asked(routes: &Routes, text: &str, block: Option<usize>) -> Option<u8> {
        let lower = LowerName::of(&name(text));
        let found = match block {
            None => routes.find(&lower),
            Some(block) => routes.find_in(block, &lower),
        };
        let (place, route) = found?;
        let asks = routes.asks_for(place, &lower);
        Some(route.upstreams.first().filter(|_| asks).map_or(0, |upstream| {
            let std::net::IpAddr::V4(address) = upstream.address.ip() else { unreachable!() };
            address.octets()[3]
        }))
    }

    /// As CoreDNS does it, whether the block has steps, by which its place is known, or none.
    #[test]
    fn the_block_has_the_name_and_in_it_the_first_forward_that_does() {
        let blocks = [".", "corp.", "local."];
        let routes = numbered(
            &blocks,
            &[
                (0, 0, ".", 1, &["secret.example."]),
                (0, 1, "example.", 2, &["a.secret.example."]),
                (0, 2, "corp.", 3, &[]),
                (1, 1, "lab.corp.", 4, &[]),
                (1, 0, "corp.", 5, &["x.lab.corp.", "y.corp."]),
            ],
        );
        for (text, block, number) in [
            ("www.example.", 0, 1),
            ("secret.example.", 0, 2),
            ("a.secret.example.", 0, 0),
            ("www.corp.", 1, 5),
            ("w.lab.corp.", 1, 5),
            ("x.lab.corp.", 1, 4),
            // Not who another block names, though the name is in that one's zone too.
            ("y.corp.", 1, 0),
        ] {
            assert_eq!(asked(&routes, text, None), Some(number), "{text}");
            assert_eq!(asked(&routes, text, Some(block)), Some(number), "{text}");
        }
        // The block's, which forwarded nowhere but here, where the index answers.
        assert_eq!(asked(&routes, "cluster.local.", None), Some(1));
        assert_eq!(asked(&numbered(&["corp."], &[]), "example.", None), None);
    }

    /// What blocks with these zones, tables and steps leave to the index of `cluster.local.`.
    fn left(blocks: &[(&str, Option<Hosts>, &Chain)]) -> Scope {
        let block = |(zone, hosts, chain): &(&str, Option<Hosts>, &Chain)| Block {
            zones: vec![name(zone)],
            hosts: hosts.clone().map(Arc::new),
            chain: (*chain).clone(),
        };
        let blocks: Vec<_> = blocks.iter().map(block).collect();
        Routes::new(Vec::new(), &blocks, &name("cluster.local.")).direct()
    }

    #[test]
    fn who_has_a_word_before_the_index_is_asked() {
        use crate::dns::chain::autopath::{Autopath, Search};
        let autopath =
            Autopath { zones: vec![name("cluster.local.")], search: Search::List(vec![]) };
        let none = &Chain::default();
        let completes = &Chain { autopath: Some(autopath), ..Chain::default() };
        let bounded = &Chain { payload: Some(512), ..completes.clone() };
        assert_eq!(left(&[]), Scope::All);
        assert_eq!(left(&[(".", None, none)]), Scope::All);
        assert_eq!(left(&[(".", None, completes)]), Scope::Existing);
        assert_eq!(left(&[(".", None, bounded)]), Scope::Nothing);
        // Others' steps are not those of the cluster domain, but those of parts of it are.
        assert_eq!(left(&[(".", None, bounded), ("cluster.local.", None, none)]), Scope::All);
        assert_eq!(left(&[(".", None, none), ("corp.", None, bounded)]), Scope::All);
        assert_eq!(left(&[(".", None, none), ("a.Cluster.local.", None, bounded)]), Scope::Nothing);
        assert_eq!(left(&[("local.", None, completes), (".", None, bounded)]), Scope::Existing);
    }

    #[test]
    fn a_table_has_a_word_where_it_may_have_the_name() {
        let none = &Chain::default();
        let table = |lines: &str, fallthrough: &[&str]| {
            let mut hosts = Hosts::new(5);
            hosts.extend(lines);
            hosts.fallthrough = fallthrough.iter().map(|zone| name(zone)).collect();
            Some(hosts)
        };
        let nodes = "192.0.2.1 node-1 xcluster.local\n";
        // As k3s has it.
        assert_eq!(left(&[(".", table(nodes, &["."]), none)]), Scope::All);
        assert_eq!(left(&[(".", table(nodes, &["cluster.local."]), none)]), Scope::All);
        assert_eq!(left(&[(".", table(nodes, &["svc.cluster.local."]), none)]), Scope::Nothing);
        assert_eq!(left(&[(".", table(nodes, &[]), none)]), Scope::Nothing);
        let rules = "192.0.2.1 node-1 web.default.svc.Cluster.local\n";
        assert_eq!(left(&[(".", table(rules, &["."]), none)]), Scope::Nothing);
        let of_others = [("cluster.local.", None, none), (".", table(rules, &[]), none)];
        assert_eq!(left(&of_others), Scope::All, "another block's");
        let apex = "192.0.2.1 cluster.local\n";
        assert_eq!(left(&[("cluster.local.", table(apex, &["."]), none)]), Scope::Nothing);
    }

    #[test]
    fn a_table_is_that_of_the_block_that_has_the_name() {
        let mut hosts = Hosts::new(5);
        hosts.extend("192.0.2.1 node-1\n");
        let block = |zone: &str, hosts: Option<&Hosts>| Block {
            zones: vec![name(zone)],
            hosts: hosts.cloned().map(Arc::new),
            ..Block::default()
        };
        let blocks =
            [block(".", Some(&hosts)), block("cluster.local.", None), block("corp.", None)];
        let routes = Routes::new(Vec::new(), &blocks, &name("cluster.local."));
        let has = |text: &str, block| routes.hosts(&LowerName::of(&name(text)), block).is_some();
        assert!(has("node-1.", None) && has("example.org.", None));
        assert!(!has("web.default.svc.cluster.local.", None), "another block's name");
        assert!(has("web.default.svc.cluster.local.", Some(0)), "its steps led there");
        assert!(!has("node-1.", Some(2)), "no other's");
        let only = Routes::new(Vec::new(), &[block("corp.", Some(&hosts))], &Name::root());
        assert!(only.hosts(&LowerName::of(&name("node-1.")), Some(0)).is_none());
    }

    #[test]
    fn steps_lead_to_the_upstreams_of_their_block() {
        let to = |address: &str| Route::to(vec![address.parse().unwrap()]);
        let block = |zone: &str, payload| Block {
            zones: vec![name(zone)],
            chain: Chain { payload, ..Chain::default() },
            ..Block::default()
        };
        let blocks = [block(".", Some(512)), block("corp.", Some(600)), block("lab.corp.", None)];
        let corp = Route { zone: name("corp."), block: 1, ..to("192.0.2.2:53") };
        let lab = Route {
            zone: name("lab.corp."),
            block: 2,
            from: name("lab.corp."),
            ..to("192.0.2.3:53")
        };
        let routes = vec![to("192.0.2.1:53"), corp, lab];
        let routes = Routes::new(routes, &blocks, &Name::root());
        let steps = |text: &str| routes.steps(&name(text)).map(|(place, _)| place);
        assert_eq!(steps("example.org."), Some(0));
        assert_eq!(steps("a.CORP."), Some(1));
        assert_eq!(steps("a.lab.corp."), None, "its block has none");
        let upstream = |block, text: &str| {
            let (_, route) = routes.find_in(block, &LowerName::of(&name(text))).unwrap();
            route.upstreams[0].address.to_string()
        };
        assert_eq!(upstream(1, "example.org."), "192.0.2.2:53", "as the block forwards");
        assert_eq!(upstream(0, "a.corp."), "192.0.2.1:53");
        assert_eq!(upstream(2, "example.org."), "192.0.2.1:53", "it forwards its own names only");
    }
}
