//! Endpoints, and slices that mirror them, by the names of Kubernetes' conformance tests.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cluster::{Cluster, deployment, service, until};

fn addresses(endpoints: &Endpoints) -> Vec<String> {
    let subsets = endpoints.subsets.iter().flatten();
    let addresses = subsets.flat_map(|subset| subset.addresses.iter().flatten());
    addresses.map(|address| address.ip.clone()).collect()
}

/// The slices of a Service, by family.
async fn slices(cluster: &Cluster, service: &str) -> Vec<EndpointSlice> {
    let mut slices: Vec<EndpointSlice> = cluster.list().await;
    let label = "kubernetes.io/service-name";
    slices.retain(|slice| slice.labels().get(label).map(String::as_str) == Some(service));
    slices.sort_by_key(|slice| slice.address_type.clone());
    slices
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_slice_should_create_endpoints_and_endpoint_slices_for_pods_matching_a_service() {
    let cluster = Cluster::start(1).await;
    cluster.create::<Service>(service()).await;
    cluster.create::<Deployment>(deployment(2)).await;
    let api: Api<Endpoints> = cluster.api();
    let of_size = async |size: usize| {
        until("endpoints", async || {
            let found = api.get_opt("web").await.unwrap().ok_or("none")?;
            let addresses = addresses(&found);
            if addresses.len() == size { Ok(found) } else { Err(format!("{found:?}")) }
        })
        .await
    };
    let found = of_size(2).await;
    let port = &found.subsets.as_ref().unwrap()[0].ports.as_ref().unwrap()[0];
    assert_eq!((port.name.as_deref(), port.port), (Some("http"), 8080));
    assert!(addresses(&found).iter().all(|address| address.starts_with("10.244.")));
    cluster.merge::<Deployment>("web", json!({"spec": {"replicas": 0}})).await;
    of_size(0).await;
    cluster.merge::<Deployment>("web", json!({"spec": {"replicas": 3}})).await;
    of_size(3).await;
    cluster.delete::<Service>("web").await;
    until("the endpoints to go", async || match api.get_opt("web").await.unwrap() {
        None => Ok(()),
        Some(left) => Err(format!("{left:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_slice_should_have_endpoints_and_endpoint_slices_pointing_to_api_server() {
    let cluster = Cluster::start(0).await;
    let endpoints: Endpoints = cluster.get("kubernetes").await;
    let slices = slices(&cluster, "kubernetes").await;
    let of_slices: Vec<String> = slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .flat_map(|one| one.addresses.clone())
        .collect();
    assert!(!of_slices.is_empty());
    assert_eq!(addresses(&endpoints)[0], of_slices[0]);
    assert!(slices.iter().all(|slice| slice.name_any().starts_with("kubernetes")));
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_slice_mirroring_should_mirror_a_custom_endpoints_resource_through_create_update_and_delete()
 {
    let cluster = Cluster::start(0).await;
    let own = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
        "spec": {"ports": [{"port": 5432}]},
    });
    cluster.create::<Service>(own.clone()).await;
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}],
                     "ports": [{"port": 5432}]}],
    });
    cluster.create::<Endpoints>(endpoints).await;
    let mirrored = async |wanted: &[&[&str]]| {
        until("the slices", async || {
            let slices = slices(&cluster, "db").await;
            let found: Vec<Vec<&String>> = slices
                .iter()
                .map(|slice| slice.endpoints.iter().flat_map(|one| &one.addresses).collect())
                .collect();
            if found == wanted { Ok(slices.clone()) } else { Err(format!("{found:?}")) }
        })
        .await
    };
    let slices = mirrored(&[&["192.0.2.1"], &["2001:db8::1"]]).await;
    assert_eq!(
        slices[0].labels()["endpointslice.kubernetes.io/managed-by"],
        "endpointslicemirroring-controller.k8s.io"
    );
    let moved =
        json!({"subsets": [{"addresses": [{"ip": "192.0.2.7"}], "ports": [{"port": 5432}]}]});
    cluster.merge::<Endpoints>("db", moved).await;
    mirrored(&[&["192.0.2.7"]]).await;
    cluster.delete::<Endpoints>("db").await;
    mirrored(&[]).await;
    // They go with their Service too.
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "db"},
        "subsets": [{"addresses": [{"ip": "192.0.2.1"}], "ports": [{"port": 5432}]}],
    });
    cluster.create::<Endpoints>(endpoints).await;
    mirrored(&[&["192.0.2.1"]]).await;
    cluster.delete::<Service>("db").await;
    mirrored(&[]).await;
    let api: Api<Endpoints> = cluster.api();
    until("the endpoints to go", async || match api.get_opt("db").await.unwrap() {
        None => Ok(()),
        Some(left) => Err(format!("{left:?}")),
    })
    .await;
}
