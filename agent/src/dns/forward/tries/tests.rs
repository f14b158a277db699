//! Real upstreams on loopback that are slow, silent, or say half of it.

use std::{
    net::IpAddr,
    str::FromStr as _,
    sync::{Arc, Mutex},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use tokio::{net::UdpSocket, task::JoinSet};

use super::*;
use crate::dns::{
    answer::Reply,
    cache::{Cache, Keeping},
    config::Forwarding,
    forward::AtOnce,
    route::Routes,
};

const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];
/// Far longer than the patience of [`LIMITS`] with one upstream.
const SLOW: Duration = Duration::from_millis(400);
const LIMITS: Forwarding = Forwarding {
    attempt: Duration::from_millis(100),
    total: Duration::from_secs(20),
    max_in_flight: 1,
    patience: Duration::from_millis(100),
};

/// The upstreams of a test, which end with it.
#[derive(Default)]
struct Upstreams(JoinSet<()>);

impl Upstreams {
    /// One that answers after `delay` with `code`, cut short where `truncated`.
    async fn one(
        &mut self,
        at: &str,
        delay: Duration,
        code: ResponseCode,
        truncated: bool,
    ) -> SocketAddr {
        let socket = Arc::new(UdpSocket::bind((at.parse::<IpAddr>().unwrap(), 0)).await.unwrap());
        let address = socket.local_addr().unwrap();
        self.0.spawn(async move {
            let mut octets = [0; 512];
            loop {
                let (length, client) = socket.recv_from(&mut octets).await.unwrap();
                let answer = answer(&octets[..length], code, truncated);
                let socket = Arc::clone(&socket);
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let _gone = socket.send_to(&answer, client).await;
                });
            }
        });
        address
    }

    /// One that never says anything.
    async fn silent(&mut self, at: &str) -> SocketAddr {
        self.one(at, Duration::from_hours(1), ResponseCode::NoError, false).await
    }
}

fn answer(query: &[u8], code: ResponseCode, truncated: bool) -> Vec<u8> {
    let query = Message::from_vec(query).unwrap();
    let owner = query.queries[0].name().clone();
    let mut answer = query.into_response();
    answer.metadata.response_code = code;
    answer.metadata.truncation = truncated;
    if code == ResponseCode::NoError {
        answer.answers = vec![Record::from_rdata(owner, 60, RData::A(A::new(192, 0, 2, 80)))];
    }
    answer.to_vec().unwrap()
}

fn question(name: &str, kind: RecordType) -> Question {
    Question::plain(Query::query(Name::from_str(name).unwrap(), kind))
}

fn forwarder(routes: Vec<Route>) -> Arc<Forwarder> {
    let cache = Arc::new(Mutex::new(Cache::new(1 << 16)));
    let routes = Routes::new(routes, &[], &Name::root());
    Arc::new(Forwarder::new(routes, LIMITS, cache, Arc::default()))
}

async fn ask(forwarder: &Arc<Forwarder>, name: &str) -> Reply {
    let question = question(name, RecordType::A);
    match forwarder.at_once(&question, None) {
        AtOnce::Answer(reply, _) => reply,
        AtOnce::Ask(errand) => forwarder.ask(&question, errand).await.0,
    }
}

#[tokio::test]
async fn dns_60_an_upstream_that_is_slower_than_a_try_is_heard() {
    for at in LOOPBACK {
        let mut upstreams = Upstreams::default();
        let slow = upstreams.one(at, SLOW, ResponseCode::NoError, false).await;
        let dead = upstreams.silent(at).await;
        let refuses = upstreams.one(at, Duration::ZERO, ResponseCode::Refused, false).await;
        for asked in [vec![slow], vec![slow, dead], vec![dead, slow], vec![slow, slow]] {
            let reply = ask(&forwarder(vec![Route::to(asked.clone())]), "www.example.org.").await;
            assert_eq!((reply.code, reply.answers.len()), (ResponseCode::NoError, 1), "{asked:?}");
        }
        let forwarder = forwarder(vec![Route::to(vec![dead, refuses])]);
        let reply = ask(&forwarder, "www.example.org.").await;
        assert_eq!(reply.code, ResponseCode::Refused, "nobody waits for one that is silent");
    }
}

#[tokio::test]
async fn dns_61_one_that_answers_late_is_well_again() {
    let mut upstreams = Upstreams::default();
    let slow = upstreams.one("127.0.0.1", SLOW, ResponseCode::NoError, false).await;
    let forwarder = forwarder(vec![Route::to(vec![slow])]);
    ask(&forwarder, "www.example.org.").await;
    assert!(!lock(&forwarder.health[0]).all_failing());
}

