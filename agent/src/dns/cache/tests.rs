//! The numbered behaviours 52 to 59 of the DNS reference, as far as the cache decides them.

use std::{net::Ipv4Addr, str::FromStr};

use hickory_proto::{
    op::{MessageType, OpCode, Query},
    rr::{
        Name, Record,
        rdata::{A, CNAME, SOA},
    },
};
use proptest::prelude::*;

use super::*;
use crate::dns::message::ClientEdns;

const ROOM: usize = 1 << 20;

fn question(name: &str, kind: RecordType) -> Question {
    Question::plain(Query::query(Name::from_str(name).unwrap(), kind))
}

/// Said by the only upstream.
fn said<'a>(message: &'a Message, octets: &'a [u8]) -> Said<'a> {
    Said { message, octets, by: "192.0.2.1:53".parse().unwrap() }
}

/// By the only route.
fn by_route(question: &Question) -> Asked<'_> {
    Asked { question, place: 0 }
}

fn www(kind: RecordType) -> Question {
    question("www.example.org.", kind)
}

fn message(code: ResponseCode, answers: &[u32], soa: Option<(u32, u32)>) -> Message {
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    message.metadata.response_code = code;
    let name = Name::from_str("example.org.").unwrap();
    for ttl in answers {
        let data = RData::A(A(Ipv4Addr::LOCALHOST));
        message.add_answer(Record::from_rdata(name.clone(), *ttl, data));
    }
    if let Some((ttl, minimum)) = soa {
        let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, minimum);
        message.add_authority(Record::from_rdata(name, ttl, RData::SOA(soa)));
    }
    message
}

fn address() -> Message {
    message(ResponseCode::NoError, &[10], None)
}

fn missing() -> Message {
    message(ResponseCode::NXDomain, &[], Some((10, 10)))
}

fn failure() -> Message {
    message(ResponseCode::ServFail, &[], None)
}

/// What says nothing of the name.
const FAILURES: [ResponseCode; 5] = [
    ResponseCode::ServFail,
    ResponseCode::Refused,
    ResponseCode::FormErr,
    ResponseCode::NotImp,
    ResponseCode::NotAuth,
];

fn seconds(message: &Message) -> Option<u64> {
    lifetime(message, RecordType::A, &Keeping::default()).map(|lifetime| lifetime.as_secs())
}

/// A cache and its clock, in seconds.
struct Watched {
    cache: Cache,
    start: Instant,
    keeping: Keeping,
}

impl Watched {
    fn new() -> Self {
        Self { cache: Cache::new(ROOM), start: Instant::now(), keeping: Keeping::default() }
    }

    fn at(&self, second: u64) -> Instant {
        self.start + Duration::from_secs(second)
    }

    /// Puts `message` in, as octets that begin with `mark`.
    fn put(&mut self, second: u64, question: &Question, message: &Message, mark: u8) {
        let now = self.at(second);
        self.cache.put(by_route(question), said(message, &[mark; 20]), &self.keeping, now);
    }

    /// What is found, as a word and the mark.
    fn get(&mut self, second: u64, question: &Question) -> (&'static str, u8) {
        let now = self.at(second);
        match self.cache.get(by_route(question), now) {
            Found::Nothing => ("nothing", 0),
            Found::Fresh { hit, refresh: false } => ("fresh", hit.octets[0]),
            Found::Fresh { hit, refresh: true } => ("refresh", hit.octets[0]),
            Found::Stale { hit, ask: true } => ("stale, ask", hit.octets[0]),
            Found::Stale { hit, ask: false } => ("stale", hit.octets[0]),
            Found::Failed(_) => ("failed", 0),
        }
    }
}

#[test]
fn dns_52_the_shortest_ttl_counts_and_is_bounded() {
    assert_eq!(seconds(&message(ResponseCode::NoError, &[20, 7], None)), Some(7));
    assert_eq!(seconds(&message(ResponseCode::NoError, &[3600], None)), Some(30));
    assert_eq!(seconds(&message(ResponseCode::NoError, &[1], None)), Some(5), "the floor");
    assert_eq!(seconds(&message(ResponseCode::NoError, &[20, 0], None)), None, "not to be kept");
    let mut watched = Watched::new();
    let now = watched.at(0);
    watched.put(0, &www(RecordType::A), &address(), 1);
    let found = watched.cache.get(by_route(&www(RecordType::A)), now + Duration::from_secs(7));
    let Found::Fresh { hit, .. } = found else { panic!("{found:?}") };
    assert_eq!(hit.age, Duration::from_secs(7));
}

