//! What is remembered of upstreams' answers, as clients see it: for whom, for how long, and when it
//! is asked for again.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use mizzen_agent::dns::cache::Prefetch;
use mizzen_tests::wait;

use super::{
    site::{CLUSTER, OUTSIDE, Running, Site, config, snapshot},
    upstream::Upstream,
};

const LIMIT: Duration = Duration::from_secs(20);

/// The address that is asked, and the upstream, of each family.
fn families() -> impl Iterator<Item = (&'static str, &'static str)> {
    CLUSTER.into_iter().zip(OUTSIDE)
}

fn upstream(site: &Site, server: &str) -> Upstream {
    Upstream::start(&site.outside, &[server.parse().unwrap()])
}

#[test]
fn dns_54_failures_are_kept_whatever_their_code_and_said_as_they_came() {
    let site = Site::new();
    for (address, server) in families() {
        let upstream = upstream(&site, server);
        let mut config = config(&[server]);
        // However slow this machine is.
        config.routes[0].keeping.failure_ttl = Duration::from_mins(1);
        let _running = Running::start(&site, config, snapshot());
        for (label, code) in [
            ("broken", "SERVFAIL"),
            ("refused", "REFUSED"),
            ("formerr", "FORMERR"),
            ("notimp", "NOTIMP"),
        ] {
            let ask = |by: &str| {
                let said = site.dig(&format!("@{address} {by} {label}.example.org A"));
                assert!(said.contains(&format!("status: {code}")), "{said}");
                (said, upstream.times_asked(&format!("{label}.example.org.")))
            };
            let (said, asked) = ask("+notcp");
            assert!(!said.contains("EDE"), "{said}");
            for by in ["+notcp", "+tcp"] {
                let (said, again) = ask(by);
                assert!(said.contains("EDE: 13 (Cached Error)"), "{said}");
                assert_eq!(again, asked, "{code} {by}");
            }
        }
    }
}

/// One client's odd question takes no name away from the others.
#[test]
fn dns_53_dns_54_a_question_for_type_zero_changes_no_other_answer() {
    let site = Site::new();
    for (address, server) in families() {
        let upstream = upstream(&site, server);
        let _running = Running::start(&site, config(&[server]), snapshot());
        for by in ["+notcp", "+tcp"] {
            for flags in ["", "+dnssec", "+cdflag"] {
                let ask = |kind: &str| {
                    site.dig(&format!("@{address} {by} {flags} v4.example.org {kind}"))
                };
                let said = ask("TYPE0");
                assert!(said.contains("status: FORMERR"), "{said}");
                let said = ask("A");
                assert!(said.contains("192.0.2.80"), "{said}");
            }
        }
        // By each set of flags, for A alone.
        assert_eq!(upstream.times_asked("v4.example.org."), 3);
    }
}

#[test]
fn an_upstreams_word_on_signatures_is_passed_to_those_who_ask_for_it() {
    let site = Site::new();
    for (address, server) in families() {
        let _upstream = upstream(&site, server);
        let _running = Running::start(&site, config(&[server]), snapshot());
        for by in ["+notcp", "+tcp"] {
            for (flags, said) in [
                ("+noadflag", "flags: qr rd ra;"),
                ("+adflag", "flags: qr rd ra ad;"),
                ("+noadflag +dnssec", "flags: qr rd ra ad;"),
            ] {
                let answer = site.dig(&format!("@{address} {by} {flags} signed.example.org A"));
                assert!(answer.contains(said), "{flags}: {answer}");
            }
        }
    }
}

/// What is left of its time, and of "there is none" the lesser of both times of the SOA record.
#[test]
fn dns_52_dns_53_ttls_go_down_with_age() {
    let site = Site::new();
    for (address, server) in families() {
        let _upstream = upstream(&site, server);
        let mut config = config(&[server]);
        // The upstream says 300 s of all, and in the SOA record 60.
        let keeping = &mut config.routes[0].keeping;
        (keeping.ttl.1, keeping.negative_ttl.1) = (Duration::from_mins(5), Duration::from_mins(5));
        let _running = Running::start(&site, config, snapshot());
        for (name, section, most) in
            [("www.example.org", "+answer", 300), ("nope.example.org", "+authority", 60)]
        {
            let ttl = |by: &str| -> u64 {
                let said = site.dig(&format!("@{address} {by} +noall {section} {name} A"));
                said.split_whitespace().nth(1).and_then(|ttl| ttl.parse().ok()).expect(&said)
            };
            let since = Instant::now();
            let first = ttl("+notcp");
            assert!(first <= most && first + since.elapsed().as_secs() + 1 >= most, "{first}");
            for by in ["+notcp", "+tcp"] {
                wait::until("it to go down", LIMIT, || match ttl(by) {
                    now if now < first => Ok(()),
                    now => Err(format!("{first} {now}")),
                });
            }
        }
    }
}

