//! Names that are not ours: asked of the configured upstreams, once per name at a time, within
//! the time that clients wait.

pub mod exchange;
pub mod health;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hickory_proto::op::{Message, ResponseCode};
use tokio::{sync::OnceCell, time::timeout_at};

use self::health::Health;
use super::{
    answer::{Explanation, Reply},
    cache::{self, Cache, Key},
    config::Forwarding,
    message::Question,
};

/// What asking came to; shared by all who asked for the same.
type Answer = Result<Arc<Message>, Explanation>;
/// Questions under way, by what they ask.
type Flights = Mutex<HashMap<Key, Flight>>;

/// A question under way.
#[derive(Debug, Default)]
struct Flight {
    /// Whoever comes first asks, and if that one leaves the next one does.
    answer: Arc<OnceCell<Answer>>,
    /// How many wait for it.
    seats: usize,
}

/// Asks upstreams and remembers what they said.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    limits: Forwarding,
    max_ttl: u32,
    health: Mutex<Health>,
    cache: Mutex<Cache>,
    flights: Flights,
}

impl Forwarder {
    /// A forwarder to these upstreams, the first of which is preferred.
    pub fn new(upstreams: Vec<SocketAddr>, limits: Forwarding, cache: cache::Limits) -> Self {
        Self {
            health: Mutex::new(Health::new(upstreams.len())),
            max_ttl: u32::try_from(cache.max_ttl.as_secs()).unwrap_or(u32::MAX),
            cache: Mutex::new(Cache::new(cache)),
            flights: Mutex::default(),
            upstreams,
            limits,
        }
    }

    /// What can be said without waiting: what is remembered, or why nobody will be asked.
    pub fn at_once(&self, question: &Question) -> Option<Reply> {
        if self.upstreams.is_empty() {
            return Some(Reply::failure(Explanation::NoUpstream));
        }
        let hit = lock(&self.cache).get(&Key::of(question), Instant::now());
        if let Some(hit) = hit
            && let Ok(message) = Message::from_vec(&hit.octets)
        {
            return Some(self.reply(question, &message, hit.age));
        }
        (!question.recursion_desired).then(|| Reply::of_code(ResponseCode::Refused))
    }

    /// The upstreams' answer.
    pub async fn ask(&self, question: &Question) -> Reply {
        let seat = Seat::take(&self.flights, Key::of(question));
        let answer = seat.answer.get_or_init(|| self.ask_upstreams(question)).await.clone();
        match answer {
            Ok(message) => self.reply(question, &message, Duration::ZERO),
            Err(explanation) => Reply::failure(explanation),
        }
    }

    /// Tries one upstream after the other until one answers or the time is up.
    async fn ask_upstreams(&self, question: &Question) -> Answer {
        let deadline = Instant::now() + self.limits.total;
        let order = lock(&self.health).order(Instant::now());
        // With a single upstream a lost datagram still gets its second and third chance.
        let (round, tries) = (order.len(), (2 * order.len()).max(4));
        let mut refusal = None;
        for (attempt, place) in order.into_iter().cycle().take(tries).enumerate() {
            let Some(upstream) = self.upstreams.get(place) else { continue };
            let now = Instant::now();
            // Once all were asked, one that refused is the best there is.
            if now >= deadline || attempt >= round && refusal.is_some() {
                break;
            }
            let until = deadline.min(now + self.limits.attempt);
            match timeout_at(until.into(), exchange::ask(*upstream, question)).await {
                Ok(Ok(received)) => {
                    lock(&self.health).answered(place);
                    if !is_refusal(&received.message) {
                        return Ok(self.remember(question, received));
                    }
                    // Another one may know better; if none does, this is the answer.
                    refusal.get_or_insert(received);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%upstream, %error, "upstream failed");
                    lock(&self.health).failed(place, Instant::now());
                }
                Err(_) => {
                    tracing::debug!(%upstream, "upstream did not answer in time");
                    lock(&self.health).failed(place, Instant::now());
                }
            }
        }
        refusal
            .map(|received| self.remember(question, received))
            .ok_or(Explanation::NoReachableAuthority)
    }

    fn remember(&self, question: &Question, received: exchange::Received) -> Arc<Message> {
        let exchange::Received { message, octets } = received;
        lock(&self.cache).put(Key::of(question), &message, octets, Instant::now());
        Arc::new(message)
    }

    /// An upstream's answer as the answer to `question`: its owners written as they were asked
    /// for, its TTLs less its age.
    fn reply(&self, question: &Question, message: &Message, age: Duration) -> Reply {
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let asked = question.query.name();
        let records = |records: &[_]| {
            let mut records = records.to_vec();
            for record in &mut records {
                let record: &mut hickory_proto::rr::Record = record;
                record.ttl = record.ttl.min(self.max_ttl).saturating_sub(age);
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
}

fn is_refusal(message: &Message) -> bool {
    matches!(message.metadata.response_code, ResponseCode::Refused | ResponseCode::ServFail)
}

/// A seat in a flight. The last one to leave takes the flight off the list.
struct Seat<'a> {
    flights: &'a Flights,
    key: Key,
    answer: Arc<OnceCell<Answer>>,
}

impl<'a> Seat<'a> {
    fn take(flights: &'a Flights, key: Key) -> Self {
        let mut all = lock(flights);
        let flight = all.entry(key.clone()).or_default();
        flight.seats += 1;
        Self { flights, key, answer: Arc::clone(&flight.answer) }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut flights = lock(self.flights);
        match flights.get_mut(&self.key) {
            Some(flight) if flight.seats > 1 => flight.seats -= 1,
            _ => drop(flights.remove(&self.key)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use hickory_proto::{
        op::Query,
        rr::{Name, RecordType},
    };

    use super::*;
    use crate::dns::message::Transport;

    #[test]
    fn the_last_one_to_leave_ends_the_flight() {
        let question = Question {
            id: 1,
            recursion_desired: true,
            checking_disabled: false,
            query: Query::query(Name::from_str("example.org.").unwrap(), RecordType::A),
            edns: None,
            transport: Transport::Udp,
        };
        let flights = Flights::default();
        let seat = || Seat::take(&flights, Key::of(&question));
        let (first, second) = (seat(), seat());
        assert!(Arc::ptr_eq(&first.answer, &second.answer));
        drop(first);
        let third = seat();
        assert!(Arc::ptr_eq(&third.answer, &second.answer), "it goes on without the first");
        drop((second, third));
        assert!(lock(&flights).is_empty());
    }
}
