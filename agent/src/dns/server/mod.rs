//! The serving side: sockets, and the way of a message from one to the other.

mod backlog;
mod batch;
pub mod listen;
pub(super) mod open;
mod query_log;
pub mod secure;
mod tcp;
pub mod trail;
mod trains;
mod udp;
mod walk;
mod workers;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use futures::{FutureExt as _, future::BoxFuture};
use hickory_proto::{
    op::{Query, ResponseCode},
    rr::Name,
};

use self::{
    query_log::QueryLog,
    trail::Trail,
    walk::{Said, Steps, Walk},
};
use super::{
    answer::{Outcome, Reply, answer_within},
    chain::{Chain, query_log::Entry},
    direct,
    forward::{AtOnce, Errand, Forwarder},
    message::{self, Question, Received, Transport},
    metrics::{Metrics, Origin, Request, Shed},
    peers::Peers,
    zone::Zone,
};
use crate::local_pods::LocalPods;

/// What all sockets answer from. One atomic load per question; nobody waits for a change.
#[derive(Debug)]
pub struct Resolver {
    zone: ArcSwap<Zone>,
    peers: ArcSwap<Peers>,
    forwarder: ArcSwap<Forwarder>,
    metrics: Arc<Metrics>,
    local_pods: Arc<LocalPods>,
    query_log: QueryLog,
}

/// A question that is being answered, for the metrics.
#[derive(Debug)]
struct Counted {
    request: Request,
    since: Instant,
    client: SocketAddr,
    trail: Trail,
}

/// A message on its way.
#[derive(Debug)]
pub enum Begun {
    /// There is nothing to answer.
    Nothing,
    /// The answer.
    Done(Vec<u8>),
    /// An upstream has to be asked: [`Resolver::finish`].
    Waits(Box<Waiting>),
}

/// A question that waits for an upstream.
#[derive(Debug)]
pub struct Waiting {
    question: Question,
    counted: Counted,
    rest: Rest,
}

/// What is left to do for an answer.
#[expect(clippy::large_enum_variant, reason = "it stands in a box already")]
enum Rest {
    /// To ask an upstream.
    Ask {
        /// Our part of the answer and the name that it leads to; without one, all is the
        /// upstream's.
        alias: Option<(Reply, Question)>,
        /// Who asks for it, also when the configuration has changed meanwhile.
        forwarder: Arc<Forwarder>,
        errand: Errand,
    },
    /// To go on through the steps of a server block.
    Walk(BoxFuture<'static, Said>, Arc<Chain>),
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ask { alias, errand, .. } => f
                .debug_struct("Ask")
                .field("alias", alias)
                .field("errand", errand)
                .finish_non_exhaustive(),
            Self::Walk(_, chain) => f.debug_tuple("Walk").field(chain).finish(),
        }
    }
}

impl Resolver {
    /// A resolver with this zone, that asks by this forwarder and counts in `metrics`. Needs a
    /// runtime, for the task that writes the query log.
    pub fn new(
        zone: Zone,
        forwarder: Arc<Forwarder>,
        metrics: Arc<Metrics>,
        local_pods: Arc<LocalPods>,
    ) -> Self {
        Self {
            zone: ArcSwap::from_pointee(zone),
            peers: ArcSwap::from_pointee(Peers::default()),
            forwarder: ArcSwap::new(forwarder),
            metrics,
            local_pods,
            query_log: QueryLog::start(),
        }
    }

    /// Asks by `forwarder` from now on. What is under way goes on by the old one.
    pub fn forward_by(&self, forwarder: Arc<Forwarder>) {
        self.forwarder.store(forwarder);
    }

    /// By whom is asked.
    pub fn forwarder(&self) -> Arc<Forwarder> {
        self.forwarder.load_full()
    }

    /// Answers from `zone` from now on.
    pub fn publish(&self, zone: Zone) {
        self.zone.store(Arc::new(zone));
    }

