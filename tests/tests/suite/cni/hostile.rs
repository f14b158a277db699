//! Input that nobody means well with: refused with the right code and with words, nothing left.

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::{
        fd::AsFd,
        unix::{
            fs::{PermissionsExt as _, symlink},
            net::UnixStream,
            process::CommandExt as _,
        },
    },
    path::Path,
    process::Command,
};

use mizzen_cni::wire::{self, Response};
use nix::{sys::stat::Mode, unistd::mkfifo};
use serde_json::{Value, json};

use super::bed::{Node, Pod, plugin};

#[test]
fn cni_04_names_that_are_paths_are_refused() {
    let node = Node::alone();
    let pod = Pod::new();
    let netns = pod.netns().path();
    let conf = node.conf("1.1.0");
    for container in ["../../etc", "a/b", "..", "-a", "a b", "a\n", "ä"] {
        let text = node.call_in("ADD", container, &netns, &conf).expect_code(4);
        assert!(text.contains("CNI_CONTAINERID"), "{text}");
    }
    for network in ["../mizzen", "a/b", "", "a b"] {
        let mut conf = conf.clone();
        conf["name"] = network.into();
        let text = node.call_with("ADD", &pod, &conf).expect_code(7);
        assert!(text.contains("network name"), "{text}");
    }
    for folder in ["state", "./state", ""] {
        let mut conf = conf.clone();
        conf["stateDir"] = folder.into();
        assert!(node.call_with("ADD", &pod, &conf).expect_code(7).contains("stateDir"));
    }
    assert_eq!(node.pod_links(), [""; 0]);
}

#[test]
fn cni_05_huge_and_deep_configurations_are_refused() {
    let node = Node::alone();
    let pod = Pod::new();
    let mut conf = node.conf("1.1.0");
    conf["padding"] = "x".repeat(2 << 20).into();
    let text = node.call_with("ADD", &pod, &conf).expect_code(5);
    assert!(text.contains("longer than 1048576 bytes"), "{text}");
    let deep = (0..1_000).fold(json!(1), |inner, _| json!([inner]));
    let mut conf = node.conf("1.1.0");
    conf["padding"] = deep;
    let text = node.call_with("ADD", &pod, &conf).expect_code(6);
    assert!(text.contains("recursion"), "{text}");
    assert_eq!(node.pod_links(), [""; 0]);
}

#[test]
fn cni_11_links_in_place_of_namespaces_are_what_they_lead_to() {
    let node = Node::alone();
    let pod = Pod::new();
    let path = node.folder.path().join("netns");
    let call = |to: &Path| {
        let _former = fs::remove_file(&path);
        symlink(to, &path).unwrap();
        node.call_in("ADD", &pod.container_id, &path, &node.conf("1.1.0"))
    };
    let text = call(&node.netns.path()).expect_code(8);
    assert!(text.contains("must not be the same"), "{text}");
    for strange in ["/etc/passwd", "/proc/self/ns/mnt/x", "/", "/proc/self/status"] {
        call(Path::new(strange)).expect_code(4);
    }
    // Opening one of these waits for somebody who writes into it.
    let fifo = node.folder.path().join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let text = call(&fifo).expect_code(4);
    assert!(text.contains("is not a namespace"), "{text}");
    // A namespace, but of another kind: the kernel refuses it, and nothing stays.
    assert!(!call(Path::new("/proc/self/ns/mnt")).success);
    assert_eq!(node.pod_links(), [""; 0]);
    assert!(!node.journal().contains("\"live\""));
    call(&pod.netns().path()).expect_success();
    assert!(pod.netns().ip("link show").contains("eth0"));
}

/// Calls the plugin as somebody who is not root.
fn call_as_nobody(node: &Node, pod: &Pod) -> Value {
    const NOBODY: u32 = 65_534;
    // Where everybody can start it.
    let copy = node.folder.path().join("plugin");
    fs::copy(plugin(), &copy).unwrap();
    let mut child = Command::new(&copy)
        .env_clear()
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", &pod.container_id)
        .env("CNI_NETNS", pod.netns().path())
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let conf = node.conf("1.1.0").to_string();
    child.stdin.take().unwrap().write_all(conf.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_socket_admits_root_only_whatever_its_mode() {
    let node = Node::alone();
    let pod = Pod::new();
    for folder in [node.folder.path(), &node.state_dir()] {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
    let answer = call_as_nobody(&node, &pod);
    assert_eq!(answer["code"], 11);
    assert!(answer["details"].as_str().unwrap().contains("Permission denied"), "{answer}");
    fs::set_permissions(node.state_dir().join("cni.sock"), Permissions::from_mode(0o666)).unwrap();
    let answer = call_as_nobody(&node, &pod);
    assert_eq!(answer["code"], 11);
    assert!(answer["details"].as_str().unwrap().contains("gave no answer"), "{answer}");
    assert_eq!(node.pod_links(), [""; 0]);
    node.call("ADD", &pod).expect_success();
}

#[test]
fn nonsense_on_the_socket_is_refused_and_the_next_call_served() {
    let node = Node::alone();
    let dial = || UnixStream::connect(node.state_dir().join("cni.sock")).unwrap();
    let said = |bytes: &[u8]| {
        let mut stream = dial();
        stream.write_all(bytes).unwrap();
        match wire::receive::<Response>(&mut stream).unwrap().0 {
            Response::Failed(failure) => failure.code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(said(&u32::MAX.to_be_bytes()), 6, "a length beyond all bounds");
    for nonsense in ["{}", "null", "[1]", "{\"version\": 1, \"command\": {\"command\": \"fly\"}}"] {
        let length = u32::try_from(nonsense.len()).unwrap().to_be_bytes();
        assert_eq!(said(&[&length[..], nonsense.as_bytes()].concat()), 6, "{nonsense}");
    }
    let request = |version, command| wire::Request {
        version,
        timeout_ms: 8_000,
        trace: wire::Trace::default(),
        network: "mizzen".into(),
        command,
    };
    let add = || {
        let attachment = wire::Attachment { container_id: "c".into(), ifname: "eth0".into() };
        let (pod, requested) = Default::default();
        wire::Command::Add { attachment, pod, requested }
    };
    let answer = |request, file: Option<&File>| {
        let mut stream = dial();
        wire::send(&mut stream, &request, file.map(AsFd::as_fd)).unwrap();
        match wire::receive::<Response>(&mut stream).unwrap().0 {
            Response::Failed(failure) => failure.code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(answer(request(1, add()), None), 4, "no namespace");
    assert_eq!(answer(request(wire::VERSION + 1, add()), None), 6, "a plugin of tomorrow");
    let file = File::open("/etc/passwd").unwrap();
    assert_eq!(answer(request(1, add()), Some(&file)), 100, "no namespace, but a file");
    // Ones that say nothing hold nobody up.
    let _silent: Vec<_> = (0..8).map(|_| dial()).collect();
    assert_eq!(node.pod_links(), [""; 0]);
    node.call("ADD", &Pod::new()).expect_success();
}
