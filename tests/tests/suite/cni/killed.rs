//! Item 19: `kill -9` of the agent after every step of ADD and DEL, and of the plugin at any moment;
//! then DEL or GC, and nothing is left: no link, no address, no route, no entry of a map, that of a
//! limited rate and those of host ports included. And take-overs from one agent to the next while
//! runtimes call.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::net::UnixListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mizzen_agent::{
    apply::maps::Maps as _,
    datapath::Datapath,
    podnet::{datapath::PodDatapath as _, steps::Step},
};
use mizzen_ebpf_abi::maps::ABI_VERSION;
use mizzen_tests::{
    node::TestNode,
    soak::{Dice, in_full, share},
    wait::until,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    altered::rates,
    bed::{LIMIT, Node, Pod, addresses, model, plugin},
};

/// A node whose agent is a process.
struct Bench {
    node: Node,
    agent: Mutex<Option<Child>>,
    place: TestNode,
    has_datapath: bool,
}

impl Bench {
    fn new() -> Self {
        Self::with(true)
    }

    fn with(has_datapath: bool) -> Self {
        let place = TestNode::new("killed");
        let node = Node::new("a", &[model("a", 1)]);
        let bench = Self { node, agent: Mutex::default(), place, has_datapath };
        bench.start();
        bench
    }

    fn agent(&self) -> MutexGuard<'_, Option<Child>> {
        self.agent.lock().unwrap()
    }

    fn start(&self) {
        let mut options = self.place.options();
        if !self.has_datapath {
            options.bpffs = "none".into();
        }
        let child = Command::new(plugin().with_file_name("mizzen-test-podnet"))
            .args([&self.node.netns.path(), options.cgroup_root.as_ref().unwrap(), &options.bpffs])
            .args([self.node.folder.path(), &plugin()])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        *self.agent() = Some(child);
        self.wait_ready();
    }

    fn wait_ready(&self) {
        let nobody = Pod { netns: None, ..Pod::new() };
        until("the agent to serve", LIMIT, || {
            let outcome = self.node.call("STATUS", &nobody);
            if outcome.success { Ok(()) } else { Err(format!("{outcome:?}")) }
        });
    }

    /// Has the agent end after its next step of this kind.
    fn arm(&self, step: Step) {
        fs::write(self.node.folder.path().join("armed"), format!("{step:?}")).unwrap();
    }

    /// Waits for the agent's end by SIGKILL.
    fn wait_killed(&self) {
        let ended = self.agent().take().unwrap().wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(libc::SIGKILL));
        fs::remove_file(self.node.folder.path().join("armed")).unwrap();
    }

    /// Tells the agent to end, and waits for it.
    fn stop(&self) {
        let Some(mut agent) = self.agent().take() else { return };
        kill(Pid::from_raw(agent.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        agent.wait().unwrap();
    }

    fn add(&self) -> Pod {
        self.add_with(&self.conf())
    }

    fn add_with(&self, conf: &Value) -> Pod {
        let mut pod = Pod::new();
        pod.addresses = addresses(&self.node.call_with("ADD", &pod, conf).expect_success());
        pod
    }

    /// The pod that stays.
    fn keep(&self) -> Pod {
        self.add_with(&self.conf_at(KEPT_PORT))
    }

    /// A pod that wants all there is.
    fn conf(&self) -> Value {
        self.conf_at(HOST_PORT)
    }

    fn conf_at(&self, host_port: u16) -> Value {
        let mut conf = self.node.conf("1.1.0");
        conf["runtimeConfig"] = json!({
            "portMappings": [{"hostPort": host_port, "containerPort": 80}],
            "bandwidth": {
                "ingressRate": 8_000_000, "ingressBurst": 80_000,
                "egressRate": 8_000_000, "egressBurst": 80_000,
            },
        });
        conf
    }

    /// Checks that the node has `kept`, and nothing of anybody else, but for the tables that the
    /// agent has open.
    fn check_only(&self, kept: &Pod, what: &str) {
        until("nothing else to be left", LIMIT, || {
            let routes = self.node.netns.ip("route") + &self.node.netns.ip("-6 route");
            let routes = routes.lines().filter(|line| line.contains(" dev mz")).count();
            let journal = self.node.journal();
            let links = self.node.pod_links();
            let limited = self.limited();
            let seen = (links.len(), routes, attached(&journal).len(), limited.len());
            if seen != (1, 2, 1, usize::from(self.has_datapath)) {
                return Err(format!("{what}: {seen:?}\n{journal}"));
            }
            let kept = self.node.netns.ip(&format!("-o link show {}", links[0]));
            if limited.iter().all(|ifindex| kept.starts_with(&format!("{ifindex}: "))) {
                Ok(())
            } else {
                Err(format!("{what}: {limited:?} are limited, not {kept}"))
            }
        });
        self.node.call("CHECK", kept).expect_success();
    }

    /// The devices whose rate the programs limit.
    fn limited(&self) -> Vec<u32> {
        let maps = self.place.bpffs().join(format!("v{ABI_VERSION}/maps"));
        if self.has_datapath { rates(&maps) } else { Vec::new() }
    }

    /// The host ports that the tables have; no agent runs.
    fn host_ports(&self) -> BTreeSet<u16> {
        let options = self.place.options();
        let datapath = self.node.netns.run(|| Datapath::open(&options)).unwrap();
        let tables = datapath.maps().unwrap().dump().unwrap();
        let open = tables.frontends.keys().filter(|key| !key.is_guard());
        open.map(|key| u16::from_be_bytes(key.port)).collect()
    }

    /// As [`Self::check_only`], the tables too; the agent is ended.
    fn check_end(&self, kept: &Pod, what: &str) {
        self.check_only(kept, what);
        self.stop();
        let seen = {
            let options = self.place.options();
            let datapath = self.node.netns.run(|| Datapath::open(&options)).unwrap();
            datapath.pods().unwrap().survey().unwrap()
        };
        assert_eq!((seen.endpoints.len(), seen.namespaces.len()), (2, 1), "{what}");
        // Of the last of them the tables may not have heard.
        until("the host ports of others to be closed", LIMIT, || {
            let open = self.host_ports();
            if open == BTreeSet::from([KEPT_PORT]) {
                return Ok(());
            }
            self.start();
            self.node.call("CHECK", kept).expect_success();
            self.stop();
            let open = self.host_ports();
            if open == BTreeSet::from([KEPT_PORT]) {
                Ok(())
            } else {
                Err(format!("{what}: {open:?}"))
            }
        });
    }
}

/// The host port of the pod that stays, and that of all others.
const KEPT_PORT: u16 = 8080;
const HOST_PORT: u16 = 9090;

/// The containers that a journal says are attached.
pub(super) fn attached(journal: &str) -> BTreeSet<String> {
    let mut attached = BTreeSet::new();
    for line in journal.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let id = record["attachment"]["containerID"].to_string();
        match record["record"].as_str() {
            Some("attached") => drop(attached.insert(id)),
            Some("released") => drop(attached.remove(&id)),
            _ => {}
        }
    }
    attached
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent().take() {
            let _ended = (agent.kill(), agent.wait());
        }
    }
}

