//! What a pod's spec demands of its containers and the process runtime does not enforce. Such a
//! pod runs, since most of these are defences that its program never notices; but an operator who
//! relies on them has to learn that they are not there.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// The fields that are set and not enforced, as paths with the first container that sets them.
pub(in super::super) fn unenforced(pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut fields = of_pod(spec);
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    for (container, field) in all.flat_map(|one| of_container(one).map(move |field| (one, field))) {
        let told = fields.iter().any(|known| known.starts_with(&format!("{field} ")));
        if !told {
            fields.push(format!("{field} (container {})", container.name));
        }
    }
    fields
}

fn of_pod(spec: &PodSpec) -> Vec<String> {
    let context = spec.security_context.clone().unwrap_or_default();
    let fields = [
        (context.app_armor_profile.is_some(), "securityContext.appArmorProfile"),
        (context.fs_group.is_some(), "securityContext.fsGroup"),
        (context.se_linux_options.is_some(), "securityContext.seLinuxOptions"),
        (context.seccomp_profile.is_some(), "securityContext.seccompProfile"),
        (context.supplemental_groups.is_some(), "securityContext.supplementalGroups"),
        (context.sysctls.is_some(), "securityContext.sysctls"),
        (spec.host_users == Some(false), "hostUsers: false"),
    ];
    let set = fields.into_iter().filter(|(set, _)| *set);
    set.map(|(_, field)| format!("{field} (pod)")).collect()
}

/// `privileged` is not among them: every container has the machine's privileges.
fn of_container(container: &Container) -> impl Iterator<Item = &'static str> + use<> {
    let context = container.security_context.clone().unwrap_or_default();
    let resources = container.resources.clone().unwrap_or_default();
    let fields = [
        (
            context.allow_privilege_escalation == Some(false),
            "securityContext.allowPrivilegeEscalation: false",
        ),
        (context.app_armor_profile.is_some(), "securityContext.appArmorProfile"),
        (context.capabilities.is_some(), "securityContext.capabilities"),
        (context.read_only_root_filesystem == Some(true), "securityContext.readOnlyRootFilesystem"),
        (context.se_linux_options.is_some(), "securityContext.seLinuxOptions"),
        (context.seccomp_profile.is_some(), "securityContext.seccompProfile"),
        (resources.limits.is_some_and(|limits| !limits.is_empty()), "resources.limits"),
    ];
    fields.into_iter().filter(|(set, _)| *set).map(|(_, field)| field)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing::pod, *};

    #[test]
    fn a_plain_pod_misses_nothing() {
        let spec = json!({
            "securityContext": {"runAsUser": 1000, "runAsNonRoot": true},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}},
                "securityContext": {"privileged": true, "runAsGroup": 7}}],
        });
        assert_eq!(unenforced(&pod(spec)), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_enforced_is_named_once_with_who_asks() {
        let context = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        });
        let limits = json!({"limits": {"memory": "64Mi"}});
        let spec = json!({
            "securityContext": {"fsGroup": 5},
            "initContainers": [{"name": "i", "resources": limits}],
            "containers": [
                {"name": "a", "securityContext": context},
                {"name": "b", "securityContext": context, "resources": limits},
            ],
        });
        assert_eq!(
            unenforced(&pod(spec)),
            [
                "securityContext.fsGroup (pod)",
                "resources.limits (container i)",
                "securityContext.allowPrivilegeEscalation: false (container a)",
                "securityContext.capabilities (container a)",
                "securityContext.readOnlyRootFilesystem (container a)",
                "securityContext.seccompProfile (container a)",
            ]
        );
    }
}
