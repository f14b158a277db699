//! Sandboxes and their processes: namespaces, cgroups, exit codes, ends, restarts.

use std::{fs, path::Path, time::Duration};

use mizzen_control_plane::node::runtime::{
    Container, ContainerConfig, ContainerState, ExecError, Runtime, Sandbox,
};

use crate::bed::{Node, mount, pod, shell, wait_for_log};

fn namespaces(text: &str) -> Vec<(String, String)> {
    let pair = |line: &str| {
        line.split_once(' ').map(|(name, target)| (name.to_owned(), target.to_owned()))
    };
    text.lines().filter_map(pair).filter(|(name, _)| name != "pid_for_children").collect()
}

const PRINT_NAMESPACES: &str =
    "for n in net pid mnt uts ipc user; do echo $n $(readlink /proc/self/ns/$n); done";

#[tokio::test]
async fn a_pod_has_namespaces_files_and_a_cgroup_of_its_own_and_leaves_nothing() {
    let node = Node::new().await;
    node.install_plugin();
    let sandbox = node.runtime.run_sandbox(&pod("web", false)).await.unwrap();
    assert!(sandbox.ready);
    let addresses: Vec<String> = sandbox.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.9", "fd00::9"]);

    let script = format!(
        "{PRINT_NAMESPACES}; echo == ; hostname; pwd; echo $GREETING; echo $$; \
         cat /etc/resolv.conf /etc/hosts; ls /sys/class/net; cat /proc/self/cgroup | grep ^0::; \
         ls /proc | grep -c '^[0-9]'; cat /sys/class/net/lo/operstate; exit 7"
    );
    let id = node.container(&sandbox, shell(&script)).await;
    assert_eq!(node.exit_code(&sandbox, &id).await, 7);
    let log = node.log("web");
    let (inside, rest) = log.split_once("==\n").unwrap();
    let outside = std::process::Command::new("/bin/sh").args(["-c", PRINT_NAMESPACES]).output();
    let outside = String::from_utf8(outside.unwrap().stdout).unwrap();
    for ((name, inside), (_, outside)) in namespaces(inside).into_iter().zip(namespaces(&outside)) {
        assert_eq!(inside != outside, name != "user", "{name}: {inside} and {outside}");
    }
    let cgroup = node.cgroup.file_name().unwrap().to_str().unwrap().to_owned();
    let expected = format!(
        "web\n/etc\ngood day\n2\nnameserver 10.96.0.10\nsearch default.svc.cluster.local\n\
         127.0.0.1\tlocalhost\n10.0.0.9\tweb\nfd00::9\tweb\nlo\n0::/{cgroup}/pods/poduid-web/main.0\n"
    );
    let rest = rest.strip_prefix(&expected).unwrap_or_else(|| panic!("{rest}\nnot {expected}"));
    let processes: u32 = rest.lines().next().unwrap().parse().unwrap();
    assert!(processes <= 6, "the pod sees {processes} processes");
    assert_eq!(rest.lines().nth(1), Some("unknown"), "lo is up, which the kernel calls unknown");

    let entry: serde_json::Value =
        serde_json::from_slice(&fs::read(node.path("pods/default_web.json")).unwrap()).unwrap();
    let init = entry["pid"].as_i64().unwrap();
    assert!(Path::new(&format!("/proc/{init}")).exists());
    assert_eq!(entry["cgroup"], node.cgroup.join("pods/poduid-web/exec").to_str().unwrap());
    assert!(Path::new(entry["netns"].as_str().unwrap()).exists());

    let environment = fs::read_to_string(node.path("calls/ADD.env")).unwrap();
    assert!(environment.contains("K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"), "{environment}");
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    let deleted = fs::read_to_string(node.path("calls/DEL.env")).unwrap();
    assert!(deleted.contains(&format!("CNI_CONTAINERID={}", sandbox.id)), "{deleted}");
    let conf: serde_json::Value =
        serde_json::from_slice(&fs::read(node.path("calls/DEL.stdin")).unwrap()).unwrap();
    assert_eq!(conf["prevResult"]["ips"][0]["address"], "10.0.0.9/32");
    // Whoever inherited it may not have reaped it yet; a dead process has no command line.
    let left = fs::read_to_string(format!("/proc/{init}/cmdline")).unwrap_or_default();
    assert_eq!(left, "");
    node.assert_nothing_left();
    // Once more: nothing to do is success.
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
}