#[tokio::test]
async fn dns_19_what_nobody_says_whole_is_said_in_part() {
    for at in LOOPBACK {
        let mut upstreams = Upstreams::default();
        // Nobody listens there for TCP.
        let half = upstreams.one(at, Duration::ZERO, ResponseCode::NoError, true).await;
        let forwarder = forwarder(vec![Route::to(vec![half])]);
        let reply = ask(&forwarder, "www.example.org.").await;
        assert_eq!(
            (reply.code, reply.answers.len(), reply.truncated),
            (ResponseCode::NoError, 1, true)
        );
        assert!(lock(&forwarder.cache).is_empty(), "a part is not kept");
    }
}

#[tokio::test]
async fn dns_62_what_one_says_in_part_another_may_say_whole() {
    for at in LOOPBACK {
        let mut upstreams = Upstreams::default();
        let (now, well) = (Duration::ZERO, ResponseCode::NoError);
        // Nobody listens there for TCP.
        let half = upstreams.one(at, now, well, true).await;
        let whole = upstreams.one(at, now, well, false).await;
        let fails = upstreams.one(at, now, ResponseCode::ServFail, false).await;
        let dead = upstreams.silent(at).await;
        for (asked, truncated) in [
            (vec![half, whole], false),
            (vec![half, dead, whole], false),
            (vec![half, fails], true),
            (vec![fails, half], true),
            (vec![half, dead], true),
        ] {
            let reply = ask(&forwarder(vec![Route::to(asked.clone())]), "www.example.org.").await;
            let said = (reply.code, reply.answers.len(), reply.truncated);
            assert_eq!(said, (ResponseCode::NoError, 1, truncated), "{asked:?}");
        }
    }
}

#[tokio::test]
async fn upstreams_that_are_silent_take_no_places_of_other_zones() {
    for at in LOOPBACK {
        let mut upstreams = Upstreams::default();
        let dead = upstreams.silent(at).await;
        let well = upstreams.one(at, Duration::ZERO, ResponseCode::NoError, false).await;
        let stub = Name::from_str("stub.example.").unwrap();
        let stub = Route { zone: stub.clone(), from: stub, ..Route::to(vec![dead]) };
        let forwarder = forwarder(vec![stub, Route::to(vec![well])]);
        let mut waiting = JoinSet::new();
        for number in 0..4 {
            let (forwarder, name) = (Arc::clone(&forwarder), format!("{number}.stub.example."));
            waiting.spawn(async move { ask(&forwarder, &name).await });
        }
        // The one that is under way and the one that waits; the others are told.
        while waiting.len() > 2 {
            waiting.join_next().await.unwrap().unwrap();
        }
        assert_eq!(ask(&forwarder, "www.example.org.").await.code, ResponseCode::NoError);
    }
}

#[tokio::test]
async fn dns_45_any_of_a_foreign_name_is_answered_small_and_asked_of_nobody() {
    let forwarder = forwarder(vec![Route::to(vec!["192.0.2.1:53".parse().unwrap()])]);
    let question = question("www.example.org.", RecordType::ANY);
    let AtOnce::Answer(reply, _) = forwarder.at_once(&question, None) else {
        panic!("somebody is asked")
    };
    assert_eq!((reply.code, reply.answers.len()), (ResponseCode::NoError, 1));
    assert_eq!(reply.answers[0].record_type(), RecordType::HINFO);
}

fn stub(routes: Vec<(&str, Route)>) -> Vec<Route> {
    let route = |(turn, (zone, route)): (usize, (&str, Route))| {
        let zone = Name::from_str(zone).unwrap();
        Route { from: zone.clone(), zone, turn, ..route }
    };
    routes.into_iter().enumerate().map(route).collect()
}

/// Whatever says nothing of the name: the next upstream is asked, an old answer given, and where all
/// say so the client hears what they said.
#[tokio::test]
async fn dns_54_dns_58_dns_60_a_failure_is_one_whatever_its_code() {
    for (place, code) in
        [ResponseCode::Refused, ResponseCode::FormErr, ResponseCode::NotImp, ResponseCode::NotAuth]
            .into_iter()
            .enumerate()
    {
        let at = LOOPBACK[place % 2];
        let mut upstreams = Upstreams::default();
        let fails = upstreams.one(at, Duration::ZERO, code, false).await;
        let well = upstreams.one(at, Duration::ZERO, ResponseCode::NoError, false).await;
        let reply = ask(&forwarder(vec![Route::to(vec![fails, well])]), "www.example.org.").await;
        assert_eq!((reply.code, reply.answers.len()), (ResponseCode::NoError, 1), "{code}");
        let all_fail = forwarder(vec![Route::to(vec![fails])]);
        let reply = ask(&all_fail, "www.example.org.").await;
        assert_eq!((reply.code, reply.explanation), (code, None));
        let reply = ask(&all_fail, "www.example.org.").await;
        assert_eq!((reply.code, reply.explanation), (code, Some(Explanation::FailedBefore)));
        // One that has outlived its time.
        let stale = forwarder(vec![Route::to(vec![fails])]);
        let question = question("www.example.org.", RecordType::A);
        let octets = answer(&exchange_query(&question), ResponseCode::NoError, false);
        let message = Message::from_vec(&octets).unwrap();
        let said = crate::dns::cache::Said { message: &message, octets: &octets, by: fails };
        let (keeping, before) =
            (Keeping::default(), Instant::now().checked_sub(Duration::from_mins(5)).unwrap());
        lock(&stale.cache).put(Asked { question: &question, place: 0 }, said, &keeping, before);
        let reply = ask(&stale, "www.example.org.").await;
        assert_eq!(
            (reply.code, reply.explanation),
            (ResponseCode::NoError, Some(Explanation::Stale))
        );
    }
}

