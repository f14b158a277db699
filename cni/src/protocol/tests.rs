//! Items 1-16 of the CNI checklist, as far as they are pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Version,
    conf::{self, NetConf},
    env::{self, Invocation, Verb},
    error::CniError,
    result,
};
use crate::{
    plugin::{self, Start},
    wire::{Attachment, Link, Mac, Trace},
};

type Variables = BTreeMap<&'static str, &'static str>;

fn variables(command: &'static str) -> Variables {
    BTreeMap::from([
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ])
}

fn parse_env(variables: &Variables) -> Result<Option<Invocation>, CniError> {
    env::parse(|name| variables.get(name).map(ToString::to_string))
}

pub(super) fn invocation(command: &'static str) -> Invocation {
    parse_env(&variables(command)).unwrap().unwrap()
}

pub(super) fn parse_conf(verb: Verb, value: &Value) -> Result<NetConf, CniError> {
    conf::parse(verb, value.to_string().as_bytes())
}

pub(super) fn minimal(version: &str) -> Value {
    json!({"cniVersion": version, "name": "mizzen", "type": "mizzen-cni"})
}

pub(super) fn link() -> Link {
    Link {
        host_ifname: "mz0123456789abc".into(),
        host_mac: Mac([2, 0, 0, 0, 0, 1]),
        pod_mac: Mac([2, 0, 0, 0, 0, 2]),
        mtu: 1450,
        addresses: vec!["10.244.1.7".parse().unwrap(), "fd00:244:1::7".parse().unwrap()],
    }
}

#[test]
fn cni_01_without_a_command_a_person_called() {
    assert_eq!(parse_env(&BTreeMap::new()).unwrap(), None);
}

#[test]
fn cni_02_unknown_command() {
    let error = parse_env(&variables("FLY")).unwrap_err();
    assert_eq!(error.code, 4);
    assert!(error.msg.contains("FLY"), "{error}");
}

#[test]
fn cni_03_all_missing_variables_are_named() {
    let check = |command, expected: &str| {
        let error = parse_env(&BTreeMap::from([("CNI_COMMAND", command)])).unwrap_err();
        assert_eq!(error.code, 4);
        assert_eq!(error.msg, format!("required env variables [{expected}] missing"));
    };
    for command in ["ADD", "CHECK"] {
        check(command, "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH");
    }
    check("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH");
    check("GC", "CNI_PATH");
    check("STATUS", "CNI_PATH");
    let mut without_netns = variables("DEL");
    without_netns.insert("CNI_NETNS", "");
    assert_eq!(parse_env(&without_netns).unwrap().unwrap().netns, None);
}

#[test]
fn cni_04_names_are_validated() {
    let code = |name, value| {
        let mut variables = variables("ADD");
        variables.insert(name, value);
        parse_env(&variables).err().map(|error| error.code)
    };
    for bad in ["../x", "a/b", "-a", "a b", "ä"] {
        assert_eq!(code("CNI_CONTAINERID", bad), Some(4), "{bad}");
    }
    assert_eq!(code("CNI_CONTAINERID", "0a_B.c-d"), None);
    for bad in ["sixteencharacter", ".", "..", "a/b", "a:b", "a b", "a\tb"] {
        assert_eq!(code("CNI_IFNAME", bad), Some(4), "{bad}");
    }
    assert_eq!(code("CNI_IFNAME", "fifteencharacte"), None);
    for bad in ["../x", "a b", "_a"] {
        let value = json!({"cniVersion": "1.0.0", "name": bad});
        assert_eq!(parse_conf(Verb::Add, &value).unwrap_err().code, 7, "{bad}");
    }
}

#[test]
fn cni_05_bad_json_and_missing_name() {
    for bad in ["", "{", "[]", "\"x\""] {
        assert_eq!(conf::parse(Verb::Add, bad.as_bytes()).unwrap_err().code, 6, "{bad}");
    }
    for value in [json!({"cniVersion": "1.0.0"}), json!({"cniVersion": "1.0.0", "name": ""})] {
        assert_eq!(parse_conf(Verb::Add, &value).unwrap_err().code, 7);
    }
    let value = json!({"cniVersion": "1.0.0", "name": 7});
    assert_eq!(parse_conf(Verb::Add, &value).unwrap_err().code, 7);
    let value = json!({"cniVersion": "1.0.0", "name": "m", "stateDir": "run/mizzen"});
    assert_eq!(parse_conf(Verb::Add, &value).unwrap_err().code, 7);
}

