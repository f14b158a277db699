//! Pods for checks, and what containers have on both runtimes: words at their end, a token. On
//! containerd they are of an image with busybox, on the process runtime of the machine's own files.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::cluster::up;

use super::{Check, World, streams};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("a_container_says_why_it_ended", termination),
    ("inv_116_a_container_has_a_token_that_the_api_server_knows", token),
];

/// Makes a pod of the default namespace, and waits until it is `done`.
pub(crate) fn run_pod(world: &World, name: &str, spec: &Value, done: &str) -> Result<Value> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"test": name}},
        "spec": spec,
    });
    world.api.apply(&pod.to_string())?;
    let path = format!("/api/v1/namespaces/default/pods/{name}");
    up::wait(&world.layout, &format!("the pod {name} to be {done}"), || {
        let pod = world.api.get(&path)?;
        let status = &pod["status"];
        let condition = status["conditions"].as_array().is_some_and(|conditions| {
            conditions.iter().any(|one| one["type"] == done && one["status"] == "True")
        });
        let met = condition || status["phase"] == done;
        Ok(if met { Ok(pod) } else { Err(status.to_string()) })
    })
}

/// Deletes it, and waits until the API has it no more.
pub(crate) fn delete_pod(world: &World, name: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/default/pods/{name}");
    world.api.expect("DELETE", &path, None)?;
    up::wait(&world.layout, &format!("the pod {name} to be gone"), || {
        let answer = world.api.request("GET", &path, None)?;
        Ok(if answer.status == 404 { Ok(()) } else { Err("it is still there".into()) })
    })
}

/// A pod of busybox that waits, on a node.
pub(crate) fn busybox(node: &str) -> Value {
    json!({
        "nodeName": node,
        "terminationGracePeriodSeconds": 1,
        "containers": [{
            "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "3600"],
        }],
    })
}

fn termination(world: &World) -> Result<()> {
    let container = |name: &str, script: &str, more: Value| {
        let mut container = json!({"name": name, "image": "busybox",
            "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]});
        for (key, value) in more.as_object().into_iter().flatten() {
            container[key] = value.clone();
        }
        container
    };
    let spec = json!({"nodeName": "node-2", "restartPolicy": "Never", "containers": [
        container("file", "echo -n by file > /dev/termination-log; exit 3", json!({
            "securityContext": {"runAsUser": 1000, "readOnlyRootFilesystem": true}})),
        container("own", "echo -n own > /tmp/why", json!({"terminationMessagePath": "/tmp/why"})),
        container("log", "echo by log; exit 1",
            json!({"terminationMessagePolicy": "FallbackToLogsOnError"})),
        container("silent", "echo nothing of this; exit 1", json!({})),
    ]});
    let pod = run_pod(world, "ends", &spec, "Failed")?;
    let statuses = pod["status"]["containerStatuses"].as_array().context("no statuses")?;
    let message = |status: &Value| {
        let message = status["state"]["terminated"]["message"].as_str();
        (status["name"].as_str().unwrap_or_default().to_owned(), message.map(str::to_owned))
    };
    let said: std::collections::BTreeMap<_, _> = statuses.iter().map(message).collect();
    let expected = [
        ("file", Some("by file")),
        ("own", Some("own")),
        ("log", Some("by log\n")),
        ("silent", None),
    ];
    let expected = expected.map(|(name, text)| (name.to_owned(), text.map(str::to_owned))).into();
    delete_pod(world, "ends")?;
    ensure!(said == expected, "{said:?}");
    Ok(())
}

fn token(world: &World) -> Result<()> {
    let script = "cd /var/run/secrets/kubernetes.io/serviceaccount && cat token && echo && \
                  cat namespace && echo && head -n 1 ca.crt; sleep 3600";
    let mut spec = busybox("node-1");
    spec["containers"][0]["command"] = json!(["sh", "-c", script]);
    run_pod(world, "with-token", &spec, "Ready")?;
    let outcome = token_of_pod(world);
    delete_pod(world, "with-token")?;
    let token = outcome?;
    // It goes with its pod.
    let status = review(world, &token)?;
    ensure!(status["authenticated"] != true, "the token of a pod that is gone: {status}");
    Ok(())
}

fn token_of_pod(world: &World) -> Result<String> {
    let Some(logs) = streams::kubectl(world, &["logs", "with-token"]) else {
        return Ok(String::from("none"));
    };
    let (code, said, error) = streams::run(logs)?;
    let lines: Vec<&str> = said.lines().collect();
    let [token, "default", "-----BEGIN CERTIFICATE-----"] = lines[..] else {
        anyhow::bail!("{code}: {said:?}, {error:?}");
    };
    let status = review(world, token)?;
    let user = &status["user"];
    ensure!(user["username"] == "system:serviceaccount:default:default", "{status}");
    let extra = &user["extra"];
    ensure!(extra["authentication.kubernetes.io/pod-name"][0] == "with-token", "{status}");
    ensure!(extra["authentication.kubernetes.io/node-name"][0] == "node-1", "{status}");
    Ok(token.to_owned())
}

/// Whose a token is, as the API server says.
fn review(world: &World, token: &str) -> Result<Value> {
    let review = json!({"spec": {"token": token}}).to_string();
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = world.api.expect("POST", path, Some(("application/json", &review)))?;
    Ok(answer["status"].clone())
}
