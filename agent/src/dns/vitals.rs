//! How the resolver is, for those who ask as they would ask CoreDNS: `/health`, `/ready` and
//! `/metrics`, by HTTP at addresses of the node alone.
//!
//! | path | 200 |
//! |---|---|
//! | `/health` | while the process lives, through lameduck too |
//! | `/ready` | from the first time that Services are known until the agent is told to stop |
//! | `/metrics` | always: the resolver's counters |

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hyper::StatusCode;
use tokio::{net::TcpListener, sync::Semaphore};

use super::{
    config::Config,
    metrics::Metrics,
    server::{
        listen::{ListenError, tcp_listener},
        open::Open,
    },
    succession::Inherited,
};
use crate::{
    handover::OpenSockets,
    serve::http::{self, Answer, Asked},
};

/// Connections at once, all addresses together.
const CONNECTIONS_MAX: usize = 64;

/// Where what is told, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Of `/health`.
    pub health: BTreeSet<SocketAddr>,
    /// Of `/ready`.
    pub ready: BTreeSet<SocketAddr>,
    /// Of `/metrics`.
    pub metrics: BTreeSet<SocketAddr>,
}

/// A port, at an address or where the agent has its own.
pub type Place = (Option<IpAddr>, u16);

/// What server blocks say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Where `/health` is.
    pub health: BTreeSet<Place>,
    /// Where `/ready` is.
    pub ready: BTreeSet<Place>,
    /// Where `/metrics` is.
    pub metrics: BTreeSet<Place>,
    /// For how long the agent goes on once it is told to stop.
    pub lameduck: Option<Duration>,
}

impl Told {
    /// Takes in what another block says.
    pub fn extend(&mut self, other: Self) {
        self.health.extend(other.health);
        self.ready.extend(other.ready);
        self.metrics.extend(other.metrics);
        self.lameduck = other.lameduck.or(self.lameduck);
    }

    /// Puts it in the place of what `config` says.
    pub fn apply(&self, config: &mut Config) {
        let own = config.node_local_addresses.clone();
        let put = |from: &BTreeSet<Place>, to: &mut _| {
            if !from.is_empty() {
                let at = |(ip, port): &Place| match ip {
                    Some(ip) => vec![(*ip, *port).into()],
                    None => own.iter().map(|ip| (*ip, *port).into()).collect(),
                };
                *to = from.iter().flat_map(at).collect();
            }
        };
        let Places { health, ready, metrics } = &mut config.vitals;
        put(&self.health, health);
        put(&self.ready, ready);
        put(&self.metrics, metrics);
        config.lameduck = self.lameduck.unwrap_or(config.lameduck);
    }
}

/// What is told at an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Paths {
    health: bool,
    ready: bool,
    metrics: bool,
}

impl Places {
    fn by_address(&self) -> BTreeMap<SocketAddr, Paths> {
        let mut all: BTreeMap<SocketAddr, Paths> = BTreeMap::new();
        for (places, note) in [
            (&self.health, (|paths| paths.health = true) as fn(&mut Paths)),
            (&self.ready, |paths| paths.ready = true),
            (&self.metrics, |paths| paths.metrics = true),
        ] {
            for address in places {
                note(all.entry(*address).or_default());
            }
        }
        all
    }
}

/// What is told of. Shared behind an `Arc`.
#[derive(Debug, Default)]
pub struct Vitals {
    synced: AtomicBool,
    stopping: AtomicBool,
    lameduck_ms: AtomicU64,
}

impl Vitals {
    /// Services are known. That stays so: what was known is answered when the API server is away.
    pub(super) fn synced(&self) {
        self.synced.store(true, Relaxed);
    }

    pub(super) fn set_lameduck(&self, lameduck: Duration) {
        let ms = u64::try_from(lameduck.as_millis()).unwrap_or(u64::MAX);
        self.lameduck_ms.store(ms, Relaxed);
    }

    /// The agent is told to stop: not ready any more. How long to serve on.
    pub fn stop(&self) -> Duration {
        self.stopping.store(true, Relaxed);
        Duration::from_millis(self.lameduck_ms.load(Relaxed))
    }

    fn ready(&self) -> Answer {
        let why = if self.stopping.load(Relaxed) {
            "the agent is stopping\n"
        } else if self.synced.load(Relaxed) {
            return Answer::text("OK");
        } else {
            "kubernetes: Services are not listed yet\n"
        };
        Answer::text(why).with(StatusCode::SERVICE_UNAVAILABLE)
    }
}

