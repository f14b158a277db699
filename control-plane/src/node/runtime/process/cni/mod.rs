//! The runtime's side of the CNI protocol, version 1.1.0 and before: the plugins of the first
//! network configuration are called in turn, with the configuration on standard input.
//!
//! What was used to add a pod is kept in the sandbox's folder and used again to take it away,
//! whatever the configuration has become in between (CNI section 4, "lifecycle").

mod bandwidth;
pub(super) mod conf;

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, process::Command};

use self::conf::{NetworkConf, PluginConf};
use super::{
    super::{PodIdentity, PortMapping},
    record::{self, RecordError},
};

/// The interface in the pod (cni.md section 1: `eth0`).
const IFNAME: &str = "eth0";
/// For how long one plugin may work.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// More output than this is not a result.
const OUTPUT_MAX: usize = 1 << 20;
/// The kept configuration and result, in the sandbox's folder.
const CACHE: &str = "cni.json";

/// A pod's attachment to the network.
#[derive(Clone, Debug)]
pub(super) struct Attachment<'a> {
    /// The sandbox's folder.
    pub dir: &'a Path,
    /// The sandbox's id: `CNI_CONTAINERID`.
    pub id: &'a str,
    /// Whose it is.
    pub pod: &'a PodIdentity,
    /// The network namespace's file.
    pub netns: &'a Path,
}

/// A network configuration could not be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum CniError {
    /// There is no usable configuration.
    #[error("{0}")]
    NoConf(String),
    /// The pod asks for what is no bandwidth.
    #[error(transparent)]
    Bandwidth(#[from] bandwidth::BadLimit),
    /// A plugin could not be run.
    #[error(
        "running the plugin {} for {command}: is it installed and executable?",
        path.display()
    )]
    Run {
        /// Its file.
        path: PathBuf,
        /// The CNI command.
        command: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A plugin took too long and was killed.
    #[error("the plugin {plugin} did not answer {command} within {} s", PLUGIN_TIMEOUT.as_secs())]
    Timeout {
        /// Its type.
        plugin: String,
        /// The CNI command.
        command: &'static str,
    },
    /// A plugin answered with an error.
    #[error("the plugin {plugin} failed {command}: {message}")]
    Plugin {
        /// Its type.
        plugin: String,
        /// The CNI command.
        command: &'static str,
        /// Its code, message and details.
        message: String,
    },
    /// The result gives the pod no address.
    #[error("the result of the plugin {plugin} names no address")]
    NoAddress {
        /// The last plugin's type.
        plugin: String,
    },
    /// What was used could not be kept.
    #[error("keeping the network configuration")]
    Cache(#[source] RecordError),
}

/// What was used to add a pod.
#[derive(Debug, Serialize, Deserialize)]
struct Cache {
    network: NetworkConf,
    capabilities: Value,
    result: Option<Value>,
}

/// The error object of the protocol (CNI section 5, "Error").
#[derive(Deserialize)]
struct PluginError {
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// What a pod asks of its attachment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// Ports of the node that lead to it.
    pub ports: &'a [PortMapping],
    /// Its annotations, which say how much it may receive and send.
    pub annotations: &'a BTreeMap<String, String>,
}

/// Attaches a pod; gives its addresses in the order of the result.
pub(super) async fn add(
    attachment: &Attachment<'_>,
    network: NetworkConf,
    bin_dir: &Path,
    asked: Asked<'_>,
) -> Result<Vec<IpAddr>, CniError> {
    let mut capabilities = json!({ "portMappings": asked.ports });
    if let Some(limits) = bandwidth::capability(asked.annotations)? {
        capabilities["bandwidth"] = limits;
    }
    let mut cache = Cache { network, capabilities, result: None };
    let path = attachment.dir.join(CACHE);
    // Before the first plugin runs: a crash in the middle can be undone.
    record::save(&path, &cache).map_err(CniError::Cache)?;
    let mut previous = None;
    for plugin in &cache.network.plugins {
        let conf = plugin.input(&cache.network, &cache.capabilities, previous.as_ref());
        let output = call(attachment, plugin, bin_dir, "ADD", &conf).await?;
        previous = Some(output);
    }
    let plugin = cache.network.plugins.last().map(PluginConf::kind).unwrap_or_default().to_owned();
    let addresses = previous.as_ref().map(addresses).unwrap_or_default();
    cache.result = previous;
    record::save(&path, &cache).map_err(CniError::Cache)?;
    if addresses.is_empty() { Err(CniError::NoAddress { plugin }) } else { Ok(addresses) }
}

/// Detaches a pod; success where it was never attached.
pub(super) async fn delete(attachment: &Attachment<'_>, bin_dir: &Path) -> Result<(), CniError> {
    let path = attachment.dir.join(CACHE);
    let Some(cache) =
        std::fs::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Cache>(&bytes).ok())
    else {
        return Ok(());
    };
    for plugin in cache.network.plugins.iter().rev() {
        let conf = plugin.input(&cache.network, &cache.capabilities, cache.result.as_ref());
        call(attachment, plugin, bin_dir, "DEL", &conf).await?;
    }
    record::remove_file(&path).map_err(CniError::Cache)
}