    /// Answers those in `peers` at peer ports from now on.
    pub fn admit(&self, peers: Peers) {
        self.peers.store(Arc::new(peers));
    }

    /// The pods of this node.
    pub fn local_pods(&self) -> Arc<LocalPods> {
        Arc::clone(&self.local_pods)
    }

    /// Whether pods are admitted there.
    pub fn knows_pods(&self) -> bool {
        self.peers.load().know_pods()
    }

    /// The zone from which answers are given.
    pub fn zone(&self) -> Arc<Zone> {
        self.zone.load_full()
    }

    /// Writes the answer to a datagram that `client` sent, and that came at `since`, where the
    /// index has it and it is plain: no more than a look and a copy. Whether it did.
    pub(super) fn answer_directly(
        &self,
        octets: &[u8],
        client: IpAddr,
        since: Instant,
        answer: &mut Vec<u8>,
    ) -> bool {
        let scope = self.forwarder.load().direct();
        let Some(said) = direct::answer(&self.zone.load(), octets, scope, answer) else {
            return false;
        };
        let request = Request {
            transport: Transport::Udp,
            ipv6: client.is_ipv6(),
            kind: Some(said.kind),
            dnssec_ok: said.dnssec_ok,
            size: octets.len(),
        };
        let took = since.elapsed();
        self.metrics.answered(&request, Origin::Kubernetes, said.code, answer.len(), took);
        true
    }

    /// Counts datagrams that were let go without an answer.
    pub(super) fn shed(&self, why: Shed, count: u64) {
        self.metrics.shed(why, count);
    }

    /// The answer to a message from `client`, or what it has to wait for.
    pub fn begin(&self, octets: &[u8], transport: Transport, client: SocketAddr) -> Begun {
        self.begin_since(Instant::now(), octets, transport, (client, Trail::default()))
    }

    /// As [`begin`](Self::begin); what the question meets is noted on `trail`.
    pub fn begin_on(
        &self,
        octets: &[u8],
        transport: Transport,
        client: SocketAddr,
        trail: Trail,
    ) -> Begun {
        self.begin_since(Instant::now(), octets, transport, (client, trail))
    }

    /// As [`begin_on`](Self::begin_on), of a message that came at `since`.
    fn begin_since(
        &self,
        since: Instant,
        octets: &[u8],
        transport: Transport,
        (client, trail): (SocketAddr, Trail),
    ) -> Begun {
        let size = octets.len();
        let request =
            Request { transport, ipv6: client.is_ipv6(), kind: None, dnssec_ok: false, size };
        let question = match message::read(octets, transport) {
            Received::Nothing => return Begun::Nothing,
            Received::Refused(octets) => {
                // Of the codes that are said at once only BADVERS has no part in the header.
                let low = octets.get(3).map_or(0, |octet| octet & 0xf);
                let code =
                    if low == 0 { ResponseCode::BADVERS } else { ResponseCode::from(0, low) };
                let took = since.elapsed();
                self.metrics.answered(&request, Origin::Nobody, code, octets.len(), took);
                return Begun::Done(octets);
            }
            Received::Question(question) => {
                let mut question = *question;
                question.client = Some(client.ip().to_canonical());
                question
            }
        };
        let kind = Some(question.query.query_type());
        let request = Request { kind, dnssec_ok: question.dnssec_ok(), ..request };
        self.answer(question, Counted { request, since, client, trail })
    }

