//! The cluster's resolver, one in each node: names of Services from an index made of the snapshot,
//! all other names from the configured upstreams.
//!
//! ```text
//! snapshot -> zone (index, swapped whole) -> answer -> message -> server (UDP, TCP)
//!                                              └ foreign names -> forward (cache, upstreams)
//! ```
//! `zone`, `answer`, `message`, `cache` and `forward::health` do no I/O and know no clock.

pub mod addresses;
pub mod answer;
pub mod cache;
pub mod chain;
pub mod config;
pub mod corefile;
mod derive;
pub mod direct;
pub mod explain;
#[cfg(test)]
mod fixture;
pub mod follow;
pub mod forward;
pub mod hosts;
pub mod kept;
pub mod meaning;
pub mod message;
pub mod metrics;
pub mod name;
pub mod native;
pub mod notation;
pub mod others;
pub mod peers;
pub mod release;
pub mod resolv_conf;
pub mod route;
pub mod server;
pub mod succession;
pub mod tls;
pub mod untracked;
pub mod vitals;
pub mod wire;
pub mod zone;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use hickory_proto::rr::Name;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{
    cache::Cache,
    derive::{first_serial, keep_the_same, listeners, origin, routes, settings},
    follow::{Followed, Noted},
    forward::Forwarder,
    metrics::Metrics,
    others::Others,
    peers::Peers,
    route::Routes,
    server::{
        Resolver,
        listen::{Audience, Connections, Listeners},
        secure::SecureListeners,
    },
    succession::Succession,
    untracked::Untracked,
    vitals::{Servers, Vitals},
    zone::Zone,
};
pub use self::{
    config::{Config, Source, served_addresses},
    derive::Error,
    release::release,
};
use crate::{
    handover::Departure,
    local_pods::LocalPods,
    model::snapshot::Snapshot,
    status::{Board, State},
};

/// The name of this part on the board.
pub const PART: &str = "dns";
/// How soon what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How often what is in order is looked at: somebody may have removed a route of ours.
const REVIEW: Duration = Duration::from_secs(15);
/// How often the file beside the configuration is looked at.
const FOLLOW: Duration = Duration::from_secs(2);
/// How often upstreams are looked at for loops where nothing hints at one.
const PROBE: Duration = Duration::from_mins(10);
/// How often at most.
const PROBE_PAUSE: Duration = Duration::from_secs(5);

/// Serves names until `stop`, from the first moment: before Services are known, names in the
/// cluster domain fail (SERVFAIL) and foreign ones are answered. Says on `board` how it is, and
/// counts in `metrics`. `local_pods` are the pods whose search lists `autopath` goes through.
pub async fn run(
    config: Config,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    local_pods: Arc<LocalPods>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let succession = Succession::default();
    run_between(config, snapshots, board, metrics, local_pods, succession, stop).await
}

/// As [`run`], where another agent is there before this one, or may be after it.
pub async fn run_between(
    config: Config,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    local_pods: Arc<LocalPods>,
    mut succession: Succession,
    stop: CancellationToken,
) -> Result<(), Error> {
    metrics.serve(&config.cluster_domain);
    metrics::count_panics();
    let begin = succession.begin.take();
    let mut connections = succession.connections.take();
    let mut role = Role::new(config, metrics, local_pods, succession)?;
    loop {
        // Before the snapshot, which then is no older than the word.
        let begun = begin.as_ref().is_none_or(CancellationToken::is_cancelled);
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        role.follow(snapshot);
        if role.source_is_due() {
            role.follow_source().await?;
        }
        role.seek_others();
        if begun && role.review_is_due() {
            role.reconcile().await;
        }
        role.probe_if_due();
        board.report(PART, role.state());
        let next_look = role.next_look();
        tokio::select! {
            () = stop.cancelled() => break,
            changed = snapshots.changed() => if changed.is_err() {
                // Nobody will say anything new; what is known stays true.
                stop.cancelled().await;
                break;
            },
            Some(_) = role.probes.join_next() => {}
            Some(news) = role.others.heard() => if news {
                role.review = Instant::now();
            },
            () = cancelled(begin.as_ref()), if !begun => {}
            Some(connection) = next(&mut connections) => role.listeners.serve_on(connection),
            () = tokio::time::sleep_until(next_look.into()) => {}
        }
    }
    role.close().await;
    Ok(())
}

