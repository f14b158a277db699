//! What a pod may be, and what may change of one.

use serde_json::{Value, json};

use crate::bed::{Bed, PODS, causes, code, pod};

/// A pod of one container that is changed so.
fn container(change: &Value) -> Value {
    let mut container = json!({"name": "a", "image": "hello"});
    crate::bed::merge(&mut container, change);
    json!({"containers": [container]})
}

async fn refuses(bed: &Bed, table: &[(Value, &str)]) {
    for (change, expected) in table {
        let found = bed.refused(PODS, &pod("p", change)).await;
        assert_eq!(found, [*expected], "{change}");
    }
}

#[tokio::test]
async fn resources_of_containers() {
    let bed = Bed::start().await;
    let resources = |resources: Value| container(&json!({"resources": resources}));
    bed.post(
        PODS,
        &pod(
            "ok",
            &resources(json!({"requests": {"cpu": "500m", "memory": "1Gi"},
        "limits": {"cpu": "0.5", "memory": "2Gi", "example.com/gpu": "2"}})),
        ),
    )
    .await
    .unwrap();
    refuses(&bed, &[
        (
            resources(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}})),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1500m",
        ),
        (
            resources(json!({"requests": {"memory": "-1Gi"}})),
            "spec.containers[0].resources.requests[memory]: Invalid value: \"-1Gi\": must be greater than or equal to 0",
        ),
        (
            resources(json!({"requests": {"cores": "2"}})),
            "spec.containers[0].resources.requests[cores]: Invalid value: \"cores\": must be a standard resource for containers",
        ),
        (
            resources(json!({"requests": {"example.com/gpu": "1"}})),
            "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
        ),
        (
            resources(json!({"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "2"}})),
            "spec.containers[0].resources.requests: Invalid value: \"1\": must be equal to example.com/gpu limit of 2",
        ),
    ])
    .await;
}

/// A limit is the request of a pod; in a template it would stay when the limit gets less.
#[tokio::test]
async fn templates_have_neither_requests_nor_ports_that_nobody_wrote() {
    let bed = Bed::start().await;
    let spec = |cpu: &str| {
        json!({"hostNetwork": true, "containers": [{"name": "a", "image": "hello",
            "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": cpu}}}]})
    };
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let jobs = "/apis/batch/v1/namespaces/default/jobs";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": spec("1")}}});
    let mut job = json!({"metadata": {"name": "j"}, "spec": {"template": {"spec": spec("1")}}});
    job["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
    for (path, object) in [(deployments, deployment), (jobs, job)] {
        let made = bed.post(path, &object).await.unwrap();
        let container = &made["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["resources"], json!({"limits": {"cpu": "1"}}), "{path}");
        let ports = json!([{"containerPort": 80, "protocol": "TCP"}]);
        assert_eq!(container["ports"], ports, "{path}");
    }
    let less = json!({"spec": {"template": {"spec": spec("500m")}}});
    let changed = bed.patch("strategic-merge", &format!("{deployments}/d"), &less).await.unwrap();
    let container = &changed["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["resources"], json!({"limits": {"cpu": "500m"}}));
    let made = bed.post(PODS, &pod("p", &spec("500m"))).await.unwrap();
    let container = &made["spec"]["containers"][0];
    let both = json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "500m"}});
    assert_eq!(container["resources"], both);
    assert_eq!(container["ports"][0]["hostPort"], 80);
}

#[tokio::test]
async fn who_asks_for_0_asks_for_nothing() {
    let bed = Bed::start().await;
    let full = json!({"cpu": "1", "memory": "1Gi"});
    for (name, resources, class) in [
        ("none", json!({}), "BestEffort"),
        ("zero", json!({"requests": {"cpu": "0", "memory": "0"}}), "BestEffort"),
        ("limit-of-zero", json!({"limits": {"cpu": "0", "memory": "1Gi"}}), "Burstable"),
        ("some", json!({"limits": {"cpu": "1"}}), "Burstable"),
        ("less", json!({"requests": {"cpu": "0"}, "limits": full}), "Burstable"),
        ("full", json!({"limits": full}), "Guaranteed"),
        ("equal", json!({"limits": full, "requests": {"memory": "1024Mi"}}), "Guaranteed"),
    ] {
        let made = bed.post(PODS, &pod(name, &container(&json!({"resources": resources})))).await;
        assert_eq!(made.unwrap()["status"]["qosClass"], class, "{name}");
    }
}

