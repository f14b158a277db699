//! Agents that are away, come back, or can't serve.

use std::{
    fs::{self, File},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use mizzen_agent::{
    model::node::{Cidr, Node as ModelNode},
    podnet::{
        datapath::{PodDatapath, PodDatapathError, PodLink},
        monitor::Monitor,
        notice,
    },
    status::State,
};
use mizzen_cni::wire::{self, Mac};
use mizzen_tests::wait::until;

use super::bed::{LIMIT, Node, Pod, model, reach, snapshot};

#[test]
fn cni_34_add_without_an_agent_fails_at_once_with_a_reason() {
    let node = Node::new("a", &[]);
    let start = Instant::now();
    let text = node.call("ADD", &Pod::new()).expect_code(11);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(text.contains("cni.sock") && text.contains("mizzen-agent"), "{text}");
}

#[test]
fn cni_35_del_without_an_agent_frees_all_and_the_agent_learns_of_it() {
    let mut node = Node::alone();
    let mut pod = Pod::new();
    node.add(&mut pod);
    node.stop();
    node.call("DEL", &pod).expect_success();
    assert_eq!(node.pod_links(), [""; 0]);
    let noted = node.state_dir().join("cni-del.journal");
    assert!(fs::read_to_string(&noted).unwrap().contains(&pod.container_id));
    node.start();
    node.wait_ready();
    assert!(!noted.exists());
    until("the release of its addresses", LIMIT, || match node.journal() {
        text if released(&pod, &text) => Ok(()),
        text => Err(text),
    });
    node.call("CHECK", &pod).expect_code(3);
}

/// A DEL that went by the agent, as one that was too slow, before the same container was added again.
#[test]
fn cni_35_what_is_added_again_outlives_a_del_that_was_noted_before() {
    let mut node = Node::alone();
    let mut pod = Pod::new();
    node.add(&mut pod);
    let id = &pod.container_id;
    let note = format!("{{\"containerID\":\"{id}\",\"ifname\":\"eth0\"}}\n");
    fs::write(node.state_dir().join("cni-del.journal"), note).unwrap();
    node.add(&mut pod);
    node.stop();
    node.start();
    node.wait_ready();
    node.call("CHECK", &pod).expect_success();
}

#[test]
fn del_succeeds_where_no_agent_has_ever_been() {
    let node = Node::new("a", &[]);
    node.call("DEL", &Pod::new()).expect_success();
}

#[test]
fn a_node_without_pod_cidrs_waits_says_so_and_serves_when_they_come() {
    let bare = ModelNode { pod_cidrs: vec![], ..model("a", 1) };
    let mut node = Node::new("a", &[bare]);
    node.start();
    let waits = |state: &State| match state {
        State::Waiting(text) => text.contains("node a has no podCIDRs"),
        _ => false,
    };
    node.wait_state("a reason to wait", waits);
    assert!(!node.conflist().exists());
    let pod = Pod::new();
    let text = node.call("ADD", &pod).expect_code(11);
    assert!(text.contains("node a has no podCIDRs"), "{text}");
    node.call("STATUS", &pod).expect_code(50);
    node.snapshots.send_replace(snapshot(&[model("a", 1)]).into());
    node.wait_ready();
    assert!(node.conflist().exists());
    node.call("ADD", &pod).expect_success();
}

/// Others still remember who had an address.
#[test]
fn cni_22_a_freed_address_rests_though_the_nodes_ranges_change() {
    let node = Node::alone();
    let mut pod = Pod::new();
    node.add(&mut pod);
    node.call("DEL", &pod).expect_success();
    assert_eq!(node.pod_links(), [""; 0]);
    until("the release", LIMIT, || match node.journal() {
        text if released(&pod, &text) => Ok(()),
        text => Err(text),
    });
    let mut changed = model("a", 1);
    changed.pod_cidrs[1] = "fd00:244:7::/64".parse().unwrap();
    node.snapshots.send_replace(snapshot(&[changed]).into());
    let mut next = Pod::new();
    until("an address of the other range", LIMIT, || {
        node.add(&mut next);
        let is_other = next.addresses[1].to_string().starts_with("fd00:244:7:");
        if is_other {
            return Ok(());
        }
        node.call("DEL", &next).expect_success();
        Err(format!("{:?}", next.addresses))
    });
    assert_ne!(next.addresses[0], pod.addresses[0]);
}

#[test]
fn cni_43_the_configuration_stays_when_the_agent_stops() {
    let mut node = Node::alone();
    let written = fs::read_to_string(node.conflist()).unwrap();
    assert!(written.contains(node.state_dir().to_str().unwrap()), "{written}");
    assert!(node.folder.path().join("bin/mizzen-cni").exists());
    node.stop();
    assert_eq!(fs::read_to_string(node.conflist()).unwrap(), written);
}

#[test]
fn cni_44_a_folder_of_configurations_that_was_deleted_is_filled_again() {
    let node = Node::alone();
    let written = fs::read_to_string(node.conflist()).unwrap();
    fs::remove_dir_all(node.conflist().parent().unwrap()).unwrap();
    until("the configuration to be back", LIMIT, || match fs::read_to_string(node.conflist()) {
        Ok(text) if text == written => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// Remembers what it was told.
#[derive(Default)]
struct Recorder(Mutex<Vec<PodLink>>);

impl PodDatapath for Recorder {
    fn attach(&self, link: &PodLink, _: Option<&File>) -> Result<(), PodDatapathError> {
        self.0.lock().unwrap().push(link.clone());
        Ok(())
    }

    fn detach(&self, link: &PodLink) -> Result<(), PodDatapathError> {
        self.0.lock().unwrap().retain(|known| known.ifname != link.ifname);
        Ok(())
    }
}

/// The start-up taint is removed, and the node is said to have a network, when no part waits any
/// more (`a_node_is_said_to_have_a_network_when_its_agent_serves_and_not_before`).
#[test]
fn a_node_on_which_runtimes_do_not_find_the_plugin_does_not_serve() {
    let mut node = Node::new("a", &[model("a", 1)]);
    let waits = |node: &Node, why: &str| {
        node.wait_state(why, |state| matches!(state, State::Waiting(said) if said.contains(why)));
    };
    // Folders that can't be written, and a configuration that goes before ours.
    let folder = |name: &str| node.folder.path().join(name);
    let (conf_dir, bin_dir) = (folder("net.d"), folder("bin"));
    fs::write(&bin_dir, "").unwrap();
    node.start();
    waits(&node, bin_dir.to_str().unwrap());
    node.stop();
    fs::remove_file(&bin_dir).unwrap();
    fs::write(&conf_dir, "").unwrap();
    node.start();
    waits(&node, conf_dir.to_str().unwrap());
    node.stop();
    fs::remove_file(&conf_dir).unwrap();
    fs::create_dir(&conf_dir).unwrap();
    let other = conf_dir.join("05-other.conflist");
    fs::write(&other, "{}").unwrap();
    node.start();
    waits(&node, "05-other.conflist instead of ours");
    fs::remove_file(&other).unwrap();
    node.wait_ready();
    // What comes later is a damage: pods are connected all the same.
    fs::write(&other, "{}").unwrap();
    fs::remove_file(node.conflist()).unwrap();
    node.wait_state(
        "the damage",
        |state| matches!(state, State::Degraded(said) if said.contains("05-other.conflist")),
    );
}

/// No pod is known: what matters is what every agent would hear.
struct Nothing;

impl notice::Known for Nothing {
    fn link(&self, _: u32) -> Option<(Mac, u32)> {
        None
    }

    fn mtu(&self) -> u32 {
        1500
    }

    fn ranges(&self) -> Vec<Cidr> {
        Vec::new()
    }
}

#[test]
fn a_restart_keeps_every_pod_attaches_it_again_and_writes_nothing() {
    let mut node = Node::alone();
    let (mut kept, mut gone) = (Pod::new(), Pod::new());
    let result = node.add(&mut kept);
    node.add(&mut gone);
    node.stop();
    node.call("DEL", &gone).expect_success();
    let monitor =
        node.netns.run(|| Monitor::start(|told| notice::matters(told, &Nothing)).unwrap());
    let recorder = Arc::new(Recorder::default());
    let datapath: Arc<dyn PodDatapath> = recorder.clone();
    node.start_with(datapath);
    node.wait_ready();
    let attached = recorder.0.lock().unwrap().clone();
    let known: Vec<_> = attached.iter().map(|link| link.addresses.clone()).collect();
    assert_eq!(known, [kept.addresses.clone()]);
    assert!(attached[0].ifindex > 0);
    let silent = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let heard = silent
        .block_on(async { tokio::time::timeout(Duration::from_millis(300), monitor.told()).await });
    assert!(heard.is_err(), "the restart changed links, addresses or routes");
    assert_eq!(node.call("ADD", &kept).expect_success(), result);
    // No address of a live pod is given again.
    let mut new = Pod::new();
    node.add(&mut new);
    assert_ne!(new.addresses, kept.addresses);
    assert_ne!(new.addresses, gone.addresses, "cooling down, across the restart");
    reach(new.netns(), kept.netns(), kept.addresses[0]);
}

/// Whether the journal notes the pod's end.
fn released(pod: &Pod, journal: &str) -> bool {
    journal.lines().any(|line| line.contains("released") && line.contains(&pod.container_id))
}

#[test]
fn cni_29_a_pod_whose_namespace_died_gives_its_addresses_back() {
    let mut node = Node::alone();
    let (mut first, mut second) = (Pod::new(), Pod::new());
    node.add(&mut first);
    node.add(&mut second);
    // Under a running agent.
    first.netns = None;
    until("the first pod's release", LIMIT, || match node.journal() {
        text if released(&first, &text) => Ok(()),
        text => Err(text),
    });
    // Under a stopped one.
    node.stop();
    second.netns = None;
    until("the end of the second pod's link", LIMIT, || match node.pod_links() {
        links if links.is_empty() => Ok(()),
        links => Err(format!("{links:?}")),
    });
    node.start();
    node.wait_ready();
    node.call("CHECK", &Pod { netns: Pod::new().netns, ..second }).expect_code(3);
}

/// An ADD whose plugin does not wait for the answer.
fn add_and_die(node: &Node, pod: &Pod) {
    let request = wire::Request {
        version: wire::VERSION,
        timeout_ms: 8000,
        trace: wire::Trace::default(),
        network: "mizzen".into(),
        command: wire::Command::Add {
            attachment: wire::Attachment {
                container_id: pod.container_id.clone(),
                ifname: "eth0".into(),
            },
            pod: wire::Pod::default(),
            requested: Box::default(),
        },
    };
    let netns = File::open(pod.netns().path()).unwrap();
    let mut stream = UnixStream::connect(node.state_dir().join("cni.sock")).unwrap();
    wire::send(&mut stream, &request, Some(netns.as_fd())).unwrap();
}

#[test]
fn cni_17_a_repeated_add_whose_plugin_died_leaves_the_pod_as_it_was() {
    let node = Node::alone();
    let mut pod = Pod::new();
    let result = node.add(&mut pod);
    for _ in 0..10 {
        add_and_die(&node, &pod);
    }
    // It is behind those.
    assert_eq!(node.call("ADD", &pod).expect_success(), result);
    node.call("CHECK", &pod).expect_success();
    assert!(!node.journal().contains("\"leaving\""), "{}", node.journal());
}

#[test]
fn cni_19_an_add_whose_plugin_died_is_undone() {
    let node = Node::alone();
    let pod = Pod::new();
    add_and_die(&node, &pod);
    until("the release of what was added", LIMIT, || match node.journal() {
        text if text.contains("\"released\"") => Ok(()),
        text => Err(text),
    });
    assert_eq!(node.pod_links(), [""; 0]);
    node.call("ADD", &pod).expect_success();
}

#[test]
fn cni_19_an_add_that_the_agent_did_not_live_to_finish_is_undone() {
    let mut node = Node::alone();
    let mut pod = Pod::new();
    node.add(&mut pod);
    node.stop();
    // As if it had been killed before it noted the end.
    let journal = node.journal();
    let unfinished: Vec<_> = journal.lines().filter(|line| !line.contains("\"live\"")).collect();
    assert_eq!(unfinished.len() + 1, journal.lines().count(), "{journal}");
    fs::write(node.state_dir().join("podnet.journal"), unfinished.join("\n") + "\n").unwrap();
    node.start();
    node.wait_ready();
    assert_eq!(node.pod_links(), [""; 0]);
    assert!(!pod.netns().ip("link show").contains("eth0"));
    node.call("CHECK", &pod).expect_code(3);
}

#[test]
fn a_wiped_state_folder_costs_no_pod_its_network() {
    let mut node = Node::alone();
    let (mut old, mut new) = (Pod::new(), Pod::new());
    node.add(&mut old);
    node.stop();
    fs::remove_dir_all(node.state_dir()).unwrap();
    node.start();
    node.wait_ready();
    node.add(&mut new);
    assert_ne!(new.addresses, old.addresses);
    reach(new.netns(), old.netns(), old.addresses[0]);
    reach(new.netns(), old.netns(), old.addresses[1]);
    node.call("DEL", &old).expect_success();
    assert_eq!(node.pod_links().len(), 1);
}

#[test]
fn ranges_are_remembered_without_an_api_server() {
    let mut node = Node::alone();
    node.stop();
    node.snapshots.send_replace(Arc::default());
    node.start();
    node.wait_ready();
    node.call("ADD", &Pod::new()).expect_success();
}
