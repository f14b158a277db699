//! Names that are not ours: asked of the upstreams of their zone, once per name at a time, within
//! the time that clients wait; and what is said when no upstream answers.

mod berths;
pub mod error_log;
pub mod exchange;
mod flight;
pub mod health;
pub mod knows;
pub mod link;
pub mod probe;
mod room;
mod shares;
mod tries;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::HINFO},
};
use tokio::{runtime::Handle, time::timeout};

use self::{
    error_log::ErrorLog,
    exchange::Way,
    flight::Flights,
    health::Health,
    link::Link,
    probe::Probes,
    room::{Chair, Room},
};
use super::{
    answer::{Explanation, Reply},
    cache::{Asked, Cache, Found, Hit, Keeping, Key, Said, Sort, is_failure, is_negative},
    chain::Chain,
    config::Forwarding,
    direct,
    message::Question,
    metrics::{Metrics, Origin, UpstreamCounts},
    name::LowerName,
    route::{Policy, Route, Routes, Upstream},
};

/// How long a client waits before it is given an answer that has outlived its time, while the next
/// one is under way (RFC 8767 5: client response timer).
const CLIENT_RESPONSE: Duration = Duration::from_millis(1800);
/// The TTL of an answer that has outlived its time, in seconds (RFC 8767 4).
const STALE_TTL: u32 = 30;
/// The TTL of the one record that is said where all are asked for, in seconds.
const ANY_TTL: u32 = 8482;
/// How many may wait for each question that may be under way: for that question, for one that has to
/// wait itself, or to hear that newer ones had its place.
const WAITING_PER_FLIGHT: usize = 8;

/// What asking came to; shared by all who asked for the same.
type Answer = Result<Heard, Explanation>;

/// An upstream's answer.
#[derive(Clone, Debug)]
struct Heard {
    message: Arc<Message>,
    by: SocketAddr,
}

/// Asks upstreams and remembers what they said.
#[derive(Debug)]
pub struct Forwarder {
    routes: Routes,
    /// By the places of the routes.
    health: Vec<Mutex<Health>>,
    limits: Forwarding,
    cache: Arc<Mutex<Cache>>,
    /// By the places of the routes: one whose upstreams are silent takes nobody else's.
    flights: Vec<Arc<Flights>>,
    /// Where those are who wait, likewise.
    rooms: Vec<Arc<Room>>,
    turn: AtomicUsize,
    probes: Probes,
    metrics: Arc<Metrics>,
    /// By the places of the routes and of their upstreams.
    counts: Vec<Vec<Arc<UpstreamCounts>>>,
    /// The same; of upstreams that are asked over TLS, where it can be used.
    links: Vec<Vec<Option<Link>>>,
    /// Where a block has what fails said.
    error_log: Option<ErrorLog>,
}

/// What can be said of a question without waiting.
#[derive(Debug)]
pub enum AtOnce {
    /// The answer, and what gives it.
    Answer(Reply, Origin),
    /// An upstream has to be asked: [`Forwarder::ask`].
    Ask(Errand),
}

/// A chair among those who wait for an upstream, and what they get when none answers.
#[derive(Debug)]
pub struct Errand {
    /// The place of the route.
    place: usize,
    stale: Option<Hit>,
    chair: Chair,
}

/// What is asked of upstreams, and how.
struct Flight<A> {
    key: Key,
    ask: A,
}

impl Forwarder {
    /// A forwarder by these routes that remembers in `cache` and counts in `metrics`. It asks on the
    /// runtime that it is made on.
    pub fn new(
        routes: Routes,
        limits: Forwarding,
        cache: Arc<Mutex<Cache>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let health = routes.iter().map(|route| Mutex::new(Health::new(route.upstreams.len())));
        let counts = routes.iter().map(|route| {
            route.upstreams.iter().map(|upstream| metrics.upstream(upstream.address)).collect()
        });
        let counts: Vec<Vec<Arc<UpstreamCounts>>> = counts.collect();
        let runtime = Handle::current();
        let says = routes.iter().any(|route| route.errors.is_some());
        let links = routes.iter().zip(&counts).map(|(route, counts)| {
            route
                .upstreams
                .iter()
                .zip(counts)
                .map(|(named, counts)| link(named, counts, &runtime))
                .collect()
        });
        let most =
            || routes.iter().map(|route| route.max_concurrent.unwrap_or(limits.max_in_flight));
        Self {
            health: health.collect(),
            links: links.collect(),
            error_log: says.then(ErrorLog::start),
            counts,
            metrics,
            cache,
            flights: most()
                .map(|most| Flights::new(most, limits.patience, runtime.clone()))
                .collect(),
            rooms: most().map(|most| Room::new(most * WAITING_PER_FLIGHT)).collect(),
            turn: AtomicUsize::new(0),
            probes: Probes::default(),
            routes,
            limits,
        }
    }