#[test]
fn cni_06_unsupported_versions_are_told_the_supported_ones() {
    for value in [json!({"name": "m"}), minimal("0.2.0"), minimal("2.0.0")] {
        let error = parse_conf(Verb::Add, &value).unwrap_err();
        assert_eq!(error.code, 1);
        for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            assert!(error.details.contains(version), "{error}");
        }
    }
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let conf = parse_conf(Verb::Add, &minimal(version)).unwrap();
        assert_eq!(conf.version.as_str(), version);
    }
}

#[test]
fn cni_07_errors_have_version_code_and_message() {
    let error = CniError::new(11, "not now", "because");
    let expected =
        json!({"cniVersion": "0.4.0", "code": 11, "msg": "not now", "details": "because"});
    assert_eq!(error.render(Version::V0_4_0), expected);
}

#[test]
fn cni_08_version_needs_no_input_and_echoes() {
    let began = Start::until(Instant::now() + Duration::from_secs(1));
    let run = |stdin: &[u8]| plugin::run(&invocation("VERSION"), stdin, began).unwrap();
    let supported = json!(["0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    let expected = json!({"cniVersion": "1.1.0", "supportedVersions": supported});
    assert_eq!(run(b""), Some(expected));
    let expected = json!({"cniVersion": "0.4.0", "supportedVersions": supported});
    assert_eq!(run(br#"{"cniVersion":"0.4.0"}"#), Some(expected));
}

#[test]
fn cni_09_results_have_the_shape_of_their_version() {
    let render = |version: &str| {
        let conf = parse_conf(Verb::Add, &minimal(version)).unwrap();
        result::added(&conf, &invocation("ADD"), &link())
    };
    for version in ["0.3.1", "0.4.0"] {
        let result = render(version);
        assert_eq!(result["ips"][0]["version"], "4");
        assert_eq!(result["ips"][1]["version"], "6");
        assert_eq!(result["interfaces"][1].get("mtu"), None);
    }
    let result = render("1.0.0");
    assert_eq!(result["ips"][0].get("version"), None);
    assert_eq!(result["interfaces"][1].get("mtu"), None);
    let result = render("1.1.0");
    assert_eq!(result["ips"][0].get("version"), None);
    assert_eq!(result["interfaces"][1]["mtu"], 1450);
}

#[test]
fn cni_10_verbs_begin_with_their_version() {
    let code = |verb, version| parse_conf(verb, &minimal(version)).err().map(|error| error.code);
    assert_eq!(code(Verb::Check, "0.3.1"), Some(1));
    assert_eq!(code(Verb::Check, "0.4.0"), None);
    for verb in [Verb::Gc, Verb::Status] {
        assert_eq!(code(verb, "1.0.0"), Some(1));
        assert_eq!(code(verb, "1.1.0"), None);
    }
}

#[test]
fn cni_11_the_plugins_own_namespace_is_refused() {
    let began = Start::until(Instant::now() + Duration::from_secs(1));
    let mut invocation = invocation("ADD");
    invocation.netns = Some("/proc/self/ns/net".into());
    let folder = tempfile::tempdir().unwrap();
    let mut value = minimal("1.0.0");
    value["stateDir"] = folder.path().to_str().into();
    let code = |invocation: &Invocation| {
        plugin::run(invocation, value.to_string().as_bytes(), began).unwrap_err().1.code
    };
    assert_eq!(code(&invocation), 8);
    // Allowed: on to the agent, which is not there.
    invocation.netns_override = true;
    assert_eq!(code(&invocation), 11);
    invocation.netns = Some("/proc/self/status".into());
    assert_eq!(code(&invocation), 4);
    let mut with_override = variables("ADD");
    with_override.insert("CNI_NETNS_OVERRIDE", "TRUE");
    assert!(parse_env(&with_override).unwrap().unwrap().netns_override);
}

#[test]
fn cni_12_gc_reads_both_keys_and_never_takes_silence_for_an_empty_list() {
    let c1 = vec![Attachment { container_id: "c1".into(), ifname: "eth0".into() }];
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let mut value = minimal("1.1.0");
        value[key] = json!([{"containerID": "c1", "ifname": "eth0"}]);
        let conf = parse_conf(Verb::Gc, &value).unwrap();
        assert_eq!(conf.valid_attachments.as_ref(), Some(&c1));
    }
    let silent = |value: &Value| parse_conf(Verb::Gc, value).unwrap().valid_attachments;
    assert_eq!(silent(&minimal("1.1.0")), None);
    // A list that was never set is null, and silence as well; the other key may say more.
    let mut null = minimal("1.1.0");
    null["cni.dev/valid-attachments"] = Value::Null;
    assert_eq!(silent(&null), None);
    null["cni.dev/attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    assert_eq!(silent(&null), Some(c1));
    // What is no list is GC's to refuse, and nothing to the others.
    null["cni.dev/valid-attachments"] = json!("all");
    assert_eq!(parse_conf(Verb::Gc, &null).unwrap_err().code, 7);
    assert_eq!(parse_conf(Verb::Del, &null).unwrap().valid_attachments, None);
    // No agent listens: success shows that nobody was asked to remove anything.
    let began = Start::until(Instant::now() + Duration::from_secs(1));
    let stdin = minimal("1.1.0").to_string();
    assert_eq!(plugin::run(&invocation("GC"), stdin.as_bytes(), began).unwrap(), None);
}

/// What is connected while standard input is read or an agent is waited for is younger than the list.
#[test]
fn cni_39_gc_says_when_it_was_called() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("cni.sock")).unwrap();
    let mut value = minimal("1.1.0");
    value["stateDir"] = folder.path().to_str().into();
    value["cni.dev/valid-attachments"] = json!([]);
    let agent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let request: crate::wire::Request = crate::wire::receive(&mut stream).unwrap().0;
        crate::wire::send(&mut stream, &crate::wire::Response::Done, None).unwrap();
        request.command
    });
    let start = Start { uptime: Some(7), ..Start::until(Instant::now() + plugin::TIME_LIMIT) };
    plugin::run(&invocation("GC"), value.to_string().as_bytes(), start).unwrap();
    let expected = crate::wire::Command::Gc { valid: Vec::new(), called: Some(7) };
    assert_eq!(agent.join().unwrap(), expected);
}

