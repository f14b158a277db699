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
/// A question under way; whoever comes first asks, and if that one leaves the next one does.
type Flight = Arc<OnceCell<Answer>>;

/// Asks upstreams and remembers what they said.
#[derive(Debug)]
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    limits: Forwarding,
    max_ttl: u32,
    health: Mutex<Health>,
    cache: Mutex<Cache>,
    flights: Mutex<HashMap<Key, Flight>>,
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
        let flight = self.join(Key::of(question));
        let answer = flight.cell().get_or_init(|| self.ask_upstreams(question)).await.clone();
        match answer {
            Ok(message) => self.reply(question, &message, Duration::ZERO),
            Err(explanation) => Reply::failure(explanation),
        }
    }

    fn join(&self, key: Key) -> Seat<'_> {
        let cell = lock(&self.flights).entry(key.clone()).or_default().clone();
        Seat { flights: &self.flights, key, cell: Some(cell) }
    }

    /// Tries one upstream after the other until one answers or the time is up.
    async fn ask_upstreams(&self, question: &Question) -> Answer {
        let deadline = Instant::now() + self.limits.total;
        let order = lock(&self.health).order(Instant::now());
        // With a single upstream a lost datagram still gets its second and third chance.
        let tries = (2 * order.len()).max(4);
        let mut refusal = None;
        for place in order.into_iter().cycle().take(tries) {
            let Some(upstream) = self.upstreams.get(place) else { continue };
            let now = Instant::now();
            if now >= deadline {
                break;
            }
            let until = deadline.min(now + self.limits.attempt);
            match timeout_at(until.into(), exchange::ask(*upstream, question)).await {
                Ok(Ok(received)) => {
                    lock(&self.health).answered(place);
                    if received.message.metadata.response_code == ResponseCode::Refused
                        || received.message.metadata.response_code == ResponseCode::ServFail
                    {
                        // Another one may know better; if none does, this is the answer.
                        refusal.get_or_insert(received);
                        if self.upstreams.len() > 1 {
                            continue;
                        }
                        break;
                    }
                    return Ok(self.remember(question, received));
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

/// A place in a flight. The last one to leave takes the flight off the list.
struct Seat<'a> {
    flights: &'a Mutex<HashMap<Key, Flight>>,
    key: Key,
    cell: Option<Flight>,
}

impl Seat<'_> {
    fn cell(&self) -> Flight {
        self.cell.clone().unwrap_or_default()
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut flights = lock(self.flights);
        // Given up under the lock, so that of two who leave at once one is the last.
        drop(self.cell.take());
        if flights.get(&self.key).is_some_and(|flight| Arc::strong_count(flight) == 1) {
            flights.remove(&self.key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