async fn cancelled(token: Option<&CancellationToken>) {
    match token {
        Some(token) => token.cancelled().await,
        None => std::future::pending().await,
    }
}

async fn next<T>(queue: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match queue {
        Some(queue) => queue.recv().await,
        None => None,
    }
}

/// What says what is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InForce {
    /// The configuration alone: the file beside it could not be used yet, and neither could what is
    /// kept of it.
    Nothing,
    /// The file, or the configuration where that names none.
    Followed,
    /// The file as it was when an earlier agent could use it.
    Kept,
    /// The configuration alone, for good: a node may be without name servers of its own.
    Alone,
}

/// The running role: what it follows and what it holds.
struct Role {
    /// As the agent's configuration has it.
    given: Config,
    /// What is in force: with what the file beside it says.
    config: Config,
    /// When to look at that file again.
    next_follow: Instant,
    /// What it said, where that is in force.
    noted: Option<Arc<Noted>>,
    /// Of what says what is in force.
    in_force: InForce,
    /// Why what the file says now is not.
    unusable: Option<String>,
    warnings: Vec<String>,
    cache: Arc<Mutex<Cache>>,
    metrics: Arc<Metrics>,
    snapshot: Arc<Snapshot>,
    resolver: Arc<Resolver>,
    listeners: Listeners,
    secure_listeners: SecureListeners,
    vitals: Arc<Vitals>,
    servers: Servers,
    /// Who answers at the cluster DNS addresses until Services are known, and what the file says.
    others: Others,
    /// The sockets that shall be open.
    wanted: BTreeMap<SocketAddr, Audience>,
    /// What could not be had when last tried.
    problems: Vec<String>,
    /// When to look at addresses and sockets again.
    review: Instant,
    /// Upstreams that are ourselves, and are not asked.
    ourselves: Vec<SocketAddr>,
    /// Looks for loops, under way.
    probes: JoinSet<()>,
    probed: Option<Instant>,
    /// Who waits for what the file says to be in force.
    configured: Option<oneshot::Sender<()>>,
    /// Who waits for this role to serve.
    serving: Option<oneshot::Sender<()>>,
    departure: Departure,
}

impl Role {
    fn new(
        config: Config,
        metrics: Arc<Metrics>,
        local_pods: Arc<LocalPods>,
        succession: Succession,
    ) -> Result<Self, Error> {
        let (routes, ourselves) = routes(&config);
        let settings = settings(&config, &routes)?;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let cache = Arc::new(Mutex::new(Cache::new(config.cache_octets)));
        let (cached, counted) = (Arc::clone(&cache), Arc::clone(&metrics));
        metrics.general.enable(config.plugins());
        let routes = Routes::new(routes, &config.blocks, &settings.origin);
        let forwarder = Arc::new(Forwarder::new(routes, config.forward, cached, counted));
        let domain = settings.origin.clone();
        let zone = Zone::new(settings, first_serial(since_epoch)).knowing(Arc::clone(&local_pods));
        let resolver = Arc::new(Resolver::new(zone, forwarder, Arc::clone(&metrics), local_pods));
        // Nobody has set it before.
        let _first = succession.resolver.set(Arc::clone(&resolver));
        let others = Others::new(succession.elsewhere, domain);
        let Succession { inherited, configured, serving, sockets, departure, vitals, .. } =
            succession;
        vitals.set_lameduck(config.lameduck);
        let (told, counted) = (Arc::clone(&vitals), Arc::clone(&metrics));
        let servers = Servers::new(told, counted, Arc::clone(&sockets));
        let connections = Connections::new(config.tcp, departure.clone());
        let (resolving, counting) = (Arc::clone(&resolver), Arc::clone(&connections));
        let secure_listeners = SecureListeners::new(resolving, counting, Arc::clone(&sockets));
        let (resolving, threads) = (Arc::clone(&resolver), config.threads);
        let listeners = Listeners::new(resolving, connections, threads, inherited, sockets);
        let mut this = Self {
            snapshot: Arc::default(),
            resolver,
            listeners,
            secure_listeners,
            vitals,
            servers,
            others,
            wanted: BTreeMap::new(),
            problems: Vec::new(),
            review: Instant::now(),
            ourselves,
            probes: JoinSet::new(),
            probed: None,
            given: config.clone(),
            config,
            next_follow: Instant::now(),
            noted: None,
            in_force: InForce::Nothing,
            unusable: None,
            warnings: Vec::new(),
            cache,
            metrics,
            configured,
            serving,
            departure,
        };
        if this.given.source == Source::Here {
            this.put_in_force(InForce::Followed);
        }
        Ok(this)
    }