/// An agent that leaves closes calls that wait in its queue; the next one answers them.
#[test]
fn cni_34_a_call_that_an_agent_left_without_an_answer_is_the_next_ones() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("cni.sock")).unwrap();
    let mut value = minimal("1.1.0");
    value["stateDir"] = folder.path().to_str().into();
    for leave in [1, 2, 3, 4] {
        let listener = listener.try_clone().unwrap();
        let agents = std::thread::spawn(move || {
            for _ in 0..leave {
                drop(listener.accept().unwrap());
            }
            if leave < 4 {
                let (mut stream, _) = listener.accept().unwrap();
                let request: crate::wire::Request = crate::wire::receive(&mut stream).unwrap().0;
                assert_eq!(request.command, crate::wire::Command::Status);
                crate::wire::send(&mut stream, &crate::wire::Response::Done, None).unwrap();
            }
        });
        let began = Start::until(Instant::now() + plugin::TIME_LIMIT);
        let outcome = plugin::run(&invocation("STATUS"), value.to_string().as_bytes(), began);
        // One that closes every call refuses them.
        assert_eq!(outcome.is_ok(), leave < 4, "{outcome:?}");
        agents.join().unwrap();
    }
}

/// Agents that accept and say nothing, and one that does not even accept.
#[test]
fn cni_34_a_silent_agent_costs_a_call_no_more_than_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("cni.sock")).unwrap();
    let mut value = minimal("1.1.0");
    value["stateDir"] = folder.path().to_str().into();
    let mut own = invocation("ADD");
    (own.netns, own.netns_override) = (Some("/proc/self/ns/net".into()), true);
    for accepts in [false, true] {
        let accepted = accepts.then(|| listener.try_clone().unwrap());
        let accepted = accepted.map(|listener| std::thread::spawn(move || listener.accept()));
        let start = Instant::now();
        let began = Start::until(start + Duration::from_millis(200));
        let (_, error) = plugin::run(&own, value.to_string().as_bytes(), began).unwrap_err();
        assert_eq!(error.code, 11, "{error}");
        assert!(start.elapsed() < plugin::TIME_LIMIT / 2, "{:?}", start.elapsed());
        // A DEL succeeds nevertheless.
        let began = Start::until(Instant::now() + Duration::from_millis(200));
        let gone = plugin::run(&invocation("DEL"), value.to_string().as_bytes(), began);
        assert_eq!(gone.unwrap(), None);
        drop(accepted);
    }
    let noted = std::fs::read_to_string(folder.path().join("cni-del.journal")).unwrap();
    assert_eq!(noted.lines().count(), 2);
}

