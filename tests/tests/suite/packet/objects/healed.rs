//! R4: a program at an uplink that somebody detaches while clients use a node port.

use std::fs;

use mizzen_agent::{
    datapath::{Leads, Outcome, PacketPrograms, find_uplinks},
    supervisor::TaskError,
};
use mizzen_tests::{
    netns::{Netns, check},
    storm::Plan,
};

use super::*;

/// The programs of the node's uplinks, as the agent attaches them.
struct AttachUplinks {
    netns: Arc<Netns>,
    programs: PacketPrograms,
}

impl Attach for AttachUplinks {
    fn attach(&mut self, addresses: &[IpAddr]) -> Result<usize, TaskError> {
        let Self { netns, programs } = self;
        netns.run(|| -> Result<usize, TaskError> {
            let mut attached = 0;
            for device in find_uplinks(&[], addresses)?.devices {
                let outcomes = programs.attach(&device, Leads::ToHosts)?;
                let fresh = |(_, outcome): &(&str, Outcome)| *outcome == Outcome::Attached;
                attached += outcomes.iter().filter(|outcome| fresh(outcome)).count();
            }
            Ok(attached)
        })
    }
}

/// Detaches a program of the uplink, by its link or, where the kernel has none for packets, as a
/// filter.
fn detach(lab: &Lab, program: &str) {
    let node = &lab.nodes[0];
    let pins = fs::read_dir(node.datapath.pins().links()).unwrap();
    let pin = pins.map(|entry| entry.unwrap().path()).find(|path| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(program))
    });
    if let Some(pin) = pin {
        fs::remove_file(pin).unwrap();
    } else {
        let way = program.rsplit('_').next().unwrap();
        let words = ["filter", "del", "dev", "eth0", way];
        check(node.node.netns.command("tc").args(words));
    }
}

/// While it is away new connections fail. What was idle goes on when it is back, and so does a
/// datagram socket that was not.
#[test]
fn r04_a_program_of_an_uplink_that_is_detached_under_load_is_attached_again() {
    let lab = Lab::new([1, 1]);
    for family in FAMILIES {
        for program in ["tc_uplink_ingress", "tc_uplink_egress"] {
            let case = format!("{family:?} {program}");
            let node = &lab.nodes[0];
            let attach = AttachUplinks {
                netns: Arc::clone(&node.node.netns),
                programs: node.datapath.packet_programs(),
            };
            let mut cluster = Cluster::with(&lab, family, Box::new(attach), |_| {});
            cluster.lead_to(&[(1, &node.pods[0]), (2, &lab.nodes[1].pods[0])]);
            let to = SocketAddr::new(family.wire(OWN), NODE_PORT);
            let dial = |transport| Client::dial(&lab.client, transport, to, 0).unwrap();
            let [idle, datagrams] = [Transport::Tcp, Transport::Udp].map(dial);
            let name = idle.ask().unwrap().name;
            datagrams.ask().unwrap();
            // Programs of the second node are at no socket.
            let mut load = lab.nodes[1].node.pod_actor(&lab.client);
            let plan = Plan { to, name: "pod-".into(), rate: 200, lasting: 0 };
            load.storm(&plan);

            detach(&lab, program);
            until("the program to be attached again", Duration::from_secs(20), || {
                cluster.follow();
                match cluster.metrics.tables.healed_of("program") {
                    0 => Err(format!("{case}: nothing is healed")),
                    _ => Ok(()),
                }
            });
            assert_eq!(cluster.metrics.tables.healed_of("program"), 1, "{case}");
            assert!(load.stop().done > 0, "{case}");
            load.storm(&plan);
            assert_eq!(idle.ask().unwrap().name, name, "{case}");
            until("an answer to a datagram", Duration::from_secs(10), || {
                datagrams.ask().map(drop).map_err(|error| format!("{case}: {error}"))
            });
            for _ in 0..20 {
                ask(&lab.client, Transport::Tcp, to).expect(&case);
            }
            let after = load.stop();
            assert_eq!(after.failed, 0, "{case}: {}", after.first_failure);
        }
    }
    sane(&lab);
}