    /// Notes what says what is in force, and tells who waits for that.
    fn put_in_force(&mut self, by: InForce) {
        self.in_force = by;
        if let Some(configured) = self.configured.take() {
            // Who asked may have given up.
            let _told = configured.send(());
        }
    }

    fn source_is_due(&self) -> bool {
        self.given.source != Source::Here && self.next_follow <= Instant::now()
    }

    /// Puts what the file beside the configuration says in force, where that is new.
    async fn follow_source(&mut self) -> Result<(), Error> {
        let domain = origin(&self.given.cluster_domain)?;
        let looked = follow::look(&self.given, &domain, self.noted.as_ref()).await;
        self.next_follow = Instant::now() + FOLLOW;
        match looked {
            // It says what is in force, whatever it said meanwhile.
            Ok(None) => self.unusable = None,
            Ok(Some((followed, noted))) => {
                self.noted = Some(Arc::new(noted));
                self.unusable = None;
                self.adopt_followed(followed)?;
                self.put_in_force(InForce::Followed);
            }
            Err(why) => {
                let stands = self.without_the_file(&domain).await?;
                let why = format!("{why}; {stands}");
                if self.unusable.as_ref() != Some(&why) {
                    self.metrics.reloaded(false);
                }
                self.unusable = Some(why);
            }
        }
        Ok(())
    }

    /// What is in force while the file can't be used, put in force where nothing is yet.
    async fn without_the_file(&mut self, domain: &Name) -> Result<String, Error> {
        let mut lost = String::new();
        if self.in_force == InForce::Nothing {
            match follow::recall(&self.given, domain).await {
                Ok(None) if matches!(self.given.source, Source::ResolvConf(_)) => {
                    self.put_in_force(InForce::Alone);
                }
                Ok(None) => {}
                Ok(Some(followed)) => {
                    tracing::warn!("the resolver begins with what is kept of its files");
                    self.adopt_followed(followed)?;
                    self.put_in_force(InForce::Kept);
                }
                Err(why) => lost = format!(", and what is kept of it can't be used: {why}"),
            }
        }
        Ok(match self.in_force {
            InForce::Nothing => format!("nothing that it says is in force{lost}"),
            InForce::Alone => "nobody is asked for names outside".to_owned(),
            InForce::Followed => "what was in force before stays in force".to_owned(),
            InForce::Kept => {
                let folder = self.given.data_dir.as_deref().unwrap_or(Path::new(""));
                let kept = folder.join(kept::FILE);
                format!("what it said when it could last be used is in force ({})", kept.display())
            }
        })
    }

    fn adopt_followed(&mut self, followed: Followed) -> Result<(), Error> {
        let Followed { config, warnings } = followed;
        if self.warnings != warnings {
            for warning in &warnings {
                tracing::warn!(warning, "a part of the Corefile is left out");
            }
        }
        self.warnings = warnings;
        if config != self.config {
            self.adopt(config)?;
            self.metrics.reloaded(true);
        }
        Ok(())
    }

    /// Puts `config` in force.
    fn adopt(&mut self, config: Config) -> Result<(), Error> {
        let (routes, ourselves) = routes(&config);
        let settings = settings(&config, &routes)?;
        let zone = self.resolver.zone();
        if settings != *zone.settings() {
            let zone = Zone::new(settings, zone.serial().wrapping_add(1))
                .knowing(self.resolver.local_pods());
            let zone = zone.advance(&Snapshot::default(), &self.snapshot);
            self.resolver.publish(zone);
        }
        if !keep_the_same(&config, &self.config) {
            // What others said is not what these say, and what is not to be kept is not given.
            self.cache = Arc::new(Mutex::new(Cache::new(config.cache_octets)));
        }
        let (cached, counted) = (Arc::clone(&self.cache), Arc::clone(&self.metrics));
        let routes = Routes::new(routes, &config.blocks, &self.resolver.zone().settings().origin);
        let forwarder = Forwarder::new(routes, config.forward, cached, counted);
        self.resolver.forward_by(Arc::new(forwarder));
        tracing::info!(routes = config.routes.len(), "configuration of names outside changed");
        self.vitals.set_lameduck(config.lameduck);
        if config.vitals != self.config.vitals || config.tls != self.config.tls {
            self.review = Instant::now();
        }
        self.metrics.general.enable(config.plugins());
        (self.ourselves, self.probed, self.config) = (ourselves, None, config);
        Ok(())
    }

