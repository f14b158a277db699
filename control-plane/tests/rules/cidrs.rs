//! ServiceCIDRs and IPAddresses: ranges and addresses in the one way to write them, and what they
//! mean for Services.

use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{Bed, causes, code};

const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";
const SERVICES: &str = "/api/v1/namespaces/default/services";
/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

fn range(cidrs: &[&str]) -> Value {
    json!({"metadata": {"generateName": "c-"}, "spec": {"cidrs": cidrs}})
}

#[tokio::test]
async fn ranges_of_services_parse_and_are_one_of_each_family() {
    let bed = Bed::start().await;
    let made = bed.post(CIDRS, &range(&["10.100.0.0/24", "fd00:100::/112"])).await.unwrap();
    let path = format!("{CIDRS}/{}", made["metadata"]["name"].as_str().unwrap());
    for (cidrs, expected) in [
        (
            json!(["10.101.0.0/24", "fd00:100::/112"]),
            "spec.cidrs[0]: Invalid value: \"10.101.0.0/24\": field is immutable",
        ),
        (
            json!(["10.100.0.0/24", "fd00:101::/112"]),
            "spec.cidrs[1]: Invalid value: \"fd00:101::/112\": field is immutable",
        ),
        (
            json!(["10.100.0.0/24"]),
            "spec.cidrs: Invalid value: [\"10.100.0.0/24\"]: field is immutable",
        ),
    ] {
        let change = json!({"spec": {"cidrs": cidrs}});
        let refused = bed.patch("merge", &path, &change).await.unwrap_err();
        assert_eq!(causes(&refused), [expected]);
    }
    // One of the other family may join.
    let single = bed.post(CIDRS, &range(&["10.102.0.0/24"])).await.unwrap();
    let path = format!("{CIDRS}/{}", single["metadata"]["name"].as_str().unwrap());
    let joined = json!({"spec": {"cidrs": ["10.102.0.0/24", "fd00:102::/112"]}});
    bed.patch("merge", &path, &joined).await.unwrap();
    let any = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let same = "must not have bits set beyond the prefix length";
    for (cidrs, expected) in [
        (vec!["somewhere"], format!("spec.cidrs[0]: Invalid value: \"somewhere\": {any}")),
        (vec!["10.100.0.0"], format!("spec.cidrs[0]: Invalid value: \"10.100.0.0\": {any}")),
        (vec!["10.100.0.5/24"], format!("spec.cidrs[0]: Invalid value: \"10.100.0.5/24\": {same}")),
        (
            vec!["FD00:100::/112"],
            "spec.cidrs[0]: Invalid value: \"FD00:100::/112\": must be in canonical form (\"fd00:100::/112\")".to_owned(),
        ),
        (
            vec!["10.100.0.0/24", "10.101.0.0/24"],
            "spec.cidrs: Invalid value: [\"10.100.0.0/24\",\"10.101.0.0/24\"]: may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64".to_owned(),
        ),
        (
            vec!["10.100.0.0/24", "fd00:100::/112", "fd00:101::/112"],
            "spec.cidrs: Invalid value: [\"10.100.0.0/24\",\"fd00:100::/112\",\"fd00:101::/112\"]: may only hold up to 2 values".to_owned(),
        ),
    ] {
        assert_eq!(bed.refused(CIDRS, &range(&cidrs)).await, [expected], "{cidrs:?}");
    }
}

#[tokio::test]
async fn an_address_is_named_in_the_one_way_to_write_it() {
    let bed = Bed::start().await;
    let named = |name: &str| json!({"metadata": {"name": name}, "spec": {"parentRef": {"resource": "services", "name": "s"}}});
    bed.post(ADDRESSES, &named("10.96.0.77")).await.unwrap();
    bed.post(ADDRESSES, &named("fd00:96::77")).await.unwrap();
    for name in ["fd00:96:0::78", "FD00:96::78", "10.96.0.0/24", "x"] {
        let found = bed.refused(ADDRESSES, &named(name)).await;
        assert!(found[0].starts_with("metadata.name: Invalid value: "), "{name}: {found:?}");
    }
}

fn service(name: &str, change: &Value) -> Value {
    let mut service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    crate::bed::merge(&mut service["spec"], change);
    service
}

fn at(address: &str) -> Value {
    json!({"clusterIP": address})
}

