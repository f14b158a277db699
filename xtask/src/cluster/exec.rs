//! Running a command where a node, the client or a pod is.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{Layout, cgroup, process};
use crate::invoke;

/// A place to run a command in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A node or the client, by name.
    Host(String),
    /// A pod of the default namespace, by name.
    Pod(String),
}

impl std::str::FromStr for Place {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.strip_prefix("pod/") {
            Some(pod) => Self::Pod(pod.to_owned()),
            None => Self::Host(text.to_owned()),
        })
    }
}

/// What the node part writes of each pod for the sake of commands like this one.
#[derive(Debug, Deserialize)]
pub struct Sandbox {
    /// The process that holds the pod's namespaces.
    pub pid: i32,
    /// A cgroup of the pod's.
    pub cgroup: PathBuf,
    /// Folder of its hosts and resolv.conf, where its root is an image's and not the machine's.
    pub etc: Option<PathBuf>,
}

/// The command that runs `argv` there, with KUBECONFIG, PATH and MIZZEN_STATE_DIR set.
pub fn command(layout: &Layout, place: &Place, argv: &[String]) -> Result<Command> {
    if layout.nodes == 0 {
        bail!("the cluster is not up; `cargo xtask up` starts it");
    }
    let (line, node) = match place {
        Place::Host(name) => (in_host(layout, name, argv)?, name.clone()),
        Place::Pod(name) => in_pod(layout, name, argv)?,
    };
    let (program, args) = line.split_first().context("no command was given")?;
    let mut command = invoke::command(program, args);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(layout.bin_dir.clone()).chain(std::env::split_paths(&path));
    command
        .env("KUBECONFIG", layout.kubeconfig())
        .env("PATH", std::env::join_paths(folders)?)
        .env("MIZZEN_STATE_DIR", layout.state_dir(&node));
    Ok(command)
}

/// Runs it quietly and gives what it printed.
pub fn capture(layout: &Layout, place: &Place, argv: &[&str]) -> Result<String> {
    let argv: Vec<_> = argv.iter().map(|&word| word.to_owned()).collect();
    invoke::capture(&mut command(layout, place, &argv)?)
}

/// The sandbox of a pod of the default namespace, and the node that it is on.
pub fn sandbox(layout: &Layout, pod: &str) -> Result<(Sandbox, String)> {
    for host in layout.node_hosts() {
        let path = layout.state_dir(&host.name).join(format!("pods/default_{pod}.json"));
        if let Ok(bytes) = fs::read(&path) {
            let sandbox = serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is not what it should be", path.display()))?;
            return Ok((sandbox, host.name));
        }
    }
    bail!("no node runs a pod default/{pod}; `kubectl get pods -o wide` shows where pods are")
}

fn in_host(layout: &Layout, name: &str, argv: &[String]) -> Result<Vec<String>> {
    let hosts = layout.hosts();
    let Some(host) = hosts.iter().find(|host| host.name == name) else {
        let names: Vec<_> = hosts.iter().map(|host| host.name.as_str()).collect();
        bail!("no host {name}; there are {}, and pod/NAME", names.join(", "));
    };
    if !super::network::netns_exists(&host.netns) {
        bail!("the cluster is not up; `cargo xtask up` starts it");
    }
    let dir = cgroup::node_dir(layout, name)?.join("exec");
    cgroup::make(&dir)?;
    Ok(process::enter(Some(&host.netns), &dir, argv))
}

fn in_pod(layout: &Layout, pod: &str, argv: &[String]) -> Result<(Vec<String>, String)> {
    let (sandbox, node) = sandbox(layout, pod)?;
    // The pod's namespaces; the cgroup while its path can still be seen.
    let target = format!("--target={}", sandbox.pid);
    let mut inside: Vec<_> =
        ["nsenter", &target, "--net", "--uts", "--ipc"].map(str::to_owned).to_vec();
    match &sandbox.etc {
        None => inside.extend(["--mount", "--pid", "--"].map(str::to_owned)),
        // The machine's programs, with the pod's files where they look for names.
        Some(etc) => {
            let bind = r#"for file in hosts resolv.conf; do
                [ ! -e "$0/$file" ] || mount --bind "$0/$file" "/etc/$file" || exit; done; exec "$@""#;
            let etc = etc.display().to_string();
            let words = ["--", "unshare", "--mount", "sh", "-c", bind, &etc];
            inside.extend(words.map(str::to_owned));
        }
    }
    cgroup::make(&sandbox.cgroup)?;
    inside.extend_from_slice(argv);
    Ok((process::enter(None, &sandbox.cgroup, &inside), node))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(nodes: u32, place: &str) -> String {
        let layout = Layout {
            name: "absent".into(),
            subnet: (28, 1),
            nodes,
            runtime: crate::cluster::Runtime::Process,
            dir: "/nonexistent".into(),
            bin_dir: "/nonexistent".into(),
            loopback_api: false,
        };
        let place = place.parse().expect("any text is a place");
        format!("{:#}", command(&layout, &place, &["true".to_owned()]).expect_err("no cluster"))
    }

    #[test]
    fn places_that_are_not_there_are_told_with_the_remedy() {
        for place in ["node-1", "client", "pod/hello"] {
            assert!(refusal(0, place).contains("`cargo xtask up` starts it"), "{place}");
        }
        assert!(refusal(2, "node-3").contains("there are node-1, node-2, client, and pod/NAME"));
        let pod = refusal(2, "pod/hello");
        assert!(pod.contains("default/hello") && pod.contains("kubectl get pods"), "{pod}");
    }
}
