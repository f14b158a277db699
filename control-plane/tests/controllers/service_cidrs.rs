//! ServiceCIDRs: ready when they come, and kept while a Service needs them.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cluster::{Cluster, until};

/// `[sig-network] Service CIDRs should create Services and serve on different Service CIDRs`, as
/// far as the API server goes, and its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_cidr_is_ready_and_stays_while_a_service_needs_it() {
    let cluster = Cluster::start(0).await;
    let ranges: Api<ServiceCIDR> = Api::all(cluster.client.clone());
    let addresses: Api<IPAddress> = Api::all(cluster.client.clone());
    let services: Api<Service> = cluster.api();
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/28"]}});
    let range: ServiceCIDR = serde_json::from_value(range).unwrap();
    ranges.create(&PostParams::default(), &range).await.unwrap();
    let says = async |wanted: (&str, &str)| {
        until("what the range says", async || {
            let found = ranges.get("more").await.unwrap();
            let conditions = found.status.clone().and_then(|status| status.conditions);
            let ready = conditions.into_iter().flatten().find(|one| one.type_ == "Ready");
            let said = ready.map(|one| (one.status, one.reason)).unwrap_or_default();
            let same = (said.0.as_str(), said.1.as_str()) == wanted;
            if same { Ok(found) } else { Err(format!("{said:?}")) }
        })
        .await
    };
    let ready = says(("True", "")).await;
    assert_eq!(ready.finalizers(), ["networking.k8s.io/service-cidr-finalizer"]);
    let web = json!({
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "10.97.0.5", "ports": [{"port": 80}]},
    });
    cluster.create::<Service>(web).await;
    addresses.get("10.97.0.5").await.unwrap();

    ranges.delete("more", &DeleteParams::default()).await.unwrap();
    says(("False", "Terminating")).await;
    // Nobody gets an address of it any more.
    let late = json!({
        "metadata": {"name": "late"},
        "spec": {"clusterIP": "10.97.0.6", "ports": [{"port": 80}]},
    });
    let late: Service = serde_json::from_value(late).unwrap();
    let refused = services.create(&PostParams::default(), &late).await.unwrap_err().to_string();
    assert!(refused.contains("does not match the current range"), "{refused}");
    services.delete("web", &DeleteParams::default()).await.unwrap();
    until("the range to go", async || match ranges.get_opt("more").await.unwrap() {
        None => Ok(()),
        Some(range) => Err(format!("{:?}", range.metadata)),
    })
    .await;
    // That of the flags stays: `kubernetes` is in it.
    ranges.delete("kubernetes", &DeleteParams::default()).await.unwrap();
    until("why it stays", async || {
        let found = ranges.get("kubernetes").await.unwrap();
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions[0].reason == "Terminating" { Ok(()) } else { Err(format!("{conditions:?}")) }
    })
    .await;
}
