//! What `kubectl` prints for the commands of daily work, line by line as it does on Kubernetes.

use crate::kubectl::{Kubectl, words};
use crate::server::Server;

/// Commands that make one object each, and the one line that they print.
const CREATES: &[(&str, &str)] = &[
    ("create namespace shop", "namespace/shop created"),
    (
        "create configmap settings --from-literal=a=b --from-literal=c=d",
        "configmap/settings created",
    ),
    ("create secret generic pass --from-literal=key=value", "secret/pass created"),
    ("create serviceaccount robot", "serviceaccount/robot created"),
    ("create deployment web --image=hello --replicas=2 --port=8080", "deployment.apps/web created"),
    ("create service clusterip front --tcp=80:8080", "service/front created"),
    ("create service nodeport outside --tcp=80:8080 --node-port=30080", "service/outside created"),
    ("create service externalname away --external-name=example.com", "service/away created"),
    ("run kuard --image=hello --port=8080", "pod/kuard created"),
    ("expose deployment web --port=80 --target-port=8080", "service/web exposed"),
    (
        "autoscale deployment web --min=1 --max=5 --cpu-percent=80",
        "horizontalpodautoscaler.autoscaling/web autoscaled",
    ),
    ("create job once --image=hello", "job.batch/once created"),
    ("create cronjob often --image=hello '--schedule=*/5 * * * *'", "cronjob.batch/often created"),
    (
        "create ingress edge --class=nginx --rule=shop.example/cart*=web:80",
        "ingress.networking.k8s.io/edge created",
    ),
    (
        "create poddisruptionbudget some --selector=app=web --min-available=1",
        "poddisruptionbudget.policy/some created",
    ),
    ("create quota few --hard=pods=2,limits.cpu=4", "resourcequota/few created"),
];

/// Kinds that no `create` command makes.
const MANIFEST: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: fast, annotations: {storageclass.kubernetes.io/is-default-class: 'true'}}
provisioner: disk.example
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce, ReadOnlyMany]
  storageClassName: fast
  hostPath: {path: /srv}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: fast
  resources: {requests: {storage: 1024Mi}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: base}
spec:
  serviceName: base
  selector: {matchLabels: {app: base}}
  template:
    metadata: {labels: {app: base}}
    spec: {containers: [{name: db, image: hello}]}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: each}
spec:
  selector: {matchLabels: {app: each}}
  template:
    metadata: {labels: {app: each}}
    spec: {nodeSelector: {disk: ssd}, containers: [{name: a, image: hello}]}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec:
  replicas: 3
  template:
    metadata: {labels: {app: old}}
    spec: {containers: [{name: a, image: hello}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress]}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: nginx}
spec: {controller: example.com/nginx}
---
apiVersion: v1
kind: LimitRange
metadata: {name: small}
spec: {limits: [{type: Container, max: {cpu: '2'}}]}
---
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: sandboxed}
handler: runsc
---
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: disk.example}
spec: {attachRequired: false}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: slice}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.0.0.1]}]
";

