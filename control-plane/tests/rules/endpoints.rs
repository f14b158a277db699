//! EndpointSlices and Endpoints: addresses that others can reach, and how many.

use serde_json::{Value, json};

use crate::bed::{Bed, merge};

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";

fn slice(change: &Value) -> Value {
    let mut slice = json!({"metadata": {"generateName": "s-"}, "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}]});
    merge(&mut slice, change);
    slice
}

fn of(kind: &str, address: &str) -> Value {
    slice(&json!({"addressType": kind, "endpoints": [{"addresses": [address]}]}))
}

#[tokio::test]
async fn inv_84_addresses_of_slices_are_of_their_type_and_can_be_reached() {
    let bed = Bed::start().await;
    for (kind, address) in [
        ("IPv4", "10.0.0.1"),
        ("IPv6", "fd00::1"),
        ("FQDN", "db.example.com"),
        ("FQDN", "db.example.com."),
    ] {
        bed.post(SLICES, &of(kind, address)).await.unwrap();
    }
    let table = [
        ("IPv4", "nowhere", "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
        ("IPv4", "fd00::1", "must be an IPv4 address"),
        ("IPv6", "10.0.0.1", "must be an IPv6 address"),
        ("IPv4", "127.0.0.1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        ("IPv6", "::1", "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        ("IPv4", "0.0.0.0", "may not be unspecified (0.0.0.0)"),
        ("IPv6", "::", "may not be unspecified (::)"),
        ("IPv4", "169.254.1.1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        ("IPv6", "fe80::1", "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (
            "IPv4",
            "224.0.0.1",
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
        (
            "IPv6",
            "ff02::1",
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
        ("FQDN", "localhost", "should be a domain with at least two segments separated by dots"),
    ];
    for (kind, address, why) in table {
        let expected = format!("endpoints[0].addresses[0]: Invalid value: {address:?}: {why}");
        assert_eq!(bed.refused(SLICES, &of(kind, address)).await, [expected], "{kind}");
    }
}

#[tokio::test]
async fn inv_84_slices_have_limits() {
    let bed = Bed::start().await;
    let addresses = |count: usize| -> Vec<String> {
        (0..count).map(|index| format!("10.0.{}.{}", index / 250, index % 250 + 1)).collect()
    };
    let one = |addresses: Vec<String>| slice(&json!({"endpoints": [{"addresses": addresses}]}));
    bed.post(SLICES, &one(addresses(100))).await.unwrap();
    assert_eq!(
        bed.refused(SLICES, &one(addresses(101))).await,
        ["endpoints[0].addresses: Too many: 101: must have at most 100 items"]
    );
    let many = |count: usize| {
        let endpoints: Vec<Value> =
            addresses(count).iter().map(|one| json!({"addresses": [one]})).collect();
        slice(&json!({"endpoints": endpoints}))
    };
    bed.post(SLICES, &many(1000)).await.unwrap();
    assert_eq!(
        bed.refused(SLICES, &many(1001)).await,
        ["endpoints: Too many: 1001: must have at most 1000 items"]
    );
    let ports = json!({"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]});
    assert_eq!(
        bed.refused(SLICES, &slice(&ports)).await,
        ["ports[1].name: Duplicate value: \"a\""]
    );
    let unnamed = json!({"ports": [{"port": 1}, {"port": 2}]});
    assert_eq!(
        bed.refused(SLICES, &slice(&unnamed)).await,
        ["ports[1].name: Duplicate value: \"\""]
    );
    let none = slice(&json!({"endpoints": [{"addresses": []}]}));
    assert_eq!(
        bed.refused(SLICES, &none).await,
        ["endpoints[0].addresses: Required value: must contain at least 1 address"]
    );
}

#[tokio::test]
async fn inv_83_endpoints_are_checked_too() {
    let bed = Bed::start().await;
    let endpoints =
        |subset: Value| json!({"metadata": {"generateName": "e-"}, "subsets": [subset]});
    let at = |address: &str| endpoints(json!({"addresses": [{"ip": address}]}));
    bed.post(ENDPOINTS, &at("10.0.0.1")).await.unwrap();
    bed.post(ENDPOINTS, &at("fd00::1")).await.unwrap();
    assert_eq!(
        bed.refused(ENDPOINTS, &at("127.0.0.1")).await,
        [
            "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"
        ]
    );
    let late = endpoints(json!({"notReadyAddresses": [{"ip": "fe80::1"}]}));
    assert_eq!(
        bed.refused(ENDPOINTS, &late).await,
        [
            "subsets[0].notReadyAddresses[0].ip: Invalid value: \"fe80::1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)"
        ]
    );
    assert_eq!(
        bed.refused(ENDPOINTS, &endpoints(json!({"ports": [{"port": 1}]}))).await,
        ["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"]
    );
    let ports = json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 1, "name": "a"}, {"port": 2}]});
    assert_eq!(
        bed.refused(ENDPOINTS, &endpoints(ports)).await,
        ["subsets[0].ports[1].name: Required value"]
    );
}
