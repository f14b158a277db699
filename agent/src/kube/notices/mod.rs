//! What an operator has to act on, told where operators look: as events of the Node, and as its
//! condition `MizzenReady`. What is to be told is decided here, without I/O and clocks; [`tell`]
//! writes it.
//!
//! A part that is not ready passes mostly by itself, so that it is told when it has been so for
//! [`GRACE`]. One that comes and goes is told once in [`AGAIN`] for each reason, and all of them
//! together no faster than [`REFILL`] after the first [`BURST`]: events are for people.

pub mod tell;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::status::State;

/// How long a part may be other than ready before anybody is told.
pub const GRACE: Duration = Duration::from_secs(30);
/// For how long nothing is told again of a part for the same reason.
pub const AGAIN: Duration = Duration::from_mins(10);
/// Notices that may come at once.
pub const BURST: u32 = 20;
/// How long it takes until there may be another one.
pub const REFILL: Duration = Duration::from_secs(30);
/// Octets of a note: what an Event may have.
const NOTE_MAX: usize = 1024;

/// A part of the agent, by its name on the board.
pub type Part = &'static str;

/// Why something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It does not serve.
    Waits,
    /// It serves, but not all of it works.
    Degraded,
    /// It is ready, after one of the others was told.
    Ready,
}

impl Reason {
    /// The event's `reason`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Waits => "PartWaits",
            Self::Degraded => "PartDegraded",
            Self::Ready => "PartReady",
        }
    }

    /// The event's `type`.
    pub fn kind(self) -> &'static str {
        if self == Self::Ready { "Normal" } else { "Warning" }
    }
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Of what.
    pub part: Part,
    /// Why.
    pub reason: Reason,
    /// As `mizzen status` says it, with the remedy.
    pub note: String,
}

/// What the condition is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Whether all parts are ready.
    pub ready: bool,
    /// The first part that is not, as a word; or that all are.
    pub reason: String,
    /// What `mizzen status` says of all that are not.
    pub message: String,
}

/// What was seen and told so far.
#[derive(Clone, Debug)]
pub struct Watched {
    /// The parts that are not ready.
    troubles: BTreeMap<Part, Trouble>,
    /// What was told less than [`AGAIN`] ago.
    told: BTreeMap<(Part, Reason), Instant>,
    /// How many notices there may be now, as of a time.
    left: (u32, Instant),
}

#[derive(Clone, Debug)]
struct Trouble {
    since: Instant,
    /// Whether anybody was told.
    told: bool,
}

/// What a look leads to.
#[derive(Clone, Debug)]
pub struct Looked {
    /// For the next.
    pub watched: Watched,
    /// What is to be told.
    pub notices: Vec<Notice>,
    /// What the condition is to say; `None`: what it said before.
    pub condition: Option<Condition>,
    /// When it has to be looked again though nothing changes.
    pub again: Option<Duration>,
}

impl Watched {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        Self { troubles: BTreeMap::new(), told: BTreeMap::new(), left: (BURST, now) }
    }

    /// With the notices that there may be again, and without what may be told again.
    fn at(mut self, now: Instant) -> Self {
        let (left, since) = self.left;
        let whole = now.saturating_duration_since(since).as_secs() / REFILL.as_secs();
        let whole = u32::try_from(whole).unwrap_or(u32::MAX);
        self.left = match left.saturating_add(whole) {
            full if full >= BURST => (BURST, now),
            more => (more, since + REFILL * whole),
        };
        self.told.retain(|_, at| now.saturating_duration_since(*at) < AGAIN);
        self
    }

    /// Whether it is told now.
    fn may_tell(&mut self, part: Part, reason: Reason, now: Instant) -> bool {
        if self.left.0 == 0 || self.told.contains_key(&(part, reason)) {
            return false;
        }
        self.left.0 -= 1;
        self.told.insert((part, reason), now);
        true
    }
}

/// What is to be told of the parts.
pub fn notices(parts: &BTreeMap<Part, State>, before: Watched, now: Instant) -> Looked {
    let mut watched = before.at(now);
    let mut notices = Vec::new();
    watched.troubles.retain(|part, _| parts.contains_key(part));
    for (&part, state) in parts {
        let (reason, why) = match state {
            State::Waiting(why) => (Reason::Waits, why),
            State::Degraded(why) => (Reason::Degraded, why),
            State::Ready => {
                let over = watched.troubles.remove(part).is_some_and(|trouble| trouble.told);
                if over && watched.may_tell(part, Reason::Ready, now) {
                    let note = format!("{part}: ready again");
                    notices.push(Notice { part, reason: Reason::Ready, note });
                }
                continue;
            }
        };
        let fresh = Trouble { since: now, told: false };
        let since = watched.troubles.entry(part).or_insert(fresh).since;
        let late = now.saturating_duration_since(since) >= GRACE;
        if late && watched.may_tell(part, reason, now) {
            watched.troubles.entry(part).and_modify(|trouble| trouble.told = true);
            notices.push(Notice { part, reason, note: cut(format!("{part}: {why}")) });
        }
    }
    let condition = condition(parts, &watched, now);
    let again = again(&watched, now);
    Looked { watched, notices, condition, again }
}

/// What is said of all parts. While one has not been ready for a moment, what was said before.
fn condition(parts: &BTreeMap<Part, State>, watched: &Watched, now: Instant) -> Option<Condition> {
    let late = |part: &Part| {
        let trouble = watched.troubles.get(part);
        trouble.is_some_and(|it| now.saturating_duration_since(it.since) >= GRACE)
    };
    let late: Vec<_> = parts.iter().filter(|(part, _)| late(part)).collect();
    let waits = |state: &State| matches!(state, State::Waiting(_));
    // One that does not serve goes before one that does.
    let first = late.iter().find(|(_, state)| waits(state)).or(late.first());
    if let Some((part, _)) = first {
        let said = late.iter().map(|(part, state)| match state {
            State::Waiting(why) | State::Degraded(why) => format!("{part}: {why}"),
            State::Ready => format!("{part}: ready"),
        });
        let message = cut(said.collect::<Vec<_>>().join("; "));
        return Some(Condition { ready: false, reason: camel_case(part), message });
    }
    let all = watched.troubles.is_empty() && !parts.is_empty();
    all.then(|| Condition {
        ready: true,
        reason: "AllPartsReady".to_owned(),
        message: "all parts of the agent are ready".to_owned(),
    })
}

/// When something has to be told though nothing changes.
fn again(watched: &Watched, now: Instant) -> Option<Duration> {
    let due = watched.troubles.iter().map(|(part, trouble)| {
        let late = trouble.since + GRACE;
        let told =
            [Reason::Waits, Reason::Degraded].map(|reason| watched.told.get(&(*part, reason)));
        match told.into_iter().flatten().min() {
            _ if late > now => late,
            Some(told) => *told + AGAIN,
            None => now + REFILL,
        }
    });
    due.min().map(|at| at.saturating_duration_since(now).max(Duration::from_secs(1)))
}

/// `health-check-node-ports` as `HealthCheckNodePorts`.
fn camel_case(part: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    };
    part.split('-').map(word).collect()
}

/// As much of it as there is room for.
fn cut(mut text: String) -> String {
    const ENDS: &str = " …";
    if text.len() > NOTE_MAX {
        text.truncate(text.floor_char_boundary(NOTE_MAX - ENDS.len()));
        text.push_str(ENDS);
    }
    text
}

#[cfg(test)]
mod tests;
