//! The numbered behaviours 39 to 51 of the DNS reference that are a function of octets.

use std::{net::Ipv4Addr, str::FromStr};

use hickory_proto::{
    op::{Edns, MessageType},
    rr::{
        Name, RData,
        rdata::{A, opt::EdnsOption},
    },
};
use proptest::prelude::*;

use super::*;
use crate::dns::answer::Explanation;

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16, dnssec_ok: bool) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message
}

fn question(message: &Message, transport: Transport) -> Question {
    match read(&message.to_vec().unwrap(), transport) {
        Received::Question(question) => *question,
        other => panic!("{other:?}"),
    }
}

fn refused(octets: &[u8]) -> Message {
    match read(octets, Transport::Udp) {
        Received::Refused(answer) => Message::from_vec(&answer).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// An answer with so many addresses, and as many beside it.
fn reply(addresses: u32) -> Reply {
    let owner = Name::from_str("hdls.testns.svc.cluster.local.").unwrap();
    let record =
        |bits| Record::from_rdata(owner.clone(), 5, RData::A(A(Ipv4Addr::from_bits(bits))));
    Reply {
        authoritative: true,
        answers: (0..addresses).map(record).collect(),
        additionals: (0..addresses).map(record).collect(),
        ..Reply::default()
    }
}

fn written(question: &Question, reply: &Reply) -> (usize, Message) {
    let octets = write(question, reply);
    (octets.len(), Message::from_vec(&octets).unwrap())
}

const HDLS: &str = "hdls.testns.svc.cluster.local.";

#[test]
fn dns_39_without_edns_512_octets_on_whole_records() {
    let question = question(&query(HDLS, RecordType::A), Transport::Udp);
    // Header 12, question 35, and 16 octets a record: 29 fit into 512.
    let (size, message) = written(&question, &reply(29));
    assert_eq!((size, message.answers.len()), (12 + 35 + 29 * 16, 29));
    assert!(!message.metadata.truncation, "what stands beside the answer is dropped silently");
    assert_eq!(message.additionals, []);
    let (size, message) = written(&question, &reply(30));
    assert_eq!((size, message.answers.len()), (12 + 35 + 29 * 16, 29));
    assert!(message.metadata.truncation);
    assert_eq!(message.queries, [question.query]);
    assert!(message.edns.is_none());
}

#[test]
fn dns_40_dns_49_the_size_is_the_clients_or_ours_whichever_is_less() {
    for (client, limit) in
        [(0, 512), (511, 512), (600, 600), (1232, 1232), (4096, 1232), (65_535, 1232)]
    {
        let message = with_edns(query(HDLS, RecordType::A), client, false);
        let question = question(&message, Transport::Udp);
        let (size, message) = written(&question, &reply(1000));
        assert!(size <= limit && size + 16 > limit, "{client}: {size}");
        assert!(message.metadata.truncation);
        let edns = message.edns.expect("OPT is not cut off");
        assert_eq!((edns.max_payload(), edns.version()), (MAX_PAYLOAD, 0));
    }
}

#[test]
fn dns_41_tcp_has_everything() {
    let message = with_edns(query(HDLS, RecordType::A), 512, false);
    let question = question(&message, Transport::Tcp);
    let (_, message) = written(&question, &reply(2000));
    assert_eq!((message.answers.len(), message.additionals.len()), (2000, 2000));
    assert!(!message.metadata.truncation);
    let (_, message) = written(&question, &reply(4000));
    assert_eq!((message.answers.len(), message.additionals.len()), (4000, 0));
    assert!(!message.metadata.truncation);
    // More than any message can hold is cut, and says so: header 12, question 35, OPT 11.
    let (size, message) = written(&question, &reply(6000));
    assert_eq!(message.answers.len(), (65_535 - 12 - 35 - 11) / 16);
    assert!(message.metadata.truncation && message.edns.is_some() && size <= 65_535);
}

#[test]
fn dns_42_another_version_of_edns() {
    let mut message = with_edns(query("a.cluster.local.", RecordType::A), 1232, false);
    message.edns.as_mut().unwrap().set_version(1);
    let answer = refused(&message.to_vec().unwrap());
    // 16 has two names; in an answer to EDNS it means BADVERS (RFC 6891 9).
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    assert_eq!(answer.edns.unwrap().version(), 0);
}

#[test]
fn dns_43_unknown_options_are_ignored_and_do_is_echoed() {
    let mut message = with_edns(query("a.cluster.local.", RecordType::A), 1232, true);
    let cookie = EdnsOption::Unknown(10, b"12345678".to_vec());
    let unknown = EdnsOption::Unknown(65_001, b"?".to_vec());
    let options = message.edns.as_mut().unwrap().options_mut();
    options.insert(cookie);
    options.insert(unknown);
    let question = question(&message, Transport::Udp);
    assert!(question.dnssec_ok());
    let edns = written(&question, &reply(1)).1.edns.unwrap();
    assert!(edns.flags().dnssec_ok && edns.options().as_ref().is_empty());
}

/// An OPT record with these options, behind a question; the length of its data as it is, or `wrong`.
fn with_raw_options(options: &[u8], wrong: Option<u16>) -> Vec<u8> {
    let mut octets = query("a.cluster.local.", RecordType::A).to_vec().unwrap();
    octets[11] = 1;
    octets.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0]);
    octets.extend(wrong.unwrap_or(u16::try_from(options.len()).unwrap()).to_be_bytes());
    octets.extend(options);
    octets
}

