//! The little of the Kubernetes API that `up`, the tests and the benchmarks need, by way of
//! `curl` with the administrator's certificate: a fresh machine may have no kubectl.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Layout;
use crate::invoke;

/// Where `kubectl apply` keeps what was applied last.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A client with the administrator's rights.
#[derive(Clone, Debug)]
pub struct Api {
    pub(super) server: String,
    pub(super) ca: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// An answer of the API server.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body; JSON null where it is not JSON.
    pub body: Value,
}

impl Api {
    /// Reads the kubeconfig and puts its certificates beside it, where `curl` can read them.
    pub fn from_kubeconfig(layout: &Layout) -> Result<Self> {
        let path = layout.kubeconfig();
        let text = fs::read_to_string(&path)
            .with_context(|| format!("can't read {}; is the cluster up?", path.display()))?;
        let config: Value = serde_yaml_ng::from_str(&text)
            .with_context(|| format!("{} is not YAML", path.display()))?;
        let cluster = &config["clusters"][0]["cluster"];
        let user = &config["users"][0]["user"];
        let folder = layout.dir.join("pki");
        fs::create_dir_all(&folder)?;
        // Before the key is in it.
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let file = |name: &str, base64: &Value| -> Result<PathBuf> {
            let path = folder.join(name);
            decode(base64.as_str().context("the kubeconfig lacks a certificate or key")?, &path)?;
            Ok(path)
        };
        Ok(Self {
            server: cluster["server"].as_str().context("the kubeconfig has no server")?.into(),
            ca: file("ca.crt", &cluster["certificate-authority-data"])?,
            certificate: file("admin.crt", &user["client-certificate-data"])?,
            key: file("admin.key", &user["client-key-data"])?,
        })
    }

    /// A call of `curl` as the administrator, without what is asked for.
    pub fn curl(&self) -> Command {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error"]);
        curl.arg("--cacert").arg(&self.ca).arg("--cert").arg(&self.certificate);
        curl.arg("--key").arg(&self.key);
        curl
    }

    /// Where a path is.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.server)
    }

    /// One request. `body` is (content type, text).
    pub fn request(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> Result<Answer> {
        let mut curl = self.curl();
        curl.args(["--max-time", "20", "--request", method]);
        if let Some((content_type, text)) = body {
            curl.args([
                "--header",
                &format!("Content-Type: {content_type}"),
                "--data-binary",
                text,
            ]);
        }
        curl.args(["--write-out", "\n%{http_code}", &self.url(path)]);
        let text = invoke::capture(&mut curl)?;
        let (body, status) = text.rsplit_once('\n').context("curl printed no status")?;
        Ok(Answer {
            status: status.trim().parse().context("curl printed a strange status")?,
            body: serde_json::from_str(body).unwrap_or(Value::Null),
        })
    }

    /// An object or a list.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.expect("GET", path, None)
    }

    /// A request whose answer must be a success.
    pub fn expect(&self, method: &str, path: &str, body: Option<(&str, &str)>) -> Result<Value> {
        let answer = self.request(method, path, body)?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path}: {} {}", answer.status, answer.body["message"]);
        }
        Ok(answer.body)
    }

    /// Creates what the YAML documents describe; what is there already is merged with them.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        for document in serde_yaml_ng::Deserializer::from_str(yaml) {
            let mut object = <Value as serde::Deserialize>::deserialize(document)?;
            if object.is_null() {
                continue;
            }
            let (collection, name) = locate(&object)?;
            // As kubectl does, so that a later `kubectl apply` knows what to compare with.
            object["metadata"]["annotations"][LAST_APPLIED] = object.to_string().into();
            let text = object.to_string();
            let path = format!("{collection}/{name}");
            // Looked for first: creating it again could fail for a port that it has itself.
            if self.request("GET", &path, None)?.status == 404 {
                self.expect("POST", &collection, Some(("application/json", &text)))?;
            } else {
                let merge = Some(("application/merge-patch+json", text.as_str()));
                self.expect("PATCH", &path, merge)?;
            }
        }
        Ok(())
    }

    /// Sets `spec.replicas` through the scale subresource.
    pub fn scale(&self, deployment: &str, replicas: u32) -> Result<()> {
        let path = format!("/apis/apps/v1/namespaces/default/deployments/{deployment}/scale");
        let patch = format!(r#"{{"spec":{{"replicas":{replicas}}}}}"#);
        self.expect("PATCH", &path, Some(("application/merge-patch+json", &patch))).map(drop)
    }
}

/// The collection that an object belongs to, and its name.
fn locate(object: &Value) -> Result<(String, String)> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").context("a document without kind")?;
    let version = text("/apiVersion").context("a document without apiVersion")?;
    let name = text("/metadata/name").context("a document without metadata.name")?;
    let namespace = text("/metadata/namespace").unwrap_or("default");
    let root = if version.contains('/') { "/apis" } else { "/api" };
    let plural = format!("{}s", kind.to_lowercase());
    let collection = match kind {
        "Namespace" | "Node" | "ClusterRole" | "ClusterRoleBinding" => {
            format!("{root}/{version}/{plural}")
        }
        _ => format!("{root}/{version}/namespaces/{namespace}/{plural}"),
    };
    Ok((collection, name.to_owned()))
}

/// Writes what a kubeconfig holds in base64 to a file that only its owner may read.
fn decode(base64: &str, path: &std::path::Path) -> Result<()> {
    let encoded = path.with_extension("b64");
    fs::write(&encoded, base64)?;
    let decoded = invoke::output(Command::new("base64").arg("--decode").arg(&encoded))?;
    fs::remove_file(&encoded)?;
    fs::write(path, decoded.stdout)?;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(())
}
