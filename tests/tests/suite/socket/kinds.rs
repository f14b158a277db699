//! Which sockets are translated at all: every way to dial that the kernel has (reference D21).
//!
//! `io_uring` and the kernel's own sockets (NFS, SMB) dial by the same functions of the protocols,
//! where the hooks are; neither has a test of its own here.

use std::{io, net::SocketAddr};

use mizzen_ebpf_abi::{addr::protocol::TCP, counters::Counter};

use super::each_family;

#[test]
fn b08_b09_another_port_of_a_cluster_ip_refuses_tcp_and_never_fails_udp() {
    each_family(|bench| {
        let vip = SocketAddr::new(bench.family.vip(10), 80);
        let set = bench.tables.set_of(&[bench.a]);
        bench.tables.frontend(vip, TCP, set, 0);
        bench.tables.guard(vip.ip());
        let other = bench.family.dialled(SocketAddr::new(vip.ip(), 81));
        let vip = bench.family.dialled(vip);
        assert_eq!(bench.ask(vip).unwrap().0, "a");
        let refused = bench.ask(other).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{refused}");
        for to in [vip, other] {
            let socket = bench.actor.open(bench.family.udp());
            bench.actor.connect(socket, to).unwrap();
            assert_eq!(bench.actor.peer(socket), to);
        }
    });
}

#[test]
fn b10_an_address_that_no_service_has_is_not_refused() {
    each_family(|bench| {
        let nobody = bench.family.dialled(SocketAddr::new(bench.family.vip(99), 80));
        let lost = bench.ask(nobody).unwrap_err();
        assert_eq!(lost.kind(), io::ErrorKind::TimedOut, "{lost}");
    });
}

#[test]
fn d21_a_fast_open_is_translated() {
    each_family(|bench| {
        let vip = bench.service(10, &[bench.a]);
        let socket = bench.actor.open(bench.family.tcp());
        bench.actor.send_fast(socket, vip, "?");
        // Who answers closes with the question unread: there may be no peer any more to ask for.
        assert_eq!(bench.actor.receive(socket), "a");
        assert_eq!(bench.counted(Counter::SocketTranslated), 1);
    });
}

/// The kernel dials by a TCP socket inside of the MPTCP socket: that one is translated.
#[test]
fn d21_multipath_tcp_is_translated() {
    if std::fs::read_to_string("/proc/sys/net/mptcp/enabled").is_err() {
        println!("this kernel has no MPTCP");
        return;
    }
    each_family(|bench| {
        let vip = bench.service(10, &[bench.a]);
        let empty = bench.service(11, &[]);
        let kind = bench.family.tcp().replace("tcp", "mptcp");
        let socket = bench.actor.open(&kind);
        bench.actor.connect(socket, vip).unwrap();
        assert_eq!(bench.actor.receive(socket), "a");
        let socket = bench.actor.open(&kind);
        let refused = bench.actor.connect(socket, empty).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{refused}");
    });
}

#[test]
fn a_tcp_socket_that_disconnects_forgets_its_service() {
    each_family(|bench| {
        let vip = bench.service(10, &[bench.a]);
        let pod = bench.family.dialled(bench.a);
        let socket = bench.actor.open(bench.family.tcp());
        for to in [vip, pod, vip] {
            bench.actor.connect(socket, to).unwrap();
            assert_eq!(bench.actor.receive(socket), "a");
            assert_eq!(bench.actor.peer(socket), to);
            bench.actor.disconnect(socket);
        }
    });
}

/// A datagram socket that was connected to a service, and dials the service's backend itself.
#[test]
fn d08_a_datagram_socket_that_disconnects_hears_its_backend_as_the_one_that_it_dials() {
    each_family(|bench| {
        let vip = bench.service(10, &[bench.a]);
        let pod = bench.family.dialled(bench.a);
        let socket = bench.actor.open(bench.family.udp());
        for _ in 0..2 {
            bench.actor.connect(socket, vip).unwrap();
            bench.actor.send(socket, "?");
            assert_eq!(bench.actor.receive_from(socket).0, vip);
            bench.actor.send_to(socket, pod, "?");
            assert_eq!(bench.actor.receive_from(socket).0, vip, "it is connected");
            assert_eq!(bench.actor.peer(socket), vip);
            // What is on its way when the connection ends is the service's.
            // (After that the kernel gives its port up: it has to be there.)
            bench.actor.send(socket, "?");
            bench.actor.until_readable(socket);
            bench.actor.disconnect(socket);
            assert_eq!(bench.actor.receive_from(socket).0, vip, "a late answer");
            bench.actor.send_to(socket, pod, "?");
            assert_eq!(bench.actor.receive_from(socket), (pod, "a".to_owned()));
        }
    });
}

/// Sockets that are older than the agent: what is connected stays as it is, what is not is
/// translated from its next datagram on (D16).
#[test]
fn d16_sockets_older_than_the_agent() {
    each_family(|bench| {
        let vip = bench.service(10, &[bench.a]);
        for pin in ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6"] {
            std::fs::remove_file(bench.datapath.pins().link(pin)).unwrap();
        }
        super::restart::untranslated(bench, vip);
        let connected = bench.actor.open(bench.family.udp());
        bench.actor.connect(connected, vip).unwrap();
        let free = bench.actor.open(bench.family.udp());
        bench.actor.send_to(free, vip, "?");
        bench.datapath.attach_sockets().unwrap();
        bench.actor.send_to(free, vip, "?");
        assert_eq!(bench.actor.receive_from(free), (vip, "a".to_owned()));
        bench.actor.send(connected, "?");
        assert_eq!(bench.actor.peer(connected), vip, "dialled before there was anybody to ask");
    });
}