/// The agent is killed after `step`; then the runtime cleans up, by DEL or by GC.
fn killed_after(bench: &Bench, kept: &Pod, step: Step, by_gc: bool) {
    let what = format!("{step:?}, {}", if by_gc { "GC" } else { "DEL" });
    let pod = if step.is_of_add() { Pod::new() } else { bench.add() };
    bench.arm(step);
    if step.is_of_add() {
        assert!(!bench.node.call_with("ADD", &pod, &bench.conf()).success, "{what}");
    } else {
        bench.node.call("DEL", &pod).expect_success();
    }
    bench.wait_killed();
    if step == Step::HostPortsOpen {
        assert_eq!(bench.host_ports(), BTreeSet::from([KEPT_PORT, HOST_PORT]), "{what}");
    }
    bench.start();
    if by_gc {
        let mut conf = bench.node.conf("1.1.0");
        conf["cni.dev/valid-attachments"] =
            json!([{"containerID": kept.container_id, "ifname": "eth0"}]);
        bench.node.call_with("GC", kept, &conf).expect_success();
    } else {
        bench.node.call("DEL", &pod).expect_success();
    }
    bench.check_only(kept, &what);
    assert!(!pod.netns().ip("link show").contains("eth0"), "{what}");
}

#[test]
fn cni_19_an_agent_killed_after_any_step_of_add_or_del_leaves_nothing() {
    let bench = Bench::new();
    let kept = bench.keep();
    for (index, step) in Step::ALL.into_iter().enumerate() {
        killed_after(&bench, &kept, step, index % 2 == 0);
        if in_full() {
            killed_after(&bench, &kept, step, index % 2 == 1);
        }
    }
    bench.check_end(&kept, "killed");
}

#[test]
fn cni_19_plugins_killed_at_any_moment_leave_nothing_after_del() {
    let mut dice = Dice::new();
    let bench = Bench::new();
    let kept = bench.keep();
    for _ in 0..share(1_000) {
        let pod = Pod::new();
        let command = if dice.once_in(3) { "DEL" } else { "ADD" };
        if command == "DEL" {
            bench.node.call_with("ADD", &pod, &bench.conf()).expect_success();
        }
        let mut child = bench.node.spawn(command, &pod, &bench.conf());
        std::thread::sleep(Duration::from_micros(dice.roll() % 12_000));
        let _killed = (child.kill(), child.wait());
        bench.node.call("DEL", &pod).expect_success();
        // What an ADD did meanwhile whose plugin had gone is undone.
        until("the pod to have no interface", LIMIT, || {
            let links = pod.netns().ip("link show");
            if links.contains("eth0") {
                Err(format!("seed {}: {links}", dice.seed))
            } else {
                Ok(())
            }
        });
    }
    bench.check_end(&kept, "plugins");
}