/// The addresses of a result, without their prefix lengths.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result.get("ips").and_then(Value::as_array);
    let address = |ip: &Value| ip.get("address")?.as_str()?.split('/').next()?.parse().ok();
    ips.into_iter().flatten().filter_map(address).collect()
}

async fn call(
    attachment: &Attachment<'_>,
    plugin: &PluginConf,
    bin_dir: &Path,
    command: &'static str,
    conf: &Value,
) -> Result<Value, CniError> {
    let path = bin_dir.join(plugin.kind());
    let run = |source| CniError::Run { path: path.clone(), command, source };
    let mut child = Command::new(&path)
        .envs(environment(attachment, bin_dir, command))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(run)?;
    let stdin = child.stdin.take();
    let talk = async {
        if let Some(mut stdin) = stdin {
            // A plugin may fail before it has read everything: its answer says why.
            let _answers_without_reading = stdin.write_all(conf.to_string().as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PLUGIN_TIMEOUT, talk)
        .await
        .map_err(|_elapsed| CniError::Timeout { plugin: plugin.kind().to_owned(), command })?
        .map_err(run)?;
    let failed = |message| CniError::Plugin { plugin: plugin.kind().to_owned(), command, message };
    if !output.status.success() {
        return Err(failed(message_of(&output.stdout, &output.stderr, output.status)));
    }
    if command == "DEL" {
        return Ok(Value::Null);
    }
    if output.stdout.len() > OUTPUT_MAX {
        return Err(failed(format!("its result has {} bytes", output.stdout.len())));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| failed(format!("its result is not JSON: {error}")))
}

/// The protocol's parameters (CNI section 2).
fn environment(
    attachment: &Attachment<'_>,
    bin_dir: &Path,
    command: &'static str,
) -> Vec<(&'static str, String)> {
    let PodIdentity { namespace, name, uid } = attachment.pod;
    let id = attachment.id;
    let arguments = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
         K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID={uid}"
    );
    // A namespace that is gone is passed as an empty name, as containerd does (cni.md 35).
    let netns = if attachment.netns.exists() {
        attachment.netns.display().to_string()
    } else {
        String::new()
    };
    vec![
        ("CNI_COMMAND", command.to_owned()),
        ("CNI_CONTAINERID", id.to_owned()),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", IFNAME.to_owned()),
        ("CNI_ARGS", arguments),
        ("CNI_PATH", bin_dir.display().to_string()),
    ]
}

/// What a failed plugin has to say: its error object, else whatever it wrote.
fn message_of(stdout: &[u8], stderr: &[u8], status: std::process::ExitStatus) -> String {
    match serde_json::from_slice::<PluginError>(stdout) {
        Ok(PluginError { code, msg, details }) if details.is_empty() => {
            format!("{msg} (code {code})")
        }
        Ok(PluginError { code, msg, details }) => format!("{msg} (code {code}): {details}"),
        Err(_) => {
            let text = if stderr.is_empty() { stdout } else { stderr };
            let text = String::from_utf8_lossy(&text[..text.len().min(1024)]).trim().to_owned();
            format!("{status}: {text}")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn pod() -> PodIdentity {
        PodIdentity { namespace: "ns".into(), name: "web".into(), uid: "u-1".into() }
    }

    #[test]
    fn the_plugin_is_told_which_pod_it_is_for() {
        let pod = pod();
        let attachment = Attachment {
            dir: Path::new("/nowhere"),
            id: "abc",
            pod: &pod,
            netns: Path::new("/nowhere/netns"),
        };
        let environment = environment(&attachment, Path::new("/opt/cni/bin"), "ADD");
        let get = |name| {
            environment.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
        };
        assert_eq!(
            get("CNI_ARGS"),
            Some(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;\
                 K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
            )
        );
        assert_eq!(get("CNI_IFNAME"), Some("eth0"));
        assert_eq!(get("CNI_COMMAND"), Some("ADD"));
        // cni.md 35: the path of a namespace that is gone is not passed.
        assert_eq!(get("CNI_NETNS"), Some(""));
    }

    #[test]
    fn addresses_of_every_version_of_a_result_are_found() {
        let old = json!({"cniVersion": "0.4.0", "ips": [
            {"version": "4", "address": "10.244.0.5/32"}, {"version": "6", "address": "fd00::5/128"},
        ]});
        let expected: Vec<IpAddr> = vec!["10.244.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        assert_eq!(addresses(&old), expected);
        assert_eq!(addresses(&json!({"ips": [{"address": "10.244.0.5/32"}]})), expected[..1]);
        assert!(addresses(&json!({})).is_empty());
    }

    #[test]
    fn an_error_object_is_preferred_to_what_was_written() {
        let status = std::process::ExitStatus::from_raw(0x100);
        let object = br#"{"cniVersion":"1.0.0","code":11,"msg":"try again","details":"no agent"}"#;
        assert_eq!(message_of(object, b"noise", status), "try again (code 11): no agent");
        assert_eq!(message_of(b"", b"  broken\n", status), "exit status: 1: broken");
    }
}
