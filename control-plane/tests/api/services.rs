//! Addresses, ports and families of Services.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::server::{Server, said};

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: &Value) -> Value {
    let mut spec = spec.clone();
    if spec.get("ports").is_none() && spec["type"] != "ExternalName" {
        spec["ports"] = json!([{"port": 80}]);
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

async fn make(server: &Server, name: &str, spec: &Value) -> Value {
    server.post(SERVICES, &service(name, spec)).await.unwrap()["spec"].take()
}

async fn refused(server: &Server, spec: &Value) -> String {
    let status = server.post(SERVICES, &service("refused", spec)).await.unwrap_err();
    assert_eq!((said(&status).0, said(&status).1), (422, "Invalid"), "{status}");
    said(&status).2.trim_start_matches("Service \"refused\" is invalid: ").to_owned()
}

#[tokio::test]
async fn inv_76_the_first_services() {
    let server = Server::with(&[
        "--in-memory",
        "--advertise-address",
        "172.30.0.1",
        "--advertise-address",
        "fd00:30::1",
    ])
    .await;
    let kubernetes = server.get(&format!("{SERVICES}/kubernetes")).await.unwrap();
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.96.0.1");
    let dns = server.get("/api/v1/namespaces/kube-system/services/kube-dns").await.unwrap();
    assert_eq!(dns["spec"]["clusterIPs"], json!(["10.96.0.10", "fd00:96::a"]));
    let ports: Vec<(&Value, &Value, &Value)> = dns["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|port| (&port["name"], &port["port"], &port["protocol"]))
        .collect();
    assert_eq!(
        ports,
        [
            (&json!("dns"), &json!(53), &json!("UDP")),
            (&json!("dns-tcp"), &json!(53), &json!("TCP")),
            (&json!("metrics"), &json!(9153), &json!("TCP"))
        ]
    );
    let slice = server
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        .await
        .unwrap();
    assert_eq!(slice["endpoints"][0]["addresses"], json!(["172.30.0.1"]));
    let port: i64 = server.url.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(slice["ports"][0]["port"], port);
}

#[tokio::test]
async fn inv_76_cluster_ip_is_the_default_and_immutable() {
    let server = Server::start().await;
    let spec = make(&server, "a", &json!({})).await;
    assert_eq!(
        (&spec["type"], &spec["ipFamilies"], &spec["ipFamilyPolicy"]),
        (&json!("ClusterIP"), &json!(["IPv4"]), &json!("SingleStack"))
    );
    assert_eq!(
        (&spec["sessionAffinity"], &spec["internalTrafficPolicy"]),
        (&json!("None"), &json!("Cluster"))
    );
    assert_eq!(spec["ports"], json!([{"port": 80, "protocol": "TCP", "targetPort": 80}]));
    let address = spec["clusterIP"].as_str().unwrap();
    assert_eq!(spec["clusterIPs"], json!([address]));
    // From the dynamic band.
    assert!(address.starts_with("10.96.") && !address.starts_with("10.96.0."), "{address}");
    let change = json!({"spec": {"clusterIP": "10.96.0.77", "clusterIPs": ["10.96.0.77"]}});
    let status = server.patch("merge", &format!("{SERVICES}/a"), &change).await.unwrap_err();
    assert_eq!(
        said(&status).2,
        "Service \"a\" is invalid: spec.clusterIPs[0]: Invalid value: [\"10.96.0.77\"]: may not change once set"
    );
    // An update that leaves it out keeps it.
    let sent = service("a", &json!({"ports": [{"port": 81}]}));
    assert_eq!(
        server.put(&format!("{SERVICES}/a"), &sent).await.unwrap()["spec"]["clusterIP"],
        address
    );
}

#[tokio::test]
async fn addresses_asked_for() {
    let server = Server::start().await;
    assert_eq!(
        make(&server, "a", &json!({"clusterIP": "10.96.0.77"})).await["clusterIPs"],
        json!(["10.96.0.77"])
    );
    assert_eq!(
        refused(&server, &json!({"clusterIP": "10.96.0.77"})).await,
        "spec.clusterIPs: Invalid value: [\"10.96.0.77\"]: failed to allocate IP 10.96.0.77: provided IP is already allocated"
    );
    assert_eq!(
        refused(&server, &json!({"clusterIP": "10.97.0.1"})).await,
        "spec.clusterIPs: Invalid value: [\"10.97.0.1\"]: failed to allocate IP 10.97.0.1: the provided network does not match the current range"
    );
    assert!(
        refused(&server, &json!({"clusterIP": "nonsense"}))
            .await
            .contains("must be a valid IP address")
    );
    // What a deletion gives back can be had again.
    server.delete(&format!("{SERVICES}/a"), &json!({})).await.unwrap();
    make(&server, "b", &json!({"clusterIP": "10.96.0.77"})).await;
    let taken = make(&server, "six", &json!({"clusterIP": "fd00:96::77"})).await;
    assert_eq!(taken["ipFamilies"], json!(["IPv6"]));
}

#[tokio::test]
async fn families_and_policies() {
    let server = Server::start().await;
    let dual = make(&server, "dual", &json!({"ipFamilyPolicy": "RequireDualStack"})).await;
    assert_eq!(dual["ipFamilies"], json!(["IPv4", "IPv6"]));
    let addresses = dual["clusterIPs"].as_array().unwrap();
    assert!(
        addresses[0].as_str().unwrap().starts_with("10.96.")
            && addresses[1].as_str().unwrap().starts_with("fd00:96::"),
        "{addresses:?}"
    );
    let six =
        make(&server, "six", &json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6"]}))
            .await;
    assert_eq!(
        (&six["ipFamilies"], &six["clusterIP"]),
        (&json!(["IPv6", "IPv4"]), &six["clusterIPs"][0])
    );
    assert!(
        refused(&server, &json!({"ipFamilies": ["IPv4", "IPv6"]}))
            .await
            .starts_with("spec.ipFamilyPolicy: ")
    );
    // One family becomes two, and one again.
    let made = make(&server, "grow", &json!({})).await;
    let path = format!("{SERVICES}/grow");
    let grown = server
        .patch("merge", &path, &json!({"spec": {"ipFamilyPolicy": "PreferDualStack"}}))
        .await
        .unwrap();
    assert_eq!(
        (&grown["spec"]["clusterIP"], grown["spec"]["clusterIPs"].as_array().unwrap().len()),
        (&made["clusterIP"], 2)
    );
    let second = grown["spec"]["clusterIPs"][1].as_str().unwrap().to_owned();
    let shrunk = server
        .patch("merge", &path, &json!({"spec": {"ipFamilyPolicy": "SingleStack"}}))
        .await
        .unwrap();
    assert_eq!(
        (&shrunk["spec"]["clusterIPs"], &shrunk["spec"]["ipFamilies"]),
        (&made["clusterIPs"], &json!(["IPv4"]))
    );
    // The second address is free again.
    make(&server, "heir", &json!({"clusterIP": second})).await;

    let single = Server::with(&["--in-memory", "--service-cidr", "10.96.0.0/16"]).await;
    assert!(
        refused(&single, &json!({"ipFamilyPolicy": "RequireDualStack", "selector": {"a": "b"}}))
            .await
            .contains("not configured for dual-stack")
    );
    assert_eq!(
        make(&single, "prefer", &json!({"ipFamilyPolicy": "PreferDualStack"})).await["ipFamilies"],
        json!(["IPv4"])
    );
}

#[tokio::test]
async fn inv_80_headless_and_inv_79_external_name() {
    let server = Server::start().await;
    let headless =
        make(&server, "headless", &json!({"clusterIP": "None", "selector": {"a": "b"}})).await;
    assert_eq!(
        (&headless["clusterIPs"], &headless["ipFamilies"]),
        (&json!(["None"]), &json!(["IPv4"]))
    );
    let without_selector = make(&server, "bare", &json!({"clusterIP": "None"})).await;
    assert_eq!(
        (&without_selector["ipFamilyPolicy"], &without_selector["ipFamilies"]),
        (&json!("RequireDualStack"), &json!(["IPv4", "IPv6"]))
    );
    let external =
        make(&server, "external", &json!({"type": "ExternalName", "externalName": "example.org"}))
            .await;
    assert_eq!((external.get("clusterIP"), external.get("ipFamilies")), (None, None));
    assert_eq!(
        refused(&server, &json!({"type": "ExternalName"})).await,
        "spec.externalName: Required value"
    );
}

#[tokio::test]
async fn inv_77_node_ports() {
    let server = Server::start().await;
    let spec = make(&server, "auto", &json!({"type": "NodePort"})).await;
    let port = spec["ports"][0]["nodePort"].as_i64().unwrap();
    assert!((30_086..=32_767).contains(&port), "{port}");
    assert_eq!(spec["externalTrafficPolicy"], "Cluster");
    let asked = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_001}]});
    make(&server, "asked", &asked).await;
    assert_eq!(
        refused(&server, &asked).await,
        "spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"
    );
    let outside = json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]});
    assert_eq!(
        refused(&server, &outside).await,
        "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"
    );
    let wrong = json!({"ports": [{"port": 80, "nodePort": 30_002}]});
    assert_eq!(
        refused(&server, &wrong).await,
        "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"
    );
    // The same number for two protocols of one Service is fine.
    let both = json!({"type": "NodePort", "ports": [{"name": "u", "port": 53, "protocol": "UDP", "nodePort": 30_053}, {"name": "t", "port": 53, "protocol": "TCP", "nodePort": 30_053}]});
    make(&server, "both", &both).await;
    // An update without it keeps it; a change of type gives it back.
    let path = format!("{SERVICES}/asked");
    let kept = server
        .put(
            &path,
            &service(
                "asked",
                &json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080}]}),
            ),
        )
        .await
        .unwrap();
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], 30_001);
    let plain =
        server.patch("merge", &path, &json!({"spec": {"type": "ClusterIP"}})).await.unwrap();
    assert_eq!(
        (plain["spec"]["ports"][0].get("nodePort"), plain["spec"].get("externalTrafficPolicy")),
        (None, None)
    );
    make(&server, "heir", &asked).await;
}