#[test]
fn dns_53_negative_answers() {
    for code in [ResponseCode::NoError, ResponseCode::NXDomain] {
        assert_eq!(seconds(&message(code, &[], Some((20, 9)))), Some(9));
        assert_eq!(seconds(&message(code, &[], Some((9, 20)))), Some(9));
        assert_eq!(seconds(&message(code, &[], Some((3600, 3600)))), Some(30));
        assert_eq!(seconds(&message(code, &[], None)), None, "no SOA, no promise");
    }
    // "No such name" is true of all types, "no such type" of one.
    let mut watched = Watched::new();
    watched.put(0, &www(RecordType::A), &missing(), 1);
    assert_eq!(watched.get(1, &www(RecordType::AAAA)), ("fresh", 1));
    let other = question("mail.example.org.", RecordType::A);
    watched.put(0, &other, &message(ResponseCode::NoError, &[], Some((10, 10))), 2);
    assert_eq!(watched.get(1, &other), ("fresh", 2));
    assert_eq!(watched.get(1, &question("mail.example.org.", RecordType::AAAA)), ("nothing", 0));
    // Behind an alias it is the target that is missing: of another type nothing is known.
    let mut aliased = missing();
    let target = RData::CNAME(CNAME(Name::from_str("gone.example.org.").unwrap()));
    aliased.add_answer(Record::from_rdata(Name::from_str("a.example.org.").unwrap(), 9, target));
    let alias = |kind| question("a.example.org.", kind);
    watched.put(0, &alias(RecordType::A), &aliased, 3);
    assert_eq!(watched.get(1, &alias(RecordType::A)), ("fresh", 3));
    assert_eq!(watched.get(1, &alias(RecordType::CNAME)), ("nothing", 0));
}

#[test]
fn dns_53_what_is_missing_behind_an_alias_has_the_times_of_what_is_missing() {
    let alias = |ttl, message: Message| {
        let name = |label: &str| Name::from_str(&format!("{label}.example.org.")).unwrap();
        let target = RData::CNAME(CNAME(name("gone")));
        let mut message = message;
        message.answers.insert(0, Record::from_rdata(name("a"), ttl, target));
        message
    };
    for code in [ResponseCode::NoError, ResponseCode::NXDomain] {
        let aliased = |ttl, soa| seconds(&alias(ttl, message(code, &[], soa)));
        assert_eq!(aliased(9, Some((20, 20))), Some(9), "the alias goes first");
        assert_eq!(aliased(20, Some((20, 7))), Some(7), "the least of the SOA");
        assert_eq!(aliased(20, Some((7, 20))), Some(7), "and its own");
        assert_eq!(aliased(0, Some((20, 20))), None);
        let short = Keeping {
            negative_ttl: (Duration::ZERO, Duration::from_secs(3)),
            ..Keeping::default()
        };
        let negative = alias(20, message(code, &[], Some((20, 20))));
        assert_eq!(lifetime(&negative, RecordType::A, &short), Some(Duration::from_secs(3)));
    }
    // With an address behind it, it is an answer as any.
    assert_eq!(seconds(&alias(20, message(ResponseCode::NoError, &[8], None))), Some(8));
    assert_eq!(
        seconds(&alias(20, message(ResponseCode::NoError, &[], None))),
        Some(20),
        "a circle"
    );
    assert_eq!(seconds(&alias(20, message(ResponseCode::NXDomain, &[], None))), None);
    let whole = alias(20, message(ResponseCode::NoError, &[], None));
    assert!(is_negative(&whole, RecordType::A) && !is_negative(&whole, RecordType::CNAME));
    assert!(!is_negative(&whole, RecordType::ANY));
}

