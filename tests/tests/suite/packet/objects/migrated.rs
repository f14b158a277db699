//! R2: an agent that meets another layout of the maps takes over from it while flows of the packet
//! path go on.

use mizzen_agent::apply::maps::Maps as _;

use super::*;
use crate::socket::migration::age;

#[test]
fn b138_r02_flows_by_packet_go_on_while_an_older_layout_is_taken_over() {
    for family in FAMILIES {
        let mut lab = Lab::new([1, 1]);
        let to = SocketAddr::new(family.wire(OWN), NODE_PORT);
        let lead = |lab: &Lab| {
            let mut cluster = Cluster::new(lab, family, |_| {});
            cluster.lead_to(&[(1, &lab.nodes[0].pods[0]), (2, &lab.nodes[1].pods[0])]);
        };
        lead(&lab);
        // Enough of them that both backends have some.
        let flows: Vec<_> = TRANSPORTS
            .into_iter()
            .flat_map(|transport| (0..8).map(move |_| transport))
            .map(|transport| {
                let client = Client::dial(&lab.client, transport, to, 0).unwrap();
                let answer = client.ask().unwrap();
                (client, answer.name, answer.client, transport)
            })
            .collect();
        let go_on = |lab: &Lab, when: &str| {
            for (client, name, seen, transport) in &flows {
                let case = format!("{family:?} {transport:?}, {when}");
                let answer = client.ask().expect(&case);
                assert_eq!((&answer.name, &answer.client), (name, seen), "{case}");
                ask(&lab.client, *transport, to).expect(&case);
            }
        };
        let held = lab.nodes[0].tables.maps.dump().unwrap();
        age(&lab.nodes[0].node, &held);
        go_on(&lab, "no agent");
        lab.nodes[0].datapath = lab.nodes[0].node.open();
        go_on(&lab, "its tables are taken over");
        lead(&lab);
        go_on(&lab, "its tables are filled");
        lab.nodes[0].attach();
        lab.nodes[0].attach_pods();
        go_on(&lab, "its programs are replaced");
        let after = lab.nodes[0].datapath.maps().unwrap().dump().unwrap();
        assert_eq!(after.frontends, held.frontends, "sets keep their numbers");
        assert_eq!((&after.backends4, &after.backends6), (&held.backends4, &held.backends6));
        sane(&lab);
    }
}
