//! Shapes of Services: what may be asked for, and what may change.

use serde_json::{Value, json};

use crate::bed::{Bed, causes, merge};

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(change: &Value) -> Value {
    let mut service =
        json!({"metadata": {"generateName": "s-"}, "spec": {"ports": [{"port": 80}]}});
    merge(&mut service["spec"], change);
    service
}

async fn refuses(table: Vec<(Value, String)>) {
    let bed = Bed::start().await;
    for (change, expected) in table {
        assert_eq!(bed.refused(SERVICES, &service(&change)).await, [expected], "{change}");
    }
}

#[tokio::test]
async fn families_and_addresses_that_kubernetes_refuses() {
    let any = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
    refuses(vec![
        (
            json!({"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv4", "IPv4"]}),
            "spec.ipFamilies[1]: Duplicate value: \"IPv4\"".to_owned(),
        ),
        (
            json!({"ipFamilies": ["IPX"]}),
            "spec.ipFamilies[0]: Unsupported value: \"IPX\": supported values: \"IPv4\", \"IPv6\""
                .to_owned(),
        ),
        (
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00:96::20", "10.96.0.21"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.20\",\"fd00:96::20\",\"10.96.0.21\"]: may only hold up to 2 values".to_owned(),
        ),
        (
            json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "10.96.0.21"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.20\",\"10.96.0.21\"]: may specify no more than one IP for each IP family".to_owned(),
        ),
        (
            json!({"clusterIP": "None", "clusterIPs": ["None", "10.96.0.21"]}),
            "spec.clusterIPs: Invalid value: [\"None\",\"10.96.0.21\"]: 'None' must be the first and only value".to_owned(),
        ),
        (
            json!({"clusterIPs": ["10.96.0.20"]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.20\"]: must be empty when `clusterIP` is not specified".to_owned(),
        ),
        (
            json!({"clusterIP": "10.96.0.20", "ipFamilies": ["IPv6"]}),
            "spec.clusterIPs[0]: Invalid value: \"10.96.0.20\": expected an IPv6 value as indicated by `ipFamilies[0]`".to_owned(),
        ),
        (
            json!({"clusterIP": "here"}),
            format!("spec.clusterIPs[0]: Invalid value: \"here\": {any}"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn ways_from_outside_that_kubernetes_refuses() {
    let any = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
    refuses(vec![
        (
            json!({"healthCheckNodePort": 30_100}),
            "spec.healthCheckNodePort: Invalid value: 30100: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'".to_owned(),
        ),
        (
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 80}),
            "spec.healthCheckNodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767".to_owned(),
        ),
        (
            json!({"externalIPs": ["nowhere"]}),
            format!("spec.externalIPs[0]: Invalid value: \"nowhere\": {any}"),
        ),
        (
            json!({"externalIPs": ["192.0.2.1", "::1"]}),
            "spec.externalIPs[1]: Invalid value: \"::1\": may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned(),
        ),
        (
            json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]}),
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'".to_owned(),
        ),
        (
            json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [" 192.0.2.0/24 ", "192.0.2.0/33"]}),
            "spec.LoadBalancerSourceRanges[1]: Invalid value: \"192.0.2.0/33\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned(),
        ),
    ])
    .await;
}

#[tokio::test]
async fn other_services_that_kubernetes_refuses() {
    refuses(vec![
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_401}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400".to_owned(),
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 0: must be greater than 0 and less than 86400".to_owned(),
        ),
        (
            json!({"loadBalancerClass": "example.com/lb"}),
            "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'".to_owned(),
        ),
        (
            json!({"allocateLoadBalancerNodePorts": true}),
            "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'".to_owned(),
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None"}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services".to_owned(),
        ),
        (
            json!({"type": "ExternalName", "externalName": "example.com", "ipFamilyPolicy": "SingleStack"}),
            "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services".to_owned(),
        ),
        (
            json!({"externalTrafficPolicy": "Local"}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services".to_owned(),
        ),
        (
            json!({"trafficDistribution": "Nearby"}),
            "spec.trafficDistribution: Unsupported value: \"Nearby\": supported values: \"PreferClose\", \"PreferSameNode\", \"PreferSameZone\"".to_owned(),
        ),
        (
            json!({"type": "NodePort", "ports": [{"name": "a", "port": 80, "nodePort": 30_080}, {"name": "b", "port": 81, "nodePort": 30_080}]}),
            "spec.ports[1].nodePort: Duplicate value: 30080".to_owned(),
        ),
        (
            json!({"ports": [{"port": 80, "targetPort": "two--dashes"}]}),
            "spec.ports[0].targetPort: Invalid value: \"two--dashes\": must not contain consecutive hyphens".to_owned(),
        ),
    ])
    .await;
}

