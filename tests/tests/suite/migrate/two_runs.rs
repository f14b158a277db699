//! Two runs of `mizzen migrate` in one cluster, of opposite ways. Needs root.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use mizzen_agent::kube::migration::WAY;
use serde_json::json;

use super::{NAME, NAMESPACE, Shop, on_nodes, phases};
use crate::dns::field::on;

/// What kube-proxy's DaemonSet says of the way.
fn said(shop: &Shop) -> Option<String> {
    let client = shop.field.client.clone();
    on(&shop.field.runtime, async move {
        let sets: Api<DaemonSet> = Api::namespaced(client, NAMESPACE);
        sets.get(NAME).await.unwrap().metadata.annotations?.remove(WAY)
    })
}

/// There is no agent, so that either waits for one.
#[test]
fn r11_a_run_of_the_other_way_does_not_begin_or_ends_the_one_that_did() {
    let shop = Shop::new();
    let mut command = shop.migrate(&["apply", "--timeout", "120"]);
    let mut first = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(first.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("waiting for node-1")));

    let (code, refused) = shop.migrate_json(&["rollback", "--timeout", "1"]);
    assert_eq!(code, Some(3), "{refused}");
    assert!(refused["obstacles"].to_string().contains("migrate apply` leads"), "{refused}");
    assert_eq!(phases(&refused), on_nodes(&json!("runs")), "nothing was written");
    let (_, plan) = shop.migrate_json(&["plan"]);
    assert_eq!(plan["obstacles"], json!([]), "the same way");

    let (code, turned) = shop.migrate_json(&["rollback", "--timeout", "5", "--turn-round"]);
    assert_eq!((code, &turned["waits"]["node"]), (Some(3), &json!("node-1")), "{turned}");
    let of_nodes: Vec<_> = phases(&turned).into_iter().map(|(_, phase)| phase).collect();
    assert_eq!(of_nodes, ["returning", "runs"], "one after the other");
    let output = first.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{words}");
    assert!(words.contains("migrate rollback` leads"), "{words}");
    assert_eq!(said(&shop), None, "no run goes on");
}
