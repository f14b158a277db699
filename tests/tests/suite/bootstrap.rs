//! How an agent starts on a node where nothing makes Services work: with empty tables, without
//! kube-proxy, and with API servers that are away. Real servers with real certificates. Needs root.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Api, api::PostParams};
use mizzen_tests::{
    lab::{FAMILIES, Family},
    wait,
};
use serde_json::{Value, json};

use super::dns::field::{API, API_PORT, Field, Host, LIMIT, METRICS, binary, on};

/// An address of the wire that nobody has.
const NOBODY: u8 = 99;
/// Port of the Service `api`.
const PORT: u16 = 443;

fn url(family: Family, last: u8) -> String {
    format!("https://{}", SocketAddr::new(family.wire(last), API_PORT))
}

/// A kubeconfig that names the server by its Service, as that of a service account does.
fn by_service(field: &Field, folder: &Path) -> String {
    let text = fs::read_to_string(&field.kubeconfig).unwrap();
    let own = format!("https://{}", SocketAddr::new(Family::V4.wire(API), API_PORT));
    assert!(text.contains(&own), "{text}");
    let path = folder.join("by-service.kubeconfig");
    fs::write(&path, text.replace(&own, "https://10.96.0.1:443")).unwrap();
    path.display().to_string()
}

/// A Service of both families that leads to the API server, and its addresses.
fn api_service(field: &Field) -> Vec<SocketAddr> {
    let client = field.client.clone();
    let spec = json!({
        "metadata": {"name": "api"},
        "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": PORT}]},
    });
    on(&field.runtime, async move {
        let services: Api<Service> = Api::default_namespaced(client.clone());
        let service = serde_json::from_value(spec).unwrap();
        let made = services.create(&PostParams::default(), &service).await.unwrap();
        let slices: Api<EndpointSlice> = Api::default_namespaced(client);
        for family in FAMILIES {
            let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
            let slice = json!({
                "metadata": {
                    "name": format!("api-{}", kind.to_lowercase()),
                    "labels": {"kubernetes.io/service-name": "api"},
                },
                "addressType": kind,
                "ports": [{"name": "", "port": API_PORT, "protocol": "TCP"}],
                "endpoints": [{"addresses": [family.wire(API)], "conditions": {"ready": true}}],
            });
            let slice = serde_json::from_value(slice).unwrap();
            slices.create(&PostParams::default(), &slice).await.unwrap();
        }
        let ips = made.spec.and_then(|spec| spec.cluster_ips).unwrap();
        ips.iter().map(|ip| SocketAddr::new(ip.parse().unwrap(), PORT)).collect()
    })
}

/// Sockets of the node reach the API server by the Service's addresses.
fn assert_served(host: &Host, services: &[SocketAddr]) {
    let mut actor = host.node.actor();
    for (service, kind) in services.iter().zip(["tcp4", "tcp6"]) {
        wait::until(&format!("{service} to lead to the API server"), LIMIT, || {
            let socket = actor.open(kind);
            actor.connect(socket, *service).map_err(|error| error.to_string())
        });
    }
}

