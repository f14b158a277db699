//! Jobs: selectors, what goes together, and what may change.

use serde_json::{Value, json};

use crate::bed::{Bed, causes, merge};

const JOBS: &str = "/apis/batch/v1/namespaces/default/jobs";
const CRON_JOBS: &str = "/apis/batch/v1/namespaces/default/cronjobs";

fn spec(change: &Value) -> Value {
    let mut spec = json!({"template": {"spec": {
        "restartPolicy": "Never",
        "containers": [{"name": "a", "image": "hello"}],
    }}});
    merge(&mut spec, change);
    spec
}

fn job(name: &str, change: &Value) -> Value {
    json!({"metadata": {"name": name}, "spec": spec(change)})
}

#[tokio::test]
async fn a_job_gets_labels_and_a_selector_of_its_own() {
    let bed = Bed::start().await;
    let labels = json!({"template": {"metadata": {"labels": {"app": "x"}}}});
    let made = bed.post(JOBS, &job("j", &labels)).await.unwrap();
    let uid = &made["metadata"]["uid"];
    let expected = json!({
        "app": "x",
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": "j",
        "controller-uid": uid,
        "job-name": "j",
    });
    assert_eq!(made["spec"]["template"]["metadata"]["labels"], expected);
    let selector = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
    assert_eq!(made["spec"]["selector"], selector);
    // Whoever brings a selector says so.
    let manual = json!({
        "manualSelector": true,
        "selector": {"matchLabels": {"app": "x"}},
        "template": {"metadata": {"labels": {"app": "x"}}},
    });
    let made = bed.post(JOBS, &job("m", &manual)).await.unwrap();
    assert_eq!(made["spec"]["template"]["metadata"]["labels"], json!({"app": "x"}));
    assert_eq!(made["spec"]["selector"], manual["selector"]);
}

#[tokio::test]
async fn selectors_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let foreign = json!({"selector": {"matchLabels": {"app": "x"}}});
    let found = bed.refused(JOBS, &job("a", &foreign)).await;
    assert!(found[0].starts_with("spec.selector: Invalid value: {"), "{found:?}");
    assert!(found[0].ends_with("`selector` not auto-generated"), "{found:?}");
    assert!(found[1].starts_with("spec.template.metadata.labels: Invalid value: {"), "{found:?}");
    assert!(found[1].ends_with("`selector` does not match template `labels`"), "{found:?}");
    assert_eq!(found.len(), 2);
    let label = json!({"template": {"metadata": {"labels": {"job-name": "other"}}}});
    let found = bed.refused(JOBS, &job("a", &label)).await;
    let start = "spec.template.metadata.labels[job-name]: Invalid value: {";
    assert!(found.len() == 1 && found[0].starts_with(start), "{found:?}");
    assert!(found[0].ends_with("must be 'a'"), "{found:?}");
    let none = job("a", &json!({"manualSelector": true}));
    assert_eq!(
        bed.refused(JOBS, &none).await,
        [
            "spec.selector: Required value",
            "spec.template.metadata.labels: Invalid value: {}: `selector` does not match template `labels`",
        ]
    );
}

#[tokio::test]
async fn specs_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    for (name, change, expected) in [
        (
            "a",
            json!({"completionMode": "Ordered"}),
            "spec.completionMode: Unsupported value: \"Ordered\": supported values: \"NonIndexed\", \"Indexed\"",
        ),
        (
            "a",
            json!({"completionMode": "Indexed", "parallelism": 1}),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            "a",
            json!({"completionMode": "Indexed", "completions": 5, "parallelism": 100_001}),
            "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed",
        ),
        (
            "a",
            json!({"backoffLimitPerIndex": 1}),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
        ),
        (
            "a",
            json!({"completionMode": "Indexed", "completions": 5, "backoffLimitPerIndex": 1, "maxFailedIndexes": 6}),
            "spec.maxFailedIndexes: Invalid value: 6: must be less than or equal to completions",
        ),
        (
            "a",
            json!({"completionMode": "Indexed", "completions": 5, "maxFailedIndexes": 1}),
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
        ),
        (
            "a",
            json!({"completionMode": "Indexed", "completions": 100_001, "backoffLimitPerIndex": 1}),
            "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000",
        ),
    ] {
        assert_eq!(bed.refused(JOBS, &job(name, &change)).await, [expected], "{change}");
    }
}

