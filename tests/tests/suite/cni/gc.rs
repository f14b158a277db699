//! GC: what it takes away, and what is younger than it.

use std::{
    os::unix::net::UnixStream,
    sync::{Condvar, Mutex},
};

use mizzen_agent::podnet::steps::Step;
use mizzen_cni::wire;
use serde_json::json;

use super::bed::{LIMIT, Node, Pod, addresses, reach};

#[test]
fn cni_39_gc_removes_what_the_runtime_does_not_know() {
    let node = Node::alone();
    let (mut kept, mut stale) = (Pod::new(), Pod::new());
    node.add(&mut kept);
    node.add(&mut stale);
    let mut other = node.conf("1.1.0");
    other["name"] = "another-network".into();
    let mut foreign = Pod::new();
    foreign.addresses = addresses(&node.call_with("ADD", &foreign, &other).expect_success());
    // Silence is no list.
    node.call("GC", &kept).expect_success();
    assert_eq!(node.pod_links().len(), 3);
    let mut conf = node.conf("1.1.0");
    conf["cni.dev/valid-attachments"] =
        json!([{"containerID": kept.container_id, "ifname": "eth0"}]);
    node.call_with("GC", &kept, &conf).expect_success();
    assert_eq!(node.pod_links().len(), 2);
    node.call("CHECK", &kept).expect_success();
    node.call("CHECK", &foreign).expect_success();
    node.call("CHECK", &stale).expect_code(3);
}

#[test]
fn cni_39_gc_leaves_what_was_added_after_it_was_called() {
    let mut node = Node::alone();
    let called = wire::uptime().unwrap();
    let mut pod = Pod::new();
    node.add(&mut pod);
    let added = wire::uptime().unwrap();
    gc(&node, Some(called));
    node.call("CHECK", &pod).expect_success();
    // The next agents know it too, whoever of them is asked.
    for _ in 0..2 {
        node.stop();
        node.start();
        node.wait_ready();
        gc(&node, Some(called));
        node.call("CHECK", &pod).expect_success();
    }
    gc(&node, Some(added + 1));
    node.call("CHECK", &pod).expect_code(3);
    // A plugin of former times does not say when it was called.
    let mut pod = Pod::new();
    node.add(&mut pod);
    gc(&node, None);
    node.call("CHECK", &pod).expect_code(3);
}

/// A GC that knows of no pod, called then.
fn gc(node: &Node, called: Option<u64>) {
    let request = wire::Request {
        version: 1,
        timeout_ms: 8000,
        trace: wire::Trace::default(),
        network: "mizzen".into(),
        command: wire::Command::Gc { valid: Vec::new(), called },
    };
    let mut stream = UnixStream::connect(node.state_dir().join("cni.sock")).unwrap();
    wire::send(&mut stream, &request, None).unwrap();
    let (response, _) = wire::receive::<wire::Response>(&mut stream).unwrap();
    assert!(matches!(response, wire::Response::Done), "{response:?}");
}

/// Holds an ADD after one of its steps. There is one, for the test below alone.
struct Gate {
    state: Mutex<Held>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    No,
    At(Step),
    Here,
}

static GATE: Gate = Gate { state: Mutex::new(Held::No), changed: Condvar::new() };

impl Gate {
    fn set(&self, held: Held) {
        *self.state.lock().unwrap() = held;
        self.changed.notify_all();
    }

    fn wait_until(&self, wanted: Held) {
        let state = self.state.lock().unwrap();
        let waits = |state: &mut Held| *state != wanted;
        let (_state, waited) = self.changed.wait_timeout_while(state, LIMIT, waits).unwrap();
        assert!(!waited.timed_out(), "{wanted:?}");
    }

    /// Called by the agent after each step.
    fn pass(step: Step) {
        let is_it = *GATE.state.lock().unwrap() == Held::At(step);
        if is_it {
            GATE.set(Held::Here);
            GATE.wait_until(Held::No);
        }
    }
}

#[test]
fn cni_39_gc_leaves_what_is_being_added() {
    let mut node = Node::alone();
    node.stop();
    node.at_step = Gate::pass;
    node.start();
    node.wait_ready();
    // In the journal without a link yet, and then with one.
    for step in Step::ALL.into_iter().filter(|step| *step < Step::Live) {
        let mut pod = Pod::new();
        GATE.set(Held::At(step));
        let result = std::thread::scope(|scope| {
            let added = scope.spawn(|| node.call("ADD", &pod).expect_success());
            GATE.wait_until(Held::Here);
            let links = usize::from(step != Step::Reserved);
            assert_eq!(node.pod_links().len(), links, "{step:?}");
            gc(&node, None);
            gc(&node, wire::uptime().ok());
            GATE.set(Held::No);
            added.join().unwrap()
        });
        pod.addresses = addresses(&result);
        node.call("CHECK", &pod).expect_success();
        node.call("DEL", &pod).expect_success();
    }
}

#[test]
fn cni_39_gc_removes_links_whose_record_was_lost_and_that_the_runtime_does_not_know() {
    let mut node = Node::alone();
    let (mut kept, mut gone) = (Pod::new(), Pod::new());
    node.add(&mut kept);
    let link = node.pod_links();
    node.add(&mut gone);
    node.stop();
    std::fs::remove_file(node.state_dir().join("podnet.journal")).unwrap();
    node.start();
    node.wait_ready();
    assert_eq!(node.pod_links().len(), 2, "nobody knows whether their pods live");
    let valid = |pod: &Pod| {
        let mut conf = node.conf("1.1.0");
        conf["cni.dev/valid-attachments"] =
            json!([{"containerID": pod.container_id, "ifname": "eth0"}]);
        conf
    };
    let mut foreign = valid(&kept);
    foreign["name"] = json!("other");
    node.call_with("GC", &gone, &foreign).expect_success();
    assert_eq!(node.pod_links().len(), 2, "that was about another network");
    node.call_with("GC", &gone, &valid(&kept)).expect_success();
    assert_eq!(node.pod_links(), link);
    assert_eq!(node.netns.ip(&format!("route show {}", gone.addresses[0])), "");
    let mut other = Pod::new();
    node.add(&mut other);
    for address in kept.addresses.clone() {
        reach(other.netns(), kept.netns(), address);
    }
}
