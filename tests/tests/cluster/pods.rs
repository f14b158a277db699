//! What pods ask for of a node part, and have on both runtimes: from inside of them.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::cluster::{Runtime, cgroup, process, up};

use super::{
    Check, World,
    containers::{busybox, delete_pod, run_pod},
    restart::wait_ready,
};

/// The checks of this subject.
pub(crate) const CHECKS: &[Check] = &[
    ("init_containers_sidecars_environment_and_volumes", environment_and_volumes),
    ("security_contexts_and_limits_hold", security_and_limits),
    ("probes_by_command_and_hooks_around_a_containers_life", probes_and_hooks),
    ("what_a_pod_refers_to_may_come_later", comes_later),
    ("a_failing_container_is_started_again_after_a_while", back_off),
    ("a_pod_with_the_nodes_network_needs_no_network_of_pods", host_network),
];

/// What the container `main` of a pod wrote.
fn log(world: &World, pod: &Value) -> Result<String> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (name, uid) = (text("/metadata/name"), text("/metadata/uid"));
    let folder = world.layout.state_dir(text("/spec/nodeName")).join("logs");
    let file = folder.join(format!("default_{name}_{uid}/main/0.log"));
    let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
    Ok(lines.fold(String::new(), |all, line| all + line + "\n"))
}

fn container(script: &str) -> Value {
    json!({
        "name": "main", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
    })
}

/// A pod that runs to its end.
fn once(main: &Value) -> Value {
    json!({"nodeName": "node-1", "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1, "containers": [main]})
}

fn make(world: &World, kind: &str, name: &str, data: &Value) -> Result<()> {
    let object =
        json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": data});
    world.api.apply(&object.to_string())
}

fn remove(world: &World, kinds: &str, name: &str) -> Result<()> {
    let path = format!("/api/v1/namespaces/default/{kinds}/{name}");
    world.api.expect("DELETE", &path, None).map(drop)
}

const SCRIPT: &str = "
    echo colour=$COLOUR all=$ALL_size password=$PASSWORD greeting=$GREETING arg=$1
    echo service=${HELLO_SERVICE_HOST:-none} api=${KUBERNETES_SERVICE_HOST:-none}
    echo name=$NAME node=$NODE cpu=$CPU
    echo empty=$(cat /empty/from-init) sidecar=$(cat /empty/from-sidecar)
    echo map=$(cat /map/deep/colour) secret=$(cat /secret/password) labels=$(cat /all/labels)
    echo node-file=$(cat /host/file) memory=$(grep -c ' /secret tmpfs' /proc/mounts)
    touch /map/x 2>/dev/null && echo wrote-to-a-map
    echo mode=$(stat -L -c %a /secret/password) hosts=$(grep -c \"$NAME\" /etc/hosts)
    echo done";

fn environment_and_volumes(world: &World) -> Result<()> {
    make(world, "ConfigMap", "settings", &json!({"colour": "blue", "size": "5"}))?;
    make(world, "Secret", "login", &json!({"password": "aHVudGVy"}))?;
    let host = world.layout.run_dir().join("host");
    fs::create_dir_all(&host)?;
    fs::write(host.join("file"), "of-the-node")?;
    let mut main = container(SCRIPT);
    main["args"] = json!(["sh", "$(GREETING)!"]);
    main["resources"] = json!({"limits": {"cpu": "250m"}});
    main["envFrom"] = json!([{"prefix": "ALL_", "configMapRef": {"name": "settings"}}]);
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    main["env"] = json!([
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
        {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "login", "key": "password"}}},
        {"name": "NAME", "valueFrom": field("metadata.name")},
        {"name": "NODE", "valueFrom": field("spec.nodeName")},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
        {"name": "GREETING", "value": "hello-$(NAME)"},
    ]);
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    main["volumeMounts"] =
        json!([mount("empty"), mount("map"), mount("secret"), mount("all"), mount("host")]);
    // Started at the same moment, it finds the same volumes.
    let mut other = container("cat /secret/password > /dev/null");
    other["name"] = "other".into();
    other["volumeMounts"] = json!([mount("secret"), mount("map")]);
    let mut spec = once(&main);
    spec["containers"].as_array_mut().context("no containers")?.push(other);
    let mut init = container("echo init > /empty/from-init");
    init["name"] = "init".into();
    init["volumeMounts"] = json!([mount("empty")]);
    let mut sidecar = container("echo side > /empty/from-sidecar; sleep 3600");
    sidecar["name"] = "sidecar".into();
    sidecar["restartPolicy"] = "Always".into();
    sidecar["startupProbe"] =
        json!({"exec": {"command": ["cat", "/empty/from-sidecar"]}, "periodSeconds": 1});
    sidecar["volumeMounts"] = json!([mount("empty")]);
    spec["initContainers"] = json!([sidecar, init]);
    spec["volumes"] = json!([
        {"name": "empty", "emptyDir": {}},
        {"name": "map", "configMap": {"name": "settings", "items": [{"key": "colour", "path": "deep/colour"}]}},
        {"name": "secret", "secret": {"secretName": "login", "defaultMode": 0o400}},
        {"name": "all", "projected": {"sources": [
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ]}},
        {"name": "host", "hostPath": {"path": host, "type": "Directory"}},
    ]);
    let pod = run_pod(world, "everything", &spec, "Succeeded")?;
    let said = log(world, &pod)?;
    let (services, _) = super::traffic::hello(world)?;
    for wanted in [
        "colour=blue all=5 password=hunter greeting=hello-everything arg=hello-everything!\n",
        &format!("service={} api=10.96.0.1\n", services[0]),
        "name=everything node=node-1 cpu=250\n",
        "empty=init sidecar=side\n",
        "map=blue secret=hunter labels=test=\"everything\"\n",
        "node-file=of-the-node memory=1\n",
        "mode=400 hosts=2\n",
        "done\n",
    ] {
        ensure!(said.contains(wanted), "the container said {said:?}, not {wanted:?}");
    }
    ensure!(!said.contains("wrote-to-a-map"), "{said}");
    let uid = pod["metadata"]["uid"].as_str().context("no uid")?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let secrets = mounts.lines().filter(|line| line.contains(&format!("{uid}/secret "))).count();
    ensure!(secrets == 1, "the secret's memory is mounted {secrets} times");
    delete_pod(world, "everything")?;
    ensure!(host.join("file").exists(), "what is the node's is gone with the pod");
    remove(world, "configmaps", "settings")?;
    remove(world, "secrets", "login")
}

fn security_and_limits(world: &World) -> Result<()> {
    let script = "
        echo user=$(id -u) group=$(id -g) groups=$(id -G)
        echo caps=$(grep CapBnd /proc/self/status | cut -f2)
        echo seccomp=$(grep ^Seccomp: /proc/self/status | cut -f2)
        echo nnp=$(grep NoNewPrivs /proc/self/status | cut -f2)
        touch /tmp/x 2>/dev/null && echo wrote-to-the-root
        cat /proc/kcore >/dev/null 2>&1 && echo read-kcore
        echo owner=$(stat -c %g /empty); touch /empty/x && echo wrote-to-the-volume
        touch /tmp/up 2>/dev/null; sleep 3600";
    let mut main = container(script);
    main["securityContext"] = json!({
        "runAsUser": 1000, "runAsGroup": 1001, "readOnlyRootFilesystem": true,
        "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    main["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "500m"}});
    main["volumeMounts"] = json!([{"name": "empty", "mountPath": "/empty"}]);
    main["readinessProbe"] = json!({"exec": {"command": ["cat", "/empty/x"]}, "periodSeconds": 1});
    let mut spec = once(&main);
    spec["securityContext"] = json!({"fsGroup": 2000});
    spec["volumes"] = json!([{"name": "empty", "emptyDir": {}}]);
    let pod = run_pod(world, "secure", &spec, "Ready")?;
    let said = log(world, &pod)?;
    for wanted in [
        "user=1000 group=1001 groups=1001 2000\n",
        "caps=0000000000000000\n",
        "seccomp=2\n",
        "nnp=1\n",
        "owner=2000\n",
        "wrote-to-the-volume\n",
    ] {
        ensure!(said.contains(wanted), "the container said {said:?}, not {wanted:?}");
    }
    for unwanted in ["wrote-to-the-root", "read-kcore"] {
        ensure!(!said.contains(unwanted), "{said}");
    }
    limits_hold(world, &pod)?;
    delete_pod(world, "secure")
}