#[tokio::test]
async fn limits_managers_and_successes_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let long = "j".repeat(60);
    let too_long = format!(
        "metadata.name: Invalid value: \"{long}\": will not able to create pod with invalid DNS label: {long}-999"
    );
    for (name, change, expected) in [
        (
            "a",
            json!({"backoffLimit": -1}),
            "spec.backoffLimit: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "a",
            json!({"podReplacementPolicy": "Never"}),
            "spec.podReplacementPolicy: Unsupported value: \"Never\": supported values: \"Failed\", \"TerminatingOrFailed\"",
        ),
        (
            "a",
            json!({"managedBy": "me"}),
            "spec.managedBy: Invalid value: \"me\": must be a domain-prefixed path (such as \"acme.io/foo\")",
        ),
        (
            "a",
            json!({"successPolicy": {"rules": [{"succeededCount": 1}]}}),
            "spec.successPolicy: Invalid value: {\"rules\":[{\"succeededCount\":1}]}: requires indexed completion mode",
        ),
        (
            "a",
            json!({"completionMode": "Indexed", "completions": 3, "successPolicy": {"rules": [{"succeededIndexes": "0-7"}]}}),
            "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0-7\": error parsing succeededIndexes: too large index: \"7\"",
        ),
        (
            "a",
            json!({"completionMode": "Indexed", "completions": 3, "successPolicy": {"rules": [{"succeededIndexes": "0-1", "succeededCount": 3}]}}),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of indexes in the specified succeededIndexes field)",
        ),
        (
            long.as_str(),
            json!({"completionMode": "Indexed", "completions": 1000}),
            too_long.as_str(),
        ),
    ] {
        assert_eq!(bed.refused(JOBS, &job(name, &change)).await, [expected], "{change}");
    }
}

#[tokio::test]
async fn policies_for_failed_pods_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let policy = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}});
    let codes = |codes: Value| {
        let mut all = json!({"operator": "In", "values": [1]});
        merge(&mut all, &codes);
        policy(json!({"action": "FailJob", "onExitCodes": all}))
    };
    let rule = "spec.podFailurePolicy.rules[0]";
    for (change, expected) in [
        (
            policy(json!({"action": "Explode", "onPodConditions": [{"type": "DisruptionTarget"}]})),
            format!(
                "{rule}.action: Unsupported value: \"Explode\": supported values: \"Count\", \"FailIndex\", \"FailJob\", \"Ignore\""
            ),
        ),
        (
            policy(
                json!({"action": "FailIndex", "onPodConditions": [{"type": "DisruptionTarget"}]}),
            ),
            format!(
                "{rule}.action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set"
            ),
        ),
        (
            policy(json!({"action": "Ignore"})),
            format!(
                "{rule}: Invalid value: specifying one of OnExitCodes and OnPodConditions is required"
            ),
        ),
        (
            codes(json!({"values": [0]})),
            format!(
                "{rule}.onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator"
            ),
        ),
        (
            codes(json!({"values": [3, 2]})),
            format!("{rule}.onExitCodes.values: Invalid value: [3,2]: must be ordered"),
        ),
        (
            codes(json!({"values": [2, 2]})),
            format!("{rule}.onExitCodes.values[1]: Duplicate value: 2"),
        ),
        (
            codes(json!({"containerName": "b"})),
            format!(
                "{rule}.onExitCodes.containerName: Invalid value: \"b\": must be one of the container or initContainer names in the pod template"
            ),
        ),
        (
            codes(json!({"operator": "Near"})),
            format!(
                "{rule}.onExitCodes.operator: Unsupported value: \"Near\": supported values: \"In\", \"NotIn\""
            ),
        ),
    ] {
        assert_eq!(bed.refused(JOBS, &job("a", &change)).await, [expected], "{change}");
    }
}

#[tokio::test]
async fn a_policy_for_failed_pods_has_them_replaced_by_the_job_alone() {
    let bed = Bed::start().await;
    let policy = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}});
    let codes = json!({"operator": "In", "values": [1]});
    let mut restarting = policy(json!({"action": "FailJob", "onExitCodes": codes}));
    restarting["template"] = json!({"spec": {"restartPolicy": "OnFailure"}});
    assert_eq!(
        bed.refused(JOBS, &job("a", &restarting)).await,
        [
            "spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy is specified"
        ]
    );
    let made =
        policy(json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}));
    let made = bed.post(JOBS, &job("a", &made)).await.unwrap();
    let condition = &made["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"][0];
    assert_eq!(condition["status"], "True");
    assert_eq!(made["spec"]["podReplacementPolicy"], "Failed");
}