/// Adds and deletes pods by several threads until `done`; no call may fail, and no two pods may have
/// one address at a time. Pods are counted when they begin.
pub(super) fn add_and_delete(
    node: &Node,
    threads: usize,
    count: &AtomicU64,
    done: impl Fn(u64) -> bool + Sync,
) {
    let held = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !done(count.fetch_add(1, Ordering::Relaxed)) {
                    let mut pod = Pod::new();
                    node.add(&mut pod);
                    for address in &pod.addresses {
                        assert!(held.lock().unwrap().insert(*address), "{address} is given twice");
                    }
                    node.call("CHECK", &pod).expect_success();
                    for address in &pod.addresses {
                        held.lock().unwrap().remove(address);
                    }
                    node.call("DEL", &pod).expect_success();
                }
            });
        }
    });
}

#[test]
fn cni_19_a_thousand_adds_and_dels_fail_never_and_leave_nothing() {
    let bench = Bench::new();
    let kept = bench.keep();
    add_and_delete(&bench.node, 8, &AtomicU64::new(0), |count| count >= share(1_000));
    bench.check_end(&kept, "a thousand");
}

#[test]
fn cni_19_fifty_adds_at_once_get_addresses_of_their_own() {
    let bench = Bench::new();
    let kept = bench.keep();
    let pods: Vec<Pod> = (0..50).map(|_| Pod::new()).collect();
    let given = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for pod in &pods {
            let (node, given) = (&bench.node, &given);
            scope.spawn(move || {
                let result = node.call("ADD", pod).expect_success();
                given.lock().unwrap().extend(addresses(&result));
            });
        }
    });
    let given = given.into_inner().unwrap();
    assert_eq!((given.len(), given.iter().collect::<BTreeSet<_>>().len()), (100, 100));
    std::thread::scope(|scope| {
        for pod in &pods {
            let node = &bench.node;
            scope.spawn(move || node.call("DEL", pod).expect_success());
        }
    });
    bench.check_end(&kept, "fifty");
}

/// While one agent leaves and another takes over, as long as some agent is there, calls wait.
#[test]
fn no_add_fails_while_agents_take_over_from_one_another_and_the_plugin_is_replaced() {
    // Loading programs would take longer here than a take-over may.
    let mut bench = Bench::with(false);
    let kept = bench.keep();
    let _command_lines = UnixListener::bind(bench.node.state_dir().join("agent.sock")).unwrap();
    let (over, pods) = (AtomicBool::new(false), AtomicU64::new(0));
    // The plugin as the runtime has it.
    let installed = bench.node.folder.path().join("bin/mizzen-cni");
    bench.node.called.clone_from(&installed);
    std::thread::scope(|scope| {
        let _over = Over(&over);
        let done = |_| over.load(Ordering::Relaxed);
        scope.spawn({
            let (node, pods) = (&bench.node, &pods);
            move || add_and_delete(node, 4, pods, done)
        });
        for _ in 0..share(60) {
            bench.stop();
            touch(&installed);
            bench.start();
            let before = pods.load(Ordering::Relaxed);
            until("more pods", LIMIT, || match pods.load(Ordering::Relaxed) {
                now if now >= before + 8 => Ok(()),
                now => Err(format!("{before} pods, {now} now")),
            });
        }
    });
    bench.check_only(&kept, "take-overs");
}

#[test]
fn cni_19_add_and_del_of_one_container_at_once_leave_nothing() {
    let bench = Bench::new();
    let kept = bench.keep();
    for _ in 0..share(200) {
        let pod = Pod::new();
        let calls = ["ADD", "DEL", "ADD", "DEL"]
            .map(|command| bench.node.spawn(command, &pod, &bench.conf()));
        let ended = calls.map(|call| call.wait_with_output().unwrap().status.success());
        assert!(ended[1] && ended[3], "DEL never fails: {ended:?}");
        bench.node.call("DEL", &pod).expect_success();
        assert_eq!(bench.node.pod_links().len(), 1);
        assert!(!pod.netns().ip("link show").contains("eth0"));
    }
    bench.check_end(&kept, "races");
}

/// Ends the load, whatever happens.
pub(super) struct Over<'a>(pub(super) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Has the next agent install the plugin again.
pub(super) fn touch(path: &Path) {
    fs::File::open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
}