/// Looks at the limits where the kernel has them, on a machine of either kind.
fn limits_hold(world: &World, pod: &Value) -> Result<()> {
    let id = pod["status"]["containerStatuses"][0]["containerID"].as_str().unwrap_or_default();
    let name = match world.layout.runtime {
        Runtime::Containerd => id.trim_start_matches("containerd://"),
        Runtime::Process => "main.0",
    };
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let below = format!("{}/node-1/pods/pod{uid}/{name}", world.layout.prefix());
    let mut roots = cgroup::mounts_v1();
    roots.push(cgroup::mount_point()?);
    let read = |name: &str| {
        roots.iter().find_map(|root| fs::read_to_string(root.join(&below).join(name)).ok())
    };
    let memory = read("memory.limit_in_bytes").or_else(|| read("memory.max"));
    ensure!(memory.as_deref().map(str::trim) == Some("67108864"), "memory: {memory:?}");
    let cpu = read("cpu.cfs_quota_us").or_else(|| read("cpu.max"));
    ensure!(cpu.as_deref().is_some_and(|cpu| cpu.starts_with("50000")), "cpu: {cpu:?}");
    Ok(())
}

fn probes_and_hooks(world: &World) -> Result<()> {
    let host = world.layout.run_dir().join("hooks");
    fs::create_dir_all(&host)?;
    let mut main =
        container("trap 'echo ended >> /host/story; exit 0' TERM; while :; do sleep 0.1; done");
    let command = |text: &str| json!({"exec": {"command": ["sh", "-c", text]}});
    main["lifecycle"] = json!({
        "postStart": command("echo started >> /host/story"),
        "preStop": command("echo stopping >> /host/story"),
    });
    main["readinessProbe"] = command("grep -q started /host/story");
    main["readinessProbe"]["periodSeconds"] = 1.into();
    main["volumeMounts"] = json!([{"name": "host", "mountPath": "/host"}]);
    let mut spec = once(&main);
    spec["terminationGracePeriodSeconds"] = 30.into();
    spec["volumes"] = json!([{"name": "host", "hostPath": {"path": host}}]);
    run_pod(world, "hooks", &spec, "Ready")?;
    delete_pod(world, "hooks")?;
    let story = fs::read_to_string(host.join("story"))?;
    ensure!(story == "started\nstopping\nended\n", "the story of the container is {story:?}");
    // Deleted in the middle of its hook, which would take longer than anybody waits here.
    fs::remove_file(host.join("story"))?;
    spec["containers"][0]["lifecycle"]["postStart"] =
        command("echo started >> /host/story; exec sleep 1000");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hooked"},
        "spec": spec});
    world.api.apply(&pod.to_string())?;
    up::wait(&world.layout, "the hook to have begun", || {
        let story = fs::read_to_string(host.join("story")).unwrap_or_default();
        Ok(if story == "started\n" { Ok(()) } else { Err(story) })
    })?;
    delete_pod(world, "hooked")?;
    let story = fs::read_to_string(host.join("story"))?;
    ensure!(story == "started\nstopping\nended\n", "the story of the container is {story:?}");
    Ok(())
}

