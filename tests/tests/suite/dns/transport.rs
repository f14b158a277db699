//! What stands between a client and an answer: sizes, sources, connections, and rubbish.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SOA},
};
use mizzen_agent::{dns::Config, model::node::Node, status::State};
use mizzen_tests::wait;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    site::{CLUSTER, NODE, NODE_LOCAL, OUTSIDE, POD, Running, Site, config, dig, snapshot},
    upstream::Upstream,
};

const PATIENCE: Duration = Duration::from_secs(15);

fn question(id: u16, name: &str) -> Vec<u8> {
    of_type(id, name, RecordType::A).to_vec().unwrap()
}

fn of_type(id: u16, name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn framed(octets: &[u8]) -> Vec<u8> {
    [&u16::try_from(octets.len()).unwrap().to_be_bytes()[..], octets].concat()
}

fn at(address: &str) -> SocketAddr {
    (address.parse::<IpAddr>().unwrap(), 53).into()
}

/// An unbound UDP socket of that family, which takes answers from anywhere.
fn open(to: SocketAddr) -> UdpSocket {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn receive(stream: &mut TcpStream) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).expect("an answer");
    let mut octets = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut octets).expect("a whole answer");
    Message::from_vec(&octets).expect("a message")
}

/// What is answered to `query` by UDP and by TCP.
fn both(site: &Site, address: &str, query: &Message) -> [Message; 2] {
    let (octets, to) = (query.to_vec().unwrap(), at(address));
    site.pod.run(|| {
        let socket = open(to);
        socket.send_to(&octets, to).unwrap();
        let mut buffer = [0; 1500];
        let length = socket.recv(&mut buffer).expect("an answer");
        let mut stream = connect(to);
        stream.write_all(&framed(&octets)).unwrap();
        [Message::from_vec(&buffer[..length]).expect("a message"), receive(&mut stream)]
    })
}