/// Also such as the library that reads messages takes for known and can't read.
#[test]
fn dns_43_options_of_known_codes_are_ignored_whatever_they_hold() {
    // Client subnets of no family, and cut short; a lifetime, a key tag, and padding behind them.
    let odd: [&[u8]; 4] = [
        &[0, 8, 0, 4, 0, 0, 0, 0],
        &[0, 8, 0, 1, 0],
        &[0, 8, 0, 4, 0, 9, 255, 255, 0, 9, 0, 1, 7],
        &[0, 10, 0, 1, 7, 0, 14, 0, 1, 7, 0, 8, 0, 4, 0, 0, 0, 0],
    ];
    for options in odd {
        let padded = [options, &[0, 12, 0, 2, 0, 0]].concat();
        for (options, is_padded) in [(options, false), (&padded[..], true)] {
            let octets = with_raw_options(options, None);
            let Received::Question(question) = read(&octets, Transport::Udp) else {
                panic!("{options:?}")
            };
            let edns = question.edns.expect("OPT");
            let expected = ClientEdns { payload: 1232, dnssec_ok: true, padded: is_padded };
            assert_eq!(edns, expected, "{options:?}");
            let said = written(&question, &reply(1)).1.edns.unwrap();
            assert!(said.options().as_ref().is_empty(), "{options:?}");
        }
    }
    // What is not whole says nothing.
    for (options, wrong) in [(&[0, 8, 0, 9, 0, 0, 0, 0][..], None), (odd[0], Some(9))] {
        let answer = refused(&with_raw_options(options, wrong));
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr, "{options:?}");
    }
}

#[test]
fn dns_44_what_is_no_question() {
    let good = query("a.cluster.local.", RecordType::A).to_vec().unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut octets = good.clone();
        change(&mut octets);
        octets
    };
    for nothing in [&[][..], &good[..11], &with(&|octets| octets[2] |= 0x80)] {
        assert!(matches!(read(nothing, Transport::Udp), Received::Nothing));
    }
    let mut two = query("a.cluster.local.", RecordType::A);
    two.add_query(Query::query(Name::from_str("b.cluster.local.").unwrap(), RecordType::A));
    for (octets, code) in [
        (two.to_vec().unwrap(), ResponseCode::FormErr),
        (with(&|octets| octets[5] = 0), ResponseCode::FormErr),
        (with(&|octets| octets[5] = 2), ResponseCode::FormErr),
        (with(&|octets| octets[4] = 0xff), ResponseCode::FormErr),
        (with(&|octets| octets[2] |= 4 << 3), ResponseCode::NotImp),
        (with(&|octets| octets[2] |= 5 << 3), ResponseCode::NotImp),
        (with(&|octets| octets[2] |= 2 << 3), ResponseCode::NotImp),
        (with(&|octets| *octets.last_mut().unwrap() = 3), ResponseCode::Refused),
    ] {
        let answer = refused(&octets);
        assert_eq!(answer.metadata.response_code, code);
        assert_eq!(answer.metadata.id, 0x1234);
        assert!(answer.metadata.recursion_desired);
        assert_eq!(answer.metadata.op_code, OpCode::from_u8(octets[2] >> 3 & 0xf));
    }
}