fn comes_later(world: &World) -> Result<()> {
    let mut main = container("echo $COLOUR");
    main["env"] = json!([
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "colour"}}},
    ]);
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "waits"},
        "spec": once(&main)});
    world.api.apply(&pod.to_string())?;
    up::wait(&world.layout, "the pod to say what it lacks", || {
        let pod = world.api.get("/api/v1/namespaces/default/pods/waits")?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let said = waiting["reason"] == "CreateContainerConfigError"
            && waiting["message"] == "configmap \"late\" not found";
        Ok(if said { Ok(()) } else { Err(waiting.to_string()) })
    })?;
    make(world, "ConfigMap", "late", &json!({"colour": "green"}))?;
    let path = "/api/v1/namespaces/default/pods/waits";
    let pod = up::wait(&world.layout, "the pod to have run", || {
        let pod = world.api.get(path)?;
        let done = pod["status"]["phase"] == "Succeeded";
        Ok(if done { Ok(pod) } else { Err(pod["status"].to_string()) })
    })?;
    ensure!(log(world, &pod)? == "green\n", "the container said {:?}", log(world, &pod)?);
    delete_pod(world, "waits")?;
    remove(world, "configmaps", "late")
}

fn back_off(world: &World) -> Result<()> {
    let mut spec = once(&container("exit 3"));
    spec["restartPolicy"] = "Always".into();
    let pod =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fails"}, "spec": spec});
    world.api.apply(&pod.to_string())?;
    let path = "/api/v1/namespaces/default/pods/fails";
    up::wait(&world.layout, "the container to be waited with", || {
        let status = world.api.get(path)?["status"]["containerStatuses"][0].clone();
        let met = status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
            && status["lastState"]["terminated"]["exitCode"] == 3
            && status["restartCount"] == 1;
        Ok(if met { Ok(()) } else { Err(status.to_string()) })
    })?;
    delete_pod(world, "fails")
}

/// The network of pods is away, with the agent that would put it back.
fn host_network(world: &World) -> Result<()> {
    let host = world.layout.node_hosts().into_iter().next().context("no node")?;
    let agent = up::agent(&host.name);
    let running = process::running(&world.layout, &agent).context("no agent runs")?;
    process::end(&running)?;
    let conf = world.layout.cni_conf_dir(&host.name);
    let away = conf.with_extension("away");
    let outcome = move_files(&conf, &away).and_then(|()| {
        let mut spec = busybox(&host.name);
        spec["hostNetwork"] = true.into();
        let pod = run_pod(world, "of-the-node", &spec, "Ready")?;
        let ip = pod["status"]["podIP"].as_str().unwrap_or_default();
        ensure!(ip == host.ipv4.to_string(), "its address is {ip}");
        delete_pod(world, "of-the-node")
    });
    move_files(&away, &conf)?;
    fs::remove_dir(&away)?;
    up::start_agent(&world.layout, &host)?;
    wait_ready(world, &host.name)?;
    outcome
}

/// Moves them in two steps, the second within the folder: containerd reads its configurations anew
/// for a name that goes, and not for one that comes from elsewhere.
fn move_files(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let (coming, come) = (to.join(".coming"), to.join(entry.file_name()));
        fs::rename(entry.path(), &coming)?;
        fs::rename(&coming, &come)?;
    }
    Ok(())
}
