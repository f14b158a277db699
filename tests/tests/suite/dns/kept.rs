//! What is remembered of upstreams' answers, as clients see it: for whom, for how long, and when it
//! is asked for again.

use std::{
    net::{SocketAddr, UdpSocket},
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
fn dns_55_what_was_cut_is_not_kept() {
    let site = Site::new();
    for (address, server) in families() {
        let upstream = upstream(&site, server);
        let _running = Running::start(&site, config(&[server]), snapshot());
        let ask = || {
            let said = site.dig(&format!("@{address} +notcp +ignore cut.example.org A"));
            assert!(said.contains("flags: qr tc rd ra;") && said.contains("192.0.2.80"), "{said}");
            upstream.times_asked("cut.example.org.")
        };
        let [first, second, third] = [ask(), ask(), ask()];
        // By UDP, and in vain by TCP, each time.
        assert_eq!([first, second, third], [2, 4, 6]);
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
        // What does not change the answer is no other question.
        assert_eq!(["+tcp", "+bufsize=600", "+noedns", "+adflag"].map(ask), [4; 4]);
    }
}

/// Asks as often as it takes and as fast as it goes, by one socket.
fn ask_by(socket: &UdpSocket, id: u16) {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    let name = Name::from_ascii("www.example.org.").unwrap();
    message.add_query(Query::query(name, RecordType::A));
    socket.send(&message.to_vec().unwrap()).unwrap();
    let mut octets = [0; 512];
    let length = socket.recv(&mut octets).expect("an answer");
    let answer = Message::from_vec(&octets[..length]).unwrap();
    assert_eq!((answer.metadata.id, answer.answers.len()), (id, 1));
}

#[test]
fn dns_57_what_is_asked_for_often_is_asked_for_anew_once() {
    /// Of the answer's 30 seconds nine tenths are left after three.
    const SOON: Prefetch = Prefetch { hits: 2, pause: Duration::from_mins(1), percent: 90 };
    for (address, server) in families() {
        let site = Site::new();
        let upstream = upstream(&site, server);
        let mut config = config(&[server]);
        config.routes[0].keeping.prefetch = Some(SOON);
        let _running = Running::start(&site, config, snapshot());
        let at = SocketAddr::new(address.parse().unwrap(), 53);
        site.pod.run(|| {
            let any = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(at).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            let asked = || upstream.times_asked("www.example.org.");
            ask_by(&socket, 1);
            wait::until("the next answer to be asked for", LIMIT, || {
                ask_by(&socket, 2);
                if asked() > 1 { Ok(()) } else { Err("not yet".to_owned()) }
            });
            let since = Instant::now();
            (0..200).for_each(|id| ask_by(&socket, id));
            // The next one is good for three seconds before it is time again.
            assert!(asked() == 2 || since.elapsed() > Duration::from_secs(2), "{}", asked());
        });
    }
}

#[test]
fn dns_59_a_name_that_came_is_not_hidden_by_its_absence() {
    for (address, server) in families() {
        let site = Site::new();
        let upstream = upstream(&site, server);
        let mut config = config(&[server]);
        // Short, so that its time is soon up; and it may outlive it by a day. Nobody asks before.
        config.routes[0].keeping.negative_ttl = (Duration::ZERO, Duration::from_secs(1));
        config.routes[0].keeping.prefetch = None;
        let _running = Running::start(&site, config, snapshot());
        let ask = |kind: &str| site.dig(&format!("@{address} late.example.org {kind}"));
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
