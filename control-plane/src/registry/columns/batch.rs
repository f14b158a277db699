//! Columns of jobs, cron jobs, autoscalers and disruption budgets.

use serde_json::Value;

use super::workload::{containers, count, selector};
use super::{AGE, Column, NAME, NONE, Object, age, duration, flag, number, or_none, text, wide};
use crate::api::clock;

/// Jobs.
pub const JOB: &[Column] = &[
    NAME,
    text("Status", |job, _| status(job).into()),
    text("Completions", |job, _| completions(job).into()),
    text("Duration", |job, now| job_duration(job, now).into()),
    AGE,
    wide("Containers", |job, _| containers(job, TEMPLATE, "name")),
    wide("Images", |job, _| containers(job, TEMPLATE, "image")),
    wide("Selector", |job, _| selector(job)),
];

const TEMPLATE: &str = "/spec/template";
const JOB_TEMPLATE: &str = "/spec/jobTemplate/spec/template";

fn holds(job: &Object, kind: &str) -> bool {
    let conditions = job.list("/status/conditions");
    conditions.iter().any(|one| one["type"] == kind && one["status"] == "True")
}

fn status(job: &Object) -> &'static str {
    if holds(job, "Complete") {
        "Complete"
    } else if holds(job, "Failed") {
        "Failed"
    } else if job.is_terminating() {
        "Terminating"
    } else if holds(job, "Suspended") {
        "Suspended"
    } else if holds(job, "FailureTarget") {
        "FailureTarget"
    } else if holds(job, "SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Object) -> String {
    let done = count(job, "/status/succeeded");
    match (job.integer("/spec/completions"), job.integer("/spec/parallelism").unwrap_or(0)) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallel @ 2..) => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    }
}

fn job_duration(job: &Object, now: i64) -> String {
    let Some(start) = clock::parse(job.text("/status/startTime")) else { return String::new() };
    let end = clock::parse(job.text("/status/completionTime"));
    duration(end.unwrap_or(now) - start)
}

/// CronJobs.
pub const CRON_JOB: &[Column] = &[
    NAME,
    text("Schedule", |job, _| job.text("/spec/schedule").into()),
    text("Timezone", |job, _| or_none(job.text("/spec/timeZone"))),
    flag(
        "Suspend",
        |job, _| if job.flag("/spec/suspend") { "True".into() } else { "False".into() },
    ),
    number("Active", |job, _| job.list("/status/active").len().into()),
    text("Last Schedule", |job, now| match job.text("/status/lastScheduleTime") {
        "" => NONE.into(),
        time => age(time, now).into(),
    }),
    AGE,
    wide("Containers", |job, _| containers(job, JOB_TEMPLATE, "name")),
    wide("Images", |job, _| containers(job, JOB_TEMPLATE, "image")),
    wide("Selector", |_, _| NONE.into()),
];

/// HorizontalPodAutoscalers.
pub const AUTOSCALER: &[Column] = &[
    NAME,
    text("Reference", |scaler, _| {
        let of = |field: &str| scaler.text(&format!("/spec/scaleTargetRef/{field}")).to_owned();
        format!("{}/{}", of("kind"), of("name")).into()
    }),
    text("Targets", |scaler, _| targets(scaler).into()),
    text("MinPods", |scaler, _| match scaler.integer("/spec/minReplicas") {
        Some(least) => least.to_string().into(),
        None => "<unset>".into(),
    }),
    number("MaxPods", |scaler, _| count(scaler, "/spec/maxReplicas").into()),
    number("Replicas", |scaler, _| count(scaler, "/status/currentReplicas").into()),
    AGE,
];

/// Metrics that the cell of an autoscaler shows.
const SHOWN: usize = 2;

fn targets(scaler: &Object) -> String {
    let metrics = scaler.list("/spec/metrics");
    let current = scaler.list("/status/currentMetrics");
    if metrics.is_empty() {
        return NONE.to_owned();
    }
    let shown: Vec<String> = metrics
        .iter()
        .enumerate()
        .take(SHOWN)
        .map(|(index, metric)| target(metric, current.get(index)))
        .collect();
    let shown = shown.join(", ");
    match metrics.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

fn target(metric: &Value, current: Option<&Value>) -> String {
    let kind = metric["type"].as_str().unwrap_or_default();
    let field = match kind {
        "ContainerResource" => "containerResource",
        "External" => "external",
        "Object" => "object",
        "Pods" => "pods",
        _ => "resource",
    };
    let now = |name: &str| current.and_then(|one| one.pointer(&format!("/{field}/current/{name}")));
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let wanted = &metric[field]["target"];
    let unknown = || "<unknown>".to_owned();
    if let Some(percent) = wanted["averageUtilization"].as_i64() {
        let now = now("averageUtilization").map_or_else(unknown, |one| format!("{}%", text(one)));
        let name = metric[field]["name"].as_str().unwrap_or_default();
        return format!("{name}: {now}/{percent}%");
    }
    let name = if wanted["averageValue"].is_null() { "value" } else { "averageValue" };
    let now = now(name).map_or_else(unknown, text);
    let average =
        if name == "averageValue" && matches!(kind, "External" | "Object") { " (avg)" } else { "" };
    match kind {
        "Resource" | "ContainerResource" => {
            format!("{}: {now}/{}", text(&metric[field]["name"]), text(&wanted[name]))
        }
        _ => format!("{now}/{}{average}", text(&wanted[name])),
    }
}

/// PodDisruptionBudgets.
pub const POD_DISRUPTION_BUDGET: &[Column] = &[
    NAME,
    text("Min Available", |budget, _| bound(budget, "/spec/minAvailable")),
    text("Max Unavailable", |budget, _| bound(budget, "/spec/maxUnavailable")),
    number("Allowed Disruptions", |budget, _| count(budget, "/status/disruptionsAllowed").into()),
    AGE,
];

fn bound(budget: &Object, pointer: &str) -> Value {
    match budget.at(pointer) {
        None => "N/A".into(),
        Some(Value::String(text)) => text.as_str().into(),
        Some(number) => number.to_string().into(),
    }
}
