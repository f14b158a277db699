//! The serving side: sockets, and the way of a message from one to the other.

pub mod listen;
mod tcp;
mod udp;

use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::{op::Query, rr::Name};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    answer::{Explanation, Outcome, Reply, answer},
    forward::Forwarder,
    message::{self, Question, Received, Transport},
    peers::Peers,
    zone::Zone,
};

/// What all sockets answer from. One atomic load per question; nobody waits for a change.
#[derive(Debug)]
pub struct Resolver {
    zone: ArcSwap<Zone>,
    peers: ArcSwap<Peers>,
    forwarder: Forwarder,
    /// Questions that wait for upstreams.
    waiting: Arc<Semaphore>,
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
    /// Its place among those that may wait.
    _permit: OwnedSemaphorePermit,
}

impl Resolver {
    /// A resolver with this zone; `max_waiting` questions may wait for upstreams at once.
    pub fn new(zone: Zone, forwarder: Forwarder, max_waiting: usize) -> Self {
        Self {
            zone: ArcSwap::from_pointee(zone),
            peers: ArcSwap::from_pointee(Peers::default()),
            forwarder,
            waiting: Arc::new(Semaphore::new(max_waiting)),
        }
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
        let outcome = answer(&self.zone.load(), &question.query, usize::from(question.id));
        match outcome {
            Outcome::Answer(reply) => Begun::Done(message::write(&question, &reply)),
            Outcome::Foreign => self.begin_foreign(question, None),
            Outcome::Alias(reply, target) => {
                let aliased = led_to(&question, target);
                self.begin_foreign(question, Some((reply, aliased)))
            }
        }
    }

    fn begin_foreign(&self, question: Question, alias: Option<(Reply, Question)>) -> Begun {
        let foreign = alias.as_ref().map_or(&question, |(_, aliased)| aliased);
        let at_once = self.forwarder.at_once(foreign);
        let permit = match at_once {
            Some(reply) => Err(reply),
            None => Arc::clone(&self.waiting)
                .try_acquire_owned()
                .map_err(|_| Reply::failure(Explanation::Overloaded)),
        };
        match permit {
            Ok(permit) => Begun::Waits(Box::new(Waiting { question, alias, _permit: permit })),
            Err(reply) => {
                let reply = merged(alias.map(|(ours, _)| ours), reply);
                Begun::Done(message::write(&question, &reply))
            }
        }
    }

    /// The answer for which an upstream has to be asked.
    pub async fn finish(&self, waiting: Waiting) -> Vec<u8> {
        let Waiting { question, alias, _permit } = waiting;
        let foreign = alias.as_ref().map_or(&question, |(_, aliased)| aliased);
        let reply = self.forwarder.ask(foreign).await;
        message::write(&question, &merged(alias.map(|(ours, _)| ours), reply))
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
