//! As whom the parts of a cluster speak to its API server: node parts by certificates of their
//! nodes, agents by a token of their service account. Nobody but people has the administrator's.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{Layout, api::Api};
use crate::{deploy, invoke};

/// The agents' service account.
const AGENT: &str = "mizzen-agent";
/// Where it is.
const NAMESPACE: &str = "kube-system";
/// For how long its token holds, in seconds: longer than a cluster for development.
const TOKEN_SECONDS: u32 = 10 * 365 * 24 * 3600;

/// A kubeconfig of a node part, made where there is none.
pub(super) fn node_part(layout: &Layout, api: &Api, node: &str) -> Result<PathBuf> {
    let path = layout.node_kubeconfig(node);
    if path.exists() {
        return Ok(path);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut make = Command::new(layout.binary("mizzen-control-plane"));
    make.args(["kubeconfig", "--user", &format!("system:node:{node}"), "--group", "system:nodes"]);
    make.args(["--server", &api.server]);
    make.arg("--data-dir").arg(layout.control_plane_dir()).arg("--output").arg(&path);
    invoke::output(&mut make)?;
    Ok(path)
}

/// The agents' kubeconfig, made where there is none, and what they may do.
pub(super) fn agent(layout: &Layout, api: &Api) -> Result<PathBuf> {
    // What the manifest gives them: that it is enough shows here.
    let rights = ["ServiceAccount", "ClusterRole", "ClusterRoleBinding"];
    let objects = deploy::agent_objects();
    for object in objects.iter().filter(|object| rights.iter().any(|kind| object["kind"] == *kind))
    {
        api.apply(&serde_yaml_ng::to_string(object)?)?;
    }
    let path = layout.agent_kubeconfig();
    if path.exists() {
        return Ok(path);
    }
    let request = json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "spec": {"expirationSeconds": TOKEN_SECONDS},
    });
    let url = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{AGENT}/token");
    let answer = api.expect("POST", &url, Some(("application/json", &request.to_string())))?;
    let token = answer["status"]["token"].as_str().context("the API server gave no token")?;
    write(&path, &kubeconfig(&api.server, &api.ca, token))?;
    Ok(path)
}

/// A kubeconfig is YAML, and JSON is YAML.
fn kubeconfig(server: &str, ca: &Path, token: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "mizzen", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": AGENT, "user": {"token": token}}],
        "contexts": [{"name": "mizzen", "context": {"cluster": "mizzen", "user": AGENT}}],
        "current-context": "mizzen",
    })
    .to_string()
}

/// Writes a file that only its owner may read.
fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let failed = || format!("can't write {}", path.display());
    let mut options = fs::OpenOptions::new();
    let mut file =
        options.write(true).create_new(true).mode(0o600).open(path).with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)
}