#[test]
fn dns_54_failures_are_kept_for_five_seconds_whatever_their_code() {
    let mut watched = Watched::new();
    let question = www(RecordType::A);
    for (code, at) in FAILURES.into_iter().zip((0..).step_by(100)) {
        let failure = message(code, &[], None);
        watched.put(at, &question, &failure, 1);
        assert_eq!(watched.get(at + 4, &question), ("fresh", 1), "{code}");
        assert_eq!(watched.get(at + 5, &question), ("nothing", 0), "{code}");
        watched.put(at + 10, &question, &address(), 2);
        watched.put(at + 11, &question, &failure, 1);
        assert_eq!(watched.get(at + 12, &question), ("fresh", 2), "{code}: not in its place");
        watched.put(at + 21, &question, &failure, 1);
        assert_eq!(watched.get(at + 21, &question), ("stale", 2), "{code}");
        watched.cache = Cache::new(ROOM);
    }
    let now = watched.at(5);
    let keeping = watched.keeping;
    watched.cache.fail(by_route(&question), Explanation::NoReachableAuthority, &keeping, now);
    assert_eq!(watched.get(9, &question), ("failed", 0));
    assert_eq!(watched.get(10, &question), ("nothing", 0));
    assert_eq!(seconds(&message(ResponseCode::Refused, &[9], Some((9, 9)))), Some(5));
}

#[test]
fn dns_54_a_failure_takes_nothing_good_away() {
    let mut watched = Watched::new();
    let question = www(RecordType::A);
    watched.put(0, &question, &address(), 1);
    watched.put(1, &question, &failure(), 9);
    assert_eq!(watched.get(2, &question), ("fresh", 1));
    // Nor when it has outlived its time; but then it is not asked for each time.
    watched.put(12, &question, &failure(), 9);
    assert_eq!(watched.get(12, &question), ("stale", 1));
    assert_eq!(watched.get(41, &question), ("stale", 1));
    assert_eq!(watched.get(42, &question), ("stale, ask", 1));
    watched.put(43, &question, &address(), 2);
    assert_eq!(watched.get(43, &question), ("fresh", 2));
}

#[test]
fn dns_55_what_was_cut_is_not_kept() {
    let mut cut = message(ResponseCode::NoError, &[20], None);
    cut.metadata.truncation = true;
    assert_eq!(seconds(&cut), None);
}

#[test]
fn dns_56_the_key() {
    let base = question("example.org.", RecordType::A);
    let key = |question: &Question| Key::of(by_route(question));
    assert_eq!(key(&base), key(&question("EXAMPLE.org.", RecordType::A)));
    let dnssec_ok = ClientEdns { payload: 1232, dnssec_ok: true, padded: false };
    for other in [
        question("example.org.", RecordType::AAAA),
        question("www.example.org.", RecordType::A),
        Question { checking_disabled: true, ..base.clone() },
        Question { edns: Some(dnssec_ok), ..base.clone() },
    ] {
        assert_ne!(key(&base), key(&other));
    }
    let plain = ClientEdns { payload: 512, dnssec_ok: false, padded: false };
    assert_eq!(key(&base), key(&Question { edns: Some(plain), ..base.clone() }));
    let elsewhere = Key::of(Asked { question: &base, place: 1 });
    assert_ne!(key(&base), elsewhere, "others may say otherwise");
}

#[test]
fn dns_57_a_hot_answer_is_asked_for_once_before_its_time_is_up() {
    let mut watched = Watched::new();
    let question = www(RecordType::A);
    watched.put(0, &question, &address(), 1);
    assert_eq!(watched.get(8, &question), ("fresh", 1), "there is time");
    assert_eq!(watched.get(9, &question), ("refresh", 1));
    assert_eq!(watched.get(9, &question), ("fresh", 1), "once is enough");
    watched.put(9, &question, &address(), 2);
    assert_eq!(watched.get(18, &question), ("fresh", 2), "the next one starts over: one use");
    assert_eq!(watched.get(18, &question), ("refresh", 2));
    // A pause makes it cold again.
    watched.keeping.ttl.1 = Duration::from_secs(1000);
    watched.put(20, &question, &message(ResponseCode::NoError, &[1000], None), 3);
    assert_eq!(watched.get(900, &question), ("fresh", 3));
    assert_eq!(watched.get(1010, &question), ("fresh", 3));
    assert_eq!(watched.get(1011, &question), ("refresh", 3));
}

