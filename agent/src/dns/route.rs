//! What is done with names, zone by zone: plain data.

use std::{fmt, net::SocketAddr, sync::Arc};

use hickory_proto::rr::Name;

use super::{
    cache::Keeping,
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
    /// The zone. The longest one that a name is in has it.
    pub zone: Name,
    /// The server block that it is of, by its place.
    pub block: usize,
    /// The names that its upstreams are asked for where the block's steps lead out of the zone.
    pub from: Name,
    /// Names that are answered without asking anyone.
    pub hosts: Option<Arc<Hosts>>,
    /// Who is asked. With nobody, all names that are not in `hosts` fail.
    pub upstreams: Vec<Upstream>,
    /// With whom it begins.
    pub policy: Policy,
    /// Whether upstreams are asked by TCP alone.
    pub by_tcp: bool,
    /// Zones in it of which nobody is asked.
    pub except: Vec<Name>,
    /// How many questions may be under way at once, where it is said.
    pub max_concurrent: Option<usize>,
    /// For how long answers are kept.
    pub keeping: Keeping,
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
            hosts: None,
            upstreams: Vec::new(),
            policy: Policy::default(),
            by_tcp: false,
            except: Vec::new(),
            max_concurrent: None,
            keeping: Keeping::default(),
            errors: None,
        }
    }
}

impl Route {
    /// The route of all names to these upstreams.
    pub fn to(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams: upstreams.into_iter().map(Upstream::from).collect(), ..Self::default() }
    }
}

/// Routes and server blocks in the order in which they are looked through: the longest zones
/// first.
#[derive(Debug)]
pub struct Routes {
    all: Vec<Zone>,
    /// The zones of server blocks, with the blocks' places; empty where no block has a step, so
    /// that who has none pays for none.
    blocks: Vec<(LowerName, usize)>,
    /// By the blocks' places; `None` where there is no step.
    chains: Vec<Option<Arc<Chain>>>,
}

#[derive(Debug)]
struct Zone {
    name: LowerName,
    from: LowerName,
    except: Vec<LowerName>,
    route: Route,
}

impl Routes {
    /// These routes of these blocks. Of two for one zone the first counts.
    pub fn new(routes: Vec<Route>, blocks: &[Block]) -> Self {
        let zone = |route: Route| Zone {
            name: LowerName::of(&route.zone),
            from: LowerName::of(&route.from),
            except: route.except.iter().map(LowerName::of).collect(),
            route,
        };
        let mut all: Vec<_> = routes.into_iter().map(zone).collect();
        // Stable, so that the first of equals stays the first.
        all.sort_by_key(|zone| std::cmp::Reverse(zone.name.label_count()));
        let chain =
            |block: &Block| (!block.chain.is_empty()).then(|| Arc::new(block.chain.clone()));
        let chains: Vec<_> = blocks.iter().map(chain).collect();
        let mut zones: Vec<_> = blocks
            .iter()
            .enumerate()
            .flat_map(|(place, block)| {
                block.zones.iter().map(move |zone| (LowerName::of(zone), place))
            })
            .filter(|_| chains.iter().any(Option::is_some))
            .collect();
        zones.sort_by_key(|(zone, _)| std::cmp::Reverse(zone.label_count()));
        Self { all, blocks: zones, chains }
    }

    /// The steps of the block that has `name`, and the block's place; `None` where it has none.
    pub fn steps(&self, name: &Name) -> Option<(usize, Arc<Chain>)> {
        if self.blocks.is_empty() {
            return None;
        }
        let name = LowerName::of(name);
        let (_, place) = self.blocks.iter().find(|(zone, _)| name.labels_below(zone).is_some())?;
        Some((*place, Arc::clone(self.chains.get(*place)?.as_ref()?)))
    }

    /// What of the index's answers nobody here has a word in: completing search lists concerns
    /// names that don't exist, tables of hosts and other steps may concern any.
    pub fn direct(&self) -> Scope {
        if self.have_hosts() {
            return Scope::Nothing;
        }
        let only_completes =
            |chain: &Arc<Chain>| Chain { autopath: None, ..(**chain).clone() }.is_empty();
        let mut chains = self.chains.iter().flatten();
        if self.chains.iter().all(Option::is_none) {
            Scope::All
        } else if chains.all(only_completes) {
            Scope::Existing
        } else {
            Scope::Nothing
        }
    }

