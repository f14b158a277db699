//! Services and namespaces that come and go at a real API server: what a pod's resolver says of them.
//! How soon says `bench dns` (`new-service-p99`).

use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use mizzen_tests::{lab::FAMILIES, wait};
use serde_json::json;

use super::{
    field::{Field, Host, LIMIT, dns, on},
    site::dig,
};

/// Waits until what `dig` says in the host's pod of each name, by every family and transport, has
/// that code.
fn until_all(host: &Host, names: &[&str], status: &str) {
    for name in names {
        until(host, name, status);
    }
}

/// The same of one.
fn until(host: &Host, name: &str, status: &str) {
    for family in FAMILIES {
        for by in ["+notcp", "+tcp"] {
            let question = format!("@{} {by} {name}", dns(family).ip());
            wait::until(&format!("{name} to be {status}"), LIMIT, || {
                let said = dig(&host.pod, &question);
                if said.contains(&format!("status: {status}")) { Ok(()) } else { Err(said) }
            });
        }
    }
}

async fn create(client: Client, namespace: &str) {
    let services: Api<Service> = Api::namespaced(client, namespace);
    let object = json!({
        "metadata": {"name": "new"},
        "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]},
    });
    services
        .create(&PostParams::default(), &serde_json::from_value(object).unwrap())
        .await
        .unwrap();
}

#[test]
fn dns_68_dns_69_a_service_of_the_api_server_comes_and_goes() {
    let field = Field::new();
    let host = &field.hosts[0];
    let _agent = field.agent(host, &["--services=false"]);
    let name = "new.default.svc.cluster.local";
    until(host, name, "NXDOMAIN");
    let client = field.client.clone();
    on(&field.runtime, async move { create(client, "default").await });
    until(host, &format!("{name} A"), "NOERROR");
    for family in FAMILIES {
        for kind in ["A", "AAAA"] {
            let said = dig(&host.pod, &format!("@{} +short {name} {kind}", dns(family).ip()));
            assert_eq!(said.lines().count(), 1, "{kind}: {said}");
        }
    }
    let client = field.client.clone();
    on(&field.runtime, async move {
        let services: Api<Service> = Api::default_namespaced(client);
        services.delete("new", &DeleteParams::default()).await.unwrap();
    });
    until(host, name, "NXDOMAIN");
}

#[test]
fn dns_70_a_namespace_of_the_api_server_takes_its_names_along() {
    // With controllers: they empty a namespace before it goes.
    let field = Field::with(true);
    let host = &field.hosts[0];
    let _agent = field.agent(host, &["--services=false"]);
    let names = [
        "new.short.svc.cluster.local",
        "short.svc.cluster.local",
        "10-0-0-1.short.pod.cluster.local",
    ];
    until_all(host, &names, "NXDOMAIN");
    let client = field.client.clone();
    on(&field.runtime, async move {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let object = serde_json::from_value(json!({"metadata": {"name": "short"}})).unwrap();
        namespaces.create(&PostParams::default(), &object).await.unwrap();
        create(client, "short").await;
    });
    until_all(host, &names, "NOERROR");
    let client = field.client.clone();
    on(&field.runtime, async move {
        let namespaces: Api<Namespace> = Api::all(client);
        namespaces.delete("short", &DeleteParams::default()).await.unwrap();
    });
    until_all(host, &names, "NXDOMAIN");
}
