//! `kubectl logs` and `kubectl exec`: through the API server to the node and back, on both runtimes.

use std::{process::Command, process::Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::invoke;

use super::{
    Check, World,
    containers::{delete_pod, run_pod},
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("kubectl_logs_shows_and_follows_what_a_container_writes", logs),
    ("kubectl_exec_runs_a_command_and_has_its_exit_code", exec),
    ("logs_of_what_is_not_there_say_so", refusals),
];

/// kubectl with arguments; none where the machine has none.
pub(crate) fn kubectl(world: &World, args: &[&str]) -> Option<Command> {
    if !invoke::in_path("kubectl") {
        println!("    this machine has no kubectl");
        return None;
    }
    let mut command = Command::new("kubectl");
    command.arg("--kubeconfig").arg(world.layout.kubeconfig()).args(args);
    Some(command)
}

/// Its exit code and what it printed.
pub(crate) fn run(mut command: Command) -> Result<(i32, String, String)> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().context("kubectl was killed")?;
    Ok((code, text(&output.stdout), text(&output.stderr)))
}

fn pod(script: &str) -> Value {
    json!({"nodeName": "node-2", "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script]}]})
}

fn logs(world: &World) -> Result<()> {
    // It ends when it is told to, so that what is followed has an end.
    let script = "echo one; echo two; while [ ! -e /tmp/mizzen-go ]; do sleep 0.1; done; \
                  rm /tmp/mizzen-go; echo three";
    run_pod(world, "writer", &pod(script), "Ready")?;
    let outcome = logs_of_writer(world);
    delete_pod(world, "writer")?;
    outcome
}

fn logs_of_writer(world: &World) -> Result<()> {
    let Some(command) = kubectl(world, &["logs", "writer"]) else { return Ok(()) };
    let (code, said, error) = run(command)?;
    ensure!((code, said.as_str()) == (0, "one\ntwo\n"), "{code}: {said:?}, {error:?}");
    let tail = kubectl(world, &["logs", "writer", "--tail=1", "--timestamps"]);
    let (_, said, _) = run(tail.context("kubectl is gone")?)?;
    ensure!(said.ends_with("Z two\n") && said.lines().count() == 1, "--tail=1: {said:?}");
    let follow = kubectl(world, &["logs", "-f", "writer"]).context("kubectl is gone")?;
    let go = kubectl(world, &["exec", "writer", "--", "touch", "/tmp/mizzen-go"]);
    let mut follow = follow;
    let following = follow.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (code, _, error) = run(go.context("kubectl is gone")?)?;
    ensure!(code == 0, "exec touch: {error}");
    let output = following.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said == "one\ntwo\nthree\n", "logs -f: {said:?}");
    Ok(())
}

fn exec(world: &World) -> Result<()> {
    run_pod(world, "runner", &pod("sleep 3600"), "Ready")?;
    let outcome = exec_in_runner(world);
    delete_pod(world, "runner")?;
    outcome
}

fn exec_in_runner(world: &World) -> Result<()> {
    let words = ["exec", "runner", "--", "sh", "-c", "echo out \"$HOSTNAME\"; exit 3"];
    let Some(command) = kubectl(world, &words) else { return Ok(()) };
    let (code, said, error) = run(command)?;
    ensure!((code, said.as_str()) == (3, "out runner\n"), "{code}: {said:?}, {error:?}");
    let none = kubectl(world, &["exec", "runner", "-c", "none", "--", "true"]);
    let (code, _, error) = run(none.context("kubectl is gone")?)?;
    ensure!(code != 0 && error.contains("none"), "a container that is not there: {error:?}");
    Ok(())
}

fn refusals(world: &World) -> Result<()> {
    let answer = world.api.request("GET", "/api/v1/namespaces/default/pods/nobody/log", None)?;
    ensure!(answer.status == 404, "a pod that is not there: {}", answer.status);
    // Nobody without a certificate of the cluster's reaches the node's server.
    let host = world.layout.node_hosts().into_iter().next().context("no node")?;
    let url = format!("https://{}:10250/healthz", host.ipv4);
    let strange =
        Command::new("curl").args(["--silent", "--insecure", "--max-time", "5", &url]).output()?;
    ensure!(!strange.status.success(), "a stranger was answered");
    Ok(())
}