#[tokio::test]
async fn an_address_of_a_service_is_an_object_that_comes_and_goes_with_it() {
    let bed = Bed::start().await;
    let dual = json!({"ipFamilyPolicy": "RequireDualStack"});
    let made = bed.post(SERVICES, &service("a", &dual)).await.unwrap();
    let path = |index: usize| {
        format!("{ADDRESSES}/{}", made["spec"]["clusterIPs"][index].as_str().unwrap())
    };
    for (index, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let address = bed.get(&path(index)).await.unwrap();
        let labels = json!({
            "ipaddress.kubernetes.io/ip-family": family,
            "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
        });
        let parent = json!({"resource": "services", "namespace": "default", "name": "a"});
        assert_eq!(address["metadata"]["labels"], labels);
        assert_eq!(address["spec"]["parentRef"], parent);
        assert!(address["metadata"]["uid"].is_string(), "{address}");
    }
    // The second family goes, and then the rest.
    let single = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
    bed.patch("merge", &format!("{SERVICES}/a"), &single).await.unwrap();
    assert_eq!(code(&bed.get(&path(1)).await.unwrap_err()), 404);
    bed.get(&path(0)).await.unwrap();
    bed.delete(&format!("{SERVICES}/a"), &Value::Null).await.unwrap();
    assert_eq!(code(&bed.get(&path(0)).await.unwrap_err()), 404);
}

#[tokio::test]
async fn the_address_of_a_service_is_nobody_elses_whoever_deletes_its_object() {
    let bed = Bed::start().await;
    bed.post(SERVICES, &service("a", &at("10.96.0.77"))).await.unwrap();
    let path = format!("{ADDRESSES}/10.96.0.77");
    let uid = |object: &Value| object["metadata"]["uid"].clone();
    let first = bed.get(&path).await.unwrap();
    bed.delete(&path, &Value::Null).await.unwrap();
    let second = bed.get(&path).await.unwrap();
    assert_ne!(uid(&second), uid(&first));
    assert_eq!(second["spec"], first["spec"]);
    // The same where somebody has to agree first.
    let finalizers = |list: Value| json!({"metadata": {"finalizers": list}});
    bed.patch("merge", &path, &finalizers(json!(["example.com/x"]))).await.unwrap();
    bed.delete(&path, &Value::Null).await.unwrap();
    assert_eq!(uid(&bed.get(&path).await.unwrap()), uid(&second));
    bed.patch("merge", &path, &finalizers(json!([]))).await.unwrap();
    let third = bed.get(&path).await.unwrap();
    assert_ne!(uid(&third), uid(&second));
    assert_eq!(third["metadata"].get("deletionTimestamp"), None);
    let taken = "spec.clusterIPs: Invalid value: [\"10.96.0.77\"]: failed to allocate IP 10.96.0.77: provided IP is already allocated";
    assert_eq!(bed.refused(SERVICES, &service("b", &at("10.96.0.77"))).await, [taken]);
    bed.delete(&format!("{SERVICES}/a"), &Value::Null).await.unwrap();
    bed.post(SERVICES, &service("b", &at("10.96.0.77"))).await.unwrap();
    assert_eq!(bed.get(&path).await.unwrap()["spec"]["parentRef"]["name"], "b");
}

#[tokio::test]
async fn an_address_that_somebody_reserves_is_no_services() {
    let bed = Bed::start().await;
    let reserved = json!({
        "metadata": {"name": "10.96.0.78"},
        "spec": {"parentRef": {"group": "example.com", "resource": "things", "name": "t"}},
    });
    bed.post(ADDRESSES, &reserved).await.unwrap();
    let refused = bed.refused(SERVICES, &service("a", &at("10.96.0.78"))).await;
    assert!(refused[0].ends_with("provided IP is already allocated"), "{refused:?}");
    bed.delete(&format!("{ADDRESSES}/10.96.0.78"), &Value::Null).await.unwrap();
    assert_eq!(code(&bed.get(&format!("{ADDRESSES}/10.96.0.78")).await.unwrap_err()), 404);
    bed.post(SERVICES, &service("a", &at("10.96.0.78"))).await.unwrap();
}

