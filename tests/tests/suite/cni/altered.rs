//! R4: what somebody alters of the pods in the datapath is found and mended, and counted.

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use aya::maps::{HashMap, Map, MapData};
use mizzen_agent::{
    datapath::Datapath,
    metrics::Metrics,
    podnet::datapath::{Announced, PodDatapath},
    released,
};
use mizzen_ebpf_abi::pod_rate::PodRate;
use mizzen_tests::{netns::check, node::TestNode, wait::until};
use serde_json::json;

use super::bed::{LIMIT, Node, Pod, addresses, model, reach};

/// Runs bpftool on what is pinned at `path`.
fn bpftool(words: &str, path: &Path, more: &str) {
    let mut command = Command::new("bpftool");
    command.args(words.split(' ')).arg(path).args(more.split_whitespace());
    assert!(command.status().unwrap().success(), "{words} {} {more}", path.display());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

/// Of each kind of thing that the datapath has of a pod, some are altered.
fn alter(node: &Node, pods: &dyn PodDatapath, datapath: &Datapath) {
    let pins = datapath.pins();
    let seen = pods.survey().unwrap();
    let (address, _) = seen.endpoints.first_key_value().unwrap();
    let key = format!("key hex {}", hex(&address.octets));
    bpftool("map delete pinned", &pins.map("ENDPOINTS"), &key);
    let (cookie, _) = seen.namespaces.first_key_value().unwrap();
    let key = format!("key hex {}", hex(&cookie.to_ne_bytes()));
    bpftool("map delete pinned", &pins.map("POD_NETNS"), &key);
    let element = "key hex 00 00 00 00 value hex 01 00 00 00";
    bpftool("map update pinned", &pins.map("SOCKET_OPTIONS"), element);
    // One program is taken away, in the other's place is another one.
    let device = node.pod_links().remove(0);
    check(node.netns.command("tc").args(["filter", "del", "dev", &device, "ingress"]));
    let other = pins.link("tc_test_other");
    let id = datapath.programs().get("tc_uplink_egress").unwrap().id;
    bpftool(&format!("prog pin id {id}"), &other, "");
    let path = other.to_str().unwrap();
    let words = ["filter", "replace", "dev", &device, "egress", "pref", "2", "handle", "0x6d7a"];
    let program = ["bpf", "direct-action", "object-pinned", path];
    check(node.netns.command("tc").args(words).args(program));
    fs::remove_file(other).unwrap();
}

#[test]
fn r04_what_somebody_alters_of_a_pod_is_mended_and_counted() {
    let place = TestNode::new("pods");
    let mut node = Node::new("a", &[model("a", 1)]);
    let datapath = node.netns.run(|| Datapath::open(&place.options())).unwrap();
    let pods: Arc<dyn PodDatapath> = Arc::new(datapath.pods().unwrap());
    let (released, _receiver) = released::channel();
    let metrics: Arc<Metrics> = Arc::default();
    node.start_with(Arc::new(Announced::new(Arc::clone(&pods), released, metrics.clone())));
    node.wait_ready();
    let mut pod = Pod::new();
    node.add(&mut pod);

    let before = pods.survey().unwrap();
    assert_eq!((before.endpoints.len(), before.namespaces.len()), (2, 1));
    alter(&node, &*pods, &datapath);
    assert_ne!(pods.survey().unwrap(), before);
    until("all of it to be mended", Duration::from_secs(10), || {
        let counted = ["ENDPOINTS", "POD_NETNS", "SOCKET_OPTIONS", "program"]
            .map(|what| metrics.tables.healed_of(what));
        if counted == [1, 1, 1, 2] { Ok(()) } else { Err(format!("{counted:?}")) }
    });
    assert_eq!(pods.survey().unwrap(), before);
    node.stop();
}

/// A pod whose link somebody deleted has another device: the datapath has to know that one, and no
/// other.
#[test]
fn cni_29_a_link_that_is_made_anew_has_the_programs_and_entries_of_the_one_before() {
    let place = TestNode::new("anew");
    let mut node = Node::new("a", &[model("a", 1)]);
    let datapath = node.netns.run(|| Datapath::open(&place.options())).unwrap();
    let pods: Arc<dyn PodDatapath> = Arc::new(datapath.pods().unwrap());
    node.start_with(Arc::clone(&pods));
    node.wait_ready();
    let mut conf = node.conf("1.1.0");
    conf["runtimeConfig"] = json!({"bandwidth": {"egressRate": 8_000_000, "egressBurst": 80_000}});
    let mut pod = Pod::new();
    pod.addresses = addresses(&node.call_with("ADD", &pod, &conf).expect_success());
    let rates_table = datapath.pins().map("POD_RATES");
    let maps = rates_table.parent().unwrap();
    let ifindex = |node: &Node| {
        let shown = node.netns.ip(&format!("-o link show {}", node.pod_links().remove(0)));
        shown.split(':').next().unwrap().parse::<u32>().unwrap()
    };
    let before = ifindex(&node);
    assert_eq!(rates(maps), [before]);
    node.netns.ip(&format!("link del {}", node.pod_links().remove(0)));
    until("the link to be back in the datapath", LIMIT, || match node.call("CHECK", &pod) {
        outcome if outcome.success => Ok(()),
        outcome => Err(format!("{outcome:?}")),
    });
    let after = ifindex(&node);
    assert_ne!(after, before);
    assert_eq!(rates(maps), [after]);
    let seen = pods.survey().unwrap();
    assert_eq!((seen.endpoints.len(), seen.namespaces.len()), (2, 1));
    assert!(seen.endpoints.values().all(|endpoint| endpoint.ifindex == after));
    let mut other = Pod::new();
    node.add(&mut other);
    for address in pod.addresses.clone() {
        reach(other.netns(), pod.netns(), address);
    }
}

/// An agent that ended in the middle of an ADD, and the next one, which did not make that link.
#[test]
fn cni_19_an_add_that_is_undone_by_the_next_agent_leaves_no_rate() {
    let place = TestNode::new("undone");
    let mut node = Node::new("a", &[model("a", 1)]);
    let datapath = node.netns.run(|| Datapath::open(&place.options())).unwrap();
    let pods: Arc<dyn PodDatapath> = Arc::new(datapath.pods().unwrap());
    node.start_with(Arc::clone(&pods));
    node.wait_ready();
    let mut conf = node.conf("1.1.0");
    conf["runtimeConfig"] = json!({"bandwidth": {"egressRate": 8_000_000, "egressBurst": 80_000}});
    let pod = Pod::new();
    node.call_with("ADD", &pod, &conf).expect_success();
    let table = datapath.pins().map("POD_RATES");
    assert_eq!(rates(table.parent().unwrap()).len(), 1);
    node.stop();
    let journal = node.journal();
    let unfinished: Vec<_> = journal.lines().filter(|line| !line.contains("\"live\"")).collect();
    fs::write(node.state_dir().join("podnet.journal"), unfinished.join("\n") + "\n").unwrap();
    // The same handle of the tables: opening them forgets devices that are gone, in its own way.
    node.start_with(Arc::clone(&pods));
    node.wait_ready();
    assert_eq!(node.pod_links(), [""; 0]);
    assert_eq!(rates(table.parent().unwrap()), [0; 0]);
}

/// The devices of which the pinned table of rates speaks.
pub(super) fn rates(maps: &Path) -> Vec<u32> {
    let map = MapData::from_pin(maps.join("POD_RATES")).unwrap();
    let rates: HashMap<_, u32, PodRate> = HashMap::try_from(Map::HashMap(map)).unwrap();
    rates.keys().map(Result::unwrap).collect()
}

/// ADD answers when the pod's programs, its addresses and its place for policies are there.
#[test]
fn cni_33_add_answers_when_the_datapath_has_all_of_the_pod() {
    let place = TestNode::new("add");
    let mut node = Node::new("a", &[model("a", 1)]);
    let datapath = node.netns.run(|| Datapath::open(&place.options())).unwrap();
    let pods: Arc<dyn PodDatapath> = Arc::new(datapath.pods().unwrap());
    node.start_with(Arc::clone(&pods));
    node.wait_ready();
    let mut added = [Pod::new(), Pod::new(), Pod::new()];
    for (pod, count) in added.iter_mut().zip(1..) {
        node.add(pod);
        let seen = pods.survey().unwrap();
        assert_eq!((seen.endpoints.len(), seen.namespaces.len()), (2 * count, count));
        assert!(seen.endpoints.values().all(|endpoint| endpoint.identity == 0));
        let places = node.netns.run(|| datapath.places().read()).unwrap();
        let of_pods: Vec<_> =
            places.iter().filter(|place| place.program.starts_with("tc_pod_")).collect();
        assert_eq!(of_pods.len(), 2 * count);
        assert!(of_pods.iter().all(|place| place.in_force), "{of_pods:?}");
    }
}

/// CHECK looks at what the datapath has of the pod, too.
#[test]
fn cni_38_check_notices_what_the_datapath_lacks_of_a_pod() {
    let place = TestNode::new("check");
    let mut node = Node::new("a", &[model("a", 1)]);
    let datapath = node.netns.run(|| Datapath::open(&place.options())).unwrap();
    let pods: Arc<dyn PodDatapath> = Arc::new(datapath.pods().unwrap());
    node.start_with(Arc::clone(&pods));
    node.wait_ready();
    let mut pod = Pod::new();
    node.add(&mut pod);
    node.call("CHECK", &pod).expect_success();
    let device = node.pod_links().remove(0);
    let (address, _) = pods.survey().unwrap().endpoints.pop_first().unwrap();
    let key = format!("key hex {}", hex(&address.octets));
    let damages: [(&str, &dyn Fn()); 2] = [
        ("tc_pod_egress is not attached", &|| {
            let words = ["filter", "del", "dev", &device, "egress"];
            check(node.netns.command("tc").args(words));
        }),
        ("the datapath does not know", &|| {
            bpftool("map delete pinned", &datapath.pins().map("ENDPOINTS"), &key);
        }),
    ];
    for (said, damage) in damages {
        // What is damaged may be mended before CHECK looks.
        until(said, LIMIT, || {
            damage();
            match node.call("CHECK", &pod) {
                outcome if outcome.success => Err("CHECK noticed nothing".to_owned()),
                outcome => {
                    let text = outcome.expect_code(101);
                    assert!(text.contains(said), "{text}");
                    Ok(())
                }
            }
        });
        until("it to be mended", LIMIT, || match node.call("CHECK", &pod) {
            outcome if outcome.success => Ok(()),
            outcome => Err(format!("{outcome:?}")),
        });
    }
}
