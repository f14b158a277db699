//! Unmodified `kubectl`, where the machine has it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use xtask::{cluster::up, invoke};

use super::{Check, World};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("kubectl_gets_nodes_and_pods_with_kubernetes_columns", columns),
    ("kubectl_applies_scales_and_watches_a_rollout", rollout),
    ("kubectl_delete_removes_what_a_deployment_owns", delete_cascades),
];

/// Runs kubectl; none where the machine has none, and says so.
fn kubectl(world: &World, args: &[&str]) -> Result<Option<String>> {
    if !invoke::in_path("kubectl") {
        println!("    this machine has no kubectl: only the API itself was checked");
        return Ok(None);
    }
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(world.layout.kubeconfig()).args(args);
    invoke::capture(&mut command).map(Some)
}

fn columns(world: &World) -> Result<()> {
    let expected: [(&[&str], &str); 5] = [
        (&["get", "nodes"], "NAME STATUS ROLES AGE VERSION"),
        (
            &["get", "pods", "-o", "wide"],
            "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES",
        ),
        (&["get", "services"], "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE"),
        (&["get", "deployments"], "NAME READY UP-TO-DATE AVAILABLE AGE"),
        (&["get", "replicasets"], "NAME DESIRED CURRENT READY AGE"),
    ];
    for (args, header) in expected {
        let Some(said) = kubectl(world, args)? else { return Ok(()) };
        let first = said.lines().next().context("kubectl printed nothing")?;
        let words = first.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(words == header, "kubectl {args:?}: {words}");
    }
    Ok(())
}

fn rollout(world: &World) -> Result<()> {
    let Some(said) = kubectl(world, &["scale", "deployment", "hello", "--replicas=5"])? else {
        return Ok(());
    };
    ensure!(said.trim() == "deployment.apps/hello scaled", "kubectl scale says {said:?}");
    let said = kubectl(world, &["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    ensure!(
        said.unwrap_or_default().contains("deployment \"hello\" successfully rolled out"),
        "kubectl rollout status does not end"
    );
    let path = xtask::checkout().join("deploy/examples/hello.yaml").display().to_string();
    kubectl(world, &["apply", "-f", &path])?;
    up::wait(&world.layout, "hello", || up::deployment_ready(&world.api, "hello"))?;
    kubectl(world, &["scale", "deployment", "hello", "--replicas=4"])?;
    up::wait(&world.layout, "hello", || up::deployment_ready(&world.api, "hello"))
}

fn delete_cascades(world: &World) -> Result<()> {
    let manifest = world.layout.dir.join("short.json");
    let text = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"short"},
        "spec":{"replicas":2,"selector":{"matchLabels":{"app":"short"}},"template":{
        "metadata":{"labels":{"app":"short"}},"spec":{"terminationGracePeriodSeconds":1,
        "containers":[{"name":"main","image":"hello"}]}}}}"#;
    std::fs::write(&manifest, text)?;
    let manifest = manifest.display().to_string();
    let Some(said) = kubectl(world, &["apply", "-f", &manifest])? else { return Ok(()) };
    ensure!(said.trim() == "deployment.apps/short created", "kubectl apply says {said:?}");
    up::wait(&world.layout, "short", || up::deployment_ready(&world.api, "short"))?;
    kubectl(world, &["delete", "deployment", "short"])?;
    up::wait(&world.layout, "short's pods to be gone", || {
        let pods = world.api.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dshort")?;
        let left = pods["items"].as_array().map_or(0, Vec::len);
        Ok(if left == 0 { Ok(()) } else { Err(format!("{left} are left")) })
    })
}