/// A `get`, the head of its table and the words of its first line, without the age where it is the
/// last of them.
const GETS: &[(&str, &str, &str)] = &[
    ("get configmaps settings", "NAME DATA AGE", "settings 2"),
    ("get secrets pass", "NAME TYPE DATA AGE", "pass Opaque 1"),
    ("get sa robot", "NAME SECRETS AGE", "robot 0"),
    ("get deploy web", "NAME READY UP-TO-DATE AVAILABLE AGE", "web 0/2 0 0"),
    (
        "get svc away",
        "NAME TYPE CLUSTER-IP EXTERNAL-IP PORT(S) AGE",
        "away ExternalName <none> example.com <none>",
    ),
    (
        "get hpa",
        "NAME REFERENCE TARGETS MINPODS MAXPODS REPLICAS AGE",
        "web Deployment/web cpu: <unknown>/80% 1 5 0",
    ),
    ("get jobs", "NAME STATUS COMPLETIONS DURATION AGE", "once Running 0/1"),
    (
        "get cj",
        "NAME SCHEDULE TIMEZONE SUSPEND ACTIVE LAST SCHEDULE AGE",
        "often */5 * * * * <none> False 0 <none>",
    ),
    ("get ing", "NAME CLASS HOSTS ADDRESS PORTS AGE", "edge nginx shop.example 80"),
    ("get pdb", "NAME MIN AVAILABLE MAX UNAVAILABLE ALLOWED DISRUPTIONS AGE", "some 1 N/A 0"),
    ("get quota", "NAME REQUEST LIMIT AGE", "few"),
    (
        "get sc",
        "NAME PROVISIONER RECLAIMPOLICY VOLUMEBINDINGMODE ALLOWVOLUMEEXPANSION AGE",
        "fast (default) disk.example Delete Immediate false",
    ),
    (
        "get pv -o wide",
        "NAME CAPACITY ACCESS MODES RECLAIM POLICY STATUS CLAIM STORAGECLASS VOLUMEATTRIBUTESCLASS REASON AGE VOLUMEMODE",
        "disk 1Gi RWO,ROX Retain Pending fast <unset>",
    ),
    (
        "get pvc",
        "NAME STATUS VOLUME CAPACITY ACCESS MODES STORAGECLASS VOLUMEATTRIBUTESCLASS AGE",
        "claim Pending fast <unset>",
    ),
    ("get sts -o wide", "NAME READY AGE CONTAINERS IMAGES", "base 0/1"),
    (
        "get ds",
        "NAME DESIRED CURRENT READY UP-TO-DATE AVAILABLE NODE SELECTOR AGE",
        "each 0 0 0 0 0 disk=ssd",
    ),
    ("get rc", "NAME DESIRED CURRENT READY AGE", "old 3 0 0"),
    ("get netpol", "NAME POD-SELECTOR AGE", "closed app=web"),
    ("get ingressclasses", "NAME CONTROLLER PARAMETERS AGE", "nginx example.com/nginx <none>"),
    ("get limits", "NAME CREATED AT", "small"),
    ("get runtimeclasses", "NAME HANDLER AGE", "sandboxed runsc"),
    (
        "get csidrivers",
        "NAME ATTACHREQUIRED PODINFOONMOUNT STORAGECAPACITY TOKENREQUESTS REQUIRESREPUBLISH MODES AGE",
        "disk.example false false false <unset> false Persistent",
    ),
    ("get endpointslices slice", "NAME ADDRESSTYPE PORTS ENDPOINTS AGE", "slice IPv4 80 10.0.0.1"),
];

