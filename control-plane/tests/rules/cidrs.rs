//! ServiceCIDRs and IPAddresses: ranges and addresses in the one way to write them.

use serde_json::{Value, json};

use crate::bed::{Bed, causes};

const CIDRS: &str = "/apis/networking.k8s.io/v1/servicecidrs";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

fn range(cidrs: &[&str]) -> Value {
    json!({"metadata": {"generateName": "c-"}, "spec": {"cidrs": cidrs}})
}

#[tokio::test]
async fn ranges_of_services_parse_and_are_one_of_each_family() {
    let bed = Bed::start().await;
    let made = bed.post(CIDRS, &range(&["10.100.0.0/24", "fd00:100::/112"])).await.unwrap();
    let path = format!("{CIDRS}/{}", made["metadata"]["name"].as_str().unwrap());
    let other = json!({"spec": {"cidrs": ["10.101.0.0/24", "fd00:100::/112"]}});
    let refused = bed.patch("merge", &path, &other).await.unwrap_err();
    assert!(causes(&refused)[0].ends_with("field is immutable"), "{refused}");
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