#[tokio::test]
async fn ports_of_containers() {
    let bed = Bed::start().await;
    let ports = |ports: Value| container(&json!({"ports": ports}));
    let http = json!({"containerPort": 80, "hostPort": 8080});
    let host = |port: Value| json!({"hostNetwork": true, "containers": [{"name": "a", "image": "hello", "ports": [port]}]});
    bed.post(PODS, &pod("ok", &host(json!({"containerPort": 80})))).await.unwrap();
    let udp = json!({"containerPort": 80, "hostPort": 8080, "protocol": "UDP"});
    bed.post(PODS, &pod("both", &ports(json!([http, udp])))).await.unwrap();
    refuses(&bed, &[
        (
            ports(json!([{"containerPort": 80, "hostPort": 70_000}])),
            "spec.containers[0].ports[0].hostPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            ports(json!([http, http])),
            "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//8080\"",
        ),
        (
            host(http.clone()),
            "spec.containers[0].ports[0].hostPort: Invalid value: 8080: must match `containerPort` when `hostNetwork` is true",
        ),
        (
            ports(json!([{"containerPort": 80, "name": "1234"}])),
            "spec.containers[0].ports[0].name: Invalid value: \"1234\": must contain at least one letter (a-z)",
        ),
        (
            ports(json!([{"containerPort": 80, "name": "a-very-long-name"}])),
            "spec.containers[0].ports[0].name: Invalid value: \"a-very-long-name\": must be no more than 15 characters",
        ),
        (
            ports(json!([{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}])),
            "spec.containers[0].ports[1].name: Duplicate value: \"a\"",
        ),
    ])
    .await;
}

