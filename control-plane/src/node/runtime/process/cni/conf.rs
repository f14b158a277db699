//! Network configurations: which file counts, what it says, and when the folder changes.

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::{io::unix::AsyncFd, sync::watch};
use tokio_util::sync::CancellationToken;

use super::super::{super::NetworkState, readiness};

/// The versions of the protocol that we speak, best first.
const VERSIONS: &[&str] = &["1.1.0", "1.0.0", "0.4.0", "0.3.1"];
/// The folder is read again at the latest after this time, should a notice be lost.
const RESYNC: Duration = Duration::from_secs(30);

/// A network: the plugins to call, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct NetworkConf {
    /// Name of the network.
    pub name: String,
    /// The version that is spoken with its plugins.
    pub version: String,
    /// Its plugins.
    pub plugins: Vec<PluginConf>,
}

/// The configuration of one plugin, as it stands in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct PluginConf {
    kind: String,
    object: Map<String, Value>,
}

impl PluginConf {
    /// Its type, which is also the name of its program.
    pub(in super::super) fn kind(&self) -> &str {
        &self.kind
    }

    /// What the plugin reads: its object with the name, the version, the capabilities that it
    /// declares, and the result so far (CNI section 3, "Deriving request configuration").
    pub(super) fn input(
        &self,
        network: &NetworkConf,
        capabilities: &Value,
        previous: Option<&Value>,
    ) -> Value {
        let mut object = self.object.clone();
        object.insert("name".to_owned(), network.name.clone().into());
        object.insert("cniVersion".to_owned(), network.version.clone().into());
        let declared = object.remove("capabilities");
        let wants = |name: &str| {
            declared.as_ref().and_then(|all| all.get(name)).and_then(Value::as_bool) == Some(true)
        };
        let runtime: Map<String, Value> = capabilities
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| wants(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !runtime.is_empty() {
            object.insert("runtimeConfig".to_owned(), runtime.into());
        }
        if let Some(previous) = previous {
            object.insert("prevResult".to_owned(), previous.clone());
        }
        object.into()
    }
}

/// The first configuration in `dir`, by name; `Err` says, for people, why there is none.
pub(in super::super) fn load(dir: &Path) -> Result<NetworkConf, String> {
    let none = || format!("no CNI configuration in {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(none()),
        Err(error) => return Err(format!("reading {}: {error}", dir.display())),
    };
    let path = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().and_then(|text| text.to_str());
            matches!(extension, Some("conf" | "conflist" | "json"))
        })
        .min()
        .ok_or_else(none)?;
    let text = std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text).map_err(|reason| format!("{}: {reason}", path.display()))
}

/// Understands a `.conflist`, or a `.conf` with a single plugin.
fn parse(text: &[u8]) -> Result<NetworkConf, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let field = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let name = field("name").filter(|name| !name.is_empty()).ok_or("it has no name")?;
    let version = version(&value)?;
    let objects = match value.get("plugins") {
        Some(Value::Array(plugins)) => plugins.clone(),
        Some(_) => return Err("plugins is not a list".to_owned()),
        None => vec![value.clone()],
    };
    let plugins = objects.into_iter().map(plugin).collect::<Result<Vec<_>, _>>()?;
    if plugins.is_empty() {
        return Err("it names no plugin".to_owned());
    }
    Ok(NetworkConf { name, version, plugins })
}

fn plugin(value: Value) -> Result<PluginConf, String> {
    let Value::Object(object) = value else { return Err("a plugin is not an object".to_owned()) };
    let kind = object.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    // A program in the plugins' folder, never a path out of it.
    if kind.is_empty() || kind.contains('/') || kind.starts_with('.') {
        return Err(format!("{kind:?} is not the type of a plugin"));
    }
    Ok(PluginConf { kind, object })
}

/// The best version of those that the file offers.
fn version(value: &Value) -> Result<String, String> {
    let one = value.get("cniVersion").and_then(Value::as_str);
    let several = value.get("cniVersions").and_then(Value::as_array);
    let offered: Vec<&str> =
        several.into_iter().flatten().filter_map(Value::as_str).chain(one).collect();
    VERSIONS
        .iter()
        .find(|version| offered.contains(version))
        .map(|&version| version.to_owned())
        .ok_or_else(|| format!("of its versions {offered:?} none is among {VERSIONS:?}"))
}