#[test]
fn dns_58_an_answer_may_outlive_its_time() {
    let mut watched = Watched::new();
    let question = www(RecordType::A);
    watched.put(0, &question, &address(), 1);
    assert_eq!(watched.get(10, &question), ("stale, ask", 1));
    assert_eq!(watched.get(86_409, &question), ("stale, ask", 1));
    assert_eq!(watched.get(86_410, &question), ("nothing", 0));
    // The upstream has the last word: the name is gone.
    watched.put(0, &question, &address(), 1);
    watched.put(20, &question, &missing(), 2);
    assert_eq!(watched.get(21, &question), ("fresh", 2));
    watched.keeping.stale = Duration::ZERO;
    watched.put(40, &question, &address(), 3);
    assert_eq!(watched.get(50, &question), ("nothing", 0), "where it is not wanted");
}

#[test]
fn dns_59_a_name_that_came_is_not_hidden_by_its_absence() {
    let mut watched = Watched::new();
    watched.put(0, &www(RecordType::A), &missing(), 1);
    watched.put(11, &www(RecordType::AAAA), &address(), 2);
    assert_eq!(watched.get(12, &www(RecordType::AAAA)), ("fresh", 2));
    assert_eq!(watched.get(12, &www(RecordType::A)), ("nothing", 0), "the name exists now");
}

/// No client has a say in what is known of a name whatever the type, by whatever type it asks for.
#[test]
fn dns_53_dns_54_what_is_said_of_one_type_is_no_word_on_others() {
    let absence = message(ResponseCode::NoError, &[], Some((30, 30)));
    for number in (2..=260_u16).chain([0, u16::MAX]) {
        let odd = www(RecordType::from(number));
        let mut watched = Watched::new();
        watched.put(0, &odd, &absence, 1);
        assert_eq!(watched.get(1, &www(RecordType::A)), ("nothing", 0), "{number}");
        // Nor has its failure a word, where what is good has outlived its time.
        let mut watched = Watched::new();
        watched.put(2, &www(RecordType::A), &address(), 2);
        for code in FAILURES {
            watched.put(13, &odd, &message(code, &[], None), 3);
        }
        assert_eq!(watched.get(13, &www(RecordType::A)), ("stale, ask", 2), "{number}");
    }
}

/// Some servers say NXDOMAIN of AAAA where there is A.
#[test]
fn dns_59_an_address_that_is_known_is_not_hidden_by_what_is_said_of_another_type() {
    let mut watched = Watched::new();
    watched.put(0, &www(RecordType::A), &address(), 1);
    watched.put(
        1,
        &www(RecordType::AAAA),
        &message(ResponseCode::NXDomain, &[], Some((30, 30))),
        2,
    );
    assert_eq!(watched.get(2, &www(RecordType::A)), ("fresh", 1));
    assert_eq!(watched.get(2, &www(RecordType::AAAA)), ("fresh", 2));
    // When its time is up the name is gone for this type too, and does not come back from the dead.
    assert_eq!(watched.get(11, &www(RecordType::A)), ("fresh", 2));
    // Of the same type it has the last word at once.
    watched.put(12, &www(RecordType::A), &address(), 3);
    watched.put(13, &www(RecordType::A), &missing(), 4);
    assert_eq!(watched.get(14, &www(RecordType::A)), ("fresh", 4));
}

#[test]
fn memory_is_bounded_and_what_expires_first_goes_first() {
    let now = Instant::now();
    let mut cache = Cache::new(10_000);
    let keeping = Keeping::default();
    let named = |index: u32| question(&format!("n{index}.example.org."), RecordType::A);
    let long = message(ResponseCode::NoError, &[30], None);
    cache.put(by_route(&named(0)), said(&long, &[0; 100]), &keeping, now);
    for index in 1..1000 {
        let short = message(ResponseCode::NoError, &[20], None);
        cache.put(by_route(&named(index)), said(&short, &[0; 100]), &keeping, now);
        assert!(cache.octets[0] <= cache.room(Sort::Success));
        assert_eq!(cache.entries.len(), cache.by_expiry[0].len());
    }
    assert!(cache.len() > 15 && cache.tally().evicted == [1000 - cache.len() as u64, 0]);
    let kept =
        |cache: &mut Cache| matches!(cache.get(by_route(&named(0)), now), Found::Fresh { .. });
    assert!(kept(&mut cache), "the one that lasts is still there");
    cache.put(by_route(&named(0)), said(&long, &vec![0; 20_000]), &keeping, now);
    assert!(kept(&mut cache), "what never fits displaces nothing");
    let of_all: usize = cache.entries.iter().map(|(key, entry)| entry.cost(key)).sum();
    assert_eq!(cache.octets, [of_all, 0]);
}