#[test]
fn dns_55_what_was_cut_is_not_kept() {
    let site = Site::new();
    for (address, server) in families() {
        let upstream = upstream(&site, server);
        let _running = Running::start(&site, config(&[server]), snapshot());
        let ask = |by: &str| {
            let said = site.dig(&format!("@{address} {by} cut.example.org A"));
            assert!(said.contains("flags: qr tc rd ra;") && said.contains("192.0.2.80"), "{said}");
            upstream.times_asked("cut.example.org.")
        };
        // By UDP, and in vain by TCP, each time.
        let ways = ["+notcp +ignore", "+notcp +ignore", "+tcp", "+tcp"];
        assert_eq!(ways.map(ask), [2, 4, 6, 8]);
    }
}

#[test]
fn dns_56_what_was_asked_otherwise_is_another_answer() {
    let site = Site::new();
    for (address, server) in families() {
        let upstream = upstream(&site, server);
        let _running = Running::start(&site, config(&[server]), snapshot());
        let ask = |options: &str| {
            let said = site.dig(&format!("@{address} {options} www.example.org A"));
            assert!(said.contains("192.0.2.80"), "{said}");
            upstream.times_asked("www.example.org.")
        };
        let ways = ["", "+dnssec", "+cdflag", "+dnssec +cdflag"];
        assert_eq!(ways.map(ask), [1, 2, 3, 4]);
        assert_eq!(ways.map(ask), [4; 4], "each is kept by itself");
        assert_eq!(ways.map(|way| ask(&format!("+tcp {way}"))), [4; 4], "for all transports");
        // What does not change the answer is no other question.
        assert_eq!(["+tcp", "+bufsize=600", "+noedns", "+adflag"].map(ask), [4; 4]);
    }
}

/// A client that asks as often as it takes and as fast as it goes, by one socket.
enum Client {
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Client {
    fn udp(at: SocketAddr) -> Self {
        let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect(at).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self::Udp(socket)
    }

    fn tcp(at: SocketAddr) -> Self {
        let stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self::Tcp(stream)
    }

    fn ask(&mut self, id: u16) {
        let mut message = Message::query();
        message.metadata.id = id;
        message.metadata.recursion_desired = true;
        let name = Name::from_ascii("www.example.org.").unwrap();
        message.add_query(Query::query(name, RecordType::A));
        let octets = message.to_vec().unwrap();
        let answer = match self {
            Self::Udp(socket) => {
                socket.send(&octets).unwrap();
                let mut answer = [0; 512];
                let length = socket.recv(&mut answer).expect("an answer");
                answer[..length].to_vec()
            }
            Self::Tcp(stream) => {
                let length = u16::try_from(octets.len()).unwrap().to_be_bytes();
                stream.write_all(&[&length[..], &octets].concat()).unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).expect("an answer");
                let mut answer = vec![0; u16::from_be_bytes(length).into()];
                stream.read_exact(&mut answer).unwrap();
                answer
            }
        };
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!((answer.metadata.id, answer.answers.len()), (id, 1));
    }
}

#[test]
fn dns_57_what_is_asked_for_often_is_asked_for_anew_once() {
    /// Of the answer's 30 seconds nine tenths are left after three.
    const SOON: Prefetch = Prefetch { hits: 2, pause: Duration::from_mins(1), percent: 90 };
    for ((address, server), client) in
        families().flat_map(|family| [Client::udp, Client::tcp].map(|client| (family, client)))
    {
        let site = Site::new();
        let upstream = upstream(&site, server);
        let mut config = config(&[server]);
        config.routes[0].keeping.prefetch = Some(SOON);
        let _running = Running::start(&site, config, snapshot());
        let at = SocketAddr::new(address.parse().unwrap(), 53);
        site.pod.run(|| {
            let mut client = client(at);
            let asked = || upstream.times_asked("www.example.org.");
            client.ask(1);
            wait::until("the next answer to be asked for", LIMIT, || {
                client.ask(2);
                if asked() > 1 { Ok(()) } else { Err("not yet".to_owned()) }
            });
            let since = Instant::now();
            (0..200).for_each(|id| client.ask(id));
            // The next one is good for three seconds before it is time again.
            assert!(asked() == 2 || since.elapsed() > Duration::from_secs(2), "{}", asked());
        });
    }
}

#[test]
fn dns_59_a_name_that_came_is_not_hidden_by_its_absence() {
    for ((address, server), by) in
        families().flat_map(|family| ["+notcp", "+tcp"].map(|by| (family, by)))
    {
        let site = Site::new();
        let upstream = upstream(&site, server);
        let mut config = config(&[server]);
        // Short, so that its time is soon up; and it may outlive it by a day. Nobody asks before.
        config.routes[0].keeping.negative_ttl = (Duration::ZERO, Duration::from_secs(1));
        config.routes[0].keeping.prefetch = None;
        let _running = Running::start(&site, config, snapshot());
        let ask = |kind: &str| site.dig(&format!("@{address} {by} late.example.org {kind}"));
        assert!(ask("A").contains("status: NXDOMAIN"));
        assert!(ask("AAAA").contains("status: NXDOMAIN"), "of all types");
        assert_eq!(upstream.times_asked("late.example.org."), 1);
        upstream.release();
        for (kind, data) in [("A", "192.0.2.80"), ("AAAA", "2001:db8::50")] {
            wait::until("the name", LIMIT, || {
                let said = ask(kind);
                assert!(!said.contains("EDE: 19"), "its absence has outlived its time: {said}");
                if said.contains(data) { Ok(()) } else { Err(said) }
            });
        }
    }
}
