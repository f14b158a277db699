//! Whatever upstreams say: no panic, and clients get what they can read.

use std::{str::FromStr, time::Duration};

use hickory_proto::{
    op::{Edns, MessageType, OpCode, Query},
    rr::{
        RData, RecordType,
        rdata::{A, CNAME, MX, SOA, SRV, TXT},
    },
};
use proptest::prelude::*;

use super::*;
use crate::dns::{
    chain::Block,
    hosts::Hosts,
    message::{self, ClientEdns, Transport},
};

const ID: u16 = 7;

fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

fn query() -> Message {
    let mut query = Message::new(ID, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(name("www.example.org."), RecordType::A));
    query
}

/// An answer with records of many forms.
fn answer() -> Vec<u8> {
    let mut answer = query().into_response();
    answer.metadata.recursion_available = true;
    let record = |owner: &str, data| Record::from_rdata(name(owner), 60, data);
    let soa = SOA::new(name("ns.example.org."), name("root.example.org."), 1, 2, 3, 4, 5);
    answer.answers = vec![
        record("www.example.org.", RData::CNAME(CNAME(name("web.example.org.")))),
        record("web.example.org.", RData::A(A::new(192, 0, 2, 80))),
        record("web.example.org.", RData::MX(MX::new(1, name("mail.example.org.")))),
        record("web.example.org.", RData::TXT(TXT::new(vec!["text".to_owned()]))),
        record("_a._b.example.org.", RData::SRV(SRV::new(0, 1, 2, name("web.example.org.")))),
    ];
    answer.authorities = vec![record("example.org.", RData::SOA(soa))];
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    answer.set_edns(edns);
    answer.to_vec().unwrap()
}

/// What clients hear of the octets that an upstream sent: now, from memory, and when they have
/// outlived their time.
fn heard(question: &Question, octets: &[u8]) -> Vec<Reply> {
    let Some(message) = exchange::answer_to(&query(), octets) else { return Vec::new() };
    let (keeping, mut cache, now) = (Keeping::default(), Cache::new(1 << 16), Instant::now());
    let asked = Asked { question, place: 0 };
    let by = SocketAddr::from(([192, 0, 2, 1], 53));
    cache.put(asked, Said { message: &message, octets, by }, &keeping, now);
    let mut replies = vec![as_reply(question, &message, |ttl| {
        bounded(ttl, (&message, question.query.query_type()), &keeping)
    })];
    for seconds in [1, 40] {
        match cache.get(asked, now + Duration::from_secs(seconds)) {
            Found::Fresh { hit, .. } => replies.extend(remembered(question, &hit, &keeping)),
            Found::Stale { hit, .. } => replies.extend(outlived(question, &hit)),
            Found::Failed(_) | Found::Nothing => {}
        }
    }
    replies
}

#[test]
fn an_answer_is_heard_now_from_memory_and_beyond_its_time() {
    let question = question(Transport::Udp);
    assert_eq!(heard(&question, &answer()).len(), 3);
}

/// A forwarder by this route, which remembers `message`.
fn remembering(route: Route, message: &Message) -> Arc<Forwarder> {
    let cache = Arc::new(Mutex::new(Cache::new(1 << 16)));
    let octets = message.to_vec().unwrap();
    let by = SocketAddr::from(([192, 0, 2, 1], 53));
    let question = question(Transport::Tcp);
    let asked = Asked { question: &question, place: 0 };
    let said = Said { message, octets: &octets, by };
    lock(&cache).put(asked, said, &Keeping::default(), Instant::now());
    let routes = Routes::new(vec![route], &[], &Name::root());
    Arc::new(Forwarder::new(routes, Forwarding::default(), cache, Arc::default()))
}

#[tokio::test]
async fn addresses_and_mail_servers_are_said_in_turns() {
    let mut message = query().into_response();
    let record = |owner: &str, data| Record::from_rdata(name(owner), 60, data);
    let alias = record("www.example.org.", RData::CNAME(CNAME(name("web.example.org."))));
    let address = |last| record("web.example.org.", RData::A(A::new(192, 0, 2, last)));
    let mail = |label: &str| record("web.example.org.", RData::MX(MX::new(1, name(label))));
    let text = |text: &str| record("t.", RData::TXT(TXT::new(vec![text.to_owned()])));
    message.answers = vec![
        alias.clone(),
        address(1),
        address(2),
        address(3),
        mail("a."),
        mail("b."),
        text("a"),
        text("b"),
    ];
    let by = vec![SocketAddr::from(([192, 0, 2, 1], 53))];
    for loadbalance in [true, false] {
        let route = Route { loadbalance, ..Route::to(by.clone()) };
        let forwarder = remembering(route, &message);
        let mut first = Vec::new();
        for id in [0, 1, 2, 3] {
            let question = Question { id, ..question(Transport::Tcp) };
            let AtOnce::Answer(reply, _) = forwarder.at_once(&question, None) else {
                panic!("it is remembered")
            };
            let mut answers = reply.answers;
            assert_eq!((answers.len(), &answers[0].data), (8, &alias.data));
            let texts = |records: &[Record]| [6, 7].map(|at| records[at].data.clone());
            assert_eq!(texts(&answers), texts(&message.answers));
            first.push((answers[1].data.to_string(), answers[4].data.to_string()));
            answers.sort();
            answers.dedup();
            assert_eq!(answers.len(), 8, "none is lost");
        }
        let said = |address: &str, mail: &str| (address.to_owned(), format!("1 {mail}"));
        let expected = if loadbalance {
            ["192.0.2.1 a.", "192.0.2.2 b.", "192.0.2.3 a.", "192.0.2.1 b."]
        } else {
            ["192.0.2.1 a."; 4]
        };
        let expected = expected.map(|both| both.split_once(' ').unwrap());
        assert_eq!(first, expected.map(|(address, mail)| said(address, mail)));
    }
}

