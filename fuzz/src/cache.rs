//! The resolver's cache through any history: room for few answers, failures, and time that passes.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};
use mizzen_agent::dns::{
    answer::Explanation,
    cache::{Asked, Cache, Found, Keeping, Said, is_failure},
    message::Question,
};

/// Room for some ten answers of the twenty-four that there are.
const ROOM: usize = 4096;
/// No entry has fewer octets.
const SMALLEST: usize = 250;
/// Octets that say what happens next.
const STEP: usize = 4;
const KINDS: [RecordType; 3] = [RecordType::A, RecordType::AAAA, RecordType::TXT];
const CODES: [ResponseCode; 6] = [
    ResponseCode::NoError,
    ResponseCode::NXDomain,
    ResponseCode::ServFail,
    ResponseCode::Refused,
    ResponseCode::FormErr,
    ResponseCode::NotImp,
];

/// What is found, without the octets that a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Fresh(Vec<u8>),
    Stale(Vec<u8>),
    Failed,
}

/// Goes through a history: which question, what comes of it, for how long, and how much later.
///
/// # Panics
///
/// Where more is kept than there is room for, an answer is given beyond its time as if it were
/// within, or a failure takes the place of what is good.
pub(crate) fn history(octets: &[u8]) {
    let (mut cache, keeping) = (Cache::new(ROOM), Keeping::default());
    let mut now = Instant::now();
    for step in octets.chunks_exact(STEP) {
        let [which, what, ttl, pause] = *step else { return };
        // Seconds, and now and then a day.
        now += Duration::from_secs(u64::from(pause) * if pause > 250 { 400 } else { 1 });
        let question = question(which);
        let asked = Asked { question: &question, place: usize::from(what >> 7) };
        let before = seen(&mut cache, asked, now);
        let code = CODES[usize::from(what & 0x7f) % CODES.len()];
        let fails = if what & 0x40 == 0 {
            let message = said(&question, code, ttl);
            let Ok(octets) = message.to_vec() else { return };
            let by = SocketAddr::from(([192, 0, 2, 1], 53));
            cache.put(asked, Said { message: &message, octets: &octets, by }, &keeping, now);
            is_failure(code)
        } else {
            cache.fail(asked, Explanation::NoReachableAuthority, &keeping, now);
            true
        };
        let after = seen(&mut cache, asked, now);
        match &before {
            Seen::Fresh(octets) | Seen::Stale(octets) if fails && !is_kept_failure(octets) => {
                assert_eq!(after, before, "a failure stands beside what is good");
            }
            _ => {}
        }
        assert!(cache.len() * SMALLEST <= ROOM, "{} entries", cache.len());
        assert_eq!(cache.tally().entries.iter().sum::<u64>(), cache.len() as u64);
    }
}

fn is_kept_failure(octets: &[u8]) -> bool {
    let code = Message::from_vec(octets).map(|message| message.metadata.response_code);
    is_failure(code.expect("what was kept can be read"))
}

fn seen(cache: &mut Cache, asked: Asked<'_>, now: Instant) -> Seen {
    let keeping = Keeping::default();
    match cache.get(asked, now) {
        Found::Nothing => Seen::Nothing,
        Found::Failed(_) => Seen::Failed,
        Found::Fresh { hit, .. } => {
            let most = keeping.ttl.1.max(keeping.negative_ttl.1);
            let most = if is_kept_failure(&hit.octets) { keeping.failure_ttl } else { most };
            assert!(hit.age < most, "{:?}", hit.age);
            Seen::Fresh(hit.octets.to_vec())
        }
        Found::Stale { hit, .. } => {
            assert!(!is_kept_failure(&hit.octets), "a failure has no time after its own");
            let least = keeping.ttl.0.min(keeping.negative_ttl.0);
            assert!(hit.age >= least && hit.age < keeping.ttl.1 + keeping.stale, "{:?}", hit.age);
            Seen::Stale(hit.octets.to_vec())
        }
    }
}

fn question(which: u8) -> Question {
    let name = Name::from_ascii(format!("n{}.example.org.", which % 8));
    let kind = KINDS[usize::from(which / 8) % KINDS.len()];
    Question::plain(Query::query(name.expect("a name"), kind))
}

fn said(question: &Question, code: ResponseCode, ttl: u8) -> Message {
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    message.add_query(question.query.clone());
    let (name, ttl) = (question.query.name().clone(), u32::from(ttl));
    if code == ResponseCode::NoError && question.query.query_type() == RecordType::A {
        let address = RData::A(A::new(192, 0, 2, 1));
        message.answers = vec![Record::from_rdata(name, ttl, address)];
    } else {
        let soa = RData::SOA(SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, 60));
        message.authorities = vec![Record::from_rdata(name, ttl, soa)];
    }
    message
}

/// Histories with a little of all.
pub(crate) fn histories() -> Vec<Vec<u8>> {
    let all = (0..48_u8).flat_map(|at| [at, at % 7, 20, at % 11]);
    let failing = [[0, 0, 20, 0], [0, 2, 20, 5], [0, 0x40, 0, 20], [0, 3, 20, 40], [0, 1, 9, 255]];
    vec![all.collect(), failing.concat(), [[8, 1, 30, 0], [0, 0, 30, 1], [8, 4, 0, 31]].concat()]
}