#[tokio::test(flavor = "multi_thread")]
async fn objects_made_by_command_and_their_tables() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    for (command, line) in CREATES {
        assert_eq!(kubectl.run(command).await, format!("{line}\n"), "{command}");
    }
    kubectl.with("apply -f -", MANIFEST).await;
    for (command, head, first) in GETS {
        let table = kubectl.run(command).await;
        let table = words(&table);
        assert_eq!(table[0].join(" "), *head, "{command}");
        assert!(table[1].join(" ").starts_with(first), "{command}: {:?}", table[1]);
    }
    // What YAML says in one way is stored in the way Kubernetes writes it.
    let requests = "get pvc claim -o jsonpath={.spec.resources.requests.storage}";
    assert_eq!(kubectl.run(requests).await, "1Gi");
    let metrics = "get horizontalpodautoscalers.v2.autoscaling web -o jsonpath={.spec.metrics[0].resource.target}";
    assert_eq!(kubectl.run(metrics).await, r#"{"averageUtilization":80,"type":"Utilization"}"#);
    let first = "get horizontalpodautoscalers.v1.autoscaling web -o jsonpath={.spec.targetCPUUtilizationPercentage}";
    assert_eq!(kubectl.run(first).await, "80");
    let secret = "get secret pass -o jsonpath={.data.key}";
    assert_eq!(kubectl.run(secret).await, "dmFsdWU=");
    let all = kubectl.run("get all -o name").await;
    for name in [
        "pod/kuard",
        "service/web",
        "daemonset.apps/each",
        "deployment.apps/web",
        "statefulset.apps/base",
        "horizontalpodautoscaler.autoscaling/web",
        "cronjob.batch/often",
        "job.batch/once",
        "replicationcontroller/old",
    ] {
        assert!(all.lines().any(|line| line == name), "{name} in {all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_by_command() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    kubectl.run("create deployment web --image=hello").await;
    for (command, line) in [
        ("set image deployment/web hello=hello:2", "deployment.apps/web image updated"),
        ("rollout restart deployment/web", "deployment.apps/web restarted"),
        ("set env deployment/web A=b", "deployment.apps/web env updated"),
        (
            "set resources deployment/web --limits=cpu=500m",
            "deployment.apps/web resource requirements updated",
        ),
        ("scale deploy web --replicas=3", "deployment.apps/web scaled"),
        ("annotate deploy web a=b", "deployment.apps/web annotated"),
        ("label deploy web a=b", "deployment.apps/web labeled"),
        ("label deploy web a-", "deployment.apps/web unlabeled"),
        ("patch deploy web -p '{\"spec\":{\"paused\":true}}'", "deployment.apps/web patched"),
        (
            "patch deploy web -p '{\"spec\":{\"paused\":true}}'",
            "deployment.apps/web patched (no change)",
        ),
        ("rollout resume deploy/web", "deployment.apps/web resumed"),
        ("delete deploy web", "deployment.apps \"web\" deleted"),
    ] {
        assert_eq!(kubectl.run(command).await.trim_end(), line, "{command}");
    }
    kubectl.with("create -f -", "---\n{kind: Node, apiVersion: v1, metadata: {name: n1}}").await;
    kubectl.run("run p --image=hello '--overrides={\"spec\":{\"nodeName\":\"n1\"}}'").await;
    let drained = kubectl.output("drain n1 --force --grace-period=0", "").await;
    assert_eq!(
        String::from_utf8_lossy(&drained.stdout),
        "node/n1 cordoned\nevicting pod default/p\npod/p evicted\nnode/n1 drained\n"
    );
    assert_eq!(
        String::from_utf8_lossy(&drained.stderr),
        "Warning: deleting Pods that declare no controller: default/p\n"
    );
    assert_eq!(kubectl.run("uncordon n1").await, "node/n1 uncordoned\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_and_warnings_in_kubernetes_words() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let map = "---\n{kind: ConfigMap, apiVersion: v1, metadata: {name: a}, dat: {}}";
    for (command, stdin, said) in [
        (
            "create -f -",
            map,
            "Error from server (BadRequest): error when creating \"STDIN\": ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dat\"",
        ),
        (
            "create -f -",
            "---\n{kind: Pod, apiVersion: v1, metadata: {name: a}, spec: {containers: [{name: a, image: b, ports: [{containerPort: http}]}]}}",
            "Error from server (BadRequest): error when creating \"STDIN\": Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32",
        ),
        (
            "create job a --image=b --dry-run=server -o yaml --from=x",
            "",
            "error: from must be an existing cronjob",
        ),
        (
            "create -f -",
            "---\n{kind: Secret, apiVersion: v1, metadata: {name: a}, type: kubernetes.io/tls}",
            "The Secret \"a\" is invalid: \n* data[tls.crt]: Required value\n* data[tls.key]: Required value",
        ),
        (
            "create -f -",
            "---\n{kind: DaemonSet, apiVersion: apps/v1, metadata: {name: a}, spec: {selector: {matchLabels: {a: b}}, updateStrategy: {rollingUpdate: {maxSurge: 1}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: a, image: b}]}}}}",
            "The DaemonSet \"a\" is invalid: spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
        ),
    ] {
        let output = kubectl.output(command, stdin).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        if !said.starts_with("error:") {
            assert_eq!(errors.trim_end(), said, "{command} {stdin}");
        }
        assert!(!output.status.success());
    }
    let warned = kubectl.output("create -f - --validate=warn", map).await;
    assert_eq!(String::from_utf8_lossy(&warned.stderr), "Warning: unknown field \"dat\"\n");
    let endpoints = kubectl.output("get endpoints", "").await;
    assert_eq!(
        String::from_utf8_lossy(&endpoints.stderr).lines().next(),
        Some(
            "Warning: v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_api_resources_and_api_versions() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let containers = kubectl.run("explain pod.spec.containers").await;
    assert!(
        containers
            .starts_with("KIND:       Pod\nVERSION:    v1\n\nFIELD: containers <[]Container>\n"),
        "{containers}"
    );
    assert!(containers.contains("\n  name\t<string> -required-\n"), "{containers}");
    assert!(containers.contains("\n  livenessProbe\t<Probe>\n"), "{containers}");
    let deployment = kubectl.run("explain deployment").await;
    assert!(
        deployment.starts_with("GROUP:      apps\nKIND:       Deployment\nVERSION:    v1\n"),
        "{deployment}"
    );
    assert!(
        kubectl
            .run("explain ds.spec.updateStrategy.rollingUpdate.maxSurge")
            .await
            .contains("<IntOrString>")
    );
    let resources = kubectl.run("api-resources --no-headers").await;
    let resources: Vec<String> = words(&resources).iter().map(|line| line.join(" ")).collect();
    for line in [
        "configmaps cm v1 true ConfigMap",
        "endpoints ep v1 true Endpoints",
        "nodes no v1 false Node",
        "replicationcontrollers rc v1 true ReplicationController",
        "daemonsets ds apps/v1 true DaemonSet",
        "horizontalpodautoscalers hpa autoscaling/v2 true HorizontalPodAutoscaler",
        "cronjobs cj batch/v1 true CronJob",
        "events ev events.k8s.io/v1 true Event",
        "ingresses ing networking.k8s.io/v1 true Ingress",
        "poddisruptionbudgets pdb policy/v1 true PodDisruptionBudget",
        "storageclasses sc storage.k8s.io/v1 false StorageClass",
    ] {
        assert!(resources.iter().any(|known| known == line), "{line}: {resources:#?}");
    }
    let versions = kubectl.run("api-versions").await;
    for version in [
        "apps/v1",
        "autoscaling/v1",
        "autoscaling/v2",
        "batch/v1",
        "events.k8s.io/v1",
        "networking.k8s.io/v1",
        "node.k8s.io/v1",
        "policy/v1",
        "storage.k8s.io/v1",
        "v1",
    ] {
        assert!(versions.lines().any(|line| line == version), "{version} in {versions}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn diff_wait_and_dry_run() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let map = |value: &str| {
        format!(
            "---\n{{kind: ConfigMap, apiVersion: v1, metadata: {{name: a}}, data: {{x: \"{value}\"}}}}"
        )
    };
    assert_eq!(
        kubectl.with("apply --dry-run=server -f -", &map("1")).await,
        "configmap/a created (server dry run)\n"
    );
    kubectl.with("apply -f -", &map("1")).await;
    assert_eq!(
        kubectl.with("apply view-last-applied -f - -o json", &map("1")).await.lines().next(),
        Some("{")
    );
    let diff = kubectl.output("diff -f -", &map("2")).await;
    let text = String::from_utf8_lossy(&diff.stdout);
    assert_eq!(diff.status.code(), Some(1), "{text}");
    assert!(text.contains("-  x: \"1\"\n+  x: \"2\"\n"), "{text}");
    assert_eq!(kubectl.output("diff -f -", &map("1")).await.status.code(), Some(0));
    assert_eq!(
        kubectl.run("wait --for=jsonpath={.data.x}=1 configmap/a --timeout=20s").await,
        "configmap/a condition met\n"
    );
    assert_eq!(kubectl.run("delete configmap a --wait=true").await, "configmap \"a\" deleted\n");
}

const CLASS: &str = "---\n{kind: StorageClass, apiVersion: storage.k8s.io/v1, metadata: {name: fast}, provisioner: a.example}";

#[tokio::test(flavor = "multi_thread")]
async fn files_overwriting_contexts_and_what_is_not_there() {
    let server = Server::start().await;
    let Some(kubectl) = Kubectl::find(&server) else { return };
    let pki = server.data_dir().join("pki");
    let (certificate, key) = (pki.join("admin.crt"), pki.join("admin.key"));
    let tls =
        format!("create secret tls t --cert={} --key={}", certificate.display(), key.display());
    assert_eq!(kubectl.run(&tls).await, "secret/t created\n");
    assert_eq!(kubectl.run("get secret t -o jsonpath={.type}").await, "kubernetes.io/tls");
    let file = format!("create configmap f --from-file=ca={}", pki.join("ca.crt").display());
    assert_eq!(kubectl.run(&file).await, "configmap/f created\n");
    let text = kubectl.run("get configmap f -o jsonpath={.data.ca}").await;
    assert_eq!(text, std::fs::read_to_string(pki.join("ca.crt")).unwrap());

    kubectl.run("create deployment web --image=hello").await;
    for (verb, done, refusal) in [
        ("label", "labeled", "error: 'a' already has a value (b), and --overwrite is false\n"),
        (
            "annotate",
            "annotated",
            "error: --overwrite is false but found the following declared annotation(s): 'a' already has a value (b)\n",
        ),
    ] {
        let done = format!("deployment.apps/web {done}\n");
        assert_eq!(kubectl.run(&format!("{verb} deploy web a=b")).await, done);
        let refused = kubectl.output(&format!("{verb} deploy web a=c"), "").await;
        assert_eq!(String::from_utf8_lossy(&refused.stderr), refusal);
        assert_eq!(kubectl.run(&format!("{verb} --overwrite deploy web a=c")).await, done);
    }

    kubectl.with("create -f -", CLASS).await;
    let default = r#"patch storageclass fast -p '{"metadata":{"annotations":{"storageclass.kubernetes.io/is-default-class":"true"}}}'"#;
    assert_eq!(kubectl.run(default).await, "storageclass.storage.k8s.io/fast patched\n");
    assert!(kubectl.run("get sc --no-headers").await.starts_with("fast (default) "));

    let top = kubectl.output("top nodes", "").await;
    assert_eq!(String::from_utf8_lossy(&top.stderr), "error: Metrics API not available\n");
    let unknown = kubectl.output("get nothing", "").await;
    assert_eq!(
        String::from_utf8_lossy(&unknown.stderr),
        "error: the server doesn't have a resource type \"nothing\"\n"
    );
    let context = kubectl.run("config current-context").await;
    let context = context.trim_end();
    assert_eq!(
        kubectl.run("config set-context --current --namespace=kube-system").await,
        format!("Context \"{context}\" modified.\n")
    );
    assert_eq!(
        kubectl.run(&format!("config use-context {context}")).await,
        format!("Switched to context \"{context}\".\n")
    );
    assert!(kubectl.run("get svc -o name").await.contains("service/kube-dns"));
}