    /// Publishes what follows from `snapshot`.
    fn follow(&mut self, snapshot: Arc<Snapshot>) {
        let before = self.resolver.zone();
        let zone = before.advance(&self.snapshot, &snapshot);
        if zone.synced() {
            self.vitals.synced();
        }
        self.resolver.publish(zone);
        if !self.snapshot.nodes.ptr_eq(&snapshot.nodes) {
            self.resolver.admit(Peers::of(&snapshot, &self.config.pod_ranges));
        }
        if before.synced() {
            let now = SystemTime::now();
            for trigger in triggers(&self.snapshot, &snapshot) {
                // Another machine's clock may be ahead of ours.
                self.metrics.programmed(now.duration_since(trigger).unwrap_or_default());
            }
        }
        self.snapshot = snapshot;
    }

    /// Whether it knows the cluster, and who is asked for other names.
    fn knows(&self) -> bool {
        self.resolver.zone().synced() && self.in_force != InForce::Nothing
    }

    /// Looks whether other nodes' resolvers answer, as long as they know what this one does not.
    fn seek_others(&mut self) {
        if self.knows() { self.others.rest() } else { self.others.look_if_due() }
    }

    /// Whether other sockets are wanted, or it is time to see whether all is still there.
    fn review_is_due(&mut self) -> bool {
        let mut wanted = listeners(&self.config, &self.snapshot);
        if self.others.answer() {
            wanted.retain(|address, _| !self.is_of_the_cluster(address));
        }
        let differs = wanted != self.wanted;
        self.wanted = wanted;
        differs || self.review <= Instant::now()
    }

    /// Whether other nodes answer there where nobody listens on this one.
    fn is_of_the_cluster(&self, address: &SocketAddr) -> bool {
        address.port() == self.config.port && self.config.cluster_addresses.contains(&address.ip())
    }

    /// Has the node hold the addresses and the sockets listen.
    async fn reconcile(&mut self) {
        self.problems.clear();
        let addresses: BTreeSet<IpAddr> = served_addresses(&self.config).into_iter().collect();
        if let Err(error) = addresses::hold(&addresses).await {
            self.problems.push(error.to_string());
        }
        let tls = self.config.tls.as_ref();
        let port = tls.map(|listener| listener.port);
        let untracked = Untracked::new(addresses.clone(), self.config.port, port);
        if let Err(error) = untracked::hold(untracked).await {
            self.problems.push(error.to_string());
        }
        if self.others.are_heard() {
            // A socket that is held and not read keeps clients from them.
            self.listeners.inherited.turn_away(|address| self.is_of_the_cluster(address));
        }
        let errors = self.listeners.reconcile(&self.wanted);
        self.problems.extend(errors.iter().map(ToString::to_string));
        let inherited = &mut self.listeners.inherited;
        let errors = self.servers.reconcile(&self.config.vitals, inherited);
        self.problems.extend(errors.iter().map(ToString::to_string));
        let at = |port| addresses.iter().map(move |address| SocketAddr::new(*address, port));
        let secure = port.into_iter().flat_map(at).collect();
        self.problems.extend(self.secure_listeners.reconcile(&secure, tls, inherited));
        let pause = if self.problems.is_empty() { REVIEW } else { RETRY };
        self.review = Instant::now() + pause;
        if self.resolver.zone().synced() {
            self.listeners.drop_inherited();
        }
        // Where others answer for the only addresses that there are, that is served too.
        if (!self.listeners.is_empty() || self.others.are_heard())
            && let Some(serving) = self.serving.take()
        {
            // Who asked may have given up.
            let _told = serving.send(());
        }
    }