#[tokio::test]
async fn inv_78_load_balancers_have_node_and_health_ports() {
    let server = Server::start().await;
    let spec =
        make(&server, "lb", &json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"}))
            .await;
    assert!(spec["ports"][0]["nodePort"].is_i64() && spec["healthCheckNodePort"].is_i64());
    assert_ne!(spec["ports"][0]["nodePort"], spec["healthCheckNodePort"]);
    let without = make(
        &server,
        "without",
        &json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false}),
    )
    .await;
    assert_eq!(without["ports"][0].get("nodePort"), None);
}

#[tokio::test]
async fn inv_81_ports_are_checked() {
    let server = Server::start().await;
    for (spec, message) in [
        (json!({"ports": []}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 0}]}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"ports": [{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]}),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"ports": [{"port": 1, "protocol": "ICMP"}]}),
            "spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
        (
            json!({"type": "Magic"}),
            "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
    ] {
        assert!(refused(&server, &spec).await.contains(message), "{message}");
    }
    assert!(
        refused(&server, &json!({"ports": [{"port": 1}, {"port": 2}]}))
            .await
            .contains("spec.ports[0].name: Required value")
    );
    let status = server.post(SERVICES, &service("1a", &json!({}))).await.unwrap_err();
    assert!(said(&status).2.contains("a DNS-1035 label must consist of"), "{status}");
}