#[tokio::test]
async fn addresses_of_a_table_are_said_in_turns() {
    for loadbalance in [true, false] {
        let mut hosts = Hosts::new(60);
        hosts.loadbalance = loadbalance;
        hosts.extend("192.0.2.1 www.example.org\n192.0.2.2 www.example.org\n");
        let block =
            Block { zones: vec![Name::root()], hosts: Some(Arc::new(hosts)), ..Block::default() };
        let routes = Routes::new(Vec::new(), &[block], &name("cluster.local."));
        let cache = Arc::new(Mutex::new(Cache::new(1 << 16)));
        let forwarder = Forwarder::new(routes, Forwarding::default(), cache, Arc::default());
        let first = [0, 1].map(|id| {
            let question = Question { id, ..question(Transport::Udp) };
            forwarder.in_hosts(&question, None).unwrap().answers[0].data.to_string()
        });
        let second = if loadbalance { "192.0.2.2" } else { "192.0.2.1" };
        assert_eq!(first, ["192.0.2.1", second]);
    }
}

/// By a clock: what is left of its time is what clients hear.
#[test]
fn dns_52_dns_53_ttls_go_down_with_age_from_what_may_be_kept() {
    let question = question(Transport::Tcp);
    let after = |message: &Message, seconds| {
        let hit =
            Hit { octets: message.to_vec().unwrap().into(), age: Duration::from_secs(seconds) };
        let reply = remembered(&question, &hit, &Keeping::default()).unwrap();
        let ttls = |records: &[Record]| records.iter().map(|record| record.ttl).max();
        (ttls(&reply.answers), ttls(&reply.authorities))
    };
    let record = |ttl, data| Record::from_rdata(name("www.example.org."), ttl, data);
    let mut address = query().into_response();
    address.answers = vec![record(20, RData::A(A::new(192, 0, 2, 80)))];
    assert_eq!([0, 7, 19].map(|at| after(&address, at).0), [Some(20), Some(13), Some(1)]);
    address.answers[0].ttl = 3600;
    assert_eq!([0, 7].map(|at| after(&address, at).0), [Some(30), Some(23)], "30 s at most");
    for code in [ResponseCode::NoError, ResponseCode::NXDomain] {
        for (ttl, minimum) in [(25, 10), (10, 25)] {
            let mut missing = query().into_response();
            missing.metadata.response_code = code;
            let soa = SOA::new(name("ns."), name("root."), 1, 2, 3, 4, minimum);
            missing.authorities = vec![record(ttl, RData::SOA(soa))];
            let said = [0, 4, 9].map(|at| after(&missing, at).1);
            assert_eq!(said, [Some(10), Some(6), Some(1)], "{code} {ttl} {minimum}");
        }
    }
    // Beside an answer it is a record as any.
    let soa = SOA::new(name("ns."), name("root."), 1, 2, 3, 4, 5);
    address.authorities = vec![record(20, RData::SOA(soa))];
    assert_eq!(after(&address, 4).1, Some(16));
}

fn question(transport: Transport) -> Question {
    Question {
        id: 1,
        recursion_desired: true,
        checking_disabled: false,
        authentic_data: false,
        query: query().queries[0].clone(),
        edns: Some(ClientEdns { payload: 1232, dnssec_ok: true, padded: true }),
        transport,
        client: None,
    }
}

proptest! {
    #[test]
    fn dns_50_any_answer_of_an_upstream(
        changes in prop::collection::vec((2..260_usize, any::<u8>()), 0..6),
        length in 12..260_usize,
    ) {
        let mut octets = answer();
        for (at, octet) in changes {
            if let Some(place) = octets.get_mut(at) {
                *place = octet;
            }
        }
        octets.truncate(length);
        for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
            let question = question(transport);
            for reply in heard(&question, &octets) {
                let written = message::write(&question, &reply);
                prop_assert!(Message::from_vec(&written).is_ok(), "{:?}", reply);
            }
        }
    }
}