#[tokio::test]
async fn a_pod_holds_no_namespace_of_another() {
    let node = Node::new().await;
    node.install_plugin();
    let first = node.runtime.run_sandbox(&pod("first", false)).await.unwrap();
    let second = node.runtime.run_sandbox(&pod("second", false)).await.unwrap();
    let entry: serde_json::Value =
        serde_json::from_slice(&fs::read(node.path("pods/default_second.json")).unwrap()).unwrap();
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", entry["pid"])).unwrap();
    let held: Vec<_> = mounts.lines().filter(|line| line.contains(" - nsfs ")).collect();
    assert!(held.is_empty(), "{held:?}");
    for sandbox in [first, second] {
        node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    }
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_pod_with_the_nodes_network_needs_no_network_configuration() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("host", true)).await.unwrap();
    let id = node.container(&sandbox, shell("readlink /proc/self/ns/net; hostname")).await;
    assert_eq!(node.exit_code(&sandbox, &id).await, 0);
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let host = nix::unistd::gethostname().unwrap();
    assert_eq!(node.log("host"), format!("{}\n{}\n", own.display(), host.to_string_lossy()));
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn without_a_network_configuration_a_pod_is_not_made_and_nothing_is_left() {
    let node = Node::new().await;
    let error = node.runtime.run_sandbox(&pod("web", false)).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("no CNI configuration in"), "{cause}");
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_failing_plugin_is_quoted_and_undone() {
    let node = Node::new().await;
    node.install_plugin();
    let script = "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\n\
                  echo '{\"code\":11,\"msg\":\"try again\",\"details\":\"the agent is away\"}'\nexit 1\n";
    fs::write(node.path("bin/fake"), script).unwrap();
    let error = node.runtime.run_sandbox(&pod("web", false)).await.unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(cause, "the plugin fake failed ADD: try again (code 11): the agent is away");
    node.assert_nothing_left();
}