    fn answer(&self, question: Question, counted: Counted) -> Begun {
        let forwarder = self.forwarder.load();
        let done =
            |reply: &Reply, origin| Begun::Done(self.write(&question, reply, origin, &counted));
        if forwarder.is_probe(&question) {
            return done(&Reply::of_code(ResponseCode::Refused), Origin::Nobody);
        }
        if let Some((block, chain)) = forwarder.steps(question.query.name()) {
            let forwarder = Arc::clone(&forwarder);
            let steps = Steps { chain, block, may_begin: true };
            return self.walk(question, counted, forwarder, steps);
        }
        let trail = &counted.trail;
        trail.look_up(&forwarder, &question, None);
        match look_up(&self.zone.load(), &forwarder, &question, None) {
            LookedUp::Answer(reply, origin) => done(&reply, origin),
            LookedUp::Foreign => match forwarder.at_once(&question, None) {
                AtOnce::Answer(reply, origin) => done(&reply, origin),
                AtOnce::Ask(errand) => {
                    let rest = Rest::Ask { alias: None, forwarder: Arc::clone(&forwarder), errand };
                    Begun::Waits(Box::new(Waiting { question, counted, rest }))
                }
            },
            LookedUp::Alias(ours, target) => {
                let forwarder = Arc::clone(&forwarder);
                self.follow(question, counted, forwarder, (ours, target))
            }
        }
    }

    /// The answer to a question of ours that leads to `target`, which is not: to that as if a
    /// client had asked for it, by the tables and the steps of its own server block.
    fn follow(
        &self,
        question: Question,
        counted: Counted,
        forwarder: Arc<Forwarder>,
        (ours, target): (Reply, Question),
    ) -> Begun {
        if forwarder.steps(target.query.name()).is_some() {
            let walk = self.setting_out(&counted, forwarder);
            let way = walk.lead(ours, target).boxed();
            return self.go(way, question, counted, Arc::default());
        }
        let done = |ours, theirs| {
            let reply = merged(Some(ours), theirs);
            Begun::Done(self.write(&question, &reply, Origin::Kubernetes, &counted))
        };
        counted.trail.look_up(&forwarder, &target, None);
        if let Some(reply) = forwarder.in_hosts(&target, None) {
            return done(ours, reply);
        }
        match forwarder.at_once(&target, None) {
            AtOnce::Answer(reply, _) => done(ours, reply),
            AtOnce::Ask(errand) => {
                let rest = Rest::Ask { alias: Some((ours, target)), forwarder, errand };
                Begun::Waits(Box::new(Waiting { question, counted, rest }))
            }
        }
    }

    /// Goes through the steps of a server block, as far as that is possible without waiting.
    fn walk(
        &self,
        mut question: Question,
        counted: Counted,
        forwarder: Arc<Forwarder>,
        steps: Steps,
    ) -> Begun {
        if let (Some(edns), Some(most)) = (&mut question.edns, steps.chain.payload) {
            edns.payload = edns.payload.min(most);
        }
        let walk = self.setting_out(&counted, forwarder);
        let chain = Arc::clone(&steps.chain);
        let way = walk.go(question.clone(), steps).boxed();
        self.go(way, question, counted, chain)
    }

    /// What a way begins with.
    fn setting_out(&self, counted: &Counted, forwarder: Arc<Forwarder>) -> Walk {
        Walk {
            zone: self.zone.load_full(),
            forwarder,
            metrics: Arc::clone(&self.metrics),
            local_pods: Arc::clone(&self.local_pods),
            client: counted.client.ip(),
            trail: counted.trail.clone(),
        }
    }

    /// The answer at the end of `way`, where nobody has to be waited for; `chain` has the steps of
    /// the block that the question came to.
    fn go(
        &self,
        mut way: BoxFuture<'static, Said>,
        question: Question,
        counted: Counted,
        chain: Arc<Chain>,
    ) -> Begun {
        match (&mut way).now_or_never() {
            Some(Some((reply, origin))) => {
                Begun::Done(self.write_logged(&question, &reply, origin, &counted, &chain))
            }
            Some(None) => Begun::Nothing,
            None => {
                let rest = Rest::Walk(way, chain);
                Begun::Waits(Box::new(Waiting { question, counted, rest }))
            }
        }
    }