/// It ends in time though the agent takes all that it is given and the kernel its two seconds.
#[test]
fn cni_34_a_del_leaves_time_for_what_it_does_without_an_answer() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(folder.path().join("cni.sock")).unwrap();
    let mut value = minimal("1.1.0");
    value["stateDir"] = folder.path().to_str().into();
    let agent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        crate::wire::receive::<crate::wire::Request>(&mut stream).unwrap().0
    });
    let began = Start::until(Instant::now() + plugin::TIME_LIMIT);
    let gone = plugin::run(&invocation("DEL"), value.to_string().as_bytes(), began);
    assert_eq!(gone.unwrap(), None);
    let asked = Duration::from_millis(agent.join().unwrap().timeout_ms.into());
    assert!(asked + Duration::from_secs(2) < plugin::TIME_LIMIT, "{asked:?}");
    assert!(folder.path().join("cni-del.journal").exists());
}

#[test]
fn cni_14_trace_context_is_passed_on() {
    let mut variables = variables("ADD");
    variables.insert("TRACEPARENT", "00-aa-bb-01");
    variables.insert("TRACESTATE", "vendor=1");
    variables.insert("BAGGAGE", "tenant=7");
    let trace = parse_env(&variables).unwrap().unwrap().trace;
    let said = [trace.trace_parent, trace.trace_state, trace.baggage];
    assert_eq!(said, ["00-aa-bb-01", "vendor=1", "tenant=7"].map(|text| Some(text.to_owned())));
    let long: &'static str = "x".repeat(9000).leak();
    for name in ["TRACEPARENT", "TRACESTATE", "BAGGAGE"] {
        variables.insert(name, long);
    }
    assert_eq!(parse_env(&variables).unwrap().unwrap().trace, Trace::default());
}

#[test]
fn cni_15_a_previous_result_is_kept_and_ours_is_appended() {
    let mut value = minimal("1.0.0");
    value["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "first"}],
        "ips": [{"address": "192.0.2.1/24", "interface": 0}],
        "dns": {"nameservers": ["192.0.2.53"]},
    });
    let conf = parse_conf(Verb::Add, &value).unwrap();
    let result = result::added(&conf, &invocation("ADD"), &link());
    assert_eq!(result["interfaces"][0]["name"], "first");
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    assert_eq!(result["ips"][0]["address"], "192.0.2.1/24");
    assert_eq!(result["ips"][1]["interface"], 2);
    assert_eq!(result["dns"]["nameservers"][0], "192.0.2.53");
    let addresses = parse_conf(Verb::Check, &value).unwrap().prev_addresses();
    assert_eq!(addresses, ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]);

    value["prevResult"] = json!("nonsense");
    assert_eq!(parse_conf(Verb::Add, &value).unwrap_err().code, 7);
    assert_eq!(parse_conf(Verb::Del, &value).unwrap().prev_result, None);
}

#[test]
fn cni_16_runtime_config_unknown_is_ignored_malformed_is_refused() {
    let mut value = minimal("1.0.0");
    value["runtimeConfig"] = json!({"unknown": [1, 2]});
    assert!(parse_conf(Verb::Add, &value).is_ok());
    value["runtimeConfig"] = json!("nonsense");
    assert_eq!(parse_conf(Verb::Add, &value).unwrap_err().code, 7);
    // It must stop nothing that cleans up.
    assert!(parse_conf(Verb::Del, &value).is_ok());
}

#[test]
fn cni_30_the_result_of_add() {
    let conf = parse_conf(Verb::Add, &minimal("1.1.0")).unwrap();
    let expected = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            {"name": "mz0123456789abc", "mac": "02:00:00:00:00:01", "mtu": 1450},
            {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1450, "sandbox": "/run/netns/c1"},
        ],
        "ips": [
            {"address": "10.244.1.7/32", "gateway": "169.254.1.1", "interface": 1},
            {"address": "fd00:244:1::7/128", "gateway": "fe80::1", "interface": 1},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "169.254.1.1"},
            {"dst": "::/0", "gw": "fe80::1"},
        ],
        "dns": {},
    });
    assert_eq!(result::added(&conf, &invocation("ADD"), &link()), expected);
}

#[test]
fn the_pod_is_read_from_the_arguments() {
    let mut variables = variables("ADD");
    variables.insert(
        "CNI_ARGS",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1",
    );
    let pod = parse_env(&variables).unwrap().unwrap().pod;
    assert_eq!((&*pod.namespace, &*pod.name, &*pod.uid), ("default", "web-0", "u-1"));
}
