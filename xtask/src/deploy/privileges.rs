//! What the agent may do on its node and at the API server, and what each of it is for.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// A capability of Linux.
pub struct Capability {
    /// Without `CAP_`.
    pub name: &'static str,
    /// What it is used for.
    pub reason: &'static str,
    /// What there is not without it.
    pub lost: &'static str,
    /// The roles for which it stays; whoever has none of them gives it up at the start.
    pub stays: &'static str,
}

/// All that the agent has.
pub const CAPABILITIES: &[Capability] = &[
    Capability {
        name: "DAC_READ_SEARCH",
        reason: "finds the sockets of processes that don't run as root",
        lost: "UDP sockets of such processes that were led to deleted endpoints get no error",
        stays: "services",
    },
    Capability {
        name: "NET_ADMIN",
        reason: "attaches programs; makes links, routes, rules, neighbours and queues; ends connections",
        lost: "everything: the agent ends and says so",
        stays: "all",
    },
    Capability {
        name: "NET_BIND_SERVICE",
        reason: "listens on port 53",
        lost: "cluster DNS",
        stays: "DNS: its addresses may become others",
    },
    Capability {
        name: "SYS_ADMIN",
        reason: "loads programs, makes their tables and looks at those that others attached; enters the \
                 network namespaces of pods; makes /proc/sys writable in its own container; \
                 without one, mounts a bpf file system where there is none",
        lost: "services and the pod network: the agent ends and says so",
        stays: "services: tables grow; pod network: each pod's namespace is entered",
    },
    Capability {
        name: "SYS_PTRACE",
        reason: "finds network namespaces and sockets by the processes that have them",
        lost: "connections of pods to deleted endpoints are not reset, nor UDP sockets of the node's own processes, and the octets of live ones not counted",
        stays: "services, pod network",
    },
];

/// What a node confines containers by besides, what the agent's has of it, and why.
const CONFINEMENT: [(&str, &str, &str); 3] = [
    ("seccomp", "the runtime's own profile", "it has all that is needed with these capabilities"),
    (
        "AppArmor",
        "none (`Unconfined`)",
        "runtimes' default profile forbids to look at other processes and to mount",
    ),
    (
        "SELinux",
        "type `spc_t`, level `s0`",
        "`container_t` forbids bpf(), and the folders of the node that it writes; files that it makes \
         there are to be everyone's of the node, which a level of the container's own would prevent",
    ),
];

/// A rule of the agent's role at the API server.
pub struct Rule {
    /// `apiGroups`; the core group is empty.
    pub group: &'static str,
    /// `resources`.
    pub resources: &'static [&'static str],
    /// `verbs`.
    pub verbs: &'static [&'static str],
    /// What it is used for.
    pub reason: &'static str,
}

/// All that the agent reads and writes.
pub const RULES: &[Rule] = &[
    Rule {
        group: "",
        resources: &["nodes", "pods", "services"],
        verbs: &["list", "watch"],
        reason: "services, and the addresses of nodes; of pods only those of its own node, for their annotations",
    },
    Rule {
        group: "",
        resources: &["namespaces"],
        verbs: &["list", "watch"],
        reason: "which namespaces exist though no Service is in them, for answers of cluster DNS; which cluster this is, for services that go back to kube-proxy; without it neither is known",
    },
    Rule {
        group: "discovery.k8s.io",
        resources: &["endpointslices"],
        verbs: &["list", "watch"],
        reason: "where services lead to",
    },
    Rule {
        group: "networking.k8s.io",
        resources: &["servicecidrs"],
        verbs: &["list", "watch"],
        reason: "which addresses are services' though no service has them",
    },
    Rule {
        group: "",
        resources: &["nodes"],
        verbs: &["get", "patch"],
        reason: "removes the taint mizzen.dev/agent-not-ready of its own node, where it connects pods; looks at its condition MizzenReady before it first writes it; reports in an annotation of it how far it is from kube-proxy, where `mizzen migrate` asks",
    },
    Rule {
        group: "",
        resources: &["nodes/status"],
        verbs: &["patch"],
        reason: "says whether all its parts are ready (condition MizzenReady of its own node), and that the node has a network (NetworkUnavailable), where it connects pods",
    },
    Rule {
        group: "events.k8s.io",
        resources: &["events"],
        verbs: &["create", "patch"],
        reason: "tells what an operator has to act on, as events of its own node",
    },
];