    /// The route of a name that the steps of `block` came to, and its place: the block's own where
    /// it has one for such names.
    pub fn find_in(&self, block: usize, name: &LowerName) -> Option<(usize, &Route)> {
        let of_block = |zone: &Zone| {
            zone.route.block == block
                && (name.labels_below(&zone.name).is_some()
                    || name.labels_below(&zone.from).is_some())
        };
        match self.all.iter().position(of_block) {
            Some(found) => Some((found, &self.all[found].route)),
            None => self.find(name),
        }
    }

    /// The route at `place`.
    pub fn at(&self, place: usize) -> Option<&Route> {
        self.all.get(place).map(|zone| &zone.route)
    }

    /// All of them; what [`find`](Self::find) gives is a place in this order.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.all.iter().map(|zone| &zone.route)
    }

    /// The route of a name, and its place.
    pub fn find(&self, name: &LowerName) -> Option<(usize, &Route)> {
        let found = self.all.iter().position(|zone| name.labels_below(&zone.name).is_some())?;
        Some((found, &self.all[found].route))
    }

    /// Whether upstreams are asked for a name that goes by the route at `place`.
    pub fn asks_for(&self, place: usize, name: &LowerName) -> bool {
        self.all.get(place).is_some_and(|zone| {
            !zone.route.upstreams.is_empty()
                && !zone.except.iter().any(|except| name.labels_below(except).is_some())
        })
    }

    /// Whether any route has names of its own.
    pub fn have_hosts(&self) -> bool {
        self.iter().any(|route| route.hosts.is_some())
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
        let only = Routes::new(vec![corp], &[]);
        assert!(only.find(&LowerName::of(&name("example.org."))).is_none());
    }

    #[test]
    fn who_has_a_word_before_the_index_is_asked() {
        use crate::dns::chain::autopath::{Autopath, Search};
        let scope = |route: Route, chains: &[Chain]| {
            let block = |chain: &Chain| Block { zones: vec![name(".")], chain: chain.clone() };
            Routes::new(vec![route], &chains.iter().map(block).collect::<Vec<_>>()).direct()
        };
        let autopath =
            Autopath { zones: vec![name("cluster.local.")], search: Search::List(vec![]) };
        let (none, completes) =
            (Chain::default(), Chain { autopath: Some(autopath), ..Chain::default() });
        let bounded = Chain { payload: Some(512), ..completes.clone() };
        assert_eq!(scope(Route::default(), &[]), Scope::All);
        assert_eq!(scope(Route::default(), std::slice::from_ref(&none)), Scope::All);
        assert_eq!(scope(Route::default(), &[none.clone(), completes.clone()]), Scope::Existing);
        assert_eq!(scope(Route::default(), &[completes, none, bounded]), Scope::Nothing);
        let hosts = Route { hosts: Some(Arc::new(Hosts::new(5))), ..Route::default() };
        assert_eq!(scope(hosts, &[]), Scope::Nothing);
    }

    #[test]
    fn steps_lead_to_the_upstreams_of_their_block() {
        let to = |address: &str| Route::to(vec![address.parse().unwrap()]);
        let block = |zone: &str, payload| Block {
            zones: vec![name(zone)],
            chain: Chain { payload, ..Chain::default() },
        };
        let blocks = [block(".", Some(512)), block("corp.", Some(600)), block("lab.corp.", None)];
        let corp = Route { zone: name("corp."), block: 1, ..to("192.0.2.2:53") };
        let lab = Route {
            zone: name("lab.corp."),
            block: 2,
            from: name("lab.corp."),
            ..to("192.0.2.3:53")
        };
        let routes = Routes::new(vec![to("192.0.2.1:53"), corp, lab], &blocks);
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
        let none = Routes::new(vec![to("192.0.2.1:53")], &[block(".", None)]);
        assert!(none.blocks.is_empty(), "nothing to look through");
    }
}