#[tokio::test]
async fn services_that_kubernetes_accepts() {
    let bed = Bed::start().await;
    for change in [
        json!({"externalIPs": ["192.0.2.1", "2001:db8::1"]}),
        json!({"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"}),
        json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/lb"}),
        json!({"type": "LoadBalancer", "loadBalancerSourceRanges": [" 192.0.2.0/24 ", "2001:db8::/32"]}),
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30_100}),
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_400}}}),
        json!({"clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20", "fd00:96::20"], "ipFamilyPolicy": "RequireDualStack"}),
        json!({"clusterIP": "None"}),
    ] {
        bed.post(SERVICES, &service(&change)).await.unwrap_or_else(|why| panic!("{change}: {why}"));
    }
    // Without affinity there is nothing to configure.
    let change = json!({"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}});
    let made = bed.post(SERVICES, &service(&change)).await.unwrap();
    assert_eq!(made["spec"].get("sessionAffinityConfig"), None);
    let external =
        bed.post(SERVICES, &service(&json!({"externalIPs": ["192.0.2.1"]}))).await.unwrap();
    assert_eq!(external["spec"]["externalTrafficPolicy"], "Cluster");
}

#[tokio::test]
async fn inv_77_protocols_of_a_port_share_a_node_port() {
    let bed = Bed::start().await;
    let both = |nodes: [Option<u16>; 2]| {
        let mut ports = json!([{"name": "u", "port": 53, "protocol": "UDP"},
            {"name": "t", "port": 53, "protocol": "TCP"}]);
        for (port, node) in ports.as_array_mut().unwrap().iter_mut().zip(nodes) {
            if let Some(node) = node {
                port["nodePort"] = json!(node);
            }
        }
        service(&json!({"type": "NodePort", "ports": ports}))
    };
    for (nodes, expected) in [
        ([None, None], None),
        ([None, Some(30_053)], Some(30_053)),
        ([Some(30_054), None], Some(30_054)),
    ] {
        let made = bed.post(SERVICES, &both(nodes)).await.unwrap();
        let ports = &made["spec"]["ports"];
        assert_eq!(ports[0]["nodePort"], ports[1]["nodePort"], "{made}");
        if let Some(expected) = expected {
            assert_eq!(ports[0]["nodePort"], expected);
        }
    }
    let apart = bed.post(SERVICES, &both([Some(30_055), Some(30_056)])).await.unwrap();
    assert_eq!(apart["spec"]["ports"][1]["nodePort"], 30_056);
}

#[tokio::test]
async fn inv_76_what_a_service_has_does_not_change() {
    let bed = Bed::start().await;
    let dual = json!({"ipFamilyPolicy": "RequireDualStack"});
    let made = bed.post(SERVICES, &service(&dual)).await.unwrap();
    let path = format!("{SERVICES}/{}", made["metadata"]["name"].as_str().unwrap());
    let first = made["spec"]["clusterIPs"][0].as_str().unwrap();
    let refused = async |change: Value| {
        causes(&bed.patch("merge", &path, &json!({"spec": change})).await.unwrap_err())
    };
    let moved = refused(json!({"clusterIP": "10.96.0.99"})).await;
    assert!(moved[0].starts_with("spec.clusterIPs[0]: Invalid value: "), "{moved:?}");
    assert!(moved[0].ends_with("may not change once set"), "{moved:?}");
    let second = refused(json!({"clusterIPs": [first, "fd00:96::99"]})).await;
    assert!(second[0].starts_with("spec.clusterIPs[1]: "), "{second:?}");
    let turned =
        refused(json!({"ipFamilies": ["IPv6", "IPv4"], "clusterIPs": null, "clusterIP": null}))
            .await;
    assert!(
        turned[0].ends_with("expected an IPv6 value as indicated by `ipFamilies[0]`"),
        "{turned:?}"
    );
    let fewer = refused(json!({"clusterIPs": [first], "ipFamilies": ["IPv4"]})).await;
    assert_eq!(
        fewer,
        [
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be set to 'SingleStack' when releasing the secondary clusterIP",
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": must be set to 'SingleStack' when releasing the secondary ipFamily",
        ]
    );
    let single = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    let single = bed.patch("merge", &path, &single).await.unwrap();
    assert_eq!(single["spec"]["clusterIPs"], json!([first]));

    let balanced = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
    let made = bed.post(SERVICES, &service(&balanced)).await.unwrap();
    let path = format!("{SERVICES}/{}", made["metadata"]["name"].as_str().unwrap());
    let refused = async |change: Value| {
        causes(&bed.patch("merge", &path, &json!({"spec": change})).await.unwrap_err())
    };
    assert_eq!(
        refused(json!({"loadBalancerClass": "example.com/other"})).await,
        ["spec.loadBalancerClass: Invalid value: \"example.com/other\": may not change once set"]
    );
    let health = made["spec"]["healthCheckNodePort"].as_u64().unwrap();
    let other = if health == 30_200 { 30_201 } else { 30_200 };
    assert_eq!(
        refused(json!({"healthCheckNodePort": other})).await,
        ["spec.healthCheckNodePort: Forbidden: field is immutable"]
    );
}
