//! A whole control plane in the test's process, with nodes that are only told about: a fake
//! kubelet says of every bound pod that it runs, and confirms every deletion.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use mizzen_control_plane::serve::{Args, Server};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Where kubectl is, if it is.
const KUBECTL: &str = "/usr/bin/kubectl";

/// A running control plane.
pub(crate) struct Cluster {
    pub(crate) client: Client,
    /// A client that takes "too many requests" for an answer.
    pub(crate) impatient: Client,
    /// While set, pods that start are not ready.
    pub(crate) unready: Arc<AtomicBool>,
    cancel: CancellationToken,
    /// It stops when it is dropped.
    server: Server,
    directory: tempfile::TempDir,
}

impl Cluster {
    /// Starts a control plane with nodes `n1`, `n2`, … of 8 cores.
    pub(crate) async fn start(nodes: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cancel = CancellationToken::new();
        let args = Args { in_memory: true, ..Args::new(directory.path().to_owned()) };
        let server = Server::start(args, cancel.clone()).await.unwrap();
        let kubeconfig = Kubeconfig::read_from(&server.kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let mut once = config.clone();
        once.default_retry = false;
        let impatient = Client::try_from(once).unwrap();
        let client = Client::try_from(config).unwrap();
        let unready = Arc::default();
        let cluster = Self { client, impatient, unready, cancel, server, directory };
        for index in 1..=nodes {
            cluster.add_node(&format!("n{index}")).await;
        }
        tokio::spawn(kubelet(
            cluster.client.clone(),
            Arc::clone(&cluster.unready),
            cluster.cancel.clone(),
        ));
        cluster
    }

    /// Registers a node that is ready.
    pub(crate) async fn add_node(&self, name: &str) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "zone-a"}},
            "status": {
                "capacity": {"cpu": "8", "memory": "16Gi", "pods": "110"},
                "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node: Node = serde_json::from_value(node).unwrap();
        nodes.create(&PostParams::default(), &node).await.unwrap();
    }

    /// The objects of a kind in the namespace `default`.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates an object in the namespace `default`.
    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api().create(&PostParams::default(), &object).await.unwrap()
    }

    /// Merges a change into an object in the namespace `default`.
    pub(crate) async fn merge<K>(&self, name: &str, change: Value)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let api: Api<K> = self.api();
        api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    /// Reads an object in the namespace `default`.
    pub(crate) async fn get<K>(&self, name: &str) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.api().get(name).await.unwrap()
    }

    /// All objects of a kind in the namespace `default`.
    pub(crate) async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.api().list(&ListParams::default()).await.unwrap().items
    }

    /// Deletes an object in the namespace `default` with its defaults.
    pub(crate) async fn delete<K>(&self, name: &str)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let _ = self.api::<K>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// What `kubectl` prints for a command line, whose arguments have no blanks; `None`, said
    /// aloud, where there is no kubectl.
    pub(crate) async fn kubectl(&self, line: &str) -> Option<String> {
        if !Path::new(KUBECTL).exists() {
            eprintln!("skipped: this machine has no {KUBECTL}");
            return None;
        }
        let output = self.output(line).await;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kubectl {line}: {errors}");
        Some(String::from_utf8(output.stdout).unwrap())
    }

    /// What `kubectl apply` says of a file with a new namespace and its account `default`: the
    /// controller may make that between kubectl's look and its own request, here as elsewhere.
    pub(crate) async fn applied(&self, file: &str) -> String {
        let line = format!("apply -f {file}");
        loop {
            let output = self.output(&line).await;
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap();
            }
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            let raced = errors.contains("serviceaccounts \"default\" already exists");
            assert!(raced, "kubectl {line}: {errors}");
        }
    }

    /// What a `kubectl` that has to fail says to it.
    pub(crate) async fn refused(&self, line: &str) -> String {
        let output = self.output(line).await;
        assert!(!output.status.success(), "kubectl {line}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    async fn output(&self, line: &str) -> Output {
        let mut command = Command::new(KUBECTL);
        command.env("KUBECONFIG", &self.server.kubeconfig).env("HOME", self.directory.path());
        command.args(line.split_whitespace());
        let run = move || command.output().unwrap();
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    /// Writes a file that `kubectl` can read, and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// Changes a node by a merge patch.
    pub(crate) async fn change_node(&self, name: &str, change: Value) {
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    /// Names of pods by node; pods that wait are under the empty name.
    pub(crate) async fn placement(&self) -> BTreeMap<String, Vec<String>> {
        let mut nodes: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pod in self.list::<Pod>().await {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            nodes.entry(node.unwrap_or_default()).or_default().push(pod.name_any());
        }
        nodes
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Calls `check` until it gives a value; panics with the last reason when that takes too long.
pub(crate) async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(reason) if Instant::now() >= deadline => panic!("waited for {what}: {reason}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Says of every bound pod that it runs, and takes every deleted one away.
async fn kubelet(client: Client, unready: Arc<AtomicBool>, cancel: CancellationToken) {
    let addresses = AtomicU32::new(1);
    let pods = Api::<Pod>::all(client.clone());
    let events = watcher(pods, watcher::Config::default()).default_backoff().applied_objects();
    let mut events = events.boxed();
    while let Some(event) = tokio::select! {
        event = events.next() => event,
        () = cancel.cancelled() => None,
    } {
        let Ok(pod) = event else { continue };
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let namespace = pod.namespace().unwrap();
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let name = pod.name_any();
        if bound && pod.metadata.deletion_timestamp.is_some() {
            // It may be gone already.
            let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
        } else if bound && pod.status.as_ref().is_none_or(|status| status.pod_ip.is_none()) {
            let index = addresses.fetch_add(1, Ordering::Relaxed);
            let [.., high, low] = index.to_be_bytes();
            let v4 = format!("10.244.{high}.{low}");
            let ready = if unready.load(Ordering::Relaxed) { "False" } else { "True" };
            let status = json!({"status": {
                "phase": "Running",
                "podIP": v4,
                "podIPs": [{"ip": v4}, {"ip": format!("fd00:244::{index:x}")}],
                "conditions": [{"type": "Ready", "status": ready,
                                "lastTransitionTime": k8s_openapi::jiff::Timestamp::now()}],
            }});
            let patch = Patch::Strategic(status);
            let _ = pods.patch_status(&name, &PatchParams::default(), &patch).await;
        }
    }
}

/// A deployment `web` of that many replicas.
pub(crate) fn deployment(replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "c", "image": "v1", "ports": [
                        {"name": "http", "containerPort": 8080}]}],
                },
            },
        },
    })
}

/// A Service `web` of both families for the pods of the deployment.
pub(crate) fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"app": "web"},
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    })
}
