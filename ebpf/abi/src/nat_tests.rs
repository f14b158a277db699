//! The masquerade matrix B20-B48 as a table, and translation there and back as a property.

extern crate std;

use proptest::prelude::*;
use std::{collections::BTreeSet, vec::Vec};

use super::*;
use crate::service::frontend_flags::{EXTERNAL, KEEP_SOURCE};

const MASQUERADE_ALL: u32 = node_config_flags::MASQUERADE_ALL;
const NO_DETECTION: u32 = node_config_flags::NO_POD_DETECTION;

/// The columns of the reference's matrix: which window, and whether masqueraded.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Row {
    /// The external traffic policy's window; else all (or, to a ClusterIP, the internal policy's).
    bound: bool,
    masqueraded: bool,
}

/// Of each family the same, where the configuration says the same of both.
fn row(origin: Origin, frontend: u32, config: u32) -> Row {
    let [v4, v6] = [true, false].map(|v4| row_of(v4, origin, frontend, config));
    assert_eq!(v4, v6);
    v4
}

fn row_of(v4: bool, origin: Origin, frontend: u32, config: u32) -> Row {
    let facts = Facts { origin, frontend, config, v4 };
    Row { bound: facts.bound_by_external_policy(), masqueraded: facts.masquerades(false) }
}

const CLUSTER_IP: u32 = 0;
const CLUSTER_POLICY: u32 = EXTERNAL;
const LOCAL_POLICY: u32 = EXTERNAL | KEEP_SOURCE;

const POD: Origin = Origin::Pod;
const NODE: Origin = Origin::Node;
const OUTSIDE: Origin = Origin::Outside;
const POD_ELSEWHERE: Origin = Origin::PodElsewhere;

/// B20-B46, as the reference lists them: number, client, frontend, whether the external policy's
/// window counts, whether masqueraded. That window holds all backends but where the external
/// policy is Local; the internal policy's window is in the range's header (B38, B41, B44).
const MATRIX: [(u8, Origin, u32, bool, bool); 27] = [
    (20, POD, CLUSTER_IP, false, false),
    (21, POD, CLUSTER_POLICY, false, true),
    (22, POD, CLUSTER_POLICY, false, true),
    (23, NODE, CLUSTER_IP, false, true),
    (24, NODE, CLUSTER_POLICY, false, true),
    (25, NODE, CLUSTER_POLICY, false, true),
    (26, OUTSIDE, CLUSTER_IP, false, true),
    (27, OUTSIDE, CLUSTER_POLICY, true, true),
    (28, OUTSIDE, CLUSTER_POLICY, true, true),
    (29, POD, CLUSTER_IP, false, false),
    (30, POD, LOCAL_POLICY, false, false),
    (31, POD, LOCAL_POLICY, false, false),
    (32, NODE, CLUSTER_IP, false, true),
    (33, NODE, LOCAL_POLICY, false, true),
    (34, NODE, LOCAL_POLICY, false, true),
    (35, OUTSIDE, CLUSTER_IP, false, true),
    (36, OUTSIDE, LOCAL_POLICY, true, false),
    (37, OUTSIDE, LOCAL_POLICY, true, false),
    (38, POD, CLUSTER_IP, false, false),
    (39, POD, CLUSTER_POLICY, false, true),
    (40, POD, CLUSTER_POLICY, false, true),
    (41, NODE, CLUSTER_IP, false, true),
    (42, NODE, CLUSTER_POLICY, false, true),
    (43, NODE, CLUSTER_POLICY, false, true),
    (44, OUTSIDE, CLUSTER_IP, false, true),
    (45, OUTSIDE, CLUSTER_POLICY, true, true),
    (46, OUTSIDE, CLUSTER_POLICY, true, true),
];

#[test]
fn b20_to_b46_who_is_masqueraded_and_who_is_bound_by_the_external_policy() {
    for (number, origin, frontend, bound, masqueraded) in MATRIX {
        assert_eq!(row(origin, frontend, 0), Row { bound, masqueraded }, "B{number}");
    }
}

/// A pod of another node is bound where its source is kept, as a client outside is, and is like any
/// pod where it is not or a cluster IP is dialled.
#[test]
fn b30_b31_a_pod_of_another_node_is_bound_by_the_external_policy_local() {
    for config in [0, MASQUERADE_ALL, NO_DETECTION, MASQUERADE_ALL | NO_DETECTION] {
        for frontend in [CLUSTER_IP, CLUSTER_POLICY, LOCAL_POLICY] {
            let like = if frontend == LOCAL_POLICY { OUTSIDE } else { POD };
            let expected = row(like, frontend, config);
            assert_eq!(row(POD_ELSEWHERE, frontend, config), expected, "{frontend:#x} {config:#b}");
        }
    }
}

