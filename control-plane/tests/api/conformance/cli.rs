//! What `kubectl` does, where the machine has it. What it has to print is Kubernetes'.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;

use serde_json::json;

use crate::kubectl::{Kubectl, words};
use crate::server::Server;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: e2e-test-httpd-pod, labels: {run: e2e-test-httpd-pod}}
spec: {restartPolicy: Never, containers: [{name: httpd, image: 'httpd:1'}]}
";

const CONTROLLER: &str = "
apiVersion: v1
kind: ReplicationController
metadata: {name: agnhost-primary, labels: {app: agnhost}}
spec:
  replicas: 1
  selector: {app: agnhost, role: primary}
  template:
    metadata: {labels: {app: agnhost, role: primary}}
    spec: {containers: [{name: agnhost-primary, image: agnhost, ports: [{containerPort: 6379}]}]}
";

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_api_versions_should_check_if_v1_is_in_available_api_versions() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let versions = kubectl.run("api-versions").await;
    assert!(versions.lines().any(|line| line == "v1"), "{versions}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_cluster_info_should_check_if_control_plane_services_is_included() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let info = kubectl.run("cluster-info").await;
    assert!(info.contains("Kubernetes control plane") && info.contains("is running at"), "{info}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_version_should_check_is_all_data_is_printed() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    // Where they are far apart, a warning says so on the other output.
    let version = kubectl.output("version", "").await;
    let text = String::from_utf8_lossy(&version.stdout);
    assert!(text.contains("Client Version: ") && text.contains("Server Version: v1.35."), "{text}");
    let whole = kubectl.output("version -o json", "").await;
    let whole: serde_json::Value = serde_json::from_slice(&whole.stdout).unwrap();
    for part in ["clientVersion", "serverVersion"] {
        for field in
            ["major", "minor", "gitVersion", "gitCommit", "buildDate", "goVersion", "platform"]
        {
            assert!(whole[part][field].is_string(), "{part}.{field} in {whole}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_run_pod_should_create_a_pod_from_an_image_when_restart_is_never() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let made = kubectl.run("run e2e-test-httpd-pod --restart=Never --image=httpd:1").await;
    assert_eq!(made, "pod/e2e-test-httpd-pod created\n");
    let pod = server.get("/api/v1/namespaces/default/pods/e2e-test-httpd-pod").await.unwrap();
    assert_eq!(pod["spec"]["restartPolicy"], "Never");
    assert_eq!(pod["spec"]["containers"][0]["image"], "httpd:1");
    assert_eq!(pod["metadata"]["labels"], json!({"run": "e2e-test-httpd-pod"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_replace_should_update_a_single_container_pods_image() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("create -f -", POD).await;
    let pod = kubectl.run("get pod e2e-test-httpd-pod -o json").await;
    let replaced = kubectl.with("replace -f -", &pod.replace("httpd:1", "busybox:1")).await;
    assert_eq!(replaced, "pod/e2e-test-httpd-pod replaced\n");
    let image = "get pod e2e-test-httpd-pod -o jsonpath={.spec.containers[0].image}";
    assert_eq!(kubectl.run(image).await, "busybox:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_server_side_dry_run_should_check_if_kubectl_can_dry_run_update_pods() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("create -f -", POD).await;
    let image = r#"patch pod e2e-test-httpd-pod -p '{"spec":{"containers":[{"name":"httpd","image":"busybox:1"}]}}' --dry-run=server"#;
    assert_eq!(kubectl.run(image).await, "pod/e2e-test-httpd-pod patched\n");
    let image = "get pod e2e-test-httpd-pod -o jsonpath={.spec.containers[0].image}";
    assert_eq!(kubectl.run(image).await, "httpd:1");
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_diff_should_check_if_kubectl_diff_finds_a_difference_for_deployments() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.run("create deployment httpd --image=httpd:1").await;
    let live = kubectl.run("get deployment httpd -o json").await;
    let diff = kubectl.output("diff -f -", &live.replace("httpd:1", "busybox:1")).await;
    assert_eq!(diff.status.code(), Some(1));
    let text = String::from_utf8_lossy(&diff.stdout);
    for line in ["-      - image: httpd:1", "+      - image: busybox:1"] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_expose_should_create_services_for_rc() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("create -f -", CONTROLLER).await;
    for (command, name, port) in [
        ("expose rc agnhost-primary --name=rm2 --port=1234 --target-port=6379", "rm2", 1234),
        ("expose service rm2 --name=rm3 --port=2345 --target-port=6379", "rm3", 2345),
    ] {
        assert_eq!(kubectl.run(command).await, format!("service/{name} exposed\n"));
        let service = format!("/api/v1/namespaces/default/services/{name}");
        let service = server.get(&service).await.unwrap();
        assert_eq!(service["spec"]["selector"], json!({"app": "agnhost", "role": "primary"}));
        assert_eq!(
            service["spec"]["ports"],
            json!([{"port": port, "targetPort": 6379, "protocol": "TCP"}])
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_label_should_update_the_label_on_a_resource() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("create -f -", POD).await;
    let labeled =
        kubectl.run("label pods e2e-test-httpd-pod testing-label=testing-label-value").await;
    assert_eq!(labeled, "pod/e2e-test-httpd-pod labeled\n");
    let column = "get pod e2e-test-httpd-pod -L testing-label";
    let table = kubectl.run(column).await;
    assert_eq!(words(&table)[0].last(), Some(&"TESTING-LABEL"));
    assert_eq!(words(&table)[1].last(), Some(&"testing-label-value"));
    let removed = kubectl.run("label pods e2e-test-httpd-pod testing-label-").await;
    assert_eq!(removed, "pod/e2e-test-httpd-pod unlabeled\n");
    assert!(!kubectl.run(column).await.contains("testing-label-value"));
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_patch_should_add_annotations_for_pods() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("create -f -", POD).await;
    let patch = r#"patch pod e2e-test-httpd-pod -p '{"metadata":{"annotations":{"x":"y"}}}'"#;
    assert_eq!(kubectl.run(patch).await, "pod/e2e-test-httpd-pod patched\n");
    assert_eq!(
        kubectl.run("get pod e2e-test-httpd-pod -o jsonpath={.metadata.annotations.x}").await,
        "y"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_describe_should_print_relevant_information_for_rc_and_pods() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.with("create -f -", CONTROLLER).await;
    kubectl.with("create -f -", POD).await;
    let told = |text: &str, lines: &[&str]| {
        for line in lines {
            let wanted: Vec<&str> = line.split_whitespace().collect();
            assert!(words(text).contains(&wanted), "{line} in {text}");
        }
    };
    told(
        &kubectl.run("describe rc agnhost-primary").await,
        &[
            "Name: agnhost-primary",
            "Namespace: default",
            "Selector: app=agnhost,role=primary",
            "Labels: app=agnhost",
            "Replicas: 0 current / 1 desired",
            "Pods Status: 0 Running / 0 Waiting / 0 Succeeded / 0 Failed",
            "Image: agnhost",
        ],
    );
    told(
        &kubectl.run("describe pod e2e-test-httpd-pod").await,
        &[
            "Name: e2e-test-httpd-pod",
            "Namespace: default",
            "Node: <none>",
            "Labels: run=e2e-test-httpd-pod",
            "Status: Pending",
            "Image: httpd:1",
        ],
    );
    told(
        &kubectl.run("describe service kubernetes").await,
        &["Name: kubernetes", "Type: ClusterIP", "IP: 10.96.0.1", "Port: https 443/TCP"],
    );
    told(
        &kubectl.run("describe namespace default").await,
        &["Name: default", "Labels: kubernetes.io/metadata.name=default", "Status: Active"],
    );
}

/// What a proxy answers to a GET of `/api/` over a stream.
fn asked<S: std::io::Read + std::io::Write>(mut stream: S) -> String {
    stream.write_all(b"GET /api/ HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_server_should_support_port_0_and_unix_socket() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let socket = server.data_dir().join("proxy");
    let by_path = format!("proxy --unix-socket={}", socket.display());
    for command in ["proxy --port=0 --disable-filter", &by_path] {
        let mut proxy = kubectl.command(command).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(proxy.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let place = line.trim_end().strip_prefix("Starting to serve on ").unwrap().to_owned();
        let answer = tokio::task::spawn_blocking(move || {
            if place.starts_with('/') {
                asked(std::os::unix::net::UnixStream::connect(place).unwrap())
            } else {
                asked(TcpStream::connect(place).unwrap())
            }
        })
        .await
        .unwrap();
        proxy.kill().unwrap();
        proxy.wait().unwrap();
        assert!(answer.contains("200 OK") && answer.contains("\"versions\":[\"v1\"]"), "{answer}");
    }
}