/// The open listeners.
#[derive(Debug)]
pub(super) struct Servers {
    vitals: Arc<Vitals>,
    metrics: Arc<Metrics>,
    connections: Arc<Semaphore>,
    open: Open<Paths>,
}

impl Servers {
    /// None yet.
    pub(super) fn new(vitals: Arc<Vitals>, metrics: Arc<Metrics>, shown: Arc<OpenSockets>) -> Self {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        Self { vitals, metrics, connections, open: Open::new(shown) }
    }

    /// Opens what is missing and closes what is no longer wanted. What can't be opened is said, and
    /// is tried again with the next call.
    pub(super) fn reconcile(
        &mut self,
        places: &Places,
        inherited: &mut Inherited,
    ) -> Vec<ListenError> {
        let mut errors = Vec::new();
        for (address, paths) in self.open.close_others(&places.by_address()) {
            match tcp_listener(address, inherited) {
                Ok(listener) => self.serve(address, paths, listener),
                Err(error) => errors.push(error),
            }
        }
        errors
    }

    fn serve(&mut self, address: SocketAddr, paths: Paths, listener: TcpListener) {
        let stop = self.open.note(address, paths, [&listener as &dyn AsFd]);
        let (vitals, metrics) = (Arc::clone(&self.vitals), Arc::clone(&self.metrics));
        let routes = move |asked: Asked| {
            let answer = answer(paths, &asked.path, &vitals, &metrics);
            async move { answer }
        };
        let connections = Arc::clone(&self.connections);
        let served = http::serve_shared(listener, routes, connections, stop);
        self.open.tasks.spawn(async move {
            if let Err(error) = served.await {
                tracing::warn!(%error, %address, "the resolver's state is not told here any more");
            }
        });
        tracing::debug!(%address, ?paths, "telling the resolver's state");
    }

    /// Closes all.
    pub(super) async fn close(self) {
        self.open.close().await;
    }
}

fn answer(paths: Paths, path: &str, vitals: &Vitals, metrics: &Metrics) -> Answer {
    let since = Instant::now();
    match path {
        "/health" if paths.health => {
            metrics.general.told_health(since.elapsed());
            Answer::text("OK")
        }
        "/ready" if paths.ready => vitals.ready(),
        "/metrics" if paths.metrics => {
            let mut text = String::new();
            metrics.write(&mut text);
            Answer::text(text)
        }
        _ => {
            let told =
                [("/health", paths.health), ("/ready", paths.ready), ("/metrics", paths.metrics)];
            let here: Vec<_> =
                told.iter().filter(|(_, here)| *here).map(|(path, _)| *path).collect();
            Answer::not_found(&here)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_75_ready_ends_when_the_agent_is_told_to_stop_and_health_does_not() {
        let (vitals, metrics) = (Vitals::default(), Metrics::default());
        let all = Paths { health: true, ready: true, metrics: true };
        let status = |path: &str| answer(all, path, &vitals, &metrics).status.as_u16();
        vitals.set_lameduck(Duration::from_secs(5));
        assert_eq!((status("/health"), status("/ready")), (200, 503), "not known yet");
        vitals.synced();
        assert_eq!((status("/health"), status("/ready")), (200, 200));
        assert_eq!(vitals.stop(), Duration::from_secs(5));
        assert_eq!((status("/health"), status("/ready"), status("/metrics")), (200, 503, 200));
    }

    #[test]
    fn only_what_belongs_to_an_address_is_told_there() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let places = Places {
            health: [at("169.254.20.10:8080")].into(),
            ready: [at("169.254.20.10:8080"), at("169.254.20.10:8181")].into(),
            metrics: BTreeSet::new(),
        };
        let all = places.by_address();
        let both = Paths { health: true, ready: true, metrics: false };
        assert_eq!(all[&at("169.254.20.10:8080")], both);
        assert_eq!(all[&at("169.254.20.10:8181")], Paths { health: false, ..both });
        let (vitals, metrics) = (Vitals::default(), Metrics::default());
        let said = answer(all[&at("169.254.20.10:8181")], "/health", &vitals, &metrics);
        assert_eq!((said.status.as_u16(), &*said.body), (404, "not here; there is /ready\n"));
    }
}
