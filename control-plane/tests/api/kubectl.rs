//! Unmodified `kubectl`, where the machine has it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::Server;

const MANIFEST: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: hello, ports: [{containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.80
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
";

/// `kubectl` against one server.
pub(crate) struct Kubectl {
    kubeconfig: std::path::PathBuf,
    home: tempfile::TempDir,
}

impl Kubectl {
    /// `None`, said aloud, where there is no kubectl.
    pub(crate) fn find(server: &Server) -> Option<Self> {
        if !Path::new("/usr/bin/kubectl").exists() {
            eprintln!("skipped: this machine has no /usr/bin/kubectl");
            return None;
        }
        Some(Self { kubeconfig: server.kubeconfig.clone(), home: tempfile::tempdir().unwrap() })
    }

    /// The command of a line. Arguments end at blanks; what stands in single quotes is one.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("/usr/bin/kubectl");
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", self.home.path());
        for (index, part) in line.split('\'').enumerate() {
            if index % 2 == 1 {
                command.arg(part);
            } else {
                command.args(part.split_whitespace());
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) async fn output(&self, arguments: &str, stdin: &str) -> Output {
        let (mut command, stdin) = (self.command(arguments), stdin.to_owned());
        let run = move || {
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
            child.wait_with_output().unwrap()
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    }

    /// Standard output of a command that must succeed without complaint.
    pub(crate) async fn with(&self, arguments: &str, stdin: &str) -> String {
        let output = self.output(arguments, stdin).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && errors.is_empty(), "kubectl {arguments}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) async fn run(&self, arguments: &str) -> String {
        self.with(arguments, "").await
    }
}

/// Lines as words, without the column at `skip` (ages differ).
pub(crate) fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_get_scale_and_delete() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    assert_eq!(
        kubectl.with("apply -f -", MANIFEST).await,
        "deployment.apps/web created\nservice/web created\n"
    );
    assert_eq!(
        kubectl.with("apply -f -", MANIFEST).await,
        "deployment.apps/web unchanged\nservice/web unchanged\n"
    );
    let changed = MANIFEST.replace("image: hello", "image: hello:2").replace(
        "labels: {app: web}}\nspec:\n  replicas",
        "labels: {tier: front}}\nspec:\n  replicas",
    );
    assert_eq!(
        kubectl.with("apply -f -", &changed).await,
        "deployment.apps/web configured\nservice/web unchanged\n"
    );
    let web = server.get("/apis/apps/v1/namespaces/default/deployments/web").await.unwrap();
    assert_eq!(web["metadata"]["labels"], json!({"tier": "front"}));
    assert_eq!(web["spec"]["template"]["spec"]["containers"][0]["image"], "hello:2");

    let deployments = kubectl.run("get deployments").await;
    let deployments = words(&deployments);
    assert_eq!(deployments[0], ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
    assert_eq!(deployments[1][..4], ["web", "0/2", "0", "0"]);
    let wide = kubectl.run("get deploy web -o wide").await;
    assert_eq!(words(&wide)[0][5..], ["CONTAINERS", "IMAGES", "SELECTOR"]);
    assert_eq!(words(&wide)[1][5..], ["web", "hello:2", "app=web"]);
    let services = kubectl.run("get svc web -o wide").await;
    assert_eq!(
        words(&services)[0],
        ["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE", "SELECTOR"]
    );
    assert_eq!(
        words(&services)[1][..5],
        ["web", "NodePort", "10.96.0.80", "<none>", "80:30080/TCP"]
    );
    assert!(kubectl.run("get svc web -o yaml").await.contains("clusterIP: 10.96.0.80\n"));
    assert_eq!(kubectl.run("get svc web -o jsonpath={.spec.ports[0].nodePort}").await, "30080");
    assert_eq!(kubectl.run("get deploy -l tier=front -o name").await, "deployment.apps/web\n");
    assert!(kubectl.run("get all").await.contains("deployment.apps/web"));

    assert_eq!(
        kubectl.run("scale deployment web --replicas=10").await,
        "deployment.apps/web scaled\n"
    );
    assert_eq!(kubectl.run("get deploy web -o jsonpath={.spec.replicas}").await, "10");
    assert_eq!(kubectl.run("rollout pause deployment/web").await, "deployment.apps/web paused\n");
    assert_eq!(kubectl.run("label deployment web x=y").await, "deployment.apps/web labeled\n");
    assert_eq!(kubectl.run("annotate svc web x=y").await, "service/web annotated\n");
    assert_eq!(
        kubectl.with("delete -f -", &changed).await,
        "deployment.apps \"web\" deleted\nservice \"web\" deleted\n"
    );
    let missing = kubectl.output("get deployment web", "").await;
    assert_eq!(
        String::from_utf8_lossy(&missing.stderr),
        "Error from server (NotFound): deployments.apps \"web\" not found\n"
    );
}

/// Two containers with variables and ports, and a Service with two ports.
const LISTS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: lists}
spec:
  selector: {matchLabels: {app: lists}}
  template:
    metadata: {labels: {app: lists}}
    spec:
      containers:
      - name: web
        image: hello
        env: [{name: A, value: one}, {name: B, value: two}]
        ports: [{containerPort: 8080, name: http}, {containerPort: 9090, name: metrics}]
      - {name: side, image: hello}
---
apiVersion: v1
kind: Service
metadata: {name: lists}
spec:
  selector: {app: lists}
  ports: [{name: http, port: 80}, {name: metrics, port: 9090}]
";

#[tokio::test(flavor = "multi_thread")]
async fn apply_of_changed_lists_keeps_what_it_does_not_know() {
    const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/lists";
    const SERVICE: &str = "/api/v1/namespaces/default/services/lists";
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("apply -f -", LISTS).await;
    // Somebody else adds a container and a variable.
    let others = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "injected", "image": "pause"},
        {"name": "web", "env": [{"name": "C", "value": "theirs"}]},
    ]}}}});
    server.patch("strategic-merge", DEPLOYMENT, &others).await.unwrap();
    let changed = LISTS
        .replace(
            "{name: A, value: one}, {name: B, value: two}",
            "{name: B, value: 2}, {name: D, value: new}",
        )
        .replace("value: 2}", "value: \"2\"}")
        .replace("{containerPort: 8080, name: http}, ", "")
        .replace("      - {name: side, image: hello}\n", "      - {name: other, image: hello}\n")
        .replace(
            "{name: http, port: 80}, {name: metrics, port: 9090}",
            "{name: http, port: 81}, {name: metrics, port: 9090, targetPort: metrics}",
        );
    assert_eq!(
        kubectl.with("apply -f -", &changed).await,
        "deployment.apps/lists configured\nservice/lists configured\n"
    );
    let deployment = server.get(DEPLOYMENT).await.unwrap();
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    let names = |list: &serde_json::Value| -> BTreeSet<String> {
        let items = list.as_array().unwrap().iter();
        items.map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(names(&json!(containers)), set(&["injected", "other", "web"]));
    let web = containers.iter().find(|container| container["name"] == "web").unwrap();
    assert_eq!(names(&web["env"]), set(&["B", "C", "D"]), "{web}");
    let b = web["env"].as_array().unwrap().iter().find(|one| one["name"] == "B").unwrap();
    assert_eq!(b["value"], "2");
    assert_eq!(
        web["ports"],
        json!([{"containerPort": 9090, "name": "metrics", "protocol": "TCP"}])
    );
    let service = server.get(SERVICE).await.unwrap();
    assert_eq!(
        service["spec"]["ports"],
        json!([
            {"name": "http", "port": 81, "protocol": "TCP", "targetPort": 81},
            {"name": "metrics", "port": 9090, "protocol": "TCP", "targetPort": "metrics"},
        ])
    );
    // kubectl sends the order of its items once more, since there are others; nothing is written.
    kubectl.with("apply -f -", &changed).await;
    assert_eq!(server.get(DEPLOYMENT).await.unwrap(), deployment);
    assert_eq!(server.get(SERVICE).await.unwrap(), service);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_refusals() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("apply -f -", MANIFEST).await;
    let selector = MANIFEST
        .replace("{matchLabels: {app: web}}", "{matchLabels: {app: other}}")
        .replace("metadata: {labels: {app: web}}", "metadata: {labels: {app: other}}");
    let refused = kubectl.output("apply -f -", &selector).await;
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        text.contains("The Deployment \"web\" is invalid: spec.selector: Invalid value: ")
            && text.contains(": field is immutable"),
        "{text}"
    );
    let taken = kubectl.output("create -f -", "kind: Service\napiVersion: v1\nmetadata: {name: other}\nspec: {type: NodePort, ports: [{port: 80, nodePort: 30080}]}").await;
    assert_eq!(
        String::from_utf8_lossy(&taken.stderr),
        "The Service \"other\" is invalid: spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated\n"
    );
    let exists = kubectl.output("create -f -", MANIFEST).await;
    assert!(String::from_utf8_lossy(&exists.stderr).contains("Error from server (AlreadyExists): error when creating \"STDIN\": deployments.apps \"web\" already exists"));
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_of_the_other_kinds() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("create -f -", "kind: Pod\napiVersion: v1\nmetadata: {name: p}\nspec: {containers: [{name: a, image: hello}]}").await;
    kubectl.with("create -f -", "kind: Node\napiVersion: v1\nmetadata: {name: n1}").await;
    kubectl
        .with("create -f -", "kind: ConfigMap\napiVersion: v1\nmetadata: {name: c}\ndata: {a: b}")
        .await;
    for (arguments, columns) in [
        ("get pods", "NAME READY STATUS RESTARTS AGE"),
        (
            "get pods -o wide",
            "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES",
        ),
        ("get pods -A", "NAMESPACE NAME READY STATUS RESTARTS AGE"),
        ("get pods --show-labels", "NAME READY STATUS RESTARTS AGE LABELS"),
        ("get nodes", "NAME STATUS ROLES AGE VERSION"),
        (
            "get nodes -o wide",
            "NAME STATUS ROLES AGE VERSION INTERNAL-IP EXTERNAL-IP OS-IMAGE KERNEL-VERSION CONTAINER-RUNTIME",
        ),
        ("get ns", "NAME STATUS AGE"),
        ("get cm", "NAME DATA AGE"),
        ("get endpointslices", "NAME ADDRESSTYPE PORTS ENDPOINTS AGE"),
    ] {
        let table = kubectl.run(arguments).await;
        assert_eq!(words(&table)[0].join(" "), columns, "{arguments}");
    }
    assert_eq!(words(&kubectl.run("get pods").await)[1][..4], ["p", "0/1", "Pending", "0"]);
    assert_eq!(kubectl.run("cordon n1").await, "node/n1 cordoned\n");
    assert_eq!(
        words(&kubectl.run("get nodes").await)[1][..3],
        ["n1", "Unknown,SchedulingDisabled", "<none>"]
    );
    assert!(kubectl.run("describe pod p").await.contains("QoS Class:"));
    assert!(kubectl.run("api-resources").await.contains("deployments"));
    // Trap 1: a body in protobuf.
    assert_eq!(kubectl.run("create configmap x --from-literal=a=b").await, "configmap/x created\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn get_watch_shows_changes_as_rows() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("apply -f -", MANIFEST).await;
    let mut child = kubectl.command("get deployments -w").spawn().unwrap();
    let output = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let (mut stdout, sink) = (child.stdout.take().unwrap(), std::sync::Arc::clone(&output));
    let reader = std::thread::spawn(move || {
        use std::io::Read as _;
        let mut bytes = [0; 1024];
        while let Ok(length @ 1..) = stdout.read(&mut bytes) {
            sink.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
    });
    let until = |what: &'static str| {
        let output = std::sync::Arc::clone(&output);
        async move {
            let deadline = Instant::now() + Duration::from_secs(20);
            while !output.lock().unwrap().contains(what) {
                assert!(Instant::now() < deadline, "no {what:?} in {:?}", output.lock().unwrap());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    until("0/2").await;
    kubectl.run("scale deployment web --replicas=3").await;
    until("0/3").await;
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
    let output = output.lock().unwrap();
    let rows = words(&output);
    assert_eq!((rows[0][1], rows[1][1], rows[2][1]), ("READY", "0/2", "0/3"), "{output}");
}