/// The rules as a ClusterRole has them.
pub fn rules() -> Vec<Value> {
    let rule = |rule: &Rule| json!({"apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs});
    RULES.iter().map(rule).collect()
}

/// A manifest with the reason behind each capability.
pub(super) fn annotated(yaml: &str) -> String {
    let line = |line: &str| {
        let named = line.trim_start().strip_prefix("- ");
        let capability = CAPABILITIES.iter().find(|capability| named == Some(capability.name));
        match capability {
            Some(capability) => format!("{line}  # {}\n", capability.reason),
            None => format!("{line}\n"),
        }
    };
    yaml.lines().map(line).collect()
}

/// docs/privileges.md.
pub(super) fn page() -> String {
    let mut page = "# What the agent may do\n\n\
        Made by `cargo xtask lint --fix` from xtask/src/deploy/privileges.rs; don't edit it.\n\n\
        ## On its node\n\n\
        It runs as root with these capabilities and no others, in the node's network and PID \
        namespaces, on a read-only root file system, under the runtime's own seccomp profile \
        ([`deploy/mizzen.yaml`](../deploy/mizzen.yaml)); the suite runs an agent with exactly these \
        capabilities, and the whole container under containerd.\n\
        Whatever else it was started with, as root without a container, it gives up before its first \
        thread is there, and so those of roles that it does not have; before that it raises its limit \
        of open files and makes /proc/sys writable. It sets `no_new_privs`.\n\n\
        | capability | for | without it | stays for |\n|---|---|---|---|\n"
        .to_owned();
    for Capability { name, reason, lost, stays } in CAPABILITIES {
        let _infallible = writeln!(page, "| `{name}` | {reason} | {lost} | {stays} |");
    }
    page.push_str(
        "\nThe kernel takes `SYS_ADMIN` for `BPF` and `PERFMON` too; these two would do for loading \
         programs, but not for entering pods' namespaces. It is much, and `privileged` would be more: devices, all of /proc and /sys, and \
         every other capability.\n\n\
         | confinement | the agent's container | since |\n|---|---|---|\n",
    );
    for (what, has, why) in CONFINEMENT {
        let _infallible = writeln!(page, "| {what} | {has} | {why} |");
    }
    page.push_str(
        "\nAs a systemd unit ([`deploy/mizzen-agent.service`](../deploy/mizzen-agent.service)) it has \
         the same capabilities, and what the unit names beside them. `ProtectSystem` is `yes` and not \
         `strict`: /etc and /opt have the folders of CNI, wherever `cniConfDir` and `cniBinDir` say \
         that they are, and what is mounted over them would keep the agent from making them; on \
         nodes with other CNI plugins a drop-in may say `strict`. There is no `SystemCallFilter`: \
         the groups of calls that it needs (`bpf`, `mount`, `setns`) leave little to refuse that \
         the capabilities don't.\n\
         \n## At the API server\n\n| group | resources | verbs | for |\n|---|---|---|---|\n",
    );
    for Rule { group, resources, verbs, reason } in RULES {
        let group = if group.is_empty() { "core" } else { group };
        let (resources, verbs) = (resources.join(", "), verbs.join(", "));
        let _infallible = writeln!(page, "| {group} | {resources} | {verbs} | {reason} |");
    }
    page.push_str(
        "\nRBAC can't name one node: with `get` and `patch` of nodes every agent may do so to each. \
         Where that is too much, leave the two rules out: the agent says in `mizzen status` (parts \
         `node-condition`, `notices`) what it may not do, and something else has to remove the taint.\n",
    );
    page
}
