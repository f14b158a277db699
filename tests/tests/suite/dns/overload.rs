//! More questions than can be answered: the newest are, and none waits for long.

use std::{collections::BTreeSet, net::UdpSocket, time::Duration};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RecordType},
};
use mizzen_agent::dns::metrics::Shed;
use mizzen_tests::{
    lab::{FAMILIES, Family},
    netns::Netns,
    wait,
};

use super::{
    field::{Field, NAME, UPSTREAM, dns},
    site::{CLUSTER, OUTSIDE, Running, Site, config, dig, snapshot},
    upstream::Upstream,
};

const LIMIT: Duration = Duration::from_secs(10);

/// A client's socket that is connected to `server`.
fn client(netns: &Netns, server: &str) -> UdpSocket {
    let any = if server.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    netns.run(|| {
        let socket = UdpSocket::bind(any).unwrap();
        socket.connect((server, 53)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    })
}

pub(super) fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

/// The next answer's identifier and code.
fn answer(socket: &UdpSocket) -> std::io::Result<(u16, u16)> {
    let mut octets = [0; 1500];
    let length = socket.recv(&mut octets)?;
    let message = Message::from_vec(&octets[..length]).unwrap();
    Ok((message.metadata.id, message.metadata.response_code.into()))
}

/// Far more than one thread answers, and more than may wait; where this machine has other work, so
/// that questions come slowly, again.
#[test]
fn a_flood_of_questions_is_shed_and_counted() {
    const FLOODS: usize = 20;
    let site = Site::new();
    let mut config = config(&[]);
    config.threads = 1;
    for server in CLUSTER {
        let running = Running::start(&site, config.clone(), snapshot());
        let shed = || -> u64 {
            let reasons = [Shed::Full, Shed::Late, Shed::Socket];
            reasons.map(|why| running.metrics.count_of_shed(why)).iter().sum()
        };
        let newest_first = (0..FLOODS).any(|_| {
            let before = shed();
            let (answered, sent) = flood(&site, server);
            let shed = shed() - before;
            let distinct: BTreeSet<_> = answered.iter().collect();
            assert_eq!(distinct.len(), answered.len(), "none is answered twice");
            assert!(answered.len() as u64 + shed <= sent, "{} + {shed}", answered.len());
            shed > 0 && answered.windows(2).any(|pair| pair[0] > pair[1])
        });
        assert!(newest_first, "{} were shed", shed());
    }
}

/// Asks as fast as it goes, by a socket of its own; what was answered in its order, and how many were
/// sent.
fn flood(site: &Site, server: &str) -> (Vec<u16>, u64) {
    const ASKED: u16 = 60_000;
    let socket = client(&site.pod, server);
    socket2::SockRef::from(&socket).set_recv_buffer_size(64 << 20).unwrap();
    let listener = socket.try_clone().unwrap();
    let mut asked = question(0, "web.default.svc.cluster.local.");
    std::thread::scope(|scope| {
        let end = ASKED;
        let answered = scope.spawn(move || {
            let mut answered = Vec::new();
            while let Ok((id, code)) = answer(&listener) {
                assert_eq!(code, 0);
                if id == end {
                    break;
                }
                answered.push(id);
            }
            answered
        });
        let mut sent = 0;
        for id in 0..ASKED {
            asked[..2].copy_from_slice(&id.to_be_bytes());
            sent += u64::from(socket.send(&asked).is_ok());
        }
        // When all is over, which is when nothing of it waits, one is answered as ever.
        asked[..2].copy_from_slice(&end.to_be_bytes());
        let mut again = 0;
        while !answered.is_finished() {
            again += u64::from(socket.send(&asked).is_ok());
            std::thread::sleep(Duration::from_millis(20));
        }
        (answered.join().unwrap(), sent + again)
    })
}

/// Five times as many names as may be asked for at once.
#[test]
fn questions_for_upstreams_wait_in_a_bounded_room_the_newest_first() {
    const AT_ONCE: u16 = 4;
    let site = Site::new();
    let mut config = config(&[]);
    config.forward.max_in_flight = AT_ONCE.into();
    // As long as the upstream makes them wait.
    config.forward.patience = Duration::from_mins(1);
    config.forward.attempt = Duration::from_mins(1);
    config.forward.total = Duration::from_mins(1);
    for (server, address) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[address.parse().unwrap()]);
        let to = super::site::config(&[address]);
        let config = mizzen_agent::dns::Config { routes: to.routes, ..config.clone() };
        let running = Running::start(&site, config, snapshot());
        let socket = client(&site.pod, server);
        let name = |id| format!("held-{id}.example.org.");
        for id in 0..5 * AT_ONCE {
            socket.send(&question(id, &name(id))).unwrap();
        }
        // Those that are too many hear so at once: all but those under way and the newest.
        let refused: BTreeSet<_> = (0..3 * AT_ONCE).map(|_| answer(&socket).unwrap()).collect();
        let failed = |id| (id, ResponseCode::ServFail.into());
        assert_eq!(refused, (AT_ONCE..4 * AT_ONCE).map(failed).collect());
        wait::until("the questions", LIMIT, || {
            let asked = (0..AT_ONCE).filter(|id| upstream.times_asked(&name(*id)) == 1).count();
            if asked == usize::from(AT_ONCE) { Ok(()) } else { Err(format!("{asked}")) }
        });
        // Who asks for what is asked for already takes no place of its own.
        socket.send(&question(99, &name(0))).unwrap();
        socket.send(&question(98, &name(4 * AT_ONCE))).unwrap();
        let mut text = String::new();
        running.metrics.write(&mut text);
        let rejected = format!("max_concurrent_rejects_total {}\n", 3 * AT_ONCE);
        assert!(text.contains(&rejected), "{text}");
        upstream.release();
        let answered: BTreeSet<_> =
            (0..2 * AT_ONCE + 2).map(|_| answer(&socket).unwrap()).collect();
        let there = (0..AT_ONCE).chain(4 * AT_ONCE..5 * AT_ONCE).chain([98, 99]);
        assert_eq!(answered, there.map(|id| (id, ResponseCode::NXDomain.into())).collect());
        for id in AT_ONCE..4 * AT_ONCE {
            assert_eq!(upstream.times_asked(&name(id)), 0, "let go before anybody was asked");
        }
        // What failed for want of room is not remembered as a failure of the name.
        socket.send(&question(7, &name(AT_ONCE))).unwrap();
        assert_eq!(answer(&socket).unwrap(), (7, ResponseCode::NXDomain.into()));
    }
}

