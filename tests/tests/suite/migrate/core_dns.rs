//! CoreDNS, on the way from kube-proxy to Mizzen and back. Needs root.

use std::{sync::atomic::AtomicBool, thread};

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Node},
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use mizzen_agent::kube::migration::{KEPT_REPLICAS, NAMES_ANSWER, NAMES_ASKED};
use serde_json::json;

use super::{NAMESPACE, Shop, Stop, kubelets, told};
use crate::dns::field::on;

/// CoreDNS as kubeadm has it, as far as it matters.
async fn core_dns(client: Client) {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    let labels = json!({"k8s-app": "kube-dns"});
    let deployment = json!({
        "metadata": {"name": "coredns", "labels": labels},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "coredns", "image": "coredns:v1"}]},
            },
        },
    });
    let deployment = serde_json::from_value(deployment).unwrap();
    deployments.create(&PostParams::default(), &deployment).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client, NAMESPACE);
    let map = json!({"metadata": {"name": "coredns"}, "data": {"Corefile": ". {\n}\n"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
}

/// How many pods CoreDNS asks for, how many it is remembered to have had, its Corefile, and what is
/// left at nodes of the question for names.
fn of_core_dns(shop: &Shop) -> (Option<i32>, Option<String>, String, Vec<String>) {
    let client = shop.field.client.clone();
    on(&shop.field.runtime, async move {
        let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
        let deployment = deployments.get("coredns").await.unwrap();
        let kept = deployment.metadata.annotations.unwrap_or_default().remove(KEPT_REPLICAS);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
        let corefile = maps.get("coredns").await.unwrap().data.unwrap()["Corefile"].clone();
        let nodes = Api::<Node>::all(client).list(&ListParams::default()).await.unwrap();
        let marks = nodes.items.into_iter().flat_map(|node| {
            let labels = node.metadata.labels.into_iter().flatten();
            labels.chain(node.metadata.annotations.into_iter().flatten())
        });
        let marks = marks.map(|(key, _)| key);
        let marks = marks.filter(|key| [NAMES_ASKED, NAMES_ANSWER].contains(&&**key)).collect();
        (deployment.spec.unwrap().replicas, kept, corefile, marks)
    })
}

/// Not without `--dns`, not before every agent answers, and back to as many as there were.
#[test]
fn r11_core_dns_goes_when_every_agent_answers_names_and_comes_back() {
    let shop = Shop::new();
    on(&shop.field.runtime, core_dns(shop.field.client.clone()));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _kubelets = Stop(&stop);
        scope.spawn(|| kubelets(&shop, &stop));
        shop.until_ruled();
        let corefile = || ". {\n}\n".to_owned();
        let runs = (Some(2), None, corefile(), Vec::new());
        let agents = [shop.agent_with(0, &[]), shop.agent(1)];
        let (code, report) = shop.migrate_json(&["apply"]);
        assert_eq!(code, Some(0), "{report} {}", told(&agents));
        assert_eq!(of_core_dns(&shop), runs, "nobody asked for it");

        let (code, plan) = shop.migrate_json(&["plan", "--dns"]);
        assert_eq!((code, &plan["coreDns"][0]["name"]), (Some(0), &json!("coredns")), "{plan}");
        assert!(plan["steps"].to_string().contains("from 2 pods to 0"), "{plan}");
        assert_eq!(of_core_dns(&shop), runs, "looking changes nothing");
        let (code, report) = shop.migrate_json(&["apply", "--dns", "--timeout", "5"]);
        assert_eq!((code, &report["waits"]["node"]), (Some(3), &json!("node-2")), "{report}");
        assert!(report["waits"]["said"].to_string().contains("dns: false"), "{report}");
        assert_eq!(of_core_dns(&shop).0, Some(2), "an agent answers no names");

        let [first, second] = agents;
        drop(second);
        let agents = [first, shop.agent_with(1, &[])];
        let (code, report) = shop.migrate_json(&["apply", "--dns"]);
        assert_eq!(code, Some(0), "{report} {}", told(&agents));
        let gone = (Some(0), Some("2".to_owned()), corefile(), Vec::new());
        assert_eq!(of_core_dns(&shop), gone);
        let (code, again) = shop.migrate_json(&["apply", "--dns"]);
        assert_eq!((code, &again["steps"]), (Some(0), &json!([])), "{again}");
        assert_eq!(of_core_dns(&shop), gone);

        let (code, report) = shop.migrate_json(&["rollback", "--dns"]);
        assert_eq!(code, Some(0), "{report} {}", told(&agents));
        assert_eq!(of_core_dns(&shop), runs);
    });
}