    /// The steps of the server block that has `name`, and the block's place, where it has any.
    pub fn steps(&self, name: &Name) -> Option<(usize, Arc<Chain>)> {
        self.routes.steps(name)
    }

    /// The route of a name: by its zone, or where the steps of a block led to it, of that block.
    fn route(&self, name: &LowerName, block: Option<usize>) -> Option<(usize, &Route)> {
        match block {
            None => self.routes.find(name),
            Some(block) => self.routes.find_in(block, name),
        }
    }

    /// What the index may answer before anybody else is asked.
    pub fn direct(&self) -> direct::Scope {
        self.routes.direct()
    }

    /// What the table of its block says of a name, ours or not: the tables come before all else.
    /// `block` as in [`at_once`](Self::at_once).
    pub fn in_hosts(&self, question: &Question, block: Option<usize>) -> Option<Reply> {
        if !self.routes.have_hosts() {
            return None;
        }
        let name = LowerName::of(question.query.name());
        let hosts = self.routes.hosts(&name, block)?;
        let mut reply = hosts.answer(&question.query)?;
        if hosts.loadbalance {
            reply.rotate(question.id.into());
        }
        Some(reply)
    }

    /// What can be said without waiting: what is remembered, or why nobody will be asked. `block`
    /// is the place of the server block whose steps led to the question, if any did.
    pub fn at_once(self: &Arc<Self>, question: &Question, block: Option<usize>) -> AtOnce {
        let name = LowerName::of(question.query.name());
        let Some((place, route)) = self.route(&name, block) else {
            let explanation = Some(Explanation::NotServed);
            let reply = Reply { explanation, ..Reply::of_code(ResponseCode::Refused) };
            return AtOnce::Answer(reply, Origin::Nobody);
        };
        if !self.routes.asks_for(place, &name) {
            return AtOnce::Answer(Reply::failure(Explanation::NoUpstream), Origin::Nobody);
        }
        if question.query.query_type() == RecordType::ANY {
            return AtOnce::Answer(one_for_all(question), Origin::Nobody);
        }
        let found = lock(&self.cache).get(Asked { question, place }, Instant::now());
        let (reply, stale) = match found {
            Found::Fresh { hit, refresh } => {
                if refresh && let Some(flights) = self.flights.get(place) {
                    // Nobody waits for it; where there is no room it is left.
                    let Flight { key, ask } = self.flight(question, place);
                    flights.begin_if_free(key, question.client, ask);
                }
                let reply = remembered(question, &hit, &route.keeping);
                self.metrics.looked_up(reply.as_ref().map(sort), false, refresh);
                (reply, None)
            }
            Found::Stale { hit, ask: false } => {
                let reply = outlived(question, &hit);
                self.metrics.looked_up(reply.as_ref().map(sort), true, false);
                (reply, None)
            }
            Found::Failed(_) => (Some(Reply::failure(Explanation::FailedBefore)), None),
            Found::Stale { hit, ask: true } => (None, Some(hit)),
            Found::Nothing => {
                self.metrics.looked_up(None, false, false);
                (None, None)
            }
        };
        if let Some(mut reply) = reply {
            if route.loadbalance {
                reply.rotate(question.id.into());
            }
            return AtOnce::Answer(reply, Origin::Cache);
        }
        if !question.recursion_desired {
            return AtOnce::Answer(Reply::of_code(ResponseCode::Refused), Origin::Nobody);
        }
        match self.rooms.get(place) {
            Some(room) => {
                let chair = room.enter(question.client);
                AtOnce::Ask(Errand { place, stale, chair })
            }
            None => AtOnce::Answer(Reply::failure(Explanation::NoUpstream), Origin::Nobody),
        }
    }

    fn overloaded(&self, question: &Question, stale: Option<&Hit>) -> Reply {
        self.probes.suspect();
        self.metrics.rejected();
        let stale = stale.and_then(|hit| outlived(question, hit));
        stale.unwrap_or_else(|| Reply::failure(Explanation::Overloaded))
    }

