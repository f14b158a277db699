//! Tests of reading, precedence and what is shown.

use super::*;

fn error(text: &str) -> String {
    let error = parse(text, Path::new("agent.yaml")).unwrap_err();
    let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
    format!("{error}: {cause}")
}

const HEAD: &str = "apiVersion: mizzen.dev/v1alpha1\n";

#[test]
fn an_unknown_field_is_named_with_its_line() {
    let error = error(&format!("{HEAD}nodeName: a\nnodePortAdresses: []\n"));
    assert!(error.contains("agent.yaml") && error.contains("nodePortAdresses"), "{error}");
    assert!(error.contains("line 3"), "{error}");
    assert!(error.contains("nodePortAddresses"), "it says what there is: {error}");
}

#[test]
fn what_is_wrong_in_a_server_block_is_named_with_its_line() {
    let unknown = error(&format!("{HEAD}dnsBlocks:\n- zones: [a]\n  forwards: []\n"));
    assert!(unknown.contains("dnsBlocks[0]") && unknown.contains("forwards"), "{unknown}");
    assert!(unknown.contains("line 4"), "{unknown}");
    let meant = error(&format!("{HEAD}dnsBlocks:\n- zones: [a]\n  bufsize: 1\n"));
    assert!(meant.contains("dnsBlocks[0]: bufsize: 1 is no number"), "{meant}");
    assert!(meant.contains("line 3"), "the block's: {meant}");
}

#[test]
fn server_blocks_are_shown_as_they_would_be_written() {
    let blocks = "[{\"zones\":[\"a\"],\"forward\":[{\"to\":[\"192.0.2.1\"]}]}]";
    let flags = Flags {
        node_name: Some("n".into()),
        dns_blocks: Some("[{zones: [a], forward: [{to: [192.0.2.1]}]}]".parse().unwrap()),
        ..Flags::default()
    };
    let shown = resolve(None, flags, Environment::default()).unwrap().show();
    assert!(shown.contains(&format!("dnsBlocks: {blocks}  # flag\n")), "{shown}");
    let again = parse(&shown, Path::new("shown")).unwrap();
    assert_eq!(again.dns_blocks.unwrap().0.len(), 1);
}

#[test]
fn a_value_of_the_wrong_type_is_named_with_its_line() {
    let error = error(&format!("{HEAD}services: maybe\n"));
    assert!(error.contains("services") && error.contains("line 2"), "{error}");
}

#[test]
fn another_version_is_refused() {
    let error = error("apiVersion: mizzen.dev/v2\n");
    assert!(error.contains("mizzen.dev/v2") && error.contains(API_VERSION), "{error}");
    assert!(parse("", Path::new("x")).is_err(), "apiVersion is needed");
}

#[test]
fn flags_go_before_the_file_before_defaults() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("agent.yaml");
    std::fs::write(&path, format!("{HEAD}nodeName: a\nclusterDomain: file.example\n")).unwrap();
    let flags = Flags { node_name: Some("b".into()), ..Flags::default() };
    let resolved = resolve(Some(&path), flags, named("c")).unwrap();
    assert_eq!(resolved.config.node_name, "b");
    let shown = resolved.show();
    assert!(shown.contains("nodeName: \"b\"  # flag\n"), "{shown}");
    assert!(shown.contains("clusterDomain: \"file.example\"  # file\n"), "{shown}");
    assert!(shown.contains("services: true  # default\n"), "{shown}");
    let again = parse(&shown, Path::new("shown")).unwrap();
    assert_eq!(fields::layer(Flags::default(), again, fields::File::default()).0, resolved.config);
}

#[test]
fn without_a_node_name_the_remedies_are_named() {
    let unnamed = resolve(None, Flags::default(), Environment::default()).unwrap();
    assert!(unnamed.show().contains("nodeName: \"\"  # default"), "it can be looked at");
    let error = unnamed.named().unwrap_err().to_string();
    assert!(error.contains("--node-name") && error.contains("NODE_NAME"), "{error}");
    let named = resolve(None, Flags::default(), named("n")).unwrap();
    assert!(named.show().contains("nodeName: \"n\"  # environment"));
    assert!(named.named().is_ok());
}

/// An environment that names the node.
fn named(node: &str) -> Environment {
    Environment { node_name: Some(node.into()), ..Environment::default() }
}

#[test]
fn the_variable_for_the_log_goes_before_the_flag() {
    let flags = Flags { log_filter: Some("debug".into()), ..Flags::default() };
    let environment = Environment { log_filter: Some("warn".into()), ..Environment::default() };
    let shown = resolve(None, flags, environment).unwrap().show();
    assert!(shown.contains("logFilter: \"warn\"  # environment\n"), "{shown}");
}

/// A folder with files, by their names.
fn files<const N: usize>(files: [(&str, &str); N]) -> (tempfile::TempDir, [PathBuf; N]) {
    let folder = tempfile::tempdir().unwrap();
    let paths = files.map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    });
    (folder, paths)
}

const KUBE_PROXY: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
hostnameOverride: proxied
mode: nftables
nodePortAddresses: [192.0.2.0/24]
metricsBindAddress: 0.0.0.0:10249
nftables:
  masqueradeAll: true
  syncPeriod: 30s
";

#[test]
fn kube_proxys_configuration_is_known_by_its_kind() {
    let json = "{\"kind\": \"KubeProxyConfiguration\", \"mode\": \"nftables\"}";
    for text in [KUBE_PROXY, "kind: 'KubeProxyConfiguration'\n{", json] {
        assert!(is_kube_proxys(text), "{text}");
    }
    for text in ["", "kind: Config\nclusters: []\n", "# kind: KubeProxyConfiguration\n", HEAD] {
        assert!(!is_kube_proxys(text), "{text}");
    }
}