/// What an agent keeps.
fn kept(host: &Host) -> Value {
    let text = fs::read(host.state().join("data/api-servers.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

#[test]
fn f46_an_agent_starts_and_serves_where_nothing_makes_services_work() {
    let field = Field::new();
    let folder = tempfile::tempdir().unwrap();
    let (kubeconfig, services) = (by_service(&field, folder.path()), api_service(&field));
    for (host, family) in field.hosts.iter().zip(FAMILIES) {
        let server = url(family, API);
        let flags = ["--kubeconfig", &kubeconfig, "--api-server", &server];
        let _agent = field.agent(host, &flags);
        assert_served(host, &services);
    }
}

#[test]
fn f46_a_server_that_is_dead_is_passed_over() {
    let field = Field::new();
    let services = api_service(&field);
    for (host, family) in field.hosts.iter().zip(FAMILIES) {
        let (dead, alive) = (url(family, NOBODY), url(family, API));
        let _agent = field.agent(host, &["--api-server", &dead, "--api-server", &alive]);
        assert_served(host, &services);
    }
}

#[test]
fn f46_servers_that_were_known_are_asked_where_no_named_one_answers() {
    let field = Field::new();
    let services = api_service(&field);
    let dead = url(Family::V4, NOBODY);
    for (host, family) in field.hosts.iter().zip(FAMILIES) {
        let both = json!({"servers": FAMILIES.map(|family| url(family, API))});
        {
            let agent = field.agent(host, &["--api-server", &url(family, API)]);
            wait::until("the servers to be kept", LIMIT, || match kept(host) {
                kept if kept == both => Ok(()),
                other => Err(format!("{other}; {}", agent.log())),
            });
        }
        // A reboot: nothing is left but the file.
        let again = host.state().join("bpf-after-reboot").display().to_string();
        let agent = field.begin(host, &["--api-server", &dead, "--bpffs", &again]);
        agent.until_ready(host);
        assert_served(host, &services);
        drop(agent);
        nix::mount::umount2(again.as_str(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        // Without it nobody answers.
        fs::remove_file(host.state().join("data/api-servers.json")).unwrap();
        let agent = field.begin(host, &["--api-server", &dead]);
        agent.until_logged("started");
        assert_ne!(host.http(METRICS, "/readyz").unwrap().0, 200);
    }
}

#[test]
fn f46_an_address_of_a_service_is_refused_with_the_reason() {
    let field = Field::new();
    let host = &field.hosts[0];
    let folder = tempfile::tempdir().unwrap();
    let by_service = by_service(&field, folder.path());
    let ranges = ["--service-cidrs", "10.96.0.0/16"];
    for (flags, reason) in [
        (["--api-server", "https://kubernetes.default.svc"], "is the name of a Service"),
        (["--api-server", "https://10.96.0.1"], "is in the range of cluster IPs 10.96.0.0/16"),
        (["--kubeconfig", &by_service], "is in the range of cluster IPs 10.96.0.0/16"),
    ] {
        let mut agent = field.begin(host, &[flags, ranges].concat());
        assert!(!agent.ended().success());
        let log = agent.log();
        assert!(log.contains(reason) && log.contains("--api-server"), "{log}");
    }
    // An agent that leaves Services to another may depend on them.
    let flags = ["--services=false", "--api-server", "https://10.96.0.1", ranges[0], ranges[1]];
    let mut agent = field.begin(host, &flags);
    agent.until_logged("started");
    assert!(agent.is_running());
}

/// Somebody tidied up after kube-proxy.
#[test]
fn f46_an_agent_goes_on_with_the_configuration_of_a_kube_proxy_whose_config_map_is_gone() {
    let field = Field::new();
    let host = &field.hosts[0];
    let map = tempfile::tempdir().unwrap();
    let file = map.path().join("config.conf");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                mode: nftables\nnodePortAddresses: [127.0.0.0/8]\n";
    fs::write(&file, text).unwrap();
    let flags = ["--kube-proxy-config", file.to_str().unwrap()];
    let part = || {
        let (_, said) = host.mizzen(&["status", "-o", "json"]);
        let status: Value = serde_json::from_str(&said).unwrap_or_default();
        let parts = status["parts"].as_array().cloned().unwrap_or_default();
        parts.into_iter().find(|part| part["name"] == "kube-proxy-config").unwrap_or_default()
    };
    {
        let _agent = field.agent(host, &flags);
        assert_eq!(part()["state"], "ready");
    }
    fs::remove_file(&file).unwrap();
    let agent = field.begin(host, &flags);
    wait::until("the agent to say what is gone", LIMIT, || match part() {
        part if part["state"] == "degraded" => Ok(()),
        other => Err(format!("{other} {}", agent.log())),
    });
    let (_, config) = host.http(METRICS, "/configz").unwrap();
    let ranges = "[\"127.0.0.0/8\",\"2000::/3\",\"fc00::/7\",\"fe80::/10\"]";
    let shown = format!("nodePortAddresses: {ranges}  # kube-proxy");
    assert!(config.contains(&shown), "{config}");
    assert_served(host, &api_service(&field));
}

/// What a pod mounts ends with it, and with that the traffic of its programs.
#[test]
fn a_pod_pins_nothing_where_the_node_has_no_bpf_file_system() {
    let field = Field::new();
    let host = &field.hosts[0];
    let in_a_pod = ["env", "KUBERNETES_SERVICE_HOST=10.96.0.1"];
    let mut agent = field.begin_by(host, &in_a_pod, &[]);
    assert!(!agent.ended().success());
    let log = agent.log();
    assert!(log.contains("mount -t bpf bpf /sys/fs/bpf") && log.contains("bpffs.mount"), "{log}");
    // As the chart's init container does.
    let bpffs = host.node.bpffs();
    for _ in 0..2 {
        let mut mount = Command::new(binary("mizzen-agent"));
        assert!(mount.arg("mount-bpffs").arg(&bpffs).status().unwrap().success());
    }
    let agent = field.begin_by(host, &in_a_pod, &[]);
    agent.until_ready(host);
    assert_served(host, &api_service(&field));
}
