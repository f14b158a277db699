//! R4: what somebody alters of the pods in the datapath is found and mended, and counted.

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use mizzen_agent::{
    datapath::{Datapath, Pins},
    metrics::Metrics,
    podnet::datapath::{Announced, PodDatapath},
};
use mizzen_tests::{node::TestNode, wait::until};
use tokio::sync::mpsc;

use super::bed::{Node, Pod, model};

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
fn alter(pods: &dyn PodDatapath, pins: &Pins) {
    let seen = pods.survey().unwrap();
    let (address, endpoint) = seen.endpoints.first_key_value().unwrap();
    let key = format!("key hex {}", hex(&address.octets));
    bpftool("map delete pinned", &pins.map("ENDPOINTS"), &key);
    let (cookie, _) = seen.namespaces.first_key_value().unwrap();
    let key = format!("key hex {}", hex(&cookie.to_ne_bytes()));
    bpftool("map delete pinned", &pins.map("POD_NETNS"), &key);
    let element = "key hex 00 00 00 00 value hex 01 00 00 00";
    bpftool("map update pinned", &pins.map("SOCKET_OPTIONS"), element);
    let link = |program| pins.link(&format!("{program}-{}", endpoint.ifindex));
    fs::remove_file(link("tc_pod_ingress")).unwrap();
    bpftool("link detach pinned", &link("tc_pod_egress"), "");
}

#[test]
fn r04_what_somebody_alters_of_a_pod_is_mended_and_counted() {
    let place = TestNode::new("pods");
    let mut node = Node::new("a", &[model("a", 1)]);
    let datapath = node.netns.run(|| Datapath::open(&place.options())).unwrap();
    let pods: Arc<dyn PodDatapath> = Arc::new(datapath.pods().unwrap());
    let (released, _receiver) = mpsc::channel(1);
    let metrics: Arc<Metrics> = Arc::default();
    node.start_with(Arc::new(Announced::new(Arc::clone(&pods), released, metrics.clone())));
    node.wait_ready();
    let mut pod = Pod::new();
    node.add(&mut pod);

    let before = pods.survey().unwrap();
    assert_eq!((before.endpoints.len(), before.namespaces.len()), (2, 1));
    alter(&*pods, datapath.pins());
    assert_ne!(pods.survey().unwrap(), before);
    until("all of it to be mended", Duration::from_secs(10), || {
        let counted = ["ENDPOINTS", "POD_NETNS", "SOCKET_OPTIONS", "program"]
            .map(|what| metrics.tables.healed_of(what));
        if counted == [1, 1, 1, 2] { Ok(()) } else { Err(format!("{counted:?}")) }
    });
    assert_eq!(pods.survey().unwrap(), before);
    node.stop();
}
