//! What upstreams said, kept for as long as they allow and we are told, and beyond that for the
//! time when they are away (RFC 8767). Failures are kept too, beside what is good and never in
//! its place (RFC 9520). Knows no clock: the time comes with each call.
//!
//! Answers are kept as the octets that came, which are small, and bounded by their sum, records
//! apart from all else: no flood of names that don't exist takes away what is good, or may be needed
//! when upstreams are away. What expires first, or has, is the first to go when there is no room.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{RData, Record, RecordType},
};

use super::{answer::Explanation, forward::knows, message::Question, name::LowerName};

/// What an entry costs besides its name and octets: the places in the two indexes.
const OVERHEAD: usize = 250;

/// Which part of the memory is for what is no record, as a divisor.
const DENIALS: usize = 4;

/// For how long answers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keeping {
    /// The shortest and the longest that an answer is kept, and the bounds of the TTL that clients
    /// see. What the upstream forbids to keep (TTL 0) is not kept.
    pub ttl: (Duration, Duration),
    /// The same for "no such name" and "no such type".
    pub negative_ttl: (Duration, Duration),
    /// How long an upstream's failure is kept, so that a broken zone is not asked for each time
    /// (RFC 9520: one second to five minutes).
    pub failure_ttl: Duration,
    /// How long an answer may outlive its time while no upstream has a new one; zero: not at all.
    pub stale: Duration,
    /// Which answers are asked for anew before their time is up.
    pub prefetch: Option<Prefetch>,
}

/// When an answer is asked for before its time is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefetch {
    /// It has been given so often,
    pub hits: u32,
    /// with no longer pause than this in between,
    pub pause: Duration,
    /// and so many hundredths of its time are left.
    pub percent: u8,
}

impl Keeping {
    /// Nothing is kept.
    pub const NOTHING: Self = Self {
        ttl: (Duration::ZERO, Duration::ZERO),
        negative_ttl: (Duration::ZERO, Duration::ZERO),
        failure_ttl: Duration::ZERO,
        stale: Duration::ZERO,
        prefetch: None,
    };
}

impl Default for Keeping {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            ttl: (seconds(5), seconds(30)),
            negative_ttl: (seconds(5), seconds(30)),
            failure_ttl: seconds(5),
            stale: seconds(86_400),
            prefetch: Some(Prefetch { hits: 2, pause: seconds(60), percent: 10 }),
        }
    }
}

/// For how long an answer that has outlived its time is given without asking again, once asking
/// has failed (RFC 8767 5: failure recheck timer).
const RECHECK: Duration = Duration::from_secs(30);

/// A question and the route by which it is asked of others, by its place.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The question.
    pub question: &'a Question,
    /// The place of the route. The steps of a server block may lead a name to others than those
    /// of its zone, whose answers are not the zone's.
    pub place: usize,
}

/// What an answer depends on: name, type, the flags DO and CD, and the route. The class is always
/// IN.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<[u8]>);

impl Key {
    /// The key of a question.
    pub fn of(asked: Asked<'_>) -> Self {
        Self::with_type(asked, Some(asked.question.query.query_type()))
    }

    /// The key of what is true of the name whatever the type: that it does not exist.
    fn of_name(asked: Asked<'_>) -> Self {
        Self::with_type(asked, None)
    }

    fn with_type(asked: Asked<'_>, kind: Option<RecordType>) -> Self {
        let question = asked.question;
        let name = LowerName::of(question.query.name());
        // Clients choose the type, of all 65,536: that it is none stands beside it.
        let flags = u8::from(question.dnssec_ok())
            | u8::from(question.checking_disabled) << 1
            | u8::from(kind.is_none()) << 2;
        let kind = kind.map_or(0, u16::from);
        // A configuration has fewer routes than this can tell apart.
        let place = u32::try_from(asked.place).unwrap_or(u32::MAX).to_be_bytes();
        Self([name.wire(), &kind.to_be_bytes(), &place, &[flags]].concat().into())
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

/// What an upstream said.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// As it was read.
    pub message: &'a Message,
    /// As it came.
    pub octets: &'a [u8],
    /// Who said it.
    pub by: SocketAddr,
}

/// What the cache knows.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// An answer whose time is not up. `refresh`: it is time to ask for the next one; said once.
    Fresh {
        /// The answer.
        hit: Hit,
        /// Whether to ask again.
        refresh: bool,
    },
    /// An answer that has outlived its time. `ask`: whether it is worth asking again.
    Stale {
        /// The answer.
        hit: Hit,
        /// Whether to ask again before it is given.
        ask: bool,
    },
    /// It is no use to ask: it failed a moment ago.
    Failed(Explanation),
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    /// Memory for all entries together, in octets; zero keeps nothing.
    limit: usize,
    entries: HashMap<Key, Entry>,
    /// By [`Sort`], and so are their octets.
    by_expiry: [BTreeSet<(Instant, Key)>; 2],
    octets: [usize; 2],
    held: Tally,
}

/// What the cache counts of its entries, by [`Sort`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Those that it holds.
    pub entries: [u64; 2],
    /// Those that went because there was no room.
    pub evicted: [u64; 2],
}

