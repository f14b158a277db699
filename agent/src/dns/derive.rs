//! What follows from the configuration, and from the snapshot: plain values. Pure.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use hickory_proto::rr::Name;

use super::{
    config::{Config, served_addresses},
    route::Route,
    server::listen::Audience,
    zone::Settings,
};
use crate::model::snapshot::Snapshot;

/// Why the resolver can't run at all. What may pass, such as a port in use, is on the board and is
/// tried again instead.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster domain is no domain name.
    #[error("cluster domain {domain:?} is no domain name: {reason}")]
    ClusterDomain {
        /// As configured.
        domain: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// What the zone is told.
pub(super) fn settings(config: &Config, routes: &[Route]) -> Result<Settings, Error> {
    let asks = routes.iter().any(|route| !route.upstreams.is_empty());
    let parts = config.parts.clone();
    Ok(Settings {
        origin: origin(&config.cluster_domain)?,
        name_servers: config.cluster_addresses.clone(),
        ttl: config.ttl,
        pods: config.pod_names,
        names_fall_through: config.names_fall_through,
        reverse_falls_through: config.addresses_fall_through.and(asks),
        parts: if asks { parts } else { parts.without_upstreams() },
        naming: config.naming.clone(),
    })
}

/// Whether what was kept by one is what the other would have kept: each name is asked of the same
/// upstreams, in the same cases, and kept as long.
pub(super) fn keep_the_same(one: &Config, other: &Config) -> bool {
    let kept = |config: &Config| -> Vec<_> {
        let routes = config.routes.iter();
        let kept = |route: &Route| {
            let cases = (route.failover.clone(), route.next.clone());
            // By which it is known whose answer one is.
            let place = (route.block, route.turn, route.except.clone());
            (route.zone.clone(), route.upstreams.clone(), cases, place, route.keeping)
        };
        routes.map(kept).collect()
    };
    kept(one) == kept(other)
}

/// The routes without upstreams that are ourselves, and these.
pub(super) fn routes(config: &Config) -> (Vec<Route>, Vec<SocketAddr>) {
    let mut ourselves = Vec::new();
    let mut routes = config.routes.clone();
    for route in &mut routes {
        route.upstreams.retain(|upstream| {
            let is = is_ourselves(config, upstream.address);
            if is {
                ourselves.push(upstream.address);
            }
            !is
        });
    }
    (routes, ourselves)
}

/// The zone's name.
pub(super) fn origin(domain: &str) -> Result<Name, Error> {
    let error = |reason: String| Error::ClusterDomain { domain: domain.to_owned(), reason };
    let mut name = Name::from_ascii(domain).map_err(|reason| error(reason.to_string()))?;
    if name.num_labels() == 0 {
        return Err(error("it has no label".to_owned()));
    }
    name.set_fqdn(true);
    Ok(name)
}

/// The serial with which the zone begins: the time, counted in 64ths of a second. It grows over
/// restarts as long as names changed no more often than that on the average, and as long as no
/// process runs for more than a year: serials are compared modulo 2^32 (RFC 1982).
pub(super) fn first_serial(since_epoch: Duration) -> u32 {
    let ticks = since_epoch.as_millis() * 64 / 1000;
    u32::try_from(ticks & u128::from(u32::MAX)).unwrap_or_default()
}

/// The sockets that shall be open.
pub(super) fn listeners(config: &Config, snapshot: &Snapshot) -> BTreeMap<SocketAddr, Audience> {
    let own = served_addresses(config).into_iter();
    let mut wanted: BTreeMap<_, _> =
        own.map(|address| (SocketAddr::new(address, config.port), Audience::Everyone)).collect();
    if let Some(port) = config.peer_port
        && let Some(node) = snapshot.nodes.get(&*config.node_name)
    {
        for address in &node.internal_ips {
            wanted.entry(SocketAddr::new(*address, port)).or_insert(Audience::Peers);
        }
    }
    wanted
}

/// Whether a question to `upstream` would come back to us.
fn is_ourselves(config: &Config, upstream: SocketAddr) -> bool {
    let tls = config.tls.as_ref().map(|listener| listener.port);
    (upstream.port() == config.port || Some(upstream.port()) == tls)
        && served_addresses(config).contains(&upstream.ip())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::ResponseCode;

    use crate::dns::cache::Keeping;

    #[test]
    fn dns_66_our_own_addresses_are_no_upstreams() {
        let upstreams = ["10.96.0.10:53", "192.0.2.1:53"].map(|text| text.parse().unwrap());
        let config = Config { routes: vec![Route::to(upstreams.to_vec())], ..Config::default() };
        let (routes, ourselves) = routes(&config);
        let left: Vec<_> = routes[0].upstreams.iter().map(|upstream| upstream.address).collect();
        assert_eq!((&left[..], &ourselves[..]), (&upstreams[1..], &upstreams[..1]));
    }

    #[test]
    fn what_is_kept_otherwise_is_not_the_same() {
        let with = |upstream: &str, change: fn(&mut Keeping)| {
            let mut route = Route::to(vec![upstream.parse().unwrap()]);
            change(&mut route.keeping);
            Config { routes: vec![route], ..Config::default() }
        };
        let one = with("192.0.2.1:53", |_| {});
        let mut other = one.clone();
        other.routes[0].max_concurrent = Some(9);
        other.ttl = 9;
        assert!(keep_the_same(&one, &other), "what is kept does not depend on these");
        assert!(!keep_the_same(&one, &with("192.0.2.2:53", |_| {})));
        assert!(!keep_the_same(&one, &with("192.0.2.1:53", |keeping| *keeping = Keeping::NOTHING)));
        let fresh = with("192.0.2.1:53", |keeping| keeping.stale = Duration::ZERO);
        assert!(!keep_the_same(&one, &fresh));
        let mut next = one.clone();
        next.routes[0].next = vec![ResponseCode::NXDomain];
        assert!(!keep_the_same(&one, &next));
    }

    #[test]
    fn dns_76_a_restart_does_not_take_the_serial_back() {
        // Whenever it is, also where the number begins anew; and after an agent that took seconds.
        for begun in [0, 1_796_000_000, (1 << 32) / 64 - 10, (1 << 32) * 7 / 64 - 10] {
            let begun = Duration::from_secs(begun);
            let runs = Duration::from_hours(24 * 300);
            let changes = u32::try_from(runs.as_secs() * 60).unwrap();
            let (last, next) =
                (first_serial(begun).wrapping_add(changes), first_serial(begun + runs));
            assert!(next.wrapping_sub(last).cast_signed() > 0, "{last} {next}");
        }
        let now = Duration::from_secs(1_796_000_000);
        assert!(first_serial(now).wrapping_sub(1_796_000_000).cast_signed() > 0);
        let soon = now + Duration::from_millis(16);
        assert_eq!(first_serial(soon), first_serial(now) + 1);
    }

    #[test]
    fn cluster_domains() {
        assert_eq!(origin("cluster.local").unwrap(), origin("cluster.local.").unwrap());
        for bad in ["", ".", "a..b", &"a".repeat(64)] {
            let error = origin(bad).unwrap_err().to_string();
            assert!(error.contains("is no domain name"), "{error}");
        }
    }
}
