//! The serving side: sockets, and the way of a message from one to the other.

pub mod listen;
mod tcp;
mod udp;

use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::{
    op::{Query, ResponseCode},
    rr::Name,
};

use super::{
    answer::{Outcome, Reply, answer},
    forward::{AtOnce, Errand, Forwarder},
    message::{self, Question, Received, Transport},
    peers::Peers,
    zone::Zone,
};

/// What all sockets answer from. One atomic load per question; nobody waits for a change.
#[derive(Debug)]
pub struct Resolver {
    zone: ArcSwap<Zone>,
    peers: ArcSwap<Peers>,
    forwarder: ArcSwap<Forwarder>,
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
}

impl Resolver {
    /// A resolver with this zone, that asks by this forwarder.
    pub fn new(zone: Zone, forwarder: Arc<Forwarder>) -> Self {
        Self {
            zone: ArcSwap::from_pointee(zone),
            peers: ArcSwap::from_pointee(Peers::default()),
            forwarder: ArcSwap::new(forwarder),
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

    /// The answer to a message, or what it has to wait for.
    pub fn begin(&self, octets: &[u8], transport: Transport) -> Begun {
        let question = match message::read(octets, transport) {
            Received::Nothing => return Begun::Nothing,
            Received::Refused(octets) => return Begun::Done(octets),
            Received::Question(question) => *question,
        };
        let forwarder = self.forwarder.load();
        if forwarder.is_probe(&question) {
            return Begun::Done(message::write(&question, &Reply::of_code(ResponseCode::Refused)));
        }
        if let Some(reply) = forwarder.in_hosts(&question) {
            return Begun::Done(message::write(&question, &reply));
        }
        let outcome = answer(&self.zone.load(), &question.query, usize::from(question.id));
        match outcome {
            Outcome::Answer(reply) => Begun::Done(message::write(&question, &reply)),
            Outcome::Foreign => begin_foreign(&forwarder, question, None),
            Outcome::Alias(reply, target) => {
                let aliased = led_to(&question, target);
                begin_foreign(&forwarder, question, Some((reply, aliased)))
            }
        }
    }

    /// The answer for which an upstream has to be asked.
    pub async fn finish(&self, waiting: Waiting) -> Vec<u8> {
        let Waiting { question, alias, forwarder, errand } = waiting;
        let foreign = alias.as_ref().map_or(&question, |(_, aliased)| aliased);
        let reply = forwarder.ask(foreign, errand).await;
        message::write(&question, &merged(alias.map(|(ours, _)| ours), reply))
    }
}

fn begin_foreign(
    forwarder: &Arc<Forwarder>,
    question: Question,
    alias: Option<(Reply, Question)>,
) -> Begun {
    let foreign = alias.as_ref().map_or(&question, |(_, aliased)| aliased);
    match forwarder.at_once(foreign) {
        AtOnce::Ask(errand) => {
            let forwarder = Arc::clone(forwarder);
            Begun::Waits(Box::new(Waiting { question, alias, forwarder, errand }))
        }
        AtOnce::Answer(reply) => {
            let reply = merged(alias.map(|(ours, _)| ours), reply);
            Begun::Done(message::write(&question, &reply))
        }
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