    /// The upstreams' answer and whose it is; or where there is none and an old one is remembered,
    /// that.
    pub async fn ask(
        self: &Arc<Self>,
        question: &Question,
        errand: Errand,
    ) -> (Reply, Option<SocketAddr>) {
        let in_turns = self.routes.at(errand.place).is_some_and(|route| route.loadbalance);
        let (mut reply, by) = self.hear(question, errand).await;
        if in_turns {
            reply.rotate(question.id.into());
        }
        (reply, by)
    }

    /// The same with the addresses in their order.
    async fn hear(
        self: &Arc<Self>,
        question: &Question,
        mut errand: Errand,
    ) -> (Reply, Option<SocketAddr>) {
        let place = errand.place;
        let (Some(route), Some(flights)) = (self.routes.at(place), self.flights.get(place)) else {
            return (Reply::failure(Explanation::NoUpstream), None);
        };
        let Flight { key, ask } = self.flight(question, place);
        let seat = flights.board(key, question.client, ask);
        let stale = errand.stale.as_ref().and_then(|hit| outlived(question, hit));
        let answer = async {
            tokio::select! {
                answer = seat.answer() => answer,
                () = errand.chair.lost() => Err(Explanation::Overloaded),
            }
        };
        let answer = match stale {
            None => answer.await,
            Some(stale) => match timeout(CLIENT_RESPONSE, answer).await {
                Ok(Ok(heard)) if !is_failure(heard.message.metadata.response_code) => Ok(heard),
                Ok(Err(Explanation::Overloaded)) => Err(Explanation::Overloaded),
                // The flight goes on; its answer is for those who come after.
                _ => {
                    self.metrics.looked_up(Some(sort(&stale)), true, false);
                    return (stale, None);
                }
            },
        };
        let failed = match answer {
            Ok(Heard { message, by }) => {
                let kind = question.query.query_type();
                let ttl = |ttl| bounded(ttl, (&message, kind), &route.keeping);
                return (as_reply(question, &message, ttl), Some(by));
            }
            Err(Explanation::Overloaded) => self.overloaded(question, errand.stale.as_ref()),
            Err(explanation) => {
                if let (Some(log), Some(errors)) = (&self.error_log, &route.errors) {
                    log.note(errors, &question.query, explanation);
                }
                Reply::failure(explanation)
            }
        };
        (failed, None)
    }