/// A client whose questions nobody answers takes the places of no other: some are left, and who has
/// fewest is next.
#[test]
fn dns_64_one_client_leaves_places_to_others() {
    const AT_ONCE: u16 = 8;
    /// Three times what is left, and the one more that comes to it.
    const ITS_OWN: u16 = 7;
    const ASKED: u16 = 5 * AT_ONCE;
    let site = Site::new();
    let mut config = config(&[]);
    config.forward.max_in_flight = AT_ONCE.into();
    config.forward.patience = Duration::from_mins(1);
    config.forward.attempt = Duration::from_mins(1);
    config.forward.total = Duration::from_mins(1);
    for (server, address) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[address.parse().unwrap()]);
        let to = super::site::config(&[address]);
        let config = mizzen_agent::dns::Config { routes: to.routes, ..config.clone() };
        let _running = Running::start(&site, config, snapshot());
        let [one, other] = [&site.pod, &site.node].map(|host| client(host, server));
        for id in 0..ASKED {
            one.send(&question(id, &format!("held-{id}.example.org."))).unwrap();
        }
        // As many as wait are left, and those under way.
        for _ in 0..ASKED - AT_ONCE - ITS_OWN {
            assert_eq!(answer(&one).unwrap().1, u16::from(ResponseCode::ServFail));
        }
        for id in 0..AT_ONCE {
            other.send(&question(id, &format!("any-{id}.example.org."))).unwrap();
            assert_eq!(answer(&other).unwrap(), (id, ResponseCode::NoError.into()));
        }
        upstream.release();
        for _ in 0..AT_ONCE + ITS_OWN {
            assert_eq!(answer(&one).unwrap().1, u16::from(ResponseCode::NXDomain));
        }
    }
}