#[tokio::test]
async fn services_have_addresses_of_every_range_that_is_ready() {
    let bed = Bed::start().await;
    let refusal = |address: &str, why: &str| {
        format!(
            "spec.clusterIPs: Invalid value: [\"{address}\"]: failed to allocate IP {address}: {why}"
        )
    };
    let unknown = "the provided network does not match the current range";
    let added = [("10.97.0.0/28", "10.97.0.5"), ("fd00:97::/120", "fd00:97::5")];
    for (_, address) in added {
        let refused = bed.refused(SERVICES, &service("a", &at(address))).await;
        assert_eq!(refused, [refusal(address, unknown)]);
    }
    let more = json!({"metadata": {"name": "more"}, "spec": {"cidrs": [added[0].0, added[1].0]}});
    bed.post(CIDRS, &more).await.unwrap();
    for (name, address) in [("a", "10.97.0.5"), ("b", "fd00:97::5"), ("c", "fd00:97::ff")] {
        bed.post(SERVICES, &service(name, &at(address))).await.unwrap();
    }
    for (range, address) in [
        ("10.97.0.0/28", "10.97.0.0"),
        ("10.97.0.0/28", "10.97.0.15"),
        ("fd00:97::/120", "fd00:97::"),
    ] {
        let why = format!(
            "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
        );
        let refused = bed.refused(SERVICES, &service("d", &at(address))).await;
        assert_eq!(refused, [refusal(address, &why)]);
    }
    let condition = json!({"type": "Ready", "status": "False", "reason": "X", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let unready = json!({"status": {"conditions": [condition]}});
    bed.patch("merge", &format!("{CIDRS}/more/status"), &unready).await.unwrap();
    let refused = bed.refused(SERVICES, &service("d", &at("10.97.0.6"))).await;
    assert_eq!(refused, [refusal("10.97.0.6", unknown)]);
}

#[tokio::test]
async fn a_full_range_is_extended_by_another() {
    let bed = Bed::of_ranges(&["10.96.0.0/28"]).await;
    let name = |number: usize| format!("s{number}");
    // Of 14 addresses `kubernetes` and `kube-dns` have one each.
    for number in 0..12 {
        bed.post(SERVICES, &service(&name(number), &json!({}))).await.unwrap();
    }
    let full = bed.post(SERVICES, &service("full", &json!({}))).await.unwrap_err();
    assert_eq!(code(&full), 500, "{full}");
    assert!(full["message"].as_str().unwrap().contains("range is full"), "{full}");
    bed.post(CIDRS, &range(&["10.97.0.0/28"])).await.unwrap();
    let made = bed.post(SERVICES, &service("more", &json!({}))).await.unwrap();
    assert!(made["spec"]["clusterIP"].as_str().unwrap().starts_with("10.97.0."), "{made}");
}

#[tokio::test]
async fn the_range_of_the_flags_is_ready_from_the_start() {
    let bed = Bed::of_ranges(&["10.96.0.0/24", "fd00:96::/112"]).await;
    let found = bed.get(&format!("{CIDRS}/kubernetes")).await.unwrap();
    assert_eq!(found["spec"]["cidrs"], json!(["10.96.0.0/24", "fd00:96::/112"]));
    let ready = &found["status"]["conditions"][0];
    assert_eq!((&ready["type"], &ready["status"]), (&json!("Ready"), &json!("True")));
    let owned = bed.get(&format!("{ADDRESSES}/10.96.0.1")).await.unwrap();
    assert_eq!(owned["spec"]["parentRef"]["name"], "kubernetes");
}

#[tokio::test]
async fn the_range_of_the_flags_comes_back_whenever_it_is_deleted() {
    let bed = Bed::of_ranges(&["10.96.0.0/24", "fd00:96::/112"]).await;
    let path = format!("{CIDRS}/kubernetes");
    let uid = |object: &Value| object["metadata"]["uid"].clone();
    for _ in 0..2 {
        let first = bed.get(&path).await.unwrap();
        bed.delete(&path, &Value::Null).await.unwrap();
        let back = async {
            loop {
                match bed.get(&path).await {
                    Ok(found) if found["status"]["conditions"][0]["status"] == "True" => {
                        return found;
                    }
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        let back = tokio::time::timeout(LIMIT, back).await.expect("the range comes back");
        assert_ne!(uid(&back), uid(&first));
        assert_eq!(back["spec"], first["spec"]);
    }
    bed.post(SERVICES, &service("a", &json!({}))).await.unwrap();
}