    /// The answer for which an upstream has to be asked.
    pub async fn finish(&self, waiting: Waiting) -> Vec<u8> {
        let Waiting { question, counted, rest } = waiting;
        match rest {
            Rest::Ask { alias, forwarder, errand } => {
                let foreign = alias.as_ref().map_or(&question, |(_, aliased)| aliased);
                let (reply, by) = forwarder.ask(foreign, errand).await;
                counted.trail.answered_by(foreign, by);
                let origin = if alias.is_some() { Origin::Kubernetes } else { Origin::Forward };
                let reply = merged(alias.map(|(ours, _)| ours), reply);
                self.write(&question, &reply, origin, &counted)
            }
            Rest::Walk(way, chain) => {
                // Whether a client gets an answer is known before anyone is asked.
                let refused = || (Reply::of_code(ResponseCode::Refused), Origin::Acl);
                let (reply, origin) = way.await.unwrap_or_else(refused);
                self.write_logged(&question, &reply, origin, &counted, &chain)
            }
        }
    }

    /// The octets of an answer, which is counted, and logged where the block says so.
    fn write_logged(
        &self,
        question: &Question,
        reply: &Reply,
        origin: Origin,
        counted: &Counted,
        chain: &Chain,
    ) -> Vec<u8> {
        let octets = self.write(question, reply, origin, counted);
        let took = counted.since.elapsed();
        let name = question.query.name();
        let rule = chain.log.iter().find(|rule| rule.zones.iter().any(|zone| zone.zone_of(name)));
        if let Some(rule) = rule.filter(|rule| rule.admits(reply, took)) {
            let entry = Entry {
                client: counted.client,
                transport: question.transport,
                id: question.id,
                name: name.clone(),
                kind: question.query.query_type(),
                edns: question.edns,
                size: counted.request.size,
                code: reply.code,
                flags: octets.get(2..4).and_then(|flags| flags.try_into().ok()).unwrap_or_default(),
                response_size: octets.len(),
                took,
            };
            self.query_log.note(entry, &rule.format, &self.metrics);
        }
        octets
    }

    /// The octets of an answer, which is counted.
    fn write(
        &self,
        question: &Question,
        reply: &Reply,
        origin: Origin,
        counted: &Counted,
    ) -> Vec<u8> {
        let octets = message::write(question, reply);
        let took = counted.since.elapsed();
        self.metrics.answered(&counted.request, origin, reply.code, octets.len(), took);
        octets
    }
}

/// What is known of a question without asking upstreams or the cache.
enum LookedUp {
    /// The whole answer.
    Answer(Reply, Origin),
    /// The name is not ours.
    Foreign,
    /// The name is ours and leads to one that is not: the answer so far, and the question for it.
    Alias(Reply, Question),
}

/// What the tables of hosts and the index say. `block`: the server block whose steps led here.
fn look_up(
    zone: &Zone,
    forwarder: &Forwarder,
    question: &Question,
    block: Option<usize>,
) -> LookedUp {
    if let Some(reply) = forwarder.in_hosts(question, block) {
        return LookedUp::Answer(reply, Origin::Hosts);
    }
    let most = message::most_records(question);
    match answer_within(zone, &question.query, usize::from(question.id), most) {
        Outcome::Answer(reply) => LookedUp::Answer(reply, Origin::Kubernetes),
        Outcome::Foreign => LookedUp::Foreign,
        Outcome::Alias(reply, target) => LookedUp::Alias(reply, led_to(question, target)),
    }
}

/// The question to which an alias leads.
fn led_to(question: &Question, target: Name) -> Question {
    let query = Query::query(target, question.query.query_type());
    Question { query, ..question.clone() }
}

/// Our alias and the upstream's answer to where it leads, as one. The alias is said even where the
/// upstream fails: the failure then is the code, not the silence.
fn merged(ours: Option<Reply>, theirs: Reply) -> Reply {
    let Some(mut reply) = ours else { return theirs };
    reply.code = theirs.code;
    reply.truncated = theirs.truncated;
    reply.explanation = theirs.explanation;
    reply.answers.extend(theirs.answers);
    reply.authorities.extend(theirs.authorities);
    reply.additionals.extend(theirs.additionals);
    reply
}
