//! An agent that connects pods and balances no services: all is well with it, and what pods lack is
//! said. Needs root.

use std::{
    fs,
    io::ErrorKind,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    sync::Arc,
};

use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::Api;
use mizzen_agent::{kube::notices::tell::CONDITION, podnet::datapath::LOST};
use mizzen_tests::wait::until;
use nix::unistd::{Uid, setfsuid};
use serde_json::Value;

use super::bed::{LIMIT, Node, Pod};
use crate::dns::field::{Agent, Field, Host, METRICS, on};

#[test]
fn an_agent_without_services_is_well_and_says_what_its_pods_lack() {
    let field = Field::new();
    let [host, other] = &field.hosts;
    for (host, number) in [(host, 2), (other, 1)] {
        let ranges = [
            format!("route del 10.244.{number}.0/24"),
            format!("-6 route del fd00:244:0:{number}::/64"),
        ];
        host.node.netns.ip("link del pod0");
        for command in &ranges {
            drop(host.node.netns.ip(command));
        }
    }
    let node = Node::at(Arc::clone(&host.node.netns), "node-1", &[]);
    let [conf_dir, bin_dir] =
        ["net.d", "bin"].map(|name| node.folder.path().join(name).display().to_string());
    let state = node.folder.path().join("state");
    std::os::unix::fs::symlink(host.state(), &state).unwrap();
    let folders = ["--cni-conf-dir", &conf_dir, "--cni-bin-dir", &bin_dir];
    let roles = ["--cni=true", "--services=false", "--dns=false"];
    let agent = field.begin(host, &[&roles[..], &folders[..]].concat());
    // One of the other node answers for that one's pods.
    let [conf_dir, bin_dir] =
        ["net.d-2", "bin-2"].map(|name| node.folder.path().join(name).display().to_string());
    let folders = ["--cni-conf-dir", &conf_dir, "--cni-bin-dir", &bin_dir];
    let _other = field.begin(other, &[&roles[..], &folders[..]].concat());
    let nobody = Pod { netns: None, ..Pod::new() };
    until("the pod network", LIMIT, || match node.call("STATUS", &nobody) {
        said if said.success => Ok(()),
        said => Err(format!("{said:?} {}", agent.log())),
    });
    // It lives to the end: a pod without its namespace is a finding.
    let mut pod = Pod::new();
    node.add(&mut pod);
    reached_by_root_alone(host.state());

    is_well(&field, host, &agent);
    let (code, said) = host.mizzen(&["check", "-o", "json"]);
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
    let findings = report["findings"].as_array().unwrap();
    for lost in LOST {
        assert!(agent.log().contains(&format!("no {}: ", lost.what)), "{}", agent.log());
        let is = |finding: &&Value| finding["said"].as_str().unwrap().contains(lost.loss);
        let found: Vec<_> = findings.iter().filter(is).collect();
        let [.., finding] = &found[..] else { panic!("{} is not said: {said}", lost.what) };
        assert_eq!(
            (&finding["verdict"], &finding["remedy"]),
            (&"warn".into(), &lost.remedy.into())
        );
    }
}

/// For whoever asks: the command line, a kubelet, a load balancer, and who looks at the Node.
fn is_well(field: &Field, host: &Host, agent: &Agent) {
    until("all parts to be ready", LIMIT, || match host.http(METRICS, "/readyz") {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?} {}", agent.log())),
    });
    until("the node to be healthy", LIMIT, || {
        let (code, said) = host.mizzen(&["status", "-o", "json"]);
        let status: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
        let is = code == Some(0) && status["healthy"] == true;
        if is { Ok(()) } else { Err(said) }
    });
    let (_, screen) = host.mizzen(&["status"]);
    assert!(screen.lines().next().is_some_and(|line| line.ends_with(": healthy")), "{screen}");
    // What is degraded for longer than a moment would be told.
    until("the Node to say so", LIMIT, || {
        let client = field.client.clone();
        let node =
            on(
                &field.runtime,
                async move { Api::<ApiNode>::all(client).get("node-1").await.unwrap() },
            );
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        let found = conditions.into_iter().find(|one| one.type_ == CONDITION);
        let is_true = found.as_ref().is_some_and(|one| one.status == "True");
        if is_true { Ok(()) } else { Err(format!("{found:?}")) }
    });
}

/// The command line's socket and the plugin's, though their folder is open to everybody.
fn reached_by_root_alone(folder: &std::path::Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let sockets = entries.filter(|entry| entry.file_type().unwrap().is_socket());
    let sockets: Vec<_> = sockets.map(|entry| entry.path()).collect();
    for name in ["agent.sock", "cni.sock"] {
        assert!(sockets.iter().any(|path| path.ends_with(name)), "{name}: {sockets:?}");
    }
    for path in &sockets {
        assert!(UnixStream::connect(path).is_ok(), "{}", path.display());
    }
    // Of this thread alone, and with it root's rights to files.
    let by_nobody = std::thread::spawn({
        let sockets = sockets.clone();
        move || {
            let _root = setfsuid(Uid::from_raw(65_534));
            sockets.iter().map(|path| UnixStream::connect(path).map(drop)).collect::<Vec<_>>()
        }
    });
    for (path, dialled) in sockets.iter().zip(by_nobody.join().unwrap()) {
        let error = dialled.expect_err(&path.display().to_string());
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", path.display());
    }
}