/// The same rows with what B47 and B48 say of them.
#[test]
fn b20_to_b48_with_each_configuration() {
    for config in [NO_DETECTION, MASQUERADE_ALL, MASQUERADE_ALL | NO_DETECTION] {
        for (number, origin, frontend, bound, masqueraded) in MATRIX {
            let blind = config & NO_DETECTION != 0;
            let expected = if frontend == CLUSTER_IP {
                let all = config & MASQUERADE_ALL != 0;
                Row { bound, masqueraded: all || (!blind && masqueraded) }
            } else {
                Row { bound: bound || (blind && origin == POD), masqueraded }
            };
            assert_eq!(row(origin, frontend, config), expected, "B{number} {config:#b}");
        }
    }
}

#[test]
fn b47_without_detection_of_pods_they_are_outsiders() {
    for origin in [Origin::Pod, Origin::Node, Origin::Outside] {
        assert!(!row(origin, CLUSTER_IP, NO_DETECTION).masqueraded, "{origin:?}");
        assert!(row(origin, CLUSTER_POLICY, NO_DETECTION).masqueraded, "{origin:?}");
    }
    assert_eq!(
        row(Origin::Pod, LOCAL_POLICY, NO_DETECTION),
        Row { bound: true, masqueraded: false }
    );
    assert_eq!(
        row(Origin::Node, LOCAL_POLICY, NO_DETECTION),
        Row { bound: false, masqueraded: true }
    );
}

#[test]
fn b47_detection_of_pods_is_a_familys_own() {
    for blind_v4 in [true, false] {
        let config = node_config_flags::no_pod_detection(blind_v4);
        for v4 in [true, false] {
            let like = if v4 == blind_v4 { NO_DETECTION } else { 0 };
            for (number, origin, frontend, ..) in MATRIX {
                let expected = row(origin, frontend, like);
                assert_eq!(row_of(v4, origin, frontend, config), expected, "B{number} {v4}");
            }
        }
    }
}

#[test]
fn b48_masquerade_all_is_about_cluster_ips() {
    for detection in [0, NO_DETECTION] {
        for origin in [Origin::Pod, Origin::Node, Origin::Outside] {
            let config = MASQUERADE_ALL | detection;
            assert!(row(origin, CLUSTER_IP, config).masqueraded, "{origin:?}");
            for frontend in [CLUSTER_POLICY, LOCAL_POLICY] {
                assert_eq!(row(origin, frontend, config), row(origin, frontend, detection));
            }
        }
    }
}

#[test]
fn b02_hairpin_is_always_masqueraded() {
    for origin in [Origin::Pod, Origin::Node, Origin::Outside] {
        for frontend in [CLUSTER_IP, CLUSTER_POLICY, LOCAL_POLICY] {
            for config in [0, MASQUERADE_ALL, NO_DETECTION] {
                let facts = |v4| Facts { origin, frontend, config, v4 };
                assert!(facts(true).masquerades(true) && facts(false).masquerades(true));
            }
        }
    }
}

#[test]
fn u4_source_ports_stay_in_their_range_and_probes_are_distinct() {
    for (min, max) in [(10_000, 29_999), (65_000, 65_535), (7, 38)] {
        let config = NodeConfig { snat_port_min: min, snat_port_max: max, ..NodeConfig::default() };
        for start in [0, 1, 19_999, u32::MAX / 2, u32::MAX] {
            let probes: BTreeSet<u16> = (0..crate::limits::SNAT_PROBES_MAX)
                .map(|probe| u16::from_be_bytes(source_port(&config, start, probe)))
                .collect();
            assert_eq!(probes.len(), 32);
            assert!(probes.iter().all(|port| (min..=max).contains(port)), "{probes:?}");
        }
    }
}

#[test]
fn an_unset_range_of_source_ports_is_the_default() {
    let starts = [0, 77, 20_000, u32::MAX];
    let ports: Vec<u16> = starts
        .iter()
        .map(|&start| u16::from_be_bytes(source_port(&NodeConfig::default(), start, 3)))
        .collect();
    assert!(ports.iter().all(|port| (SNAT_PORT_MIN..=SNAT_PORT_MAX).contains(port)));
}

