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
use crate::dns::message::{self, ClientEdns, Transport};

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

fn question(transport: Transport) -> Question {
    Question {
        id: 1,
        recursion_desired: true,
        checking_disabled: false,
        query: query().queries[0].clone(),
        edns: Some(ClientEdns { payload: 1232, dnssec_ok: true, padded: true }),
        transport,
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