    /// The flight that asks.
    fn flight(
        self: &Arc<Self>,
        question: &Question,
        place: usize,
    ) -> Flight<impl FnOnce() -> BoxFuture<'static, Answer> + use<>> {
        let (this, asked) = (Arc::clone(self), question.clone());
        // Waiting for a turn is a part of the time that there is.
        let deadline = Instant::now() + self.limits.total;
        let ask = move || {
            async move {
                let answer = this.ask_routes(&asked, place, deadline).await;
                if let Err(explanation) = &answer
                    && let Some(route) = this.routes.at(place)
                {
                    let asked = Asked { question: &asked, place };
                    lock(&this.cache).fail(asked, *explanation, &route.keeping, Instant::now());
                }
                answer
            }
            .boxed()
        };
        Flight { key: Key::of(Asked { question, place }), ask }
    }

    fn at(&self, place: usize) -> Option<(&Route, &Mutex<Health>)> {
        Some((self.routes.at(place)?, self.health.get(place)?))
    }

    /// Where it is kept how an upstream is: its route's health, and what it said so far.
    fn books(&self, place: usize, upstream: usize) -> Option<(&Mutex<Health>, &UpstreamCounts)> {
        Some((self.health.get(place)?, self.counts.get(place)?.get(upstream)?))
    }

    /// How the upstream at these places is asked; `None` where it is asked over TLS and that can't
    /// be used.
    fn way(&self, place: usize, upstream: usize) -> Option<Way<'_>> {
        let route = self.routes.at(place)?;
        let named = route.upstreams.get(upstream)?;
        if named.tls.is_some() {
            return self.links.get(place)?.get(upstream)?.as_ref().map(Way::Tls);
        }
        let by = if route.by_tcp { Way::Tcp } else { Way::Udp };
        Some(by(named.address))
    }

    fn next_turn(&self, policy: Policy) -> usize {
        match policy {
            Policy::Sequential => 0,
            Policy::RoundRobin => self.turn.fetch_add(1, Relaxed),
            Policy::Random => probe::any_number(),
        }
    }

    fn remember(
        &self,
        asked: Asked<'_>,
        received: exchange::Received,
        by: SocketAddr,
        keeping: &Keeping,
    ) -> Heard {
        let exchange::Received { message, octets } = received;
        let mut cache = lock(&self.cache);
        let said = Said { message: &message, octets: &octets, by };
        cache.put(asked, said, keeping, Instant::now());
        self.metrics.cache_holds(cache.tally());
        drop(cache);
        Heard { message: Arc::new(message), by }
    }

    /// The upstreams that lead back to us, and are not asked.
    pub fn loops(&self) -> Vec<SocketAddr> {
        let places = self.routes.iter().zip(&self.health);
        let mut all: Vec<_> = places
            .flat_map(|(route, health)| {
                let looping = lock(health).looping();
                looping.into_iter().filter_map(|place| Some(route.upstreams.get(place)?.address))
            })
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The way to an upstream that is asked over TLS. What can't be used was found when the
/// configuration was read, all but the authorities that the system trusts.
fn link(upstream: &Upstream, counts: &UpstreamCounts, runtime: &Handle) -> Option<Link> {
    let peer = upstream.tls.as_ref()?;
    let made = Link::new(upstream.address, peer, Arc::clone(&counts.links), runtime.clone());
    let upstream = upstream.address;
    made.inspect_err(|why| tracing::error!(%upstream, why, "upstream can't be asked over TLS")).ok()
}

/// An answer that is remembered, as one to `question`.
fn remembered(question: &Question, hit: &Hit, keeping: &Keeping) -> Option<Reply> {
    let message = Message::from_vec(&hit.octets).ok()?;
    let age = u32::try_from(hit.age.as_secs()).unwrap_or(u32::MAX);
    let kind = question.query.query_type();
    let ttl = |ttl| bounded(ttl, (&message, kind), keeping).saturating_sub(age);
    let mut reply = as_reply(question, &message, ttl);
    if is_failure(reply.code) {
        reply.explanation = Some(Explanation::FailedBefore);
    }
    Some(reply)
}

/// An answer that is remembered and has outlived its time (RFC 8767).
fn outlived(question: &Question, hit: &Hit) -> Option<Reply> {
    let message = Message::from_vec(&hit.octets).ok()?;
    let mut reply = as_reply(question, &message, |_| STALE_TTL);
    reply.explanation = Some(match reply.code {
        ResponseCode::NXDomain => Explanation::StaleMissing,
        _ => Explanation::Stale,
    });
    Some(reply)
}

/// The TTL of a record of an answer to a question of that type, within the bounds that are kept;
/// what must not be kept stays so, and where nothing is kept here clients may keep what the
/// upstream allows.
fn bounded(ttl: u32, (message, kind): (&Message, RecordType), keeping: &Keeping) -> u32 {
    let (least, most) = if is_negative(message, kind) { keeping.negative_ttl } else { keeping.ttl };
    let seconds = |bound: Duration| u32::try_from(bound.as_secs()).unwrap_or(u32::MAX);
    if ttl == 0 || most.is_zero() { ttl } else { ttl.max(seconds(least)).min(seconds(most)) }
}

/// An upstream's answer as the answer to `question`: its owners written as they were asked for,
/// its TTLs passed through `ttl`. A "there is none" is true for as long as the SOA record says twice
/// (RFC 2308 5).
fn as_reply(question: &Question, message: &Message, ttl: impl Fn(u32) -> u32) -> Reply {
    let asked = question.query.name();
    let negative = is_negative(message, question.query.query_type());
    let own = |record: &Record| match &record.data {
        RData::SOA(soa) if negative => record.ttl.min(soa.minimum),
        _ => record.ttl,
    };
    let records = |records: &[Record]| {
        let mut records = records.to_vec();
        for record in &mut records {
            record.ttl = ttl(own(record));
            if record.name == *asked {
                record.name.clone_from(asked);
            }
        }
        records
    };
    Reply {
        code: message.metadata.response_code,
        authoritative: false,
        authentic: message.metadata.authentic_data,
        truncated: message.metadata.truncation,
        answers: records(&message.answers),
        authorities: records(&message.authorities),
        additionals: records(&message.additionals),
        explanation: None,
    }
}

/// The answer to a question for all records of a name: one, whatever there is, so that nobody sends
/// much to somebody else by asking for it (RFC 8482 4.2).
fn one_for_all(question: &Question) -> Reply {
    let told = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
    let record = Record::from_rdata(question.query.name().clone(), ANY_TTL, told);
    Reply { answers: vec![record], ..Reply::of_code(ResponseCode::NoError) }
}

/// Of which sort an answer is that the cache gave.
fn sort(reply: &Reply) -> Sort {
    Sort::of(reply.code, reply.answers.len())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