fn size(said: &str) -> usize {
    let line = said.lines().find(|line| line.contains("MSG SIZE")).expect("a size");
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn dns_39_dns_40_dns_41_dns_49_a_thousand_endpoints() {
    let site = Site::new();
    let _running = Running::start(&site, config(&[]), snapshot());
    for address in CLUSTER {
        let name = format!("@{address} hdls.default.svc.cluster.local A");
        for (options, limit) in [("+noedns", 512), ("+bufsize=4096", 1232), ("+bufsize=700", 700)] {
            let said = site.dig(&format!("{options} +notcp +ignore {name}"));
            assert!(said.contains("flags: qr aa tc rd ra;"), "{said}");
            assert!(size(&said) <= limit, "{said}");
            assert!(!said.contains("Warning") && !said.contains("malformed"), "{said}");
        }
        // dig does what a client does that gets an answer with TC: it asks by TCP.
        let all = site.dig(&format!("+short {name}"));
        assert_eq!(all.lines().filter(|line| line.starts_with("10.244.")).count(), 1000);
    }
}

#[test]
fn dns_48_answers_come_from_the_address_that_was_asked() {
    let site = Site::new();
    let _running = Running::start(&site, config(&[]), snapshot());
    for address in CLUSTER.iter().chain(&NODE_LOCAL) {
        let to = at(address);
        site.pod.run(|| {
            let socket = open(to);
            socket.send_to(&question(7, "web.default.svc.cluster.local."), to).unwrap();
            let mut buffer = [0; 512];
            let (_, from) = socket.recv_from(&mut buffer).expect("an answer");
            assert_eq!(from, to);
        });
    }
}

#[test]
fn dns_41_a_slow_answer_holds_up_no_other_on_its_connection() {
    let site = Site::new();
    let upstream = Upstream::start(&site.outside, &[OUTSIDE[0].parse().unwrap()]);
    let _running = Running::start(&site, config(&[OUTSIDE[0]]), snapshot());
    for (place, address) in CLUSTER.iter().enumerate() {
        site.pod.run(|| {
            let mut stream = connect(at(address));
            // Another name each time: that nobody answered is remembered.
            let silent = format!("silent-{place}.example.org.");
            let mut both = framed(&question(1, &silent));
            both.extend(framed(&question(2, "web.default.svc.cluster.local.")));
            // In two pieces that end inside a message.
            stream.write_all(&both[..both.len() - 9]).unwrap();
            stream.write_all(&both[both.len() - 9..]).unwrap();
            assert_eq!(receive(&mut stream).metadata.id, 2);
            let late = receive(&mut stream);
            assert_eq!(
                (late.metadata.id, late.metadata.response_code),
                (1, ResponseCode::ServFail)
            );
        });
    }
    assert!(upstream.times_asked("silent-1.example.org.") >= 4);
}

#[test]
fn dns_41_connections_are_bounded_in_time() {
    let site = Site::new();
    let mut config = config(&[]);
    config.tcp.idle = Duration::from_millis(300);
    config.tcp.transfer = Duration::from_millis(300);
    let _running = Running::start(&site, config, snapshot());
    for address in CLUSTER {
        site.pod.run(|| {
            let query = framed(&question(1, "web.default.svc.cluster.local."));
            let mut kept: Vec<_> = (0..3).map(|_| connect(at(address))).collect();
            for stream in &mut kept {
                stream.write_all(&query).unwrap();
                receive(stream);
            }
            // Half a message, and none at all: both are closed in time.
            kept[0].write_all(&query[..7]).unwrap();
            for stream in &mut kept {
                assert!(closed(stream));
            }
        });
    }
}

/// Of as many as there may be, of one client and together, the one that has been idle for longest
/// makes room; where none is idle, it is one too many.
#[test]
fn dns_41_the_connection_that_is_idle_for_longest_makes_room() {
    let site = Site::new();
    let mut config = config(&[]);
    (config.tcp.max_connections, config.tcp.max_per_source) = (4, 3);
    // Nothing ends by itself.
    config.tcp.idle = Duration::from_mins(5);
    (config.forward.attempt, config.forward.total) = (PATIENCE * 4, PATIENCE * 4);
    let query = framed(&question(1, "web.default.svc.cluster.local."));
    let ask = |stream: &mut TcpStream| {
        stream.write_all(&query).unwrap();
        assert_eq!(receive(stream).answers.len(), 1);
    };
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let config = Config { routes: super::site::config(&[server]).routes, ..config.clone() };
        let _running = Running::start(&site, config, snapshot());
        let of_pod = || site.pod.run(|| connect(at(address)));
        let of_node = || site.node.run(|| connect(at(address)));
        let [mut a, mut b, mut c] = [(); 3].map(|()| {
            let mut stream = of_pod();
            ask(&mut stream);
            stream
        });
        ask(&mut a);
        // The pod has its three.
        let mut d = of_pod();
        ask(&mut d);
        assert!(closed(&mut b), "it was idle for longest");
        for stream in [&mut a, &mut c, &mut d] {
            ask(stream);
        }
        // And there are four together.
        let [first, second] = [(); 2].map(|()| {
            let mut stream = of_node();
            ask(&mut stream);
            stream
        });
        assert!(closed(&mut a), "it was idle for longest of all");
        // Who waits for an answer is not idle.
        let mut all = [c, d, first, second];
        let name = |place| format!("held-{place}.example.org.");
        for (place, stream) in all.iter_mut().enumerate() {
            stream.write_all(&framed(&question(7, &name(place)))).unwrap();
            wait::until("the question", PATIENCE, || match upstream.times_asked(&name(place)) {
                0 => Err("not asked".to_owned()),
                _ => Ok(()),
            });
        }
        assert!(closed(&mut of_node()), "one too many");
        upstream.release();
        for stream in &mut all {
            assert_eq!(receive(stream).metadata.id, 7);
            ask(stream);
        }
    }
}

/// Whether the other side closes within the time that `connect` gives it.
fn closed(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(length) => length == 0,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn dns_44_dns_50_dns_51_rubbish_is_survived() {
    let site = Site::new();
    let mut config = config(&[]);
    // More than are opened here: their ends are heard of later than the next is opened.
    (config.tcp.max_connections, config.tcp.max_per_source) = (1024, 1024);
    let _running = Running::start(&site, config, snapshot());
    let good = question(9, "web.default.svc.cluster.local.");
    // Every single octet changed, every length, and nothing at all.
    let changed = (0..good.len()).flat_map(|place| {
        [0, 0x3f, 0xc0, 0xff].map(|octet| {
            let mut octets = good.clone();
            octets[place] = octet;
            octets
        })
    });
    let rubbish: Vec<_> =
        changed.chain((0..good.len()).map(|length| good[..length].to_vec())).collect();
    for address in CLUSTER {
        site.pod.run(|| {
            let socket = open(at(address));
            for octets in &rubbish {
                socket.send_to(octets, at(address)).unwrap();
                let mut stream = connect(at(address));
                stream.write_all(&framed(octets)).unwrap();
            }
            let socket = open(at(address));
            socket.send_to(&good, at(address)).unwrap();
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer).expect("it still answers");
            assert_eq!(Message::from_vec(&buffer[..length]).unwrap().answers.len(), 1);
            let mut stream = connect(at(address));
            stream.write_all(&framed(&good)).unwrap();
            assert_eq!(receive(&mut stream).answers.len(), 1);
        });
    }
}