#[tokio::test]
async fn volumes_and_their_mounts() {
    let bed = Bed::start().await;
    let mounted = |volumes: Value, mounts: Value| {
        let mut spec = container(&json!({"volumeMounts": mounts}));
        spec["volumes"] = volumes;
        spec
    };
    let volumes = json!([{"name": "v"}, {"name": "w", "configMap": {"name": "m"}}]);
    let mounts = json!([{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/w"}]);
    bed.post(PODS, &pod("ok", &mounted(volumes, mounts))).await.unwrap();
    refuses(&bed, &[
        (
            mounted(json!([]), json!([{"name": "v", "mountPath": "/v"}])),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            mounted(json!([{"name": "v"}]), json!([{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/v"}])),
            "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/v\": must be unique",
        ),
        (
            mounted(json!([{"name": "v"}]), json!([{"name": "v"}])),
            "spec.containers[0].volumeMounts[0].mountPath: Required value",
        ),
        (
            mounted(json!([{"name": "v"}]), json!([{"name": "v", "mountPath": "/v", "subPath": "../x"}])),
            "spec.containers[0].volumeMounts[0].subPath: Invalid value: \"../x\": must not contain '..'",
        ),
        (mounted(json!([{"name": "v"}, {"name": "v"}]), json!([])), "spec.volumes[1].name: Duplicate value: \"v\""),
        (
            mounted(json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]), json!([])),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            mounted(json!([{"name": "v", "hostPath": {"path": "/x/../y"}}]), json!([])),
            "spec.volumes[0].hostPath.path: Invalid value: \"/x/../y\": must not contain '..'",
        ),
        (
            mounted(json!([{"name": "v", "configMap": {}}]), json!([])),
            "spec.volumes[0].configMap.name: Required value",
        ),
        (
            mounted(json!([{"name": "v", "secret": {"secretName": "s", "defaultMode": 512}}]), json!([])),
            "spec.volumes[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
        ),
    ])
    .await;
}

#[tokio::test]
async fn environments() {
    let bed = Bed::start().await;
    let env = |env: Value| container(&json!({"env": env}));
    bed.post(PODS, &pod("ok", &env(json!([{"name": "a.b-c d", "value": "x"}])))).await.unwrap();
    refuses(&bed, &[
        (env(json!([{"value": "x"}])), "spec.containers[0].env[0].name: Required value"),
        (
            env(json!([{"name": "a=b"}])),
            "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of printable ASCII characters other than '='",
        ),
        (
            env(json!([{"name": "a", "valueFrom": {}}])),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        ),
        (
            env(json!([{"name": "a", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}])),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
        ),
        (
            container(&json!({"envFrom": [{"prefix": "a"}]})),
            "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
        ),
    ])
    .await;
}

#[tokio::test]
async fn probes_and_hooks() {
    let bed = Bed::start().await;
    let probe = |name: &str, probe: Value| container(&json!({name: probe}));
    let tcp = json!({"tcpSocket": {"port": 80}});
    bed.post(PODS, &pod("ok", &probe("livenessProbe", tcp.clone()))).await.unwrap();
    let with = |field: &str, value: i64| {
        let mut probe = tcp.clone();
        probe[field] = json!(value);
        probe
    };
    let hook = |handler: Value| container(&json!({"lifecycle": {"preStop": handler}}));
    bed.post(PODS, &pod("hook", &hook(json!({"httpGet": {"port": 80}})))).await.unwrap();
    let early = json!({"initContainers": [{"name": "b", "image": "hello", "readinessProbe": tcp}]});
    refuses(&bed, &[
        (
            probe("livenessProbe", json!({"periodSeconds": 5})),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            probe("readinessProbe", json!({"exec": {"command": ["x"]}, "tcpSocket": {"port": 80}})),
            "spec.containers[0].readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type",
        ),
        (
            probe("startupProbe", with("initialDelaySeconds", -1)),
            "spec.containers[0].startupProbe.initialDelaySeconds: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            probe("livenessProbe", with("successThreshold", 2)),
            "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
        ),
        (
            probe("livenessProbe", with("terminationGracePeriodSeconds", -5)),
            "spec.containers[0].livenessProbe.terminationGracePeriodSeconds: Invalid value: -5: must be greater than 0",
        ),
        (
            probe("readinessProbe", with("terminationGracePeriodSeconds", 5)),
            "spec.containers[0].readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes",
        ),
        (
            probe("livenessProbe", json!({"exec": {}})),
            "spec.containers[0].livenessProbe.exec.command: Required value",
        ),
        (
            probe("livenessProbe", json!({"grpc": {"port": 70_000}})),
            "spec.containers[0].livenessProbe.grpc.port: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (hook(json!({})), "spec.containers[0].lifecycle.preStop: Required value: must specify a handler type"),
        (
            hook(json!({"sleep": {"seconds": 31}})),
            "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
        ),
        (
            early,
            "spec.initContainers[0].readinessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_a_pod_says_of_where_it_runs() {
    let bed = Bed::start().await;
    let toleration = |toleration: Value| json!({"tolerations": [toleration]});
    let spread = |skew: i64, action: &str| json!({"maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": action});
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    let nodes = |expression: Value| json!({"affinity": {"nodeAffinity": {required: {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}}}});
    let spreads = |constraints: Value| json!({"topologySpreadConstraints": constraints});
    let fine = nodes(json!({"key": "zone", "operator": "In", "values": ["a"]}));
    bed.post(PODS, &pod("near", &fine)).await.unwrap();
    let fine = spreads(json!([spread(1, "DoNotSchedule"), spread(1, "ScheduleAnyway")]));
    bed.post(PODS, &pod("spread", &fine)).await.unwrap();
    refuses(&bed, &[
        (
            toleration(json!({"value": "x"})),
            "spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
        ),
        (
            toleration(json!({"key": "a", "operator": "Exists", "value": "x"})),
            "spec.tolerations[0].operator: Invalid value: \"x\": value must be empty when `operator` is 'Exists'",
        ),
        (
            toleration(json!({"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 5})),
            "spec.tolerations[0].effect: Invalid value: \"NoSchedule\": effect must be 'NoExecute' when `tolerationSeconds` is set",
        ),
        (
            toleration(json!({"key": "a", "operator": "Like"})),
            "spec.tolerations[0].operator: Unsupported value: \"Like\": supported values: \"Equal\", \"Exists\"",
        ),
        (
            toleration(json!({"key": "a", "effect": "Never"})),
            "spec.tolerations[0].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
        ),
        (
            json!({"affinity": {"nodeAffinity": {required: {"nodeSelectorTerms": []}}}}),
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
        ),
        (
            nodes(json!({"key": "zone", "operator": "In"})),
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
        ),
        (
            json!({"affinity": {"podAffinity": {required: [{"labelSelector": {}}]}}}),
            "spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty",
        ),
        (
            json!({"affinity": {"podAntiAffinity": {preferred: [{"weight": 101, "podAffinityTerm": {"topologyKey": "zone"}}]}}}),
            "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100",
        ),
        (
            spreads(json!([spread(0, "DoNotSchedule")])),
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
        ),
        (
            spreads(json!([spread(1, "Panic")])),
            "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Panic\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"",
        ),
        (
            spreads(json!([spread(1, "DoNotSchedule"), spread(2, "DoNotSchedule")])),
            "spec.topologySpreadConstraints[1].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{zone, DoNotSchedule}\"",
        ),
        (
            json!({"schedulingGates": [{"name": "a"}], "nodeName": "n1"}),
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
        ),
    ])
    .await;
}

#[tokio::test]
async fn the_rest_of_a_spec() {
    let bed = Bed::start().await;
    let named = json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"], "searches": ["_sip.example.com."]}});
    bed.post(PODS, &pod("ok", &named)).await.unwrap();
    // Kubernetes takes it, and gives such a pod one second.
    bed.post(PODS, &pod("hasty", &json!({"terminationGracePeriodSeconds": -5}))).await.unwrap();
    refuses(&bed, &[
        (json!({"dnsPolicy": "None"}), "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"),
        (
            json!({"dnsPolicy": "None", "dnsConfig": {"searches": ["a.b"]}}),
            "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
        ),
        (
            json!({"dnsConfig": {"nameservers": ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]}}),
            "spec.dnsConfig.nameservers: Invalid value: [\"10.0.0.1\",\"10.0.0.2\",\"10.0.0.3\",\"10.0.0.4\"]: must not have more than 3 nameservers",
        ),
        (
            json!({"activeDeadlineSeconds": 0}),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
        (
            json!({"securityContext": {"runAsUser": -1}}),
            "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
        ),
        (
            json!({"hostAliases": [{"ip": "here", "hostnames": ["a"]}]}),
            "spec.hostAliases[0].ip: Invalid value: \"here\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
    ])
    .await;
    let label = "a lowercase RFC 1123 label must consist of";
    for field in ["hostname", "subdomain"] {
        let found = bed.refused(PODS, &pod("p", &json!({field: "a.b"}))).await;
        assert!(
            found[0].starts_with(&format!("spec.{field}: Invalid value: \"a.b\": {label}")),
            "{found:?}"
        );
    }
    // A template is checked as a pod is.
    let template = json!({"metadata": {"labels": {"app": "x"}},
        "spec": {"containers": [{"name": "a", "image": "hello", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}});
    let deployment = json!({"metadata": {"name": "x"},
        "spec": {"selector": {"matchLabels": {"app": "x"}}, "template": template}});
    assert_eq!(
        bed.refused("/apis/apps/v1/namespaces/default/deployments", &deployment).await,
        ["spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"v\""]
    );
}

#[tokio::test]
async fn what_may_change_of_a_pod() {
    let bed = Bed::start().await;
    let path = format!("{PODS}/p");
    let tolerations =
        json!([{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]);
    bed.post(PODS, &pod("p", &json!({"activeDeadlineSeconds": 100, "tolerations": tolerations})))
        .await
        .unwrap();
    let change = async |spec: Value| bed.patch("merge", &path, &json!({"spec": spec})).await;
    let refused = async |spec: Value| causes(&change(spec).await.unwrap_err());

    let before = bed.get(&path).await.unwrap()["spec"]["tolerations"].clone();
    let mut longer = before.clone();
    longer[0]["tolerationSeconds"] = json!(600);
    longer.as_array_mut().unwrap().push(json!({"key": "b", "operator": "Exists"}));
    change(json!({"tolerations": longer})).await.unwrap();
    let mut other = longer;
    other[0]["key"] = json!("c");
    assert_eq!(
        refused(json!({"tolerations": other})).await,
        [
            "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
        ]
    );
    assert_eq!(
        refused(json!({"activeDeadlineSeconds": 101})).await,
        [
            "spec.activeDeadlineSeconds: Invalid value: 101: must be less than or equal to previous value"
        ]
    );
    assert_eq!(
        refused(json!({"activeDeadlineSeconds": null})).await,
        [
            "spec.activeDeadlineSeconds: Invalid value: null: must not update from a positive integer to nil value"
        ]
    );
    change(json!({"activeDeadlineSeconds": 50})).await.unwrap();
    assert_eq!(
        refused(json!({"containers": [{"name": "a", "image": "hello"}, {"name": "b", "image": "hello"}]})).await,
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
    for frozen in [
        json!({"terminationGracePeriodSeconds": 5}),
        json!({"nodeSelector": {"a": "b"}}),
        json!({"hostname": "h"}),
    ] {
        let found = refused(frozen.clone()).await;
        assert!(
            found[0].starts_with("spec: Forbidden: pod updates may not change fields other than"),
            "{frozen}: {found:?}"
        );
    }
    bed.post(PODS, &pod("hasty", &json!({"terminationGracePeriodSeconds": -5}))).await.unwrap();
    let one = json!({"spec": {"terminationGracePeriodSeconds": 1}});
    bed.patch("merge", &format!("{PODS}/hasty"), &one).await.unwrap();
}

#[tokio::test]
async fn a_pod_waits_for_its_gates_and_for_nothing_else() {
    let bed = Bed::start().await;
    let path = format!("{PODS}/p");
    let gates = json!({"schedulingGates": [{"name": "a"}, {"name": "b"}]});
    let made = bed.post(PODS, &pod("p", &gates)).await.unwrap();
    assert_eq!(made["status"]["conditions"][0]["reason"], "SchedulingGated");
    let bind = json!({"target": {"name": "n1"}});
    let refused = bed.post(&format!("{path}/binding"), &bind).await.unwrap_err();
    assert_eq!(code(&refused), 409);
    assert_eq!(
        refused["message"],
        "Operation cannot be fulfilled on pods \"p\": pod p has non-empty .spec.schedulingGates"
    );
    let change = async |spec: Value| bed.patch("merge", &path, &json!({"spec": spec})).await;
    let more = change(json!({"schedulingGates": [{"name": "a"}, {"name": "c"}]})).await;
    assert_eq!(
        causes(&more.unwrap_err()),
        [
            "spec.schedulingGates[1].name: Forbidden: only deletion is allowed, but found new scheduling gate 'c'"
        ]
    );
    // Meanwhile it may come to ask for fewer nodes.
    change(json!({"nodeSelector": {"disk": "ssd"}})).await.unwrap();
    let wider = change(json!({"nodeSelector": {"disk": "hdd"}})).await.unwrap_err();
    assert_eq!(
        causes(&wider),
        [
            "spec.nodeSelector: Invalid value: {\"disk\":\"hdd\"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)"
        ]
    );
    change(json!({"schedulingGates": [{"name": "b"}]})).await.unwrap();
    change(json!({"schedulingGates": []})).await.unwrap();
    bed.post(&format!("{path}/binding"), &bind).await.unwrap();
}