#[tokio::test]
async fn what_the_last_update_of_a_leaving_service_drops_is_free_again() {
    let server = Server::start().await;
    let node_port =
        |number: u16| json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": number}]});
    let mut leaving = service("leaving", &node_port(30_090));
    leaving["metadata"]["finalizers"] = json!(["example.com/x"]);
    server.post(SERVICES, &leaving).await.unwrap();
    let path = format!("{SERVICES}/leaving");
    let mut last = server.delete(&path, &json!({})).await.unwrap();
    last["metadata"]["finalizers"] = json!([]);
    last["spec"]["ports"][0]["nodePort"] = json!(30_091);
    server.put(&path, &last).await.unwrap();
    assert_eq!(said(&server.get(&path).await.unwrap_err()).0, 404);
    make(&server, "next", &node_port(30_090)).await;
    make(&server, "after", &node_port(30_091)).await;
}

#[tokio::test]
async fn nothing_is_given_out_twice() {
    let server =
        std::sync::Arc::new(Server::with(&["--in-memory", "--service-cidr", "10.96.0.0/25"]).await);
    let mut makers = tokio::task::JoinSet::new();
    for number in 0..100 {
        let server = std::sync::Arc::clone(&server);
        makers.spawn(async move {
            make(&server, &format!("s{number}"), &json!({"type": "NodePort"})).await
        });
    }
    let mut seen = HashSet::new();
    while let Some(spec) = makers.join_next().await {
        let spec = spec.unwrap();
        assert!(
            seen.insert(spec["clusterIP"].to_string())
                && seen.insert(spec["ports"][0]["nodePort"].to_string()),
            "{spec}"
        );
    }
    // 126 addresses, 1 and 10 of which were taken from the start.
    for number in 100..124 {
        make(&server, &format!("s{number}"), &json!({})).await;
    }
    let status = server.post(SERVICES, &service("s124", &json!({}))).await.unwrap_err();
    assert_eq!(said(&status).0, 500);
    assert!(said(&status).2.contains("range is full"), "{status}");
}