/// A datagram with that source port, of which 0 is none.
fn from_port(from: IpAddr, port: u16, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let mut datagram = [port.to_be_bytes(), to.port().to_be_bytes(), length, [0, 0]].concat();
    datagram.extend(payload);
    // RFC 768, RFC 8200 8.1: over the addresses, the protocol and the length too.
    let addresses = [from, to.ip()].map(|address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    });
    let summed = [addresses.concat(), vec![0, 17], length.to_vec(), datagram.clone()].concat();
    let words = summed
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let sum = !u16::try_from(sum).unwrap();
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

#[test]
fn dns_51_who_has_no_port_is_not_answered() {
    let site = Site::new();
    let running = Running::start(&site, config(&[]), snapshot());
    let asked = |id| question(id, "web.default.svc.cluster.local.");
    let counted = || {
        let mut text = String::new();
        running.metrics.write(&mut text);
        let lines = text.lines().filter(|line| line.starts_with("coredns_dns_requests_total{"));
        let counts = lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap());
        counts.sum::<u64>()
    };
    for (place, (own, address)) in POD.iter().zip(CLUSTER).enumerate() {
        let (own, to): (IpAddr, _) = (own.parse().unwrap(), at(address));
        site.pod.run(|| {
            let raw = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::UDP)).unwrap();
            let send = |port| {
                let datagram = from_port(own, port, to, &asked(port));
                // A raw socket has no port of its own.
                let there = SocketAddr::new(to.ip(), 0);
                assert_eq!(raw.send_to(&datagram, &there.into()).unwrap(), datagram.len());
            };
            // With a port the same is answered; what comes before it has been seen by then.
            let socket = UdpSocket::bind((own, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            (0..10).for_each(|_| send(0));
            send(socket.local_addr().unwrap().port());
            let length = socket.recv(&mut [0; 512]).expect("an answer");
            assert!(length > 12);
        });
        wait::until("the answer to be counted", PATIENCE, || match counted() {
            count if count > u64::try_from(place).unwrap() => Ok(()),
            count => Err(format!("{count}")),
        });
        assert_eq!(counted(), u64::try_from(place).unwrap() + 1);
    }
}

/// What a client adds that we do not know is passed over, what it wants of signatures is said back,
/// and a cookie, which may be ignored (RFC 7873 5.2), is none of ours.
#[test]
fn dns_43_what_clients_add_changes_no_answer() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let _upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let _running = Running::start(&site, config(&[server]), snapshot());
        for (name, data) in
            [("web.default.svc.cluster.local", "10.96.1.1"), ("www.example.org", "192.0.2.80")]
        {
            for by in ["+notcp", "+tcp"] {
                for (options, flags) in [
                    ("+cookie +ednsopt=65001:0102 +subnet=192.0.2.0/24", "flags:;"),
                    ("+dnssec +cookie=0011223344556677 +nsid", "flags: do;"),
                ] {
                    let said = site.dig(&format!("@{address} {by} {options} {name} A"));
                    assert!(said.contains("status: NOERROR") && said.contains(data), "{said}");
                    let edns = format!("; EDNS: version: 0, {flags} udp: 1232");
                    assert!(said.contains(&edns), "{said}");
                    let echoed = ["COOKIE", "65001", "CLIENT-SUBNET", "NSID"];
                    let own = said.split("OPT PSEUDOSECTION").nth(1).unwrap_or_default();
                    assert!(!echoed.iter().any(|option| own.contains(option)), "{said}");
                }
            }
        }
    }
}

#[test]
fn dns_42_dns_44_what_is_refused() {
    let site = Site::new();
    let _running = Running::start(&site, config(&[]), snapshot());
    for address in CLUSTER {
        for (question, status) in [
            ("+edns=1 +noednsneg web.default.svc.cluster.local A", "BADVERS"),
            ("+opcode=notify cluster.local SOA", "NOTIMP"),
            ("version.bind CH TXT", "REFUSED"),
        ] {
            let said = site.dig(&format!("@{address} {question}"));
            assert!(said.contains(status), "{question}: {said}");
        }
    }
}