#[test]
fn flags_go_before_the_file_before_kube_proxys_before_defaults() {
    let native = format!("{HEAD}nodePortAddresses: [primary]\nmasqueradeAll: false\n");
    let (_folder, [native, kube_proxy]) =
        files([("agent.yaml", &native), ("config.conf", KUBE_PROXY)]);
    let flags = Flags {
        kube_proxy_config: Some(kube_proxy),
        masquerade_all: Some(true),
        ..Flags::default()
    };
    let resolved = resolve(Some(&native), flags, named("variable")).unwrap();
    let shown = resolved.show();
    for line in [
        "masqueradeAll: true  # flag",
        "nodePortAddresses: [\"primary\"]  # file",
        "nodeName: \"variable\"  # environment",
        "metricsBindAddress: \"[::]:10249\"  # kube-proxy",
        "healthzBindAddress: \"[::]:10256\"  # default",
    ] {
        assert!(shown.contains(&format!("{line}\n")), "{line}: {shown}");
    }
    let json = resolved.to_json();
    let field = |name: &str| json["fields"][name].clone();
    assert_eq!(field("nodeName"), json!({"value": "variable", "origin": "environment"}));
    let metrics = json!({"value": "[::]:10249", "origin": "kube-proxy"});
    assert_eq!(field("metricsBindAddress"), metrics);
    assert_eq!(field("masqueradeAll"), json!({"value": true, "origin": "flag"}));
    assert_eq!(json["withoutEffect"][0]["field"], "nftables.syncPeriod");
}

#[test]
fn the_node_is_named_by_flag_file_variable_and_then_kube_proxys() {
    let native = format!("{HEAD}nodeName: file\n");
    let (_folder, [native, empty, kube_proxy]) =
        files([("agent.yaml", &native), ("empty.yaml", HEAD), ("config.conf", KUBE_PROXY)]);
    for (flag, file, variable, name, origin) in [
        (Some("flag"), &native, Some("variable"), "flag", "flag"),
        (None, &native, Some("variable"), "file", "file"),
        (None, &empty, Some("variable"), "variable", "environment"),
        (None, &empty, None, "proxied", "kube-proxy"),
    ] {
        let flags = Flags {
            kube_proxy_config: Some(kube_proxy.clone()),
            node_name: flag.map(str::to_owned),
            ..Flags::default()
        };
        let shown = resolve(Some(file), flags, variable.map(named).unwrap_or_default()).unwrap();
        let line = format!("nodeName: \"{name}\"  # {origin}\n");
        assert!(shown.show().contains(&line), "{line}: {}", shown.show());
    }
}

#[test]
fn the_file_can_name_kube_proxys() {
    let (folder, [kube_proxy]) = files([("config.conf", KUBE_PROXY)]);
    let native = folder.path().join("agent.yaml");
    let text = format!("{HEAD}kubeProxyConfig: {}\n", kube_proxy.display());
    std::fs::write(&native, text).unwrap();
    let config = resolve(Some(&native), Flags::default(), Environment::default()).unwrap().config;
    assert_eq!(config.node_name, "proxied");
    // A flag can say that there is none.
    let flags = Flags { kube_proxy_config: Some(PathBuf::new()), ..Flags::default() };
    let config = resolve(Some(&native), flags, Environment::default()).unwrap().config;
    assert_eq!(config.node_name, "");
}

#[test]
fn values_that_cannot_be_are_named_with_field_and_line() {
    let text = format!("{HEAD}nodeName: n\nserviceCidrs: [10.96.0.0]\n");
    let (_folder, [native]) = files([("agent.yaml", &text)]);
    for error in [
        resolve(Some(&native), Flags::default(), Environment::default()).unwrap_err(),
        check_file(&native).unwrap_err(),
    ] {
        let error = error.to_string();
        let place = format!("serviceCidrs (--service-cidrs) in {}, line 3:", native.display());
        assert!(error.contains(&place), "{error}");
    }
    let text = format!("{HEAD}nodeName: n\napiServer:\n- 192.0.2.1:6443\n");
    let error = check_text(&text, Path::new("agent.yaml")).unwrap_err().to_string();
    assert!(error.starts_with("apiServer (--api-server) in agent.yaml, line 3: "), "{error}");
    // What a flag says is no matter of the file.
    let flags = Flags { service_cidrs: Some(vec!["x".into()]), ..Flags::default() };
    let error = resolve(Some(&native), flags, Environment::default()).unwrap_err().to_string();
    assert!(error.starts_with("serviceCidrs (--service-cidrs):"), "{error}");
}

#[test]
fn files_of_both_kinds_are_checked_alone() {
    let (_folder, [native, kube_proxy, wrong]) = files([
        ("agent.yaml", &format!("{HEAD}cni: false\n")),
        ("config.conf", KUBE_PROXY),
        ("wrong.conf", &KUBE_PROXY.replace("masqueradeAll", "masquerade")),
    ]);
    assert_eq!(check_file(&native).unwrap(), []);
    let fields: Vec<_> = check_file(&kube_proxy).unwrap().into_iter().map(|it| it.field).collect();
    assert_eq!(fields, ["nftables.syncPeriod"]);
    let error = check_file(&wrong).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("`masquerade`") && cause.contains("line 8 column 3"), "{cause}");
}