/// Keeps `state` at whether `dir` holds a usable configuration, until `stop`.
pub(in super::super) async fn follow(
    dir: PathBuf,
    state: watch::Sender<NetworkState>,
    stop: CancellationToken,
) {
    loop {
        // Watched before it is read: a change in between is not lost.
        let notices = notices(&dir);
        if let Err(error) = &notices {
            tracing::debug!(dir = %dir.display(), %error, "no notices of the CNI folder");
        }
        let found = load(&dir).map(drop);
        state.send_if_modified(|state| {
            let changed = *state != found;
            *state = found;
            changed
        });
        let changed = async {
            match &notices {
                Ok(notices) => drop(notices.readable().await),
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep(RESYNC) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// A new watch on the folder, which is made where it is missing.
fn notices(dir: &Path) -> io::Result<AsyncFd<OwnedFd>> {
    std::fs::create_dir_all(dir)?;
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF;
    inotify.add_watch(dir, flags)?;
    readiness::register(inotify.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_file_by_name_counts_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let none = format!("no CNI configuration in {}", dir.path().display());
        assert_eq!(load(dir.path()).unwrap_err(), none);
        let write = |name: &str, network: &str| {
            let text = json!({"cniVersion": "1.0.0", "name": network, "plugins": [{"type": "a"}]});
            std::fs::write(dir.path().join(name), text.to_string()).unwrap();
        };
        write("05-first.tmp", "not-a-configuration");
        assert_eq!(load(dir.path()).unwrap_err(), none);
        write("20-later.conflist", "later");
        write("10-mizzen.conflist", "mizzen");
        assert_eq!(load(dir.path()).unwrap().name, "mizzen");
    }

    #[test]
    fn the_highest_common_version_is_spoken() {
        let conf = |versions: Value| {
            let value = json!({"cniVersion": "0.3.1", "cniVersions": versions, "name": "n",
                "plugins": [{"type": "a"}]});
            parse(value.to_string().as_bytes()).map(|conf| conf.version)
        };
        assert_eq!(conf(json!(["0.4.0", "1.1.0", "9.0.0"])).unwrap(), "1.1.0");
        assert_eq!(conf(json!([])).unwrap(), "0.3.1");
        let old = parse(br#"{"cniVersion":"0.1.0","name":"n","type":"a"}"#).unwrap_err();
        assert!(old.contains("0.1.0"), "{old}");
    }

    #[test]
    fn a_plugin_outside_its_folder_is_refused() {
        for kind in ["../../bin/sh", "/bin/sh", "", "."] {
            let text = json!({"cniVersion": "1.0.0", "name": "n", "type": kind}).to_string();
            assert!(parse(text.as_bytes()).unwrap_err().contains("not the type"), "{kind}");
        }
    }

    #[test]
    fn a_plugin_reads_its_object_and_only_the_capabilities_it_declares() {
        let text = json!({"cniVersion": "1.0.0", "name": "net", "plugins": [
            {"type": "a", "capabilities": {"portMappings": true, "bandwidth": false}, "x": 1},
            {"type": "b"},
        ]});
        let conf = parse(text.to_string().as_bytes()).unwrap();
        let capabilities = json!({"portMappings": [], "bandwidth": {}});
        assert_eq!(
            conf.plugins[0].input(&conf, &capabilities, None),
            json!({"name": "net", "cniVersion": "1.0.0", "type": "a", "x": 1,
                "runtimeConfig": {"portMappings": []}})
        );
        let previous = json!({"ips": []});
        assert_eq!(
            conf.plugins[1].input(&conf, &capabilities, Some(&previous)),
            json!({"name": "net", "cniVersion": "1.0.0", "type": "b", "prevResult": previous})
        );
    }

    #[tokio::test]
    async fn a_configuration_that_is_renamed_into_place_is_seen_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, mut state) = watch::channel(Err("unknown".to_owned()));
        let stop = CancellationToken::new();
        let task = tokio::spawn(follow(dir.path().join("net.d"), sender, stop.clone()));
        state
            .wait_for(|state| state.as_ref().is_err_and(|why| why.contains("no CNI")))
            .await
            .unwrap();
        let tmp = dir.path().join("net.d/.10-mizzen.tmp");
        std::fs::write(&tmp, r#"{"cniVersion":"1.0.0","name":"n","type":"a"}"#).unwrap();
        std::fs::rename(&tmp, dir.path().join("net.d/10-mizzen.conflist")).unwrap();
        let seen = state.wait_for(Result::is_ok);
        tokio::time::timeout(RESYNC / 6, seen).await.unwrap().unwrap();
        stop.cancel();
        task.await.unwrap();
    }
}