/// CoreDNS's two sorts of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Records.
    Success,
    /// No such name, no such records, or a failure.
    Denial,
}

impl Sort {
    /// That of an answer.
    pub fn of(code: ResponseCode, answers: usize) -> Self {
        if code == ResponseCode::NoError && answers > 0 { Self::Success } else { Self::Denial }
    }
}

#[derive(Clone, Debug)]
enum Kept {
    Answer(Arc<[u8]>),
    /// An upstream's own failure.
    Failure(Arc<[u8]>),
    /// Nobody answered.
    Silence(Explanation),
}

#[derive(Debug)]
struct Entry {
    kept: Kept,
    sort: Sort,
    /// Who said it; nobody where nobody answered.
    by: Option<SocketAddr>,
    stored: Instant,
    expires: Instant,
    /// When even in need it is too old.
    ends: Instant,
    prefetch: Option<Prefetch>,
    hits: u32,
    last_hit: Instant,
    /// Somebody was told to ask for the next one.
    refreshing: bool,
    /// Until when it is no use to ask for the next one.
    failed_until: Option<Instant>,
}

impl Entry {
    fn new((kept, by): (Kept, Option<SocketAddr>), now: Instant, lifetime: Duration) -> Self {
        let expires = now + lifetime;
        Self {
            kept,
            sort: Sort::Denial,
            by,
            stored: now,
            expires,
            ends: expires,
            prefetch: None,
            hits: 0,
            last_hit: now,
            refreshing: false,
            failed_until: None,
        }
    }

    fn cost(&self, key: &Key) -> usize {
        let octets = match &self.kept {
            Kept::Answer(octets) | Kept::Failure(octets) => octets.len(),
            Kept::Silence(_) => 0,
        };
        octets + key.0.len() + OVERHEAD
    }

    /// Counts a use; whether it is the one after which the next answer is asked for.
    fn used(&mut self, now: Instant) -> bool {
        let Some(prefetch) = self.prefetch else { return false };
        if now.saturating_duration_since(self.last_hit) > prefetch.pause {
            self.hits = 0;
        }
        self.last_hit = now;
        self.hits = self.hits.saturating_add(1);
        let (whole, left) = (self.expires - self.stored, self.expires - now);
        let due = left * 100 <= whole * u32::from(prefetch.percent);
        let first = due && self.hits >= prefetch.hits && !self.refreshing;
        self.refreshing |= first;
        first
    }
}

