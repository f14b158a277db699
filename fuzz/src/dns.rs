//! Messages of DNS: what clients ask, and what upstreams answer.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME, MX, SOA, SRV, TXT},
    },
};
use mizzen_agent::dns::{
    answer::{Outcome, answer as answer_to},
    cache::{Asked, Cache, Keeping, Said},
    direct::{self, Scope},
    message::{self, Question, Received, Transport},
};

use crate::cluster::ZONE;

/// The largest answer by UDP.
const DATAGRAM: usize = 1232;

/// What a client sent: read, looked up and answered by every transport.
///
/// # Panics
///
/// Where an answer can't be read, is too large, or is not to the question; where the short way by
/// UDP says something else than the long one.
pub(crate) fn question(octets: &[u8]) {
    let mut written = None;
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        let answer = match message::read(octets, transport) {
            Received::Nothing => continue,
            Received::Refused(answer) => answer,
            Received::Question(question) => {
                match answer_to(&ZONE, &question.query, usize::from(question.id)) {
                    Outcome::Answer(reply) | Outcome::Alias(reply, _) => {
                        message::write(&question, &reply)
                    }
                    Outcome::Foreign => continue,
                }
            }
        };
        let read = Message::from_vec(&answer).expect("an answer that can be read");
        assert_eq!(answer[..2], octets[..2], "the question's identifier");
        assert_eq!(read.metadata.message_type, MessageType::Response);
        if transport == Transport::Udp {
            assert!(answer.len() <= DATAGRAM, "{} octets", answer.len());
            written = Some((read, answer));
        }
    }
    let mut answer = Vec::new();
    if direct::answer(&ZONE, octets, Scope::All, &mut answer).is_some() {
        let (read, long) = written.expect("who answers at once answers in full too");
        let short = Message::from_vec(&answer).expect("an answer that can be read");
        assert_eq!(short.metadata, read.metadata, "{answer:x?} and {long:x?}");
        assert_eq!(short.answers, read.answers);
        assert_eq!(short.authorities, read.authorities);
    }
}

/// What an upstream said: kept, and given from memory as long as it may be.
///
/// # Panics
///
/// Where what was kept can't be read.
pub(crate) fn answer(octets: &[u8]) {
    let Ok(message) = Message::from_vec(octets) else { return };
    let asked = asked();
    let query = asked.to_vec().ok().map(|query| message::read(&query, Transport::Udp));
    let Some(Received::Question(question)) = query else { return };
    let question: &Question = &question;
    let (mut cache, now) = (Cache::new(1 << 16), Instant::now());
    let asked = Asked { question, place: 0 };
    let said = Said { message: &message, octets, by: SocketAddr::from(([192, 0, 2, 1], 53)) };
    cache.put(asked, said, &Keeping::default(), now);
    for seconds in [0, 1, 40, 90_000] {
        let found = cache.get(asked, now + Duration::from_secs(seconds));
        if let mizzen_agent::dns::cache::Found::Fresh { hit, .. } = found {
            assert!(Message::from_vec(&hit.octets).is_ok());
        }
    }
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name of this file")
}

fn asked() -> Message {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name("www.example.org."), RecordType::A));
    query
}

/// Questions that are answered, each with and without EDNS.
pub(crate) fn questions() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (text, kind) in [
        ("web.default.svc.cluster.local.", RecordType::A),
        ("WEB.default.svc.cluster.local.", RecordType::AAAA),
        ("_http._tcp.db.default.svc.cluster.local.", RecordType::SRV),
        ("db-0.db.default.svc.cluster.local.", RecordType::A),
        ("many.default.svc.cluster.local.", RecordType::A),
        ("many.default.svc.cluster.local.", RecordType::SRV),
        ("ext.default.svc.cluster.local.", RecordType::A),
        ("here.default.svc.cluster.local.", RecordType::A),
        ("10-1-2-3.default.pod.cluster.local.", RecordType::A),
        ("1.1.96.10.in-addr.arpa.", RecordType::PTR),
        ("cluster.local.", RecordType::SOA),
        ("ns.dns.cluster.local.", RecordType::A),
        ("dns-version.cluster.local.", RecordType::TXT),
        ("nope.default.svc.cluster.local.", RecordType::A),
        ("www.example.org.", RecordType::A),
    ] {
        let mut query = Message::new(0x1234, MessageType::Query, OpCode::Query);
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(name(text), kind));
        all.extend(query.to_vec());
        let mut edns = Edns::new();
        edns.set_max_payload(4096).set_dnssec_ok(true);
        query.set_edns(edns);
        all.extend(query.to_vec());
    }
    all
}

/// Answers with records of many kinds, and those that say no.
pub(crate) fn answers() -> Vec<Vec<u8>> {
    let record = |owner: &str, data| Record::from_rdata(name(owner), 60, data);
    let soa = SOA::new(name("ns.example.org."), name("root.example.org."), 1, 2, 3, 4, 5);
    let mut answer = asked().into_response();
    answer.answers = vec![
        record("www.example.org.", RData::CNAME(CNAME(name("web.example.org.")))),
        record("web.example.org.", RData::A(A::new(192, 0, 2, 80))),
        record("web.example.org.", RData::MX(MX::new(1, name("mail.example.org.")))),
        record("web.example.org.", RData::TXT(TXT::new(vec!["text".to_owned()]))),
        record("_a._b.example.org.", RData::SRV(SRV::new(0, 1, 2, name("web.example.org.")))),
    ];
    let mut none = asked().into_response();
    none.metadata.response_code = ResponseCode::NXDomain;
    none.authorities = vec![record("example.org.", RData::SOA(soa))];
    let mut failure = asked().into_response();
    failure.metadata.response_code = ResponseCode::ServFail;
    [answer, none, failure].into_iter().filter_map(|message| message.to_vec().ok()).collect()
}
