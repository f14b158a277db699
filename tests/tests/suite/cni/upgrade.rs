//! Item 19, while a node is upgraded: agents as they are run, with all their roles and programs, take
//! over from one another beside a real API server while pods come and go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use mizzen_agent::{datapath::Datapath, podnet::datapath::PodDatapath as _};
use mizzen_tests::{soak::share, wait::until};

use super::{
    bed::{Node, Pod},
    killed::{Over, add_and_delete, attached, touch},
};
use crate::dns::field::Field;

/// A take-over waits for the kernel, which verifies programs anew.
const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn cni_19_no_add_fails_while_agents_and_the_plugin_are_upgraded_and_nothing_is_left() {
    let field = Field::new();
    let host = &field.hosts[0];
    // The field's own pod and ways: all of that is the agent's here.
    for command in ["link del pod0", "route del 10.244.2.0/24", "-6 route del fd00:244:0:2::/64"] {
        host.node.netns.ip(command);
    }
    let mut node = Node::at(Arc::clone(&host.node.netns), "node-1", &[]);
    let [state, conf_dir, bin_dir] =
        ["state", "net.d", "bin"].map(|name| node.folder.path().join(name).display().to_string());
    let flags = [
        "--cni=true",
        "--state-dir",
        &state,
        "--cni-conf-dir",
        &conf_dir,
        "--cni-bin-dir",
        &bin_dir,
    ];
    let mut agent = field.agent(host, &flags);
    let nobody = Pod { netns: None, ..Pod::new() };
    until("the pod network", PATIENCE, || match node.call("STATUS", &nobody) {
        said if said.success => Ok(()),
        said => Err(format!("{said:?}")),
    });
    let installed = node.folder.path().join("bin/mizzen-cni");
    node.called.clone_from(&installed);
    let mut kept = Pod::new();
    node.add(&mut kept);
    let (over, pods) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        let done = |_| over.load(Ordering::Relaxed);
        scope.spawn({
            let (node, pods) = (&node, &pods);
            move || add_and_delete(node, 4, pods, done)
        });
        for _ in 0..share(40) {
            touch(&installed);
            agent = field.agent_after_with(host, &mut agent, &flags);
            let before = pods.load(Ordering::Relaxed);
            until("more pods", PATIENCE, || match pods.load(Ordering::Relaxed) {
                now if now >= before + 8 => Ok(()),
                now => Err(format!("{before} pods, {now} now\n{}", agent.log())),
            });
        }
    });
    node.call("CHECK", &kept).expect_success();
    assert_eq!(node.pod_links().len(), 1);
    until("the addresses of all others to be free", PATIENCE, || {
        let left = attached(&node.journal()).len();
        if left == 1 { Ok(()) } else { Err(format!("{left} attachments")) }
    });
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(agent.ended().success(), "{}", agent.log());
    let options = host.node.options();
    let datapath = node.netns.run(|| Datapath::open(&options)).unwrap();
    let seen = datapath.pods().unwrap().survey().unwrap();
    assert_eq!((seen.endpoints.len(), seen.namespaces.len()), (2, 1));
}
