//! Columns of pods. The status is the most telling thing that the containers' states say.

use serde_json::Value;

use super::{AGE, Column, NAME, NONE, Object, age, or_none, text, wide};

/// Pods.
pub const POD: &[Column] = &[
    NAME,
    text("Ready", |pod, _| {
        let summary = Summary::of(pod);
        format!("{}/{}", summary.ready, summary.containers).into()
    }),
    text("Status", |pod, _| Summary::of(pod).status.into()),
    text("Restarts", |pod, now| Summary::of(pod).restarts(now).into()),
    AGE,
    wide("IP", |pod, _| or_none(pod.text("/status/podIP"))),
    wide("Node", |pod, _| or_none(pod.text("/spec/nodeName"))),
    wide("Nominated Node", |pod, _| or_none(pod.text("/status/nominatedNodeName"))),
    wide("Readiness Gates", |pod, _| readiness_gates(pod)),
];

/// What the containers of a pod say together.
struct Summary {
    status: String,
    ready: usize,
    containers: usize,
    restarts: i64,
    /// When a container that was restarted ended last.
    last_end: String,
}

impl Summary {
    fn of(pod: &Object) -> Self {
        let mut summary = Self {
            status: [pod.text("/status/reason"), pod.text("/status/phase")]
                .into_iter()
                .find(|text| !text.is_empty())
                .unwrap_or("Unknown")
                .to_owned(),
            ready: 0,
            containers: pod.list("/spec/containers").len(),
            restarts: 0,
            last_end: String::new(),
        };
        let gated = pod
            .list("/status/conditions")
            .iter()
            .any(|one| one["type"] == "PodScheduled" && one["reason"] == "SchedulingGated");
        if gated {
            "SchedulingGated".clone_into(&mut summary.status);
        }
        if !summary.initializing(pod) || condition(pod, "Initialized") {
            summary.main_containers(pod);
        }
        if pod.is_terminating() && pod.text("/status/reason") == "NodeLost" {
            "Unknown".clone_into(&mut summary.status);
        } else if pod.is_terminating()
            && !matches!(pod.text("/status/phase"), "Succeeded" | "Failed")
        {
            "Terminating".clone_into(&mut summary.status);
        }
        summary
    }

    fn count_restarts(&mut self, container: &Value) {
        self.restarts += container["restartCount"].as_i64().unwrap_or(0);
        let end = container
            .pointer("/lastState/terminated/finishedAt")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if end > self.last_end.as_str() {
            end.clone_into(&mut self.last_end);
        }
    }

    /// Looks at the init containers; returns whether one of them is still at work.
    fn initializing(&mut self, pod: &Object) -> bool {
        let specs = pod.list("/spec/initContainers");
        let restartable = |name: &Value| {
            specs.iter().any(|one| one["name"] == *name && one["restartPolicy"] == "Always")
        };
        self.containers += specs.iter().filter(|one| one["restartPolicy"] == "Always").count();
        for (index, container) in pod.list("/status/initContainerStatuses").iter().enumerate() {
            self.count_restarts(container);
            if restartable(&container["name"]) {
                self.ready += usize::from(container["ready"] == true);
                if container["started"] == true {
                    continue;
                }
            }
            let terminated = &container["state"]["terminated"];
            let waiting = container
                .pointer("/state/waiting/reason")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if terminated.is_object() && terminated["exitCode"] == 0 {
                continue;
            }
            self.status = if terminated.is_object() {
                format!("Init:{}", ended(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", specs.len())
            };
            return true;
        }
        false
    }

    fn main_containers(&mut self, pod: &Object) {
        let mut running = false;
        for container in pod.list("/status/containerStatuses").iter().rev() {
            self.count_restarts(container);
            let state = &container["state"];
            let waiting = state["waiting"]["reason"].as_str().unwrap_or_default();
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.status);
            } else if state["terminated"].is_object() {
                self.status = ended(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        // Some containers have ended well and others go on.
        if self.status == "Completed" && running {
            let status = if condition(pod, "Ready") { "Running" } else { "NotReady" };
            status.clone_into(&mut self.status);
        }
    }

    fn restarts(&self, now: i64) -> String {
        if self.restarts > 0 && !self.last_end.is_empty() {
            return format!("{} ({} ago)", self.restarts, age(&self.last_end, now));
        }
        self.restarts.to_string()
    }
}

/// How a container ended.
fn ended(terminated: &Value) -> String {
    let reason = terminated["reason"].as_str().unwrap_or_default();
    match terminated["signal"].as_i64() {
        _ if !reason.is_empty() => reason.to_owned(),
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", terminated["exitCode"]),
    }
}

fn condition(pod: &Object, kind: &str) -> bool {
    pod.list("/status/conditions").iter().any(|one| one["type"] == kind && one["status"] == "True")
}

fn readiness_gates(pod: &Object) -> Value {
    let gates = pod.list("/spec/readinessGates");
    if gates.is_empty() {
        return NONE.into();
    }
    let open = gates
        .iter()
        .filter(|gate| condition(pod, gate["conditionType"].as_str().unwrap_or_default()));
    format!("{}/{}", open.count(), gates.len()).into()
}