#[test]
fn dns_45_nothing_is_copied_and_no_answer_is_more_than_a_record() {
    let site = Site::new();
    for (address, server) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[server.parse().unwrap()]);
        let _running = Running::start(&site, config(&[server]), snapshot());
        for name in ["cluster.local.", "default.svc.cluster.local.", "example.org."] {
            // As secondaries ask: an increment from the serial that they have (RFC 1995 3).
            let zone = Name::from_ascii(name).unwrap();
            let serial = RData::SOA(SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 5));
            let mut increment = of_type(1, name, RecordType::IXFR);
            increment.add_authority(Record::from_rdata(zone, 5, serial));
            for query in [of_type(2, name, RecordType::AXFR), increment] {
                for answer in both(&site, address, &query) {
                    assert_eq!(answer.metadata.response_code, ResponseCode::Refused, "{answer}");
                    assert_eq!(records(&answer), [0; 3], "{answer}");
                }
            }
        }
        for (name, expected) in [
            // There is no record of that type; whatever else the name has is not said.
            ("web.default.svc.cluster.local.", [0, 1, 0]),
            ("hdls.default.svc.cluster.local.", [0, 1, 0]),
            ("_http._tcp.db.default.svc.cluster.local.", [0, 1, 0]),
            ("ext.default.svc.cluster.local.", [0, 1, 0]),
            ("1.1.96.10.in-addr.arpa.", [0, 1, 0]),
            ("cluster.local.", [0, 1, 0]),
            ("www.example.org.", [1, 0, 0]),
            ("big.example.org.", [1, 0, 0]),
        ] {
            for answer in both(&site, address, &of_type(3, name, RecordType::ANY)) {
                assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{answer}");
                assert_eq!(records(&answer), expected, "{answer}");
                let mut said = answer.answers.iter().chain(&answer.authorities);
                let told = [RecordType::SOA, RecordType::HINFO];
                assert!(said.all(|record| told.contains(&record.record_type())), "{answer}");
            }
        }
        for name in ["example.org.", "www.example.org.", "big.example.org."] {
            assert_eq!(upstream.times_asked(name), 0, "{name}");
        }
    }
}

/// How many records the sections behind the question have.
fn records(message: &Message) -> [usize; 3] {
    [&message.answers, &message.authorities, &message.additionals].map(Vec::len)
}

#[test]
fn the_peer_port_is_for_the_cluster() {
    let site = Site::new();
    let _running = Running::start(&site, config(&[]), snapshot());
    let port = Config::default().peer_port.expect("a peer port");
    for (place, address) in NODE.iter().enumerate() {
        let question = format!("-p {port} @{address} +short web.default.svc.cluster.local A");
        for by in ["+notcp", "+tcp"] {
            assert_eq!(site.dig(&format!("{question} {by}")), "10.96.1.1\n");
            assert_eq!(dig(&site.node, &format!("{question} {by}")), "10.96.1.1\n");
        }
        // The host outside is no node: its datagrams are dropped and its connections closed.
        let to = SocketAddr::new(address.parse().unwrap(), port);
        site.outside.run(|| {
            assert!(closed(&mut connect(to)), "{place}");
            let socket = open(to);
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket.send_to(&self::question(1, "web.default.svc.cluster.local."), to).unwrap();
            let error = socket.recv(&mut [0; 512]).expect_err("no answer");
            assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
        });
    }
}

/// Pods whose addresses are in no node's podCIDRs, as other plugins give them.
#[test]
fn the_peer_port_is_for_pods_of_the_ranges_that_are_named() {
    let site = Site::new();
    let mut config = config(&[]);
    config.pod_ranges = ["192.0.2.100/31", "fd00:30::100/127"].map(|r| r.parse().unwrap()).to_vec();
    let mut all = snapshot();
    for node in all.nodes.clone().values() {
        let node = Node { pod_cidrs: Vec::new(), ..(**node).clone() };
        all.nodes.insert(node.name.clone(), Arc::new(node));
    }
    let running = Running::start(&site, config.clone(), all.clone());
    let port = config.peer_port.expect("a peer port");
    for (own, address) in OUTSIDE.iter().zip(NODE) {
        for by in ["+notcp", "+tcp"] {
            let question = format!("-b {own} -p {port} @{address} +short {by}");
            let said = dig(&site.outside, &format!("{question} web.default.svc.cluster.local A"));
            assert_eq!(said, "10.96.1.1\n");
        }
    }
    drop(running);
    // Without any it is said who is not answered.
    config.pod_ranges.clear();
    let running = Running::begin(&site, config, all);
    running.until(
        "it to be said",
        |state| matches!(state, State::Degraded(why) if why.contains("no range of pods is known")),
    );
}
