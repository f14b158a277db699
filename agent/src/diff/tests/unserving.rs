//! Endpoints that cease to serve while others do: datagram sockets that are connected to them are
//! ended, so that they find another, as the packets of a flow do.

use std::net::SocketAddr;

use mizzen_ebpf_abi::service::backend_flags;

use super::{
    gone::{Kind, first},
    *,
};
use crate::{
    diff::plan::Reset,
    model::{endpoints::EndpointSlice, service::Protocol},
};

fn of(ipv6: bool) -> Kind {
    Kind { ipv6, protocol: Protocol::Udp, local: false, spares: false }
}

/// The next agent; whom its first plan has reset.
fn next(before: Agent, snapshot: &Snapshot) -> (Agent, Vec<Reset>) {
    let mut agent = Agent::start(before.maps, snapshot);
    let resets = agent.resync().resets;
    (agent, resets)
}

const BOTH: [bool; 2] = [false, true];

#[test]
fn b101_datagram_sockets_leave_an_endpoint_that_ceases_to_serve() {
    for ipv6 in BOTH {
        let mut agent = of(ipv6).following("rr");
        let (set, at) = (first(&agent).owner, first(&agent).at);
        let generation = agent.maps.tables().sets[&set].generation();
        let expected = Reset {
            set,
            protocol: Protocol::Udp,
            endpoint: SocketAddr::from(at),
            generation,
            backend: None,
        };
        assert_eq!(agent.meet(&of(ipv6).cluster("nr")), [expected]);
        assert_eq!(first(&agent).flags, backend_flags::FREED | backend_flags::UNSERVING);
        let again = of(ipv6).cluster("nrn");
        assert_eq!(agent.meet(&again), [], "once, and nothing of one that never served");
        let writes = agent.maps.writes();
        let (mut agent, resets) = next(agent, &again);
        assert_eq!((resets, agent.maps.writes()), (Vec::new(), writes), "nor after a restart");
        // It serves again, and ceases to: whoever came meanwhile has to go as well.
        assert_eq!(agent.meet(&of(ipv6).cluster("rr")), []);
        let resets = agent.meet(&of(ipv6).cluster("nr"));
        assert_eq!(resets, [Reset { generation: generation + 2, ..expected }]);
    }
}

#[test]
fn b102_datagram_sockets_stay_while_no_other_endpoint_serves() {
    for ipv6 in BOTH {
        let mut agent = of(ipv6).following("r");
        assert_eq!(agent.meet(&of(ipv6).cluster("n")), []);
        let resets = agent.meet(&of(ipv6).cluster("nr"));
        assert_eq!(resets.len(), 1, "another serves now");
        assert!(records(agent.maps.tables()).any(|of| of.flags & backend_flags::UNSERVING != 0));
    }
}

#[test]
fn b101_that_an_endpoint_ceased_to_serve_while_no_agent_ran_is_found_out() {
    for ipv6 in BOTH {
        let agent = of(ipv6).following("rr");
        let (_, resets) = next(agent, &of(ipv6).cluster("nr"));
        assert_eq!(resets.len(), 1);
    }
}

#[test]
fn r08_v8_nothing_else_ends_what_is_connected_to_a_live_endpoint() {
    for (ipv6, states) in BOTH.into_iter().flat_map(|ipv6| ["tr", "ur", "-r"].map(|s| (ipv6, s))) {
        let mut agent = of(ipv6).following("rr");
        assert_eq!(agent.meet(&of(ipv6).cluster(states)), [], "{states}");
    }
    for ipv6 in BOTH {
        for (protocol, spares) in [(Protocol::Tcp, false), (Protocol::Udp, true)] {
            let kind = Kind { protocol, spares, ..of(ipv6) };
            let mut agent = kind.following("rr");
            assert_eq!(agent.meet(&kind.cluster("nr")), [], "{kind:?}");
        }
        // It terminates, and ceases to serve meanwhile.
        let mut agent = of(ipv6).following("rr");
        let mut ends = of(ipv6).cluster("nr");
        let slices = ends.slices.iter().map(|(key, slice)| {
            let mut slice = EndpointSlice::clone(slice);
            slice.endpoints.iter_mut().filter(|of| !of.ready).for_each(|of| of.terminating = true);
            (key.clone(), Arc::new(slice))
        });
        ends.slices = slices.collect();
        assert_eq!(agent.meet(&ends), []);
    }
}