#[test]
fn dns_45_the_zone_is_not_for_copying() {
    for kind in [RecordType::AXFR, RecordType::IXFR] {
        let answer = refused(&query("cluster.local.", kind).to_vec().unwrap());
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    }
}

#[test]
fn dns_44_type_zero_is_none() {
    for name in ["a.cluster.local.", "www.example.org."] {
        let answer = refused(&query(name, RecordType::ZERO).to_vec().unwrap());
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    }
}

#[test]
fn dns_46_recursion_is_available() {
    let question = question(&query("a.cluster.local.", RecordType::A), Transport::Udp);
    let (_, message) = written(&question, &reply(1));
    let flags = message.metadata;
    assert!(flags.recursion_available && flags.recursion_desired && flags.authoritative);
}

#[test]
fn failures_are_explained_to_who_speaks_edns() {
    let plain = query("a.cluster.local.", RecordType::A);
    let failure = Reply::failure(Explanation::NotReady);
    let explained = question(&with_edns(plain.clone(), 1232, false), Transport::Udp);
    let (_, message) = written(&explained, &failure);
    assert_eq!(message.metadata.response_code, ResponseCode::ServFail);
    let options = message.edns.unwrap();
    let option = options.options().as_ref()[0].clone();
    let text = b"services and endpoints have not been listed yet";
    assert_eq!(option.1, EdnsOption::Unknown(15, [&[0, 14][..], text].concat()));
    assert!(written(&question(&plain, Transport::Udp), &failure).1.edns.is_none());
}

#[test]
fn dns_50_malformed_names() {
    let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let tail = [0, 1, 0, 1];
    let long_name = [&[63; 64][..], &[63; 64], &[63; 64], &[63; 64], &[0]].concat();
    for name in [
        &[0xc0, 12][..],      // a pointer to itself
        &[1, b'a', 0xc0, 12], // round and round
        &[0xc0, 0xff],        // to nowhere
        &[64, b'a'],          // a label type that is not
        &[63, b'a'],          // a label that ends early
        &long_name,
    ] {
        let answer = refused(&[&header[..], name, &tail].concat());
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr, "{name:?}");
    }
    let odd = [&header[..], &[3, 0xff, 0, b'.', 0], &tail].concat();
    let Received::Question(question) = read(&odd, Transport::Udp) else { panic!("legal octets") };
    assert_eq!(write(&question, &Reply::default())[12..], odd[12..], "echoed octet by octet");
}

/// The same with padding of so many octets.
fn with_padding(mut message: Message, octets: usize) -> Message {
    let edns = message.edns.get_or_insert_with(Edns::new);
    edns.options_mut().insert(EdnsOption::Unknown(PADDING, vec![0; octets]));
    message
}

