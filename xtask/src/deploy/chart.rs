//! The Helm chart: the objects with Helm's words in their open places. That it says the same as the
//! plain manifests, and what it says with other values, is seen by [`super::render`]; where `helm`
//! is in PATH, `cargo xtask lint` asks it too.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use serde::Deserialize as _;
use serde_json::Value;

use super::{
    HEAD,
    objects::{self, Folder, Open, VERSION},
    privileges,
    render::render,
    values,
};
use crate::{checkout, invoke};

/// Stands for the servers of a cluster.
const SERVERS: [&str; 1] = ["https://192.0.2.1:6443"];
/// Where the plain manifests are, and what they mount of others.
const NAMESPACE: &str = "kube-system";
/// The condition under which the objects for metrics are made.
const METRICS: &str = ".Values.metrics.enabled";
/// The field that says where they are had.
const METRICS_ADDRESS: &str = "metricsBindAddress";
/// The line that begins the containers that are there on a condition, and that condition.
const MOUNTER: (&str, &str) = ("      initContainers:", ".Values.bpffs.mount");

/// What would not work is said when it is installed, and not by each node's agent.
const REFUSALS: &str = "\
{{- if and .Values.config.services (not (or .Values.config.apiServer .Values.config.kubeProxyConfig .Values.config.kubeconfig)) }}
{{- fail \"config.apiServer has to name the API servers' own addresses, as https://192.0.2.1:6443, or config.kubeProxyConfig a file that does: a Service's address can't be reached before the agent serves\" }}
{{- end }}
{{- if not (hasPrefix .Values.bpffs.path (.Values.config.bpffs | default \"/sys/fs/bpf/mizzen\")) }}
{{- fail \"config.bpffs has to be a folder below bpffs.path\" }}
{{- end }}
{{- if and .Values.metrics.enabled (hasPrefix \"127.\" (.Values.config.metricsBindAddress | default \"127.0.0.1:10249\")) }}
{{- fail \"metrics.enabled takes a config.metricsBindAddress that Prometheus reaches, such as [::]:10249: on 127.0.0.1 all targets are down\" }}
{{- end }}
";

/// The same of a file that the agent's configuration names: its pod has to have it.
const FILE_REFUSALS: &str = "\
{{- if .Values.config.FIELD }}
{{- if not (or (hasPrefix \"FOLDER\" .Values.config.FIELD) (hasPrefix (printf \"%s/\" (.Values.config.dataDir | default \"/var/lib/mizzen\")) .Values.config.FIELD)) }}
{{- fail \"config.FIELD has to be below FOLDER, where pods have the ConfigMap MAP, or in config.dataDir of each node: they have no other folder with it\" }}
{{- end }}
{{- if and (hasPrefix \"FOLDER\" .Values.config.FIELD) (ne .Release.Namespace \"kube-system\") }}
{{- fail \"config.FIELD is of the ConfigMap MAP in kube-system, which pods of another namespace can't mount: install the chart in kube-system, or say in config itself what counts of it\" }}
{{- end }}
{{- end }}
";
/// Fields that name such files, each with the folder below which pods have a ConfigMap's, and that.
const FILES: [(&str, &str, &str); 3] = [
    ("kubeProxyConfig", "/var/lib/kube-proxy/", "kube-proxy"),
    ("kubeconfig", "/var/lib/kube-proxy/", "kube-proxy"),
    ("corefile", "/etc/coredns/", "coredns"),
];

/// The template that refuses.
fn refusals() -> String {
    let of_files = FILES.map(|(field, folder, map)| {
        FILE_REFUSALS.replace("FIELD", field).replace("FOLDER", folder).replace("MAP", map)
    });
    format!("{HEAD}{REFUSALS}{}", of_files.concat())
}

/// The files, by their paths in the chart.
pub(super) fn files() -> Result<Vec<(String, String)>> {
    let chart = format!(
        "{HEAD}apiVersion: v2\nname: mizzen\ndescription: Node networking of a Kubernetes cluster in one agent\n\
         type: application\nversion: {VERSION}\nappVersion: {VERSION}\nkubeVersion: \">= 1.31.0-0\"\n"
    );
    let agent = conditional(&template(&objects::agent(Open::Chart))?, MOUNTER);
    let metrics = template(&objects::metrics(Open::Chart))?;
    Ok(vec![
        ("Chart.yaml".to_owned(), chart),
        ("values.yaml".to_owned(), values::text()?),
        ("templates/refuse.yaml".to_owned(), refusals()),
        ("templates/agent.yaml".to_owned(), agent),
        (
            "templates/metrics.yaml".to_owned(),
            format!("{{{{- if {METRICS} }}}}\n{metrics}{{{{- end }}}}\n"),
        ),
    ])
}

/// Objects as a template.
fn template(documents: &[Value]) -> Result<String> {
    let mut rest = privileges::annotated(&objects::yaml(documents)?);
    for (word, filter) in [
        ("HELMRAW(", ""),
        ("HELMTEXT(", " | toJson | toJson"),
        ("HELMSUM(", " | toJson | sha256sum | toJson"),
        ("HELM(", " | toJson"),
    ] {
        let mut text = String::new();
        while let Some((before, behind)) = rest.split_once(word) {
            let (path, after) = behind.split_once(')').context("a word has no end")?;
            // A path, and what stands for it where nobody says.
            let (path, default) = path.split_once(' ').unwrap_or((path, ""));
            let default = match default {
                "" => String::new(),
                default => format!(" | default {default:?}"),
            };
            text.extend([before, "{{ ", path, &default, filter, " }}"]);
            rest = after.to_owned();
        }
        rest = text + &rest;
    }
    Ok(rest)
}

/// The part of a template that begins with a line, and goes on with its items, under a condition.
fn conditional(template: &str, (first, condition): (&str, &str)) -> String {
    let mut text = String::new();
    let mut inside = false;
    for line in template.lines() {
        let begins = line == first;
        let indent = &first[..first.len() - first.trim_start().len()];
        let goes_on = line.strip_prefix(indent).is_some_and(|rest| rest.starts_with(['-', ' ']));
        if inside && !goes_on {
            text.push_str("{{- end }}\n");
            inside = false;
        }
        if begins {
            text.extend(["{{- if ", condition, " }}\n"]);
            inside = true;
        }
        text.extend([line, "\n"]);
    }
    text
}

/// The defaults, with what has to be given.
fn least() -> Value {
    let mut all = values::all();
    all["config"]["apiServer"] = SERVERS.into();
    all
}

/// What is wrong with the chart, where with metrics it is not the objects `plain`.
pub(super) fn complaint(plain: &[Value]) -> Result<Option<String>> {
    let mut all = least();
    all["metrics"]["enabled"] = true.into();
    // The chart refuses metrics where nobody reaches them.
    all["config"][METRICS_ADDRESS] = "[::]:10249".into();
    let rendered = rendered(&all, NAMESPACE)?;
    for (at, object) in plain.iter().enumerate() {
        if rendered.get(at).map(comparable) != Some(comparable(object)) {
            return Ok(Some(format!(
                "deploy/chart: {} with its defaults is not the plain manifest's",
                object["kind"]
            )));
        }
    }
    Ok(helm_says())
}

/// All objects of the chart with these values in this namespace.
fn rendered(values: &Value, namespace: &str) -> Result<Vec<Value>> {
    let mut rendered = Vec::new();
    for (path, text) in files()? {
        if path.starts_with("templates/") {
            rendered.extend(documents(&render(&text, values, namespace)?)?);
        }
    }
    Ok(rendered)
}

/// The pod of the agent with these values.
fn pod(values: &Value) -> Result<Value> {
    let objects = rendered(values, NAMESPACE)?;
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet");
    Ok(set.context("no DaemonSet")?["spec"]["template"]["spec"].clone())
}

/// What of the pod does not follow a folder of the agent's configuration. All of them are other than
/// their defaults.
pub(super) fn unfollowed() -> Result<Option<String>> {
    let mut all = least();
    let other = |folder: &Folder| format!("/other/{}", folder.volume);
    for folder in &objects::FOLDERS {
        all["config"][folder.field] = other(folder).into();
    }
    all["bpffs"]["path"] = "/other/bpf".into();
    all["config"]["bpffs"] = "/other/bpf/mizzen".into();
    let pod = pod(&all)?;
    let container = &pod["containers"][0];
    let named = |list: &Value, name: &str| -> Result<Value> {
        let items = list.as_array().into_iter().flatten();
        items.clone().find(|one| one["name"] == name).cloned().with_context(|| format!("no {name}"))
    };
    let wanted = objects::FOLDERS.iter().map(|folder| (folder.volume, other(folder)));
    for (volume, path) in wanted.chain([("bpffs", "/other/bpf".to_owned())]) {
        let of_node = &named(&pod["volumes"], volume)?["hostPath"]["path"];
        let of_container = &named(&container["volumeMounts"], volume)?["mountPath"];
        if [of_node, of_container].iter().any(|found| **found != path) {
            return Ok(Some(format!("deploy/chart: the folder {volume} is not {path} everywhere")));
        }
    }
    let state = Value::from("/other/run");
    let probes =
        ["readinessProbe", "livenessProbe"].map(|probe| &container[probe]["exec"]["command"]);
    let of_probes =
        probes.iter().all(|command| command.as_array().is_some_and(|it| it.contains(&state)));
    let mounter = |mount: bool| -> Result<Value> {
        let mut all = all.clone();
        all["bpffs"]["mount"] = mount.into();
        Ok(self::pod(&all)?["initContainers"].clone())
    };
    ensure!(mounter(false)?.is_null(), "deploy/chart: bpffs.mount is false in vain");
    let mount = &mounter(true)?[0]["volumeMounts"][0];
    ensure!(mount["mountPath"] == "/other/bpf", "deploy/chart: what is mounted is not bpffs.path");
    let of_commands = named(&container["env"], "MIZZEN_STATE_DIR")?["value"] == state;
    ensure!(objects::FOLDERS[0].volume == "run", "the folder of sockets is another one");
    Ok((!of_probes || !of_commands)
        .then(|| "deploy/chart: probes and commands don't follow config.stateDir".to_owned()))
}

/// What `helm lint` says against the chart in the tree, where there is a helm.
fn helm_says() -> Option<String> {
    let chart = checkout().join("deploy/chart");
    if !fs::exists(&chart).unwrap_or(false) {
        return None;
    }
    if !invoke::in_path("helm") {
        println!(
            "    this machine has no helm: its `lint` is not asked; the chart is rendered by our own"
        );
        return None;
    }
    let servers = format!("config.apiServer={}", Value::from(SERVERS));
    let mut lint = Command::new("helm");
    lint.args(["lint", "--strict", "--set-json", &servers]).arg(&chart);
    let said = invoke::capture(&mut lint);
    said.err().map(|error| format!("deploy/chart: {error:#}"))
}

/// An object whose configuration is what it says, not how it is written, but for what each cluster has
/// otherwise; without what tells one configuration from another.
fn comparable(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(text) = object.pointer_mut("/data/agent.yaml")
        && let Some(mut said) = text.as_str().and_then(config)
    {
        said["apiServer"] = SERVERS.into();
        if let Some(said) = said.as_object_mut() {
            said.remove(METRICS_ADDRESS);
        }
        *text = said;
    }
    if let Some(metadata) =
        object.pointer_mut("/spec/template/metadata").and_then(Value::as_object_mut)
    {
        metadata.remove("annotations");
    }
    object
}

fn config(text: &str) -> Option<Value> {
    serde_yaml_ng::from_str(text).ok()
}

fn documents(text: &str) -> Result<Vec<Value>> {
    let all = serde_yaml_ng::Deserializer::from_str(text).map(Value::deserialize);
    Ok(all.collect::<Result<Vec<_>, _>>()?.into_iter().filter(|one| !one.is_null()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(config: &Value, bpffs: &str) -> Result<Vec<Value>> {
        let mut all = values::all();
        for (field, value) in config.as_object().into_iter().flatten() {
            all["config"][field] = value.clone();
        }
        all["bpffs"]["path"] = bpffs.into();
        rendered(&all, NAMESPACE)
    }

    #[test]
    fn what_would_not_work_is_refused() {
        let usual = "/sys/fs/bpf";
        for (config, bpffs, expected) in [
            (json!({}), usual, "config.apiServer has to"),
            (json!({"apiServer": SERVERS}), "/other", "config.bpffs has to"),
            (json!({"apiServer": SERVERS, "bpffs": "/run/x"}), usual, "config.bpffs has to"),
        ] {
            let error = with(&config, bpffs).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        for config in [
            json!({"apiServer": SERVERS}),
            json!({"kubeProxyConfig": "/var/lib/kube-proxy/config.conf"}),
            json!({"services": false}),
        ] {
            with(&config, usual).expect("objects");
        }
        with(&json!({"services": false, "bpffs": "/other/mizzen"}), "/other").expect("objects");
    }

    #[test]
    fn files_that_pods_do_not_have_are_refused() {
        let of = |field: &str, path: &str, namespace: &str| {
            let mut all = least();
            all["config"][field] = path.into();
            rendered(&all, namespace)
        };
        for (field, mounted) in [
            ("kubeProxyConfig", "/var/lib/kube-proxy/config.conf"),
            ("kubeconfig", "/var/lib/kube-proxy/kubeconfig.conf"),
            ("corefile", "/etc/coredns/Corefile"),
        ] {
            of(field, mounted, NAMESPACE).expect(field);
            let error = of(field, mounted, "other").expect_err(field).to_string();
            assert!(error.contains(&format!("config.{field} is of the ConfigMap ")), "{error}");
            for namespace in [NAMESPACE, "other"] {
                of(field, "", namespace).expect(field);
                of(field, "/var/lib/mizzen/own", namespace).expect(field);
                let expected = format!("config.{field} has to be below /");
                for elsewhere in ["/etc/kubernetes/x", "/var/lib/mizzen-old/x"] {
                    let error = of(field, elsewhere, namespace).expect_err(field);
                    assert!(error.to_string().contains(&expected), "{error}");
                }
            }
        }
        // What names no server in vain is no answer to where one is.
        let alone = json!({"kubeconfig": "/etc/kubernetes/admin.conf"});
        let error = with(&alone, "/sys/fs/bpf").expect_err("a kubeconfig").to_string();
        assert!(error.contains("config.kubeconfig has to be below"), "{error}");
    }

    #[test]
    fn the_objects_are_in_the_namespace_of_the_chart() {
        let objects = rendered(&least(), "other").expect("objects");
        for object in objects.iter().filter(|object| object["kind"] != "ClusterRole") {
            let place = &object["metadata"]["namespace"];
            let of_binding = &object["subjects"][0]["namespace"];
            assert!([place, of_binding].iter().any(|found| **found == "other"), "{object}");
        }
    }

    #[test]
    fn another_configuration_makes_another_pod() {
        let of = |config: &Value| {
            let objects = with(config, "/sys/fs/bpf").expect("objects");
            let set = objects.iter().find(|object| object["kind"] == "DaemonSet").cloned();
            set.expect("a DaemonSet")["spec"]["template"]["metadata"].clone()
        };
        let (one, same) = (of(&json!({"apiServer": SERVERS})), of(&json!({"apiServer": SERVERS})));
        assert_eq!(one, same);
        assert_ne!(one, of(&json!({"apiServer": SERVERS, "mtu": 1400})));
    }
}