#[tokio::test]
async fn stopping_asks_first_and_kills_after_the_grace() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("stop", true)).await.unwrap();
    let polite = shell("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let id = node.container(&sandbox, polite).await;
    wait_for_log(&node, "stop", "ready\n").await;
    node.runtime.stop_container(&sandbox.id, &id, Duration::from_secs(20)).await.unwrap();
    assert_eq!(node.exit_code(&sandbox, &id).await, 3);
    node.runtime.remove_container(&sandbox.id, &id).await.unwrap();
    fs::remove_file(node.path("logs/default_stop_uid-stop/main/0.log")).unwrap();

    let deaf = shell("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let id = node.container(&sandbox, deaf).await;
    wait_for_log(&node, "stop", "ready\n").await;
    let begun = std::time::Instant::now();
    node.runtime.stop_container(&sandbox.id, &id, Duration::from_millis(300)).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(node.exit_code(&sandbox, &id).await, 128 + 9);
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn what_a_container_leaves_behind_ends_with_it() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("left", true)).await.unwrap();
    let id = node.container(&sandbox, shell("setsid sleep 1000 & exit 0")).await;
    assert_eq!(node.exit_code(&sandbox, &id).await, 0);
    let procs = node.cgroup.join("pods/poduid-left/main.0/cgroup.procs");
    for _ in 0..1000 {
        if fs::read_to_string(&procs).unwrap_or_default().is_empty() {
            node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
            return node.assert_nothing_left();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still there: {:?}", fs::read_to_string(&procs));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_container_that_could_not_be_started() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("none", true)).await.unwrap();
    let config = ContainerConfig { command: vec!["/no/such/program".into()], ..shell("") };
    let id = node.container(&sandbox, config).await;
    let (code, reason, message) = node
        .until(&sandbox, &id, |state| match state.clone() {
            ContainerState::Exited { exit_code, reason, message, .. } => {
                Some((exit_code, reason, message))
            }
            _ => None,
        })
        .await;
    assert_eq!((code, reason.as_deref()), (128, Some("StartError")));
    assert!(message.unwrap().contains("/no/such/program"));
}

#[tokio::test]
async fn pods_outlive_the_node_part_and_their_ends_are_not_missed() {
    let mut node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("adopt", true)).await.unwrap();
    let fifo = node.path("shared/fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mounts = vec![mount(&node.path("shared"), "/shared")];
    let config = ContainerConfig { mounts, ..shell("read x < /shared/fifo; exit $x") };
    let id = node.container(&sandbox, config).await;
    node.restart().await;
    let found = node.runtime.sandboxes(None).await.unwrap();
    assert_eq!(found, [Sandbox { ready: true, ..sandbox.clone() }]);
    let containers = node.runtime.containers(&sandbox.id).await.unwrap();
    assert!(matches!(containers[..], [Container { state: ContainerState::Running { .. }, .. }]));
    fs::write(&fifo, "5\n").unwrap();
    assert_eq!(node.exit_code(&sandbox, &id).await, 5);

    // The exit code is known also to a node part that was not there.
    node.restart().await;
    assert_eq!(node.exit_code(&sandbox, &id).await, 5);
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_sandbox_that_was_killed_is_not_ready_and_its_container_has_exited() {
    let mut node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("dead", true)).await.unwrap();
    let id = node.container(&sandbox, shell("sleep 1000")).await;
    fs::write(node.cgroup.join("pods/poduid-dead/cgroup.kill"), "1").unwrap();
    assert_eq!(node.exit_code(&sandbox, &id).await, 137);
    node.restart().await;
    let found = node.runtime.sandboxes(None).await.unwrap();
    assert_eq!((found.len(), found[0].ready), (1, false));
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    node.assert_nothing_left();
}

#[tokio::test]
async fn a_command_is_executed_inside_and_ended_when_it_takes_too_long() {
    let node = Node::new().await;
    let sandbox = node.runtime.run_sandbox(&pod("exec", true)).await.unwrap();
    let id = node.container(&sandbox, shell("exec sleep 1000")).await;
    let run = |script: &str, limit| {
        let command = vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let (runtime, sandbox, id) = (&node.runtime, &sandbox.id, &id);
        async move { runtime.exec(sandbox, id, &command, limit).await }
    };
    let output = run("echo $GREETING; pwd; exit 4", Duration::from_secs(10)).await.unwrap();
    assert_eq!((output.exit_code, output.output.as_str()), (4, "good day\n/etc\n"));
    let late = run("sleep 1000", Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(late, ExecError::TimedOut(_)), "{late:?}");
    let listing = node.cgroup.join("pods/poduid-exec/main.0/cgroup.procs");
    for _ in 0..1000 {
        if fs::read_to_string(&listing).unwrap().lines().count() == 1 {
            node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
            return node.assert_nothing_left();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the command still runs");
}

#[tokio::test]
async fn a_crash_at_any_point_leaves_what_the_next_start_removes() {
    let mut node = Node::new().await;
    node.install_plugin();
    let sandbox = node.runtime.run_sandbox(&pod("crash", false)).await.unwrap();
    let folder = node.path("sandboxes").join(&sandbox.id);
    // As after a crash between the network and the start: the process exists, the record does not.
    fs::remove_file(folder.join("init.json")).unwrap();
    // And as after a crash before the record was written.
    fs::create_dir(node.path("sandboxes/half")).unwrap();
    node.restart().await;
    let found = node.runtime.sandboxes(None).await.unwrap();
    assert_eq!((found.len(), found[0].ready), (1, false));
    node.runtime.remove_sandbox(&sandbox.id).await.unwrap();
    assert!(node.path("calls/DEL.env").exists());
    node.assert_nothing_left();
}