#[test]
fn no_flood_of_denials_and_failures_takes_an_answer_away() {
    let now = Instant::now();
    let mut cache = Cache::new(10_000);
    let keeping = Keeping::default();
    let named = |name: &str| question(&format!("{name}.example.org."), RecordType::A);
    let good: Vec<_> = (0..15).map(|index| named(&format!("good{index}"))).collect();
    for question in &good {
        cache.put(by_route(question), said(&address(), &[1; 100]), &keeping, now);
    }
    assert_eq!(cache.tally().entries, [15, 0], "there is room for them");
    let are = |cache: &mut Cache, later: Instant| -> Vec<bool> {
        let fresh = |found: &Found| matches!(found, Found::Fresh { .. });
        let found = good.iter().map(|question| cache.get(by_route(question), later));
        found
            .inspect(|found| assert!(!matches!(found, Found::Nothing)))
            .map(|it| fresh(&it))
            .collect()
    };
    // While they are good, and when they have outlived their time.
    for later in [now, now + Duration::from_hours(1)] {
        for index in 0..1000 {
            let question = named(&format!("none{index}"));
            let asked = by_route(&question);
            match index % 3 {
                0 => cache.put(asked, said(&missing(), &[2; 100]), &keeping, later),
                1 => cache.put(asked, said(&failure(), &[3; 100]), &keeping, later),
                _ => cache.fail(asked, Explanation::NoReachableAuthority, &keeping, later),
            }
        }
        assert_eq!(are(&mut cache, later), [later == now; 15]);
        let Tally { entries, evicted } = cache.tally();
        assert!(entries[0] == 15 && evicted[0] == 0 && entries[1] > 3 && evicted[1] > 900);
        assert!(cache.octets.iter().sum::<usize>() <= 10_000);
    }
    // And no flood of answers what is denied.
    let denied = cache.tally().entries[1];
    for index in 0..1000 {
        let question = named(&format!("more{index}"));
        cache.put(by_route(&question), said(&address(), &[1; 100]), &keeping, now);
    }
    assert_eq!(cache.tally().entries[1], denied);
}

proptest! {
    /// Whatever happens in whatever order: bounded, consistent, and no failure in the place of an
    /// answer whose time is not up.
    #[test]
    fn any_history(steps in prop::collection::vec((0..4_u8, 0..3_u8, 0..5_u8, 0..40_u64), 1..80)) {
        let mut watched = Watched::new();
        watched.cache = Cache::new(3000);
        let mut second = 0;
        for (which, kind, what, pause) in steps {
            second += pause;
            let kind = [RecordType::A, RecordType::AAAA, RecordType::TXT][usize::from(kind)];
            let question = question(&format!("n{which}.example.org."), kind);
            let before = watched.get(second, &question).0;
            match what {
                0 => watched.put(second, &question, &address(), 1),
                1 => watched.put(second, &question, &missing(), 1),
                2 => watched.put(second, &question, &failure(), 9),
                3 => {
                    let (keeping, now) = (watched.keeping, watched.at(second));
                    watched.cache.fail(by_route(&question), Explanation::NoReachableAuthority, &keeping, now);
                }
                _ => {}
            }
            let (after, mark) = watched.get(second, &question);
            if what >= 2 && before.starts_with("stale") {
                prop_assert!(mark == 1 && after.starts_with("stale"), "{} {}", before, after);
            }
            let of_all: usize =
                watched.cache.entries.iter().map(|(key, entry)| entry.cost(key)).sum();
            prop_assert_eq!(watched.cache.octets.iter().sum::<usize>(), of_all);
            prop_assert!(of_all <= 3000);
            let by_expiry: usize = watched.cache.by_expiry.iter().map(BTreeSet::len).sum();
            prop_assert_eq!(watched.cache.entries.len(), by_expiry);
        }
    }
}