#[tokio::test]
async fn what_may_change_of_a_job() {
    let bed = Bed::start().await;
    bed.post(JOBS, &job("j", &json!({"completions": 2}))).await.unwrap();
    let path = format!("{JOBS}/j");
    let change = async |path: &str, change: Value| {
        let changed = bed.patch("merge", path, &json!({"spec": change})).await;
        changed.map_or_else(|status| causes(&status), |_| Vec::new())
    };
    for (field, value) in [
        ("completions", json!(3)),
        ("completionMode", json!("Indexed")),
        ("managedBy", json!("example.com/x")),
    ] {
        let found = change(&path, json!({field: value})).await;
        let expected = format!("spec.{field}: Invalid value: {value}: field is immutable");
        assert!(found.contains(&expected), "{field}: {found:?}");
    }
    let image = json!({"template": {"spec": {"containers": [{"name": "a", "image": "new"}]}}});
    let found = change(&path, image.clone()).await;
    assert!(
        found.len() == 1 && found[0].starts_with("spec.template: Invalid value: {"),
        "{found:?}"
    );
    assert_eq!(change(&path, json!({"parallelism": 5, "suspend": true})).await, [""; 0]);
    // Where the pods of a job that has not begun run may be said anew; what they are may not.
    let place = json!({"template": {"spec": {"nodeSelector": {"zone": "a"}, "affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}}}}});
    assert_eq!(change(&path, place.clone()).await, [""; 0]);
    assert_eq!(change(&path, image).await.len(), 1);
    let started = json!({"status": {"startTime": "2026-01-01T00:00:00Z"}});
    bed.patch("merge", &format!("{path}/status"), &started).await.unwrap();
    let other = json!({"template": {"spec": {"nodeSelector": {"zone": "b"}}}});
    assert_eq!(change(&path, other).await.len(), 1);

    bed.post(
        JOBS,
        &job("i", &json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2})),
    )
    .await
    .unwrap();
    let path = format!("{JOBS}/i");
    assert_eq!(
        change(&path, json!({"completions": 3})).await,
        [
            "spec.completions: Invalid value: 3: can only be modified in tandem with spec.parallelism"
        ]
    );
    assert_eq!(change(&path, json!({"completions": 3, "parallelism": 3})).await, [""; 0]);
}

#[tokio::test]
async fn what_cron_jobs_make_jobs_of() {
    let bed = Bed::start().await;
    let cron_job = |change: &Value, of: &Value| {
        let mut object = json!({"metadata": {"generateName": "c-"}, "spec": {"schedule": "@hourly", "jobTemplate": {"spec": spec(change)}}});
        merge(&mut object["spec"], of);
        object
    };
    let ignores = json!({
        "podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]},
    });
    let made = bed.post(CRON_JOBS, &cron_job(&ignores, &json!({}))).await.unwrap();
    let rule = "/spec/jobTemplate/spec/podFailurePolicy/rules/0/onPodConditions/0/status";
    assert_eq!(made.pointer(rule), Some(&json!("True")));
    let place = "spec.jobTemplate.spec";
    for (change, of, expected) in [
        (
            json!({"manualSelector": true}),
            json!({}),
            format!("{place}.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\""),
        ),
        (
            json!({"selector": {"matchLabels": {"a": "b"}}}),
            json!({}),
            format!("{place}.selector: Invalid value: {{\"matchLabels\":{{\"a\":\"b\"}}}}: `selector` will be auto-generated"),
        ),
        (
            json!({"backoffLimit": -1}),
            json!({}),
            format!("{place}.backoffLimit: Invalid value: -1: must be greater than or equal to 0"),
        ),
        (
            json!({}),
            json!({"timeZone": "Local"}),
            "spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned(),
        ),
    ] {
        assert_eq!(bed.refused(CRON_JOBS, &cron_job(&change, &of)).await, [expected], "{change}");
    }
}
