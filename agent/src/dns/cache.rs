//! What upstreams said, kept for as long as they allow and we are told. Knows no clock: the time
//! comes with each call.
//!
//! Answers are kept as the octets that came, which are small, and bounded by their sum. What is to
//! expire next is the first to go when there is no room.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::RData,
};

use super::{message::Question, name::LowerName};

/// What an entry costs besides its name and octets: the places in the two indexes.
const OVERHEAD: usize = 200;

/// Bounds of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory for all entries together, in octets; zero keeps nothing.
    pub octets: usize,
    /// The longest that an answer is kept, and the largest TTL that clients see.
    pub max_ttl: Duration,
    /// The same for "no such name" and "no such type".
    pub max_negative_ttl: Duration,
    /// How long an upstream's failure is kept, so that a broken zone is not asked for each time
    /// (RFC 9520).
    pub failure_ttl: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            octets: 8 << 20,
            max_ttl: Duration::from_secs(30),
            max_negative_ttl: Duration::from_secs(30),
            failure_ttl: Duration::from_secs(5),
        }
    }
}

/// What an answer depends on: name, type, and the flags DO and CD. The class is always IN.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// The key of a question.
    pub fn of(question: &Question) -> Self {
        let name = LowerName::of(question.query.name());
        let flags = u8::from(question.dnssec_ok()) | u8::from(question.checking_disabled) << 1;
        let kind = u16::from(question.query.query_type()).to_be_bytes();
        Self([name.wire(), &kind, &[flags]].concat().into())
    }
}

/// An answer out of the cache.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The upstream's message.
    pub octets: Arc<[u8]>,
    /// For how long it has been here.
    pub age: Duration,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    limits: Limits,
    entries: HashMap<Key, Entry>,
    by_expiry: BTreeSet<(Instant, Key)>,
    octets: usize,
}

#[derive(Debug)]
struct Entry {
    octets: Arc<[u8]>,
    stored: Instant,
    expires: Instant,
}

impl Entry {
    fn cost(&self, key: &Key) -> usize {
        self.octets.len() + key.0.len() + OVERHEAD
    }
}

impl Cache {
    /// An empty cache.
    pub fn new(limits: Limits) -> Self {
        Self { limits, entries: HashMap::new(), by_expiry: BTreeSet::new(), octets: 0 }
    }

    /// What is kept for `key`, unless it has expired.
    pub fn get(&self, key: &Key, now: Instant) -> Option<Hit> {
        let entry = self.entries.get(key).filter(|entry| now < entry.expires)?;
        let age = now.saturating_duration_since(entry.stored);
        Some(Hit { octets: entry.octets.clone(), age })
    }

    /// Keeps `octets`, which are `message`, where it may be kept.
    pub fn put(&mut self, key: Key, message: &Message, octets: Vec<u8>, now: Instant) {
        let Some(lifetime) = lifetime(message, &self.limits) else { return };
        let entry = Entry { octets: octets.into(), stored: now, expires: now + lifetime };
        let cost = entry.cost(&key);
        if cost > self.limits.octets {
            return;
        }
        self.forget(&key);
        while self.octets + cost > self.limits.octets {
            let Some((_, first)) = self.by_expiry.first().cloned() else { break };
            self.forget(&first);
        }
        self.octets += cost;
        self.by_expiry.insert((entry.expires, key.clone()));
        self.entries.insert(key, entry);
    }

    fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.octets -= entry.cost(key);
            self.by_expiry.remove(&(entry.expires, key.clone()));
        }
    }
}

/// For how long an answer may be kept; `None` where it may not (RFC 2308, RFC 9520).
fn lifetime(message: &Message, limits: &Limits) -> Option<Duration> {
    if message.metadata.truncation {
        return None;
    }
    let seconds = |ttl: u32| Duration::from_secs(ttl.into());
    let lifetime = match message.metadata.response_code {
        ResponseCode::NoError if !message.answers.is_empty() => {
            let records = message.answers.iter().chain(&message.authorities);
            records.map(|record| seconds(record.ttl)).min()?.min(limits.max_ttl)
        }
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let soa = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            })?;
            seconds(soa).min(limits.max_negative_ttl)
        }
        ResponseCode::ServFail => limits.failure_ttl,
        _ => return None,
    };
    (!lifetime.is_zero()).then_some(lifetime)
}

#[cfg(test)]
mod tests;