fn exchange_query(question: &Question) -> Vec<u8> {
    let mut query = Message::query();
    query.add_query(question.query.clone());
    query.to_vec().unwrap()
}

#[tokio::test]
async fn failover_asks_the_next_upstream_after_the_codes_that_it_names() {
    for at in LOOPBACK {
        let mut upstreams = Upstreams::default();
        let none = upstreams.one(at, Duration::ZERO, ResponseCode::NXDomain, false).await;
        let fails = upstreams.one(at, Duration::ZERO, ResponseCode::ServFail, false).await;
        let well = upstreams.one(at, Duration::ZERO, ResponseCode::NoError, false).await;
        for (failover, asked, code) in [
            (vec![], vec![none, well], ResponseCode::NXDomain),
            (vec![ResponseCode::NXDomain], vec![none, well], ResponseCode::NoError),
            (vec![ResponseCode::NXDomain], vec![none, none], ResponseCode::NXDomain),
            (vec![ResponseCode::NXDomain], vec![fails, none], ResponseCode::NXDomain),
            (vec![ResponseCode::NXDomain], vec![none, fails], ResponseCode::NXDomain),
        ] {
            let route = Route { failover, ..Route::to(asked) };
            assert_eq!(ask(&forwarder(vec![route]), "www.example.org.").await.code, code);
        }
    }
}

#[tokio::test]
async fn next_goes_on_by_the_blocks_next_route_for_the_name() {
    for at in LOOPBACK {
        let mut upstreams = Upstreams::default();
        let none = upstreams.one(at, Duration::ZERO, ResponseCode::NXDomain, false).await;
        let fails = upstreams.one(at, Duration::ZERO, ResponseCode::ServFail, false).await;
        let well = upstreams.one(at, Duration::ZERO, ResponseCode::NoError, false).await;
        let to = |upstream| Route::to(vec![upstream]);
        let goes_on = |upstream| Route { next: vec![ResponseCode::NXDomain], ..to(upstream) };
        let excepted = Route { except: vec![Name::from_str("example.org.").unwrap()], ..to(well) };
        for (routes, code) in [
            (vec![("example.org.", goes_on(none)), (".", to(well))], ResponseCode::NoError),
            (vec![(".", goes_on(none)), (".", to(well))], ResponseCode::NoError),
            (
                vec![(".", goes_on(none)), (".", goes_on(none)), (".", to(well))],
                ResponseCode::NoError,
            ),
            (vec![(".", to(none)), (".", to(well))], ResponseCode::NXDomain),
            (vec![(".", goes_on(fails)), (".", to(well))], ResponseCode::ServFail),
            (vec![(".", goes_on(none))], ResponseCode::NXDomain),
            (vec![(".", goes_on(none)), (".", excepted)], ResponseCode::NXDomain),
            (vec![(".", goes_on(none)), ("example.com.", to(well))], ResponseCode::NXDomain),
            (
                vec![(".", goes_on(none)), (".", Route { block: 1, ..to(well) })],
                ResponseCode::NXDomain,
            ),
        ] {
            let forwarder = forwarder(stub(routes.clone()));
            for _ in 0..2 {
                // Asked, and remembered.
                let reply = ask(&forwarder, "www.example.org.").await;
                assert_eq!(reply.code, code, "{routes:?}");
            }
            assert_eq!(lock(&forwarder.cache).len(), usize::from(code != ResponseCode::NXDomain));
        }
    }
}

#[tokio::test]
async fn who_is_not_there_is_told_from_who_is_silent() {
    for at in LOOPBACK {
        let mut upstreams = Upstreams::default();
        let closed = {
            let socket = UdpSocket::bind((at.parse::<IpAddr>().unwrap(), 0)).await.unwrap();
            socket.local_addr().unwrap()
        };
        let silent = upstreams.silent(at).await;
        let reply = ask(&forwarder(vec![Route::to(vec![closed])]), "www.example.org.").await;
        assert_eq!(reply.explanation.map(Explanation::code), Some(23));
        let limits = Forwarding { total: Duration::from_millis(600), ..LIMITS };
        let (cache, routes) =
            (Arc::new(Mutex::new(Cache::new(0))), vec![Route::to(vec![closed, silent])]);
        let routes = Routes::new(routes, &[], &Name::root());
        let forwarder = Arc::new(Forwarder::new(routes, limits, cache, Arc::default()));
        let reply = ask(&forwarder, "www.example.org.").await;
        assert_eq!(reply.explanation.map(Explanation::code), Some(22));
    }
}