#[test]
fn a_masquerade_address_has_the_packets_family() {
    let v4 = Addr::from_v4([10, 0, 0, 1]);
    let v6 = Addr::from_v6([0xfd; 16]);
    let config = NodeConfig { ipv4: v4, ipv6: v6, ..NodeConfig::default() };
    assert_eq!(masquerade_address(&config, true), Some(v4));
    assert_eq!(masquerade_address(&config, false), Some(v6));
    for unset in [Addr::default(), Addr::ANY_V4, v6] {
        let config = NodeConfig { ipv4: unset, ..config };
        assert_eq!(masquerade_address(&config, true), None);
    }
    assert_eq!(masquerade_address(&NodeConfig::default(), false), None);
}

pub(crate) fn any_addr(v4: bool) -> impl Strategy<Value = Addr> {
    any::<[u8; 16]>().prop_map(move |octets| {
        if v4 {
            Addr::from_v4([octets[0], octets[1], octets[2], octets[3]])
        } else {
            Addr::from_v6([
                0x20 | octets[0] >> 4,
                octets[1],
                3,
                4,
                5,
                6,
                7,
                8,
                9,
                10,
                11,
                12,
                13,
                octets[13],
                octets[14],
                octets[15],
            ])
        }
    })
}

/// A flow and what becomes of it, within one family.
pub(crate) fn any_translation() -> impl Strategy<Value = (FlowKey, Translation)> {
    let ends = |v4| (any_addr(v4), any_addr(v4), any_addr(v4), any_addr(v4));
    (any::<bool>().prop_flat_map(ends), any::<[[u8; 2]; 4]>(), prop_oneof![Just(6_u8), Just(17_u8)])
        .prop_map(|((client, service, source, destination), ports, protocol)| {
            let key = FlowKey {
                source: client,
                destination: service,
                source_port: ports[0],
                destination_port: ports[1],
                protocol,
                pad: [0; 3],
            };
            let translation = Translation {
                source,
                destination,
                source_port: ports[2],
                destination_port: ports[3],
            };
            (key, translation)
        })
}

pub(crate) fn filled(key: &FlowKey, to: &Translation) -> Entries {
    let mut entries = Entries::default();
    entries.fill(key, to, 5);
    entries
}

#[test]
fn d18_answers_to_the_node_itself_go_to_its_stack_by_the_device_of_the_flow() {
    let mut entries = Entries::default();
    entries.set_device(7);
    assert_eq!((entries.original.device, entries.reply.device), (7, 7));
    assert_eq!(entries.reply.flags, flow_flags::TO_NODE);
    assert_eq!(entries.original.flags, 0);
    let mut entries = Entries::default();
    entries.set_device(0);
    assert_eq!(entries, Entries::default());
}

proptest! {
    #[test]
    fn b136_there_and_back_is_identity((key, translation) in any_translation()) {
        let entries = filled(&key, &translation);
        let sent = key.rewritten(&entries.original);
        prop_assert_eq!(sent.source, translation.source);
        prop_assert_eq!(sent.destination_port, translation.destination_port);
        let answer = sent.reversed();
        prop_assert_eq!(answer, entries.reply_key);
        prop_assert_eq!(answer.rewritten(&entries.reply), key.reversed());
    }

    #[test]
    fn each_entry_names_the_other((key, translation) in any_translation()) {
        let entries = filled(&key, &translation);
        prop_assert_eq!(key.rewritten(&entries.original).reversed(), entries.reply_key);
        prop_assert_eq!(entries.reply_key.rewritten(&entries.reply).reversed(), key);
        prop_assert_eq!((entries.original.opened, entries.reply.opened), (5, 5));
    }

    #[test]
    fn flags_say_what_is_rewritten((key, translation) in any_translation()) {
        let entries = filled(&key, &translation);
        let sent = key.rewritten(&entries.original);
        let source = (sent.source, sent.source_port) != (key.source, key.source_port);
        let flags = entries.original.flags;
        prop_assert_eq!(flags & flow_flags::REWRITE_SOURCE != 0, source);
        prop_assert_eq!(entries.reply.flags & flow_flags::REWRITE_DESTINATION != 0, source);
        prop_assert!(flags & flow_flags::ORIGINAL != 0);
        prop_assert!(entries.reply.flags & flow_flags::ORIGINAL == 0);
    }
}
