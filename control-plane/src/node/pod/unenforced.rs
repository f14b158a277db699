//! What a pod's spec demands of its containers and the node's runtime does not enforce. Such a pod
//! runs, since most of these are defences that its program never notices; but an operator who relies
//! on them has to learn that they are not there.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::super::runtime::Abilities;

/// The fields that are set and not enforced, as paths with the first container that sets them.
pub(in super::super) fn unenforced(pod: &Pod, abilities: Abilities) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let mut fields = of_pod(spec, abilities);
    let all = spec.init_containers.iter().flatten().chain(&spec.containers);
    let set = all.flat_map(|one| of_container(one, abilities).map(move |field| (one, field)));
    for (container, field) in set {
        let told = fields.iter().any(|known| known.starts_with(&format!("{field} ")));
        if !told {
            fields.push(format!("{field} (container {})", container.name));
        }
    }
    fields
}

fn of_pod(spec: &PodSpec, abilities: Abilities) -> Vec<String> {
    let context = spec.security_context.clone().unwrap_or_default();
    let fields = [
        (context.app_armor_profile.is_some(), "securityContext.appArmorProfile"),
        (context.se_linux_options.is_some(), "securityContext.seLinuxOptions"),
        (context.sysctls.is_some(), "securityContext.sysctls"),
    ];
    let set = fields.into_iter().filter(|(set, _)| *set && !abilities.everything);
    // Nobody asks a runtime for users of the pod's own yet.
    let users = (spec.host_users == Some(false)).then_some("hostUsers: false");
    set.map(|(_, field)| field).chain(users).map(|field| format!("{field} (pod)")).collect()
}

fn of_container(
    container: &Container,
    abilities: Abilities,
) -> impl Iterator<Item = &'static str> + use<> {
    let context = container.security_context.clone().unwrap_or_default();
    let limits = container.resources.clone().unwrap_or_default().limits.unwrap_or_default();
    let profiles = !abilities.everything;
    let fields = [
        (profiles && context.app_armor_profile.is_some(), "securityContext.appArmorProfile"),
        (profiles && context.se_linux_options.is_some(), "securityContext.seLinuxOptions"),
        (!abilities.cpu && limits.contains_key("cpu"), "resources.limits.cpu"),
        (!abilities.memory && limits.contains_key("memory"), "resources.limits.memory"),
    ];
    fields.into_iter().filter(|(set, _)| *set).map(|(_, field)| field)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing::pod, *};

    /// The process runtime's, on a machine without controllers.
    const NONE: Abilities = Abilities { everything: false, cpu: false, memory: false };

    #[test]
    fn a_plain_pod_misses_nothing() {
        let spec = json!({
            "securityContext": {"runAsUser": 1000, "runAsNonRoot": true, "fsGroup": 5},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}},
                "securityContext": {"privileged": true, "runAsGroup": 7,
                    "seccompProfile": {"type": "RuntimeDefault"}}}],
        });
        assert_eq!(unenforced(&pod(spec), NONE), Vec::<String>::new());
    }

    #[test]
    fn no_runtime_is_asked_for_users_of_the_pods_own() {
        let spec = json!({"hostUsers": false, "containers": [{"name": "a"}]});
        for abilities in [Abilities::ALL, NONE] {
            assert_eq!(unenforced(&pod(spec.clone()), abilities), ["hostUsers: false (pod)"]);
        }
    }

    #[test]
    fn what_is_not_enforced_is_named_once_with_who_asks() {
        let context = json!({"seLinuxOptions": {"level": "s0"}, "readOnlyRootFilesystem": true});
        let limits = json!({"limits": {"memory": "64Mi", "cpu": "1"}});
        let spec = json!({
            "securityContext": {"sysctls": [{"name": "a", "value": "b"}]},
            "initContainers": [{"name": "i", "resources": limits}],
            "containers": [
                {"name": "a", "securityContext": context},
                {"name": "b", "securityContext": context, "resources": limits},
            ],
        });
        let pod = pod(spec);
        let profiles =
            ["securityContext.sysctls (pod)", "securityContext.seLinuxOptions (container a)"];
        let limits =
            ["resources.limits.cpu (container i)", "resources.limits.memory (container i)"];
        for (abilities, expected) in [
            (Abilities::ALL, &[][..]),
            (NONE, &[profiles[0], limits[0], limits[1], profiles[1]]),
            (Abilities { everything: false, ..Abilities::ALL }, &profiles),
            (Abilities { cpu: true, ..NONE }, &[profiles[0], limits[1], profiles[1]]),
        ] {
            assert_eq!(unenforced(&pod, abilities), expected, "{abilities:?}");
        }
    }
}