/// More clients than may wait, for one name: those who came first hear that they are too many, and
/// those who came last get the answer.
#[test]
fn of_clients_that_wait_the_oldest_makes_room() {
    /// For each question that may be under way.
    const WAITING: u16 = 8;
    /// Fewer than are taken together: of such the newest would be first already.
    const MORE: u16 = 3 * WAITING;
    let site = Site::new();
    let mut config = config(&[]);
    config.forward.max_in_flight = 1;
    config.forward.attempt = Duration::from_mins(1);
    config.forward.total = Duration::from_mins(1);
    for (server, address) in CLUSTER.into_iter().zip(OUTSIDE) {
        let upstream = Upstream::start(&site.outside, &[address.parse().unwrap()]);
        let to = super::site::config(&[address]);
        let config = mizzen_agent::dns::Config { routes: to.routes, ..config.clone() };
        let running = Running::start(&site, config, snapshot());
        let socket = client(&site.pod, server);
        for id in 0..MORE {
            socket.send(&question(id, "held.example.org.")).unwrap();
        }
        let refused: BTreeSet<_> = (0..MORE - WAITING).map(|_| answer(&socket).unwrap()).collect();
        let failed = |id| (id, ResponseCode::ServFail.into());
        assert_eq!(refused, (0..MORE - WAITING).map(failed).collect());
        let mut text = String::new();
        running.metrics.write(&mut text);
        let rejected = format!("max_concurrent_rejects_total {}\n", MORE - WAITING);
        assert!(text.contains(&rejected), "{text}");
        upstream.release();
        let answered: BTreeSet<_> = (0..WAITING).map(|_| answer(&socket).unwrap()).collect();
        let there = |id| (id, ResponseCode::NoError.into());
        assert_eq!(answered, (MORE - WAITING..MORE).map(there).collect());
        assert_eq!(upstream.times_asked("held.example.org."), 1);
    }
}

/// The most memory that a process had since the last call, in octets.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let said = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib: u64 = said.trim().trim_end_matches(" kB").parse().unwrap();
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    kib << 10
}

/// Names that nobody answers, as fast as they can be asked for: what waits for upstreams, and for its
/// turn, is bounded, and so is an agent's memory; and when it is over it answers as before.
#[test]
fn a_flood_of_names_takes_bounded_memory() {
    const ASKED: u32 = 200_000;
    /// Twice what those take that may wait, in a build for tests, and a twentieth of what all of them
    /// would.
    const MOST: u64 = 192 << 20;
    let field = Field::new();
    let [host, other] = &field.hosts;
    let upstream = Family::V4.wire(UPSTREAM);
    other.node.netns.ip(&format!("addr add {upstream}/24 dev eth0"));
    let _deaf = other.node.netns.run(|| UdpSocket::bind((upstream, 53)).unwrap());
    let agent = field.agent(host, &[]);
    for family in FAMILIES {
        let server = dns(family);
        let socket = client(&host.pod, &server.ip().to_string());
        let mut asked = question(0, "00000000.example.org.");
        peak(agent.pid());
        let before = peak(agent.pid());
        for number in 0..ASKED {
            // The first label stands behind the header and its own length.
            asked[13..21].copy_from_slice(format!("{number:08}").as_bytes());
            let _no_room = socket.send(&asked);
        }
        wait::until("an answer", LIMIT, || {
            let said = dig(&host.pod, &format!("@{} +time=1 {NAME} A", server.ip()));
            if said.contains("status: NOERROR") { Ok(()) } else { Err(said) }
        });
        let most = peak(agent.pid());
        assert!(most < before + MOST, "{before} {most}");
    }
}