    /// When there may be something to do though nobody said so.
    fn next_look(&self) -> Instant {
        let mut next = self.review.min(Instant::now() + PROBE_PAUSE);
        next = self.others.next_look().map_or(next, |look| next.min(look));
        if self.given.source != Source::Here {
            next = next.min(self.next_follow);
        }
        next
    }

    /// Looks for upstreams that lead back here: at first, when something hints at it, and now and
    /// then.
    fn probe_if_due(&mut self) {
        let forwarder = self.resolver.forwarder();
        let since = self.probed.map(|at| at.elapsed());
        let due = match since {
            None => true,
            Some(since) if since < PROBE_PAUSE => false,
            // One that leads back here is asked again as soon as it does so no more.
            Some(since) => {
                since >= PROBE || forwarder.take_suspicion() || !forwarder.loops().is_empty()
            }
        };
        if due && self.probes.is_empty() {
            self.probed = Some(Instant::now());
            self.probes.spawn(forwarder.probe());
        }
    }

    fn state(&self) -> State {
        let ourselves = self.ourselves.iter().map(|upstream| {
            format!("upstream {upstream} is this resolver itself and is not asked; name another")
        });
        let loops = self.resolver.forwarder().loops().into_iter().map(|upstream| {
            format!(
                "upstream {upstream} leads back to this resolver and is not asked; name another"
            )
        });
        let naming = &self.config.naming;
        let unknown = naming.namespace_labels.is_some() && self.snapshot.namespaces.is_empty();
        let unknown = unknown.then(|| {
            "the API server shows no namespace, so none is selected (namespace_labels); the \
             agent's role must allow list and watch of namespaces"
                .to_owned()
        });
        let deaf = self.wanted.values().any(|audience| *audience == Audience::Peers)
            && !self.resolver.knows_pods();
        let deaf = deaf.then(|| {
            "no range of pods is known, neither of Node objects (spec.podCIDRs) nor of the \
             configuration, so other nodes' pods get no answer here while their own resolver is \
             away; name the range in clusterCidr"
                .to_owned()
        });
        let problems = self.problems.iter().chain(&self.unusable).cloned();
        let problems = problems.chain(unknown).chain(deaf).chain(self.config.excesses());
        let wrong: Vec<_> = problems.chain(ourselves).chain(loops).collect();
        if !self.resolver.zone().synced() {
            let waits = "services and endpoints to be listed".to_owned();
            let left = self.others.are_heard();
            let left = left.then(|| "other nodes' resolvers answer until then".to_owned());
            let all: Vec<_> = std::iter::once(waits).chain(left).chain(wrong).collect();
            return State::Waiting(all.join("; "));
        }
        if self.in_force == InForce::Nothing {
            return State::Waiting(wrong.join("; "));
        }
        if wrong.is_empty() { State::Ready } else { State::Degraded(wrong.join("; ")) }
    }

    /// Answers what is under way, closes the sockets, and gives the addresses up.
    ///
    /// Where another agent goes on by the same sockets, or will, the addresses are its own. Where
    /// programs lead to other nodes' resolvers they stay as when it is killed: sockets of the node
    /// have them as their own, and could not send any more (ADR 45).
    async fn close(self) {
        tokio::join!(self.listeners.close(), self.secure_listeners.close());
        self.servers.close().await;
        if self.departure.leaves_addresses() {
            return;
        }
        if let Err(error) = release().await {
            tracing::warn!(%error, "what the resolver held was not given up");
        }
    }
}

/// When the pods changed of which slices of headless Services in `to` tell, and those in `from`
/// do not.
fn triggers(from: &Snapshot, to: &Snapshot) -> Vec<SystemTime> {
    let changed = to.changed_services(from);
    let headless = changed.iter().filter_map(|key| to.services.get(key)).filter(|of| of.headless);
    let slices = headless.flat_map(|service| to.slices_of(&service.key));
    let news = slices.filter_map(|slice| {
        let before = from.slices.get(&(slice.service.clone(), slice.key.name.clone()));
        slice.trigger_time.filter(|now| before.and_then(|slice| slice.trigger_time) != Some(*now))
    });
    news.collect()
}
