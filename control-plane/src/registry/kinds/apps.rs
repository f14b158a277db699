//! Rows of the groups apps, batch, autoscaling and policy.

use super::super::columns;
use super::super::counters;
use super::super::rules::{Default, Fill, Rule, Test};
use super::super::template::Template;
use super::super::{Kind, Subresource};
use super::super::{autoscaling, batch, budget, job, workload};
use super::NAMESPACED;

pub(super) static KINDS: &[Kind] = &[
    Kind {
        group: "apps",
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        rules: &[Rule("revision", Test::NotNegative)],
        immutable: &["/data"],
        columns: columns::CONTROLLER_REVISION,
        ..NAMESPACED
    },
    Kind {
        group: "apps",
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[Subresource::Status],
        counts_generations: true,
        rules: &[
            Rule("spec.selector", Test::Required("")),
            Rule("spec.template", Test::Required("")),
            Rule("spec.minReadySeconds", Test::NotNegative),
            Rule("spec.revisionHistoryLimit", Test::NotNegative),
            Rule("spec.updateStrategy.type", Test::OneOf(&["OnDelete", "RollingUpdate"])),
            Rule("spec.updateStrategy.rollingUpdate.maxUnavailable", Test::CountOrPercent),
            Rule("spec.updateStrategy.rollingUpdate.maxSurge", Test::CountOrPercent),
        ],
        defaults: &[
            Default("spec.updateStrategy.type", Fill::Text("RollingUpdate")),
            Default("spec.revisionHistoryLimit", Fill::Number(10)),
        ],
        immutable: &["/spec/selector"],
        template: Some(Template { at: "/spec/template", restart: &["Always"] }),
        counters: counters::DAEMON_SET,
        columns: columns::DAEMON_SET,
        strategy: &workload::DaemonSets,
        ..NAMESPACED
    },
    Kind {
        group: "apps",
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[Subresource::Scale, Subresource::Status],
        counts_generations: true,
        rules: &[
            Rule("spec.selector", Test::Required("")),
            Rule("spec.template", Test::Required("")),
            Rule("spec.replicas", Test::NotNegative),
            Rule("spec.minReadySeconds", Test::NotNegative),
            Rule("spec.revisionHistoryLimit", Test::NotNegative),
            Rule("spec.ordinals.start", Test::NotNegative),
            Rule("spec.podManagementPolicy", Test::OneOf(&["OrderedReady", "Parallel"])),
            Rule("spec.updateStrategy.type", Test::OneOf(&["OnDelete", "RollingUpdate"])),
            Rule("spec.updateStrategy.rollingUpdate.partition", Test::NotNegative),
        ],
        defaults: &[
            Default("spec.replicas", Fill::Number(1)),
            Default("spec.podManagementPolicy", Fill::Text("OrderedReady")),
            Default("spec.updateStrategy.type", Fill::Text("RollingUpdate")),
            Default("spec.revisionHistoryLimit", Fill::Number(10)),
            Default("spec.persistentVolumeClaimRetentionPolicy.whenDeleted", Fill::Text("Retain")),
            Default("spec.persistentVolumeClaimRetentionPolicy.whenScaled", Fill::Text("Retain")),
            Default("spec.volumeClaimTemplates[*].apiVersion", Fill::Text("v1")),
            Default("spec.volumeClaimTemplates[*].kind", Fill::Text("PersistentVolumeClaim")),
            Default("spec.volumeClaimTemplates[*].spec.volumeMode", Fill::Text("Filesystem")),
            Default("spec.volumeClaimTemplates[*].status.phase", Fill::Text("Pending")),
        ],
        template: Some(Template { at: "/spec/template", restart: &["Always"] }),
        counters: counters::STATEFUL_SET,
        columns: columns::STATEFUL_SET,
        strategy: &workload::StatefulSets,
        ..NAMESPACED
    },
    Kind {
        group: "batch",
        kind: "Job",
        plural: "jobs",
        singular: "job",
        orphans: true,
        categories: &["all"],
        subresources: &[Subresource::Status],
        counts_generations: true,
        selectable: &[("status.successful", "/status/succeeded", "0")],
        defaults: &[
            Default("spec.completionMode", Fill::Text("NonIndexed")),
            Default("spec.suspend", Fill::Flag(false)),
            Default("spec.manualSelector", Fill::Flag(false)),
        ],
        immutable: &[
            "/spec/selector",
            "/spec/completionMode",
            "/spec/podFailurePolicy",
            "/spec/backoffLimitPerIndex",
            "/spec/managedBy",
            "/spec/successPolicy",
        ],
        template: Some(Template { at: "/spec/template", restart: &["OnFailure", "Never"] }),
        counters: counters::JOB,
        columns: columns::JOB,
        strategy: &job::Jobs,
        ..NAMESPACED
    },
    Kind {
        group: "batch",
        kind: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[Subresource::Status],
        counts_generations: true,
        rules: &[
            Rule("spec.schedule", Test::Required("")),
            Rule("spec.schedule", Test::Check(batch::schedule_fault)),
            Rule("spec.concurrencyPolicy", Test::OneOf(&["Allow", "Forbid", "Replace"])),
            Rule("spec.startingDeadlineSeconds", Test::NotNegative),
            Rule("spec.successfulJobsHistoryLimit", Test::NotNegative),
            Rule("spec.failedJobsHistoryLimit", Test::NotNegative),
        ],
        defaults: &[
            Default("spec.concurrencyPolicy", Fill::Text("Allow")),
            Default("spec.suspend", Fill::Flag(false)),
            Default("spec.successfulJobsHistoryLimit", Fill::Number(3)),
            Default("spec.failedJobsHistoryLimit", Fill::Number(1)),
        ],
        template: Some(Template {
            at: "/spec/jobTemplate/spec/template",
            restart: &["OnFailure", "Never"],
        }),
        columns: columns::CRON_JOB,
        strategy: &batch::CronJobs,
        ..NAMESPACED
    },
    Kind { version: "v2", ..autoscaling::AUTOSCALER },
    Kind {
        version: "v1",
        rules: &[],
        defaults: &[],
        view: Some(&autoscaling::FIRST),
        ..autoscaling::AUTOSCALER
    },
    Kind {
        group: "policy",
        kind: "PodDisruptionBudget",
        plural: "poddisruptionbudgets",
        singular: "poddisruptionbudget",
        short_names: &["pdb"],
        subresources: &[Subresource::Status],
        counts_generations: true,
        rules: &[
            Rule("spec.minAvailable", Test::CountOrPercent),
            Rule("spec.maxUnavailable", Test::CountOrPercent),
            Rule("spec.selector", Test::Selector),
            Rule(
                "spec.unhealthyPodEvictionPolicy",
                Test::OneOf(&["AlwaysAllow", "IfHealthyBudget"]),
            ),
        ],
        counters: counters::BUDGET,
        columns: columns::POD_DISRUPTION_BUDGET,
        strategy: &budget::Budgets,
        ..NAMESPACED
    },
];
