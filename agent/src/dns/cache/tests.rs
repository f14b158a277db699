//! The numbered behaviours 52 to 56 of the DNS reference.

use std::{net::Ipv4Addr, str::FromStr};

use hickory_proto::{
    op::{MessageType, OpCode, Query},
    rr::{
        Name, Record, RecordType,
        rdata::{A, SOA},
    },
};

use super::*;
use crate::dns::message::{ClientEdns, Transport};

fn question(name: &str, kind: RecordType) -> Question {
    Question {
        id: 1,
        recursion_desired: true,
        checking_disabled: false,
        query: Query::query(Name::from_str(name).unwrap(), kind),
        edns: None,
        transport: Transport::Udp,
    }
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

fn seconds(message: &Message) -> Option<u64> {
    lifetime(message, &Limits::default()).map(|lifetime| lifetime.as_secs())
}

#[test]
fn dns_52_the_shortest_ttl_counts_and_is_bounded() {
    assert_eq!(seconds(&message(ResponseCode::NoError, &[20, 7], None)), Some(7));
    assert_eq!(seconds(&message(ResponseCode::NoError, &[3600], None)), Some(30));
    assert_eq!(seconds(&message(ResponseCode::NoError, &[20, 0], None)), None);
}

#[test]
fn dns_53_negative_answers() {
    for code in [ResponseCode::NoError, ResponseCode::NXDomain] {
        assert_eq!(seconds(&message(code, &[], Some((20, 9)))), Some(9));
        assert_eq!(seconds(&message(code, &[], Some((9, 20)))), Some(9));
        assert_eq!(seconds(&message(code, &[], Some((3600, 3600)))), Some(30));
        assert_eq!(seconds(&message(code, &[], None)), None, "no SOA, no promise");
    }
}

#[test]
fn dns_54_failures_for_five_seconds_and_refusals_not_at_all() {
    assert_eq!(seconds(&message(ResponseCode::ServFail, &[], None)), Some(5));
    assert_eq!(seconds(&message(ResponseCode::Refused, &[], None)), None);
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
    assert_eq!(Key::of(&base), Key::of(&question("EXAMPLE.org.", RecordType::A)));
    let dnssec_ok = ClientEdns { payload: 1232, dnssec_ok: true };
    for other in [
        question("example.org.", RecordType::AAAA),
        question("www.example.org.", RecordType::A),
        Question { checking_disabled: true, ..base.clone() },
        Question { edns: Some(dnssec_ok), ..base.clone() },
    ] {
        assert_ne!(Key::of(&base), Key::of(&other));
    }
    let plain = ClientEdns { payload: 512, dnssec_ok: false };
    assert_eq!(Key::of(&base), Key::of(&Question { edns: Some(plain), ..base.clone() }));
}

#[test]
fn entries_expire() {
    let now = Instant::now();
    let mut cache = Cache::new(Limits::default());
    let key = Key::of(&question("example.org.", RecordType::A));
    assert!(cache.get(&key, now).is_none());
    cache.put(key.clone(), &message(ResponseCode::NoError, &[10], None), vec![1; 50], now);
    let later = |seconds| now + Duration::from_secs(seconds);
    assert_eq!(cache.get(&key, later(9)).unwrap().age, Duration::from_secs(9));
    assert!(cache.get(&key, later(10)).is_none());
}

#[test]
fn memory_is_bounded_and_what_expires_first_goes_first() {
    let now = Instant::now();
    let mut cache = Cache::new(Limits { octets: 10_000, ..Limits::default() });
    let key = |index: u32| Key::of(&question(&format!("n{index}.example.org."), RecordType::A));
    cache.put(key(0), &message(ResponseCode::NoError, &[30], None), vec![0; 100], now);
    for index in 1..1000 {
        let short = message(ResponseCode::NoError, &[20], None);
        cache.put(key(index), &short, vec![0; 100], now);
        assert!(cache.octets <= 10_000);
        assert_eq!(cache.entries.len(), cache.by_expiry.len());
    }
    assert!(cache.entries.len() > 20);
    assert!(cache.get(&key(0), now).is_some(), "the one that lasts is still there");
    cache.put(key(0), &message(ResponseCode::NoError, &[5], None), vec![0; 20_000], now);
    assert!(cache.get(&key(0), now).is_some(), "what never fits displaces nothing");
    let of_all: usize = cache.entries.iter().map(|(key, entry)| entry.cost(key)).sum();
    assert_eq!(cache.octets, of_all);
}
