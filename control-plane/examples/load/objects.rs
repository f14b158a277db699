//! A large cluster: nodes, and pods on them.

use std::time::Instant;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::Objects;
use crate::sample::{self, Sample};

/// How many make them at once.
const MAKERS: usize = 64;
/// How many of them share a connection.
const PER_CONNECTION: usize = 32;

/// Makes them, and lists all pods. The rate is that of creations, the latency that of the list.
pub(crate) async fn load(options: &Objects) -> Result<Sample> {
    let began = Instant::now();
    let mut running = JoinSet::new();
    let mut client = sample::client(&options.kubeconfig).await?;
    for maker in 0..MAKERS {
        if maker % PER_CONNECTION == 0 {
            client = sample::client(&options.kubeconfig).await?;
        }
        let nodes: Api<Node> = Api::all(client.clone());
        let pods: Api<Pod> = Api::default_namespaced(client.clone());
        let (pods_wanted, nodes_wanted) = (options.pods, options.nodes);
        running.spawn(async move {
            for number in (maker..nodes_wanted).step_by(MAKERS) {
                let node = serde_json::from_value(node(number))?;
                nodes.create(&PostParams::default(), &node).await?;
            }
            for number in (maker..pods_wanted).step_by(MAKERS) {
                let pod = serde_json::from_value(pod(number, nodes_wanted))?;
                pods.create(&PostParams::default(), &pod).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    let took = began.elapsed();
    let pods: Api<Pod> = Api::default_namespaced(client);
    let began = Instant::now();
    let listed = pods.list_metadata(&ListParams::default()).await?.items.len();
    ensure!(listed == options.pods, "{listed} pods are listed");
    Ok(Sample::of(options.pods + options.nodes, took, vec![began.elapsed()]))
}

fn node(number: usize) -> Value {
    json!({
        "metadata": {
            "name": format!("node-{number}"),
            "labels": {"kubernetes.io/hostname": format!("node-{number}"), "kubernetes.io/os": "linux"},
        },
    })
}

fn pod(number: usize, nodes: usize) -> Value {
    json!({
        "metadata": {
            "name": format!("web-5d78c9869d-{number:06}"),
            "labels": {"app": "web", "pod-template-hash": "5d78c9869d"},
        },
        "spec": {
            "nodeName": format!("node-{}", number % nodes.max(1)),
            "containers": [{
                "name": "web",
                "image": "registry.example/web:1.2.3",
                "ports": [{"containerPort": 8080}],
                "env": [{"name": "A", "value": "some value"}, {"name": "B", "value": "another"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
            }],
        },
    })
}