impl Cache {
    /// An empty cache of at most so many octets.
    pub fn new(limit: usize) -> Self {
        let (entries, by_expiry) = (HashMap::new(), Default::default());
        Self { limit, entries, by_expiry, octets: [0; 2], held: Tally::default() }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What it counts of its entries.
    pub fn tally(&self) -> Tally {
        self.held
    }

    /// What is known of a question.
    pub fn get(&mut self, asked: Asked<'_>, now: Instant) -> Found {
        let Some(key) = self.best(asked, now) else { return Found::Nothing };
        let Some(entry) = self.entries.get_mut(&key) else { return Found::Nothing };
        let age = now.saturating_duration_since(entry.stored);
        let fresh = now < entry.expires;
        match &entry.kept {
            Kept::Silence(explanation) => Found::Failed(*explanation),
            Kept::Answer(octets) if !fresh => {
                let hit = Hit { octets: Arc::clone(octets), age };
                Found::Stale { hit, ask: entry.failed_until.is_none_or(|until| until <= now) }
            }
            Kept::Answer(octets) | Kept::Failure(octets) => {
                let hit = Hit { octets: Arc::clone(octets), age };
                Found::Fresh { hit, refresh: entry.used(now) }
            }
        }
    }

    /// What is remembered of what is asked, without using it.
    pub fn peek(&self, asked: Asked<'_>, now: Instant) -> Option<knows::Kept> {
        let entry = self.entries.get(&self.best(asked, now)?)?;
        Some(knows::Kept {
            age: now.saturating_duration_since(entry.stored),
            left: entry.expires.saturating_duration_since(now),
            failure: !matches!(entry.kept, Kept::Answer(_)),
            by: entry.by,
        })
    }

    /// The entry that answers: one whose time is not up before one whose is, among these records of
    /// the type that is asked for before "no such name", which may have been said of another type
    /// (some servers do so of AAAA where there is A), and the newer of equals.
    fn best(&self, asked: Asked<'_>, now: Instant) -> Option<Key> {
        let keys = [Key::of(asked), Key::of_name(asked)];
        let usable = keys.into_iter().filter_map(|key| {
            let entry = self.entries.get(&key).filter(|entry| now < entry.ends)?;
            let fresh = now < entry.expires;
            Some(((fresh, fresh && entry.sort == Sort::Success, entry.stored), key))
        });
        usable.max_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, key)| key)
    }

    /// Keeps what was said, where it may be kept.
    pub fn put(&mut self, asked: Asked<'_>, said: Said<'_>, keeping: &Keeping, now: Instant) {
        let Said { message, octets, by } = said;
        let kind = asked.question.query.query_type();
        let Some(lifetime) = lifetime(message, kind, keeping) else { return };
        let code = message.metadata.response_code;
        if is_failure(code) {
            let failure = (Kept::Failure(octets.into()), Some(by));
            return self.fail_with(asked, failure, lifetime, now);
        }
        // With an alias before it, only what the alias leads to does not exist (RFC 6604).
        let of_name = code == ResponseCode::NXDomain && message.answers.is_empty();
        let (key, other) = (Key::of(asked), Key::of_name(asked));
        let (key, other) = if of_name { (other, key) } else { (key, other) };
        // It has become untrue.
        self.forget(&other);
        let mut entry = Entry::new((Kept::Answer(octets.into()), Some(by)), now, lifetime);
        entry.ends += keeping.stale;
        entry.prefetch = keeping.prefetch;
        entry.sort = Sort::of(code, message.answers.len());
        self.insert(key, entry);
    }

    /// Notes that nobody answered, and why.
    pub fn fail(
        &mut self,
        asked: Asked<'_>,
        explanation: Explanation,
        keeping: &Keeping,
        now: Instant,
    ) {
        let silence = (Kept::Silence(explanation), None);
        self.fail_with(asked, silence, keeping.failure_ttl, now);
    }

    /// A failure is noted at what is good, and stands alone only where there is nothing good.
    fn fail_with(
        &mut self,
        asked: Asked<'_>,
        kept: (Kept, Option<SocketAddr>),
        lifetime: Duration,
        now: Instant,
    ) {
        let good = self.best(asked, now).and_then(|key| self.entries.get_mut(&key));
        match good {
            Some(entry) if matches!(entry.kept, Kept::Answer(_)) => {
                entry.failed_until = Some(now + RECHECK);
            }
            _ if lifetime.is_zero() => {}
            _ => self.insert(Key::of(asked), Entry::new(kept, now, lifetime)),
        }
    }

    fn insert(&mut self, key: Key, entry: Entry) {
        let (cost, room, sort) = (entry.cost(&key), self.room(entry.sort), entry.sort as usize);
        if cost > room {
            return;
        }
        self.forget(&key);
        while self.octets[sort] + cost > room {
            let Some((_, first)) = self.by_expiry[sort].first().cloned() else { break };
            self.forget(&first);
            self.held.evicted[sort] += 1;
        }
        self.octets[sort] += cost;
        self.held.entries[sort] += 1;
        self.by_expiry[sort].insert((entry.expires, key.clone()));
        self.entries.insert(key, entry);
    }

    /// Memory for all entries of a sort, in octets.
    fn room(&self, sort: Sort) -> usize {
        let denials = self.limit / DENIALS;
        match sort {
            Sort::Success => self.limit - denials,
            Sort::Denial => denials,
        }
    }

    fn forget(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        let sort = entry.sort as usize;
        self.octets[sort] -= entry.cost(key);
        self.held.entries[sort] -= 1;
        self.by_expiry[sort].remove(&(entry.expires, key.clone()));
    }
}

/// Whether a code says nothing of the name, but of who was asked (RFC 9520 2).
pub fn is_failure(code: ResponseCode) -> bool {
    !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// Whether an answer says that there is none of that type: also behind an alias, which then is all
/// that it holds (RFC 2308 2.1, 2.2).
pub fn is_negative(message: &Message, kind: RecordType) -> bool {
    let answers = |record: &Record| kind == RecordType::ANY || record.record_type() == kind;
    match message.metadata.response_code {
        ResponseCode::NXDomain => true,
        ResponseCode::NoError => !message.answers.iter().any(answers),
        _ => false,
    }
}

/// For how long an answer to a question of that type may be kept; `None` where it may not
/// (RFC 2308, RFC 9520).
fn lifetime(message: &Message, kind: RecordType, keeping: &Keeping) -> Option<Duration> {
    if message.metadata.truncation {
        return None;
    }
    let said = |records: &[Record]| records.iter().map(|record| record.ttl).min();
    let (said, (least, most)) = match message.metadata.response_code {
        code if is_failure(code) => {
            let failure = keeping.failure_ttl;
            // Nobody says how long: it is ours to bound.
            return (!failure.is_zero()).then_some(failure);
        }
        code if is_negative(message, kind) => {
            let absence = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
                _ => None,
            });
            let aliases = said(&message.answers);
            let said = match absence {
                Some(absence) => aliases.map_or(absence, |aliases| aliases.min(absence)),
                // Aliases alone, as in a circle: they are what is said.
                None => aliases.filter(|_| code == ResponseCode::NoError)?,
            };
            (said, keeping.negative_ttl)
        }
        _ => {
            let both = said(&message.answers).into_iter().chain(said(&message.authorities));
            (both.min()?, keeping.ttl)
        }
    };
    // Who allows no time at all is heeded; the floor only bounds how often others are asked.
    let lifetime = Duration::from_secs(said.into()).max(least).min(most);
    (said > 0 && !lifetime.is_zero()).then_some(lifetime)
}

#[cfg(test)]
mod tests;
