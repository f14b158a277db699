//! The serving side: sockets, and the way of a message from one to the other.

pub mod listen;
mod tcp;
mod udp;

use std::{net::IpAddr, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Query, ResponseCode},
    rr::Name,
};

use super::{
    answer::{Outcome, Reply, answer},
    forward::{AtOnce, Errand, Forwarder},
    message::{self, Question, Received, Transport},
    metrics::{Metrics, Origin, Request},
    peers::Peers,
    zone::Zone,
};

/// What all sockets answer from. One atomic load per question; nobody waits for a change.
#[derive(Debug)]
pub struct Resolver {
    zone: ArcSwap<Zone>,
    peers: ArcSwap<Peers>,
    forwarder: ArcSwap<Forwarder>,
    metrics: Arc<Metrics>,
}

/// A question that is being answered, for the metrics.
#[derive(Debug)]
struct Counted {
    request: Request,
    since: Instant,
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
    /// Our part of the answer and the name that it leads to; without one, all is the upstream's.
    alias: Option<(Reply, Question)>,
    /// Who asks for it, also when the configuration has changed meanwhile.
    forwarder: Arc<Forwarder>,
    errand: Errand,
    counted: Counted,
}

impl Resolver {
    /// A resolver with this zone, that asks by this forwarder and counts in `metrics`.
    pub fn new(zone: Zone, forwarder: Arc<Forwarder>, metrics: Arc<Metrics>) -> Self {
        Self {
            zone: ArcSwap::from_pointee(zone),
            peers: ArcSwap::from_pointee(Peers::default()),
            forwarder: ArcSwap::new(forwarder),
            metrics,
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

    /// Answers from `zone` from now on, and at peer ports those in `peers`.
    pub fn publish(&self, zone: Zone, peers: Peers) {
        self.zone.store(Arc::new(zone));
        self.peers.store(Arc::new(peers));
    }

    /// The zone from which answers are given.
    pub fn zone(&self) -> Arc<Zone> {
        self.zone.load_full()
    }

    /// The answer to a message from `client`, or what it has to wait for.
    pub fn begin(&self, octets: &[u8], transport: Transport, client: IpAddr) -> Begun {
        let (since, size) = (Instant::now(), octets.len());
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
            Received::Question(question) => *question,
        };
        let kind = Some(question.query.query_type());
        let request = Request { kind, dnssec_ok: question.dnssec_ok(), ..request };
        self.answer(question, Counted { request, since })
    }

    fn answer(&self, question: Question, counted: Counted) -> Begun {
        let forwarder = self.forwarder.load();
        let done =
            |reply: &Reply, origin| Begun::Done(self.write(&question, reply, origin, &counted));
        if forwarder.is_probe(&question) {
            return done(&Reply::of_code(ResponseCode::Refused), Origin::Nobody);
        }
        if let Some(reply) = forwarder.in_hosts(&question) {
            return done(&reply, Origin::Hosts);
        }
        let rotation = usize::from(question.id);
        let alias = match answer(&self.zone.load(), &question.query, rotation) {
            Outcome::Answer(reply) => return done(&reply, Origin::Kubernetes),
            Outcome::Foreign => None,
            Outcome::Alias(reply, target) => Some((reply, led_to(&question, target))),
        };
        let foreign = alias.as_ref().map_or(&question, |(_, aliased)| aliased);
        match forwarder.at_once(foreign) {
            AtOnce::Ask(errand) => {
                let forwarder = Arc::clone(&forwarder);
                Begun::Waits(Box::new(Waiting { question, alias, forwarder, errand, counted }))
            }
            AtOnce::Answer(reply, origin) => {
                let origin = if alias.is_some() { Origin::Kubernetes } else { origin };
                done(&merged(alias.map(|(ours, _)| ours), reply), origin)
            }
        }
    }

    /// The answer for which an upstream has to be asked.
    pub async fn finish(&self, waiting: Waiting) -> Vec<u8> {
        let Waiting { question, alias, forwarder, errand, counted } = waiting;
        let foreign = alias.as_ref().map_or(&question, |(_, aliased)| aliased);
        let reply = forwarder.ask(foreign, errand).await;
        let origin = if alias.is_some() { Origin::Kubernetes } else { Origin::Forward };
        let reply = merged(alias.map(|(ours, _)| ours), reply);
        self.write(&question, &reply, origin, &counted)
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
