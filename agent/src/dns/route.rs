//! What is done with names that are not the cluster's, zone by zone: plain data.

use std::{net::SocketAddr, sync::Arc};

use hickory_proto::rr::Name;

use super::{cache::Keeping, hosts::Hosts, name::LowerName};

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

/// What is done with the names of a zone.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The zone. The longest one that a name is in has it.
    pub zone: Name,
    /// Names that are answered without asking anyone.
    pub hosts: Option<Arc<Hosts>>,
    /// Who is asked. With nobody, all names that are not in `hosts` fail.
    pub upstreams: Vec<SocketAddr>,
    /// With whom it begins.
    pub policy: Policy,
    /// Whether upstreams are asked by TCP alone.
    pub by_tcp: bool,
    /// Zones in it of which nobody is asked.
    pub except: Vec<Name>,
    /// For how long answers are kept.
    pub keeping: Keeping,
}

impl Default for Route {
    /// The route of all names to nobody.
    fn default() -> Self {
        Self {
            zone: Name::root(),
            hosts: None,
            upstreams: Vec::new(),
            policy: Policy::default(),
            by_tcp: false,
            except: Vec::new(),
            keeping: Keeping::default(),
        }
    }
}

impl Route {
    /// The route of all names to these upstreams.
    pub fn to(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams, ..Self::default() }
    }
}

/// Routes in the order in which they are looked through: the longest zones first.
#[derive(Debug)]
pub struct Routes {
    all: Vec<Zone>,
}

#[derive(Debug)]
struct Zone {
    name: LowerName,
    except: Vec<LowerName>,
    route: Route,
}

impl Routes {
    /// These routes. Of two for one zone the first counts.
    pub fn new(routes: Vec<Route>) -> Self {
        let zone = |route: Route| Zone {
            name: LowerName::of(&route.zone),
            except: route.except.iter().map(LowerName::of).collect(),
            route,
        };
        let mut all: Vec<_> = routes.into_iter().map(zone).collect();
        // Stable, so that the first of equals stays the first.
        all.sort_by_key(|zone| std::cmp::Reverse(zone.name.label_count()));
        Self { all }
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
        let routes = Routes::new(vec![
            Route { except: vec![name("internal.")], ..Route::to(at("192.0.2.1:53")) },
            Route { zone: name("corp."), ..Route::to(at("192.0.2.2:53")) },
            Route { zone: name("Lab.corp."), ..Route::to(at("192.0.2.3:53")) },
            Route { zone: name("lab.corp."), ..Route::default() },
        ]);
        let upstream = |text: &str| {
            let lower = LowerName::of(&name(text));
            let (place, route) = routes.find(&lower).unwrap();
            routes.asks_for(place, &lower).then(|| route.upstreams[0].to_string())
        };
        let is = |text: &str| Some(format!("192.0.2.{text}:53"));
        assert_eq!(upstream("example.org."), is("1"));
        assert_eq!(upstream("CORP."), is("2"));
        assert_eq!(upstream("xcorp."), is("1"));
        assert_eq!(upstream("a.lab.corp."), is("3"));
        assert_eq!(upstream("a.internal."), None);
        let only = Routes::new(vec![Route { zone: name("corp."), ..Route::default() }]);
        assert!(only.find(&LowerName::of(&name("example.org."))).is_none());
    }
}