#[test]
fn answers_over_tls_to_padded_questions_have_whole_blocks() {
    for addresses in [0, 1, 12, 13, 14, 15, 300] {
        let asked = with_padding(query(HDLS, RecordType::A), 7);
        let reply = Reply { explanation: Some(Explanation::Stale), ..reply(addresses) };
        let plain = with_edns(query(HDLS, RecordType::A), 1232, false);
        let (unpadded, _) = written(&question(&plain, Transport::Tls), &reply);
        let (size, answer) = written(&question(&asked, Transport::Tls), &reply);
        assert_eq!(size % 468, 0, "{addresses}");
        assert!((unpadded + 4..unpadded + 4 + 468).contains(&size), "no more than it takes");
        let edns = answer.edns.unwrap();
        assert!(matches!(edns.option(EdnsCode::Padding), Some(EdnsOption::Unknown(_, data))
            if data.iter().all(|octet| *octet == 0)));
        assert!(edns.option(EdnsCode::from(EXTENDED_ERROR)).is_some(), "beside what was there");
        assert_eq!(answer.answers.len(), addresses as usize);
        // In the clear it is heard and not answered in kind.
        for transport in [Transport::Tcp, Transport::Udp] {
            let (_, answer) = written(&question(&asked, transport), &reply);
            assert!(answer.edns.unwrap().option(EdnsCode::Padding).is_none(), "{transport:?}");
        }
    }
    // What has no room for it goes without.
    let large = Reply { additionals: Vec::new(), ..reply(4_092) };
    let asked = with_padding(query("a.", RecordType::A), 0);
    let (size, answer) = written(&question(&asked, Transport::Tls), &large);
    assert!(size > 65_000 && answer.edns.unwrap().option(EdnsCode::Padding).is_none(), "{size}");
}

proptest! {
    /// Whatever comes, there is no panic, and an answer has the identifier of the question.
    #[test]
    fn dns_50_any_octets(octets in prop::collection::vec(any::<u8>(), 0..600)) {
        survives(&octets)?;
    }

    /// The same for messages that are almost right.
    #[test]
    fn dns_50_broken_messages(
        at in 0_usize..80,
        bit in 0_u8..8,
        length in 0_usize..80,
        payload: u16,
    ) {
        let message = with_edns(query("svc1.testns.svc.cluster.local.", RecordType::A), payload, true);
        let mut octets = message.to_vec().unwrap();
        if let Some(octet) = octets.get_mut(at) {
            *octet ^= 1 << bit;
        }
        octets.truncate(length.max(20));
        survives(&octets)?;
    }

    /// No answer is larger than its limit, and none is cut inside a record.
    #[test]
    fn dns_49_no_answer_is_too_large(payload: u16, edns: bool, addresses in 0_u32..300) {
        let message = query(HDLS, RecordType::A);
        let message = if edns { with_edns(message, payload, false) } else { message };
        let question = question(&message, Transport::Udp);
        let (size, message) = written(&question, &reply(addresses));
        prop_assert!(size <= usize::from(limit(question.edns, question.transport)));
        let all = message.answers.len() == addresses as usize;
        prop_assert_eq!(all, !message.metadata.truncation);
    }
}

fn survives(octets: &[u8]) -> Result<(), TestCaseError> {
    for transport in [Transport::Udp, Transport::Tcp, Transport::Tls] {
        let answer = match read(octets, transport) {
            Received::Nothing => continue,
            Received::Refused(answer) => answer,
            Received::Question(question) => write(&question, &Reply::default()),
        };
        prop_assert_eq!(&answer[..2], &octets[..2]);
        prop_assert!(answer[2] & 0x80 != 0);
    }
    Ok(())
}

/// Who does not know the bit does not get it (RFC 6840 5.8).
#[test]
fn an_upstreams_word_is_passed_to_those_who_ask_for_it() {
    for (asks, dnssec_ok, said, is) in [
        (false, false, true, false),
        (true, false, true, true),
        (false, true, true, true),
        (true, true, false, false),
    ] {
        let mut message = with_edns(query(HDLS, RecordType::A), 1232, dnssec_ok);
        message.metadata.authentic_data = asks;
        let question = question(&message, Transport::Udp);
        let reply = Reply { authentic: said, ..reply(1) };
        let (_, message) = written(&question, &reply);
        assert_eq!(message.metadata.authentic_data, is, "{asks} {dnssec_ok} {said}");
    }
}
