//! From `securityContext` to what a container may do; the container's settings before the pod's.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile};

use super::super::runtime::{AppArmor, ImageUser, Privileges, SeLinux, Seccomp};

/// Where profiles of `Localhost` are, unless their path says otherwise.
const PROFILES: &str = "/var/lib/kubelet/seccomp";

/// User and group.
pub(super) fn run_as(
    pod: &Pod,
    container: &Container,
) -> Result<(Option<u32>, Option<u32>), String> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone());
    let of_pod = of_pod.unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let user = id("runAsUser", own.run_as_user.or(of_pod.run_as_user))?;
    let group = id("runAsGroup", own.run_as_group.or(of_pod.run_as_group))?;
    Ok((user, group))
}

/// That a container does not run as root, where it must not: by its own user, or else by its image's.
pub(super) fn verify_non_root(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
) -> Result<(), String> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone());
    let of_pod = of_pod.unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    if !own.run_as_non_root.or(of_pod.run_as_non_root).unwrap_or(false) {
        return Ok(());
    }
    match (own.run_as_user.or(of_pod.run_as_user), image) {
        (Some(0), _) => Err("container's runAsUser breaks non-root policy".to_owned()),
        (None, ImageUser::Id(0)) => {
            Err("container has runAsNonRoot and image will run as root".to_owned())
        }
        (None, ImageUser::Name(name)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify \
             user is non-root"
        )),
        (Some(_), _) | (None, ImageUser::Id(_)) => Ok(()),
    }
}

fn id(name: &str, id: Option<i64>) -> Result<Option<u32>, String> {
    match id.map(u32::try_from) {
        Some(Err(_)) => Err(format!("{name} is out of range")),
        Some(Ok(id)) => Ok(Some(id)),
        None => Ok(None),
    }
}

/// The group that volumes belong to.
pub(super) fn fs_group(pod: &Pod) -> Result<Option<u32>, String> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    id("fsGroup", context.and_then(|context| context.fs_group))
}

/// What it may do.
pub(super) fn privileges(pod: &Pod, container: &Container) -> Result<Privileges, String> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone());
    let of_pod = of_pod.unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let capabilities = own.capabilities.unwrap_or_default();
    let mut groups = Vec::new();
    for group in of_pod.supplemental_groups.iter().flatten() {
        groups.extend(id("supplementalGroups", Some(*group))?);
    }
    groups.extend(fs_group(pod)?);
    let profile = own.seccomp_profile.or(of_pod.seccomp_profile);
    Ok(Privileges {
        privileged: own.privileged.unwrap_or(false),
        add_capabilities: capabilities.add.unwrap_or_default(),
        drop_capabilities: capabilities.drop.unwrap_or_default(),
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        seccomp: seccomp(profile.as_ref()),
        app_armor: own.app_armor_profile.or(of_pod.app_armor_profile).as_ref().and_then(app_armor),
        se_linux: own.se_linux_options.or(of_pod.se_linux_options).map(se_linux),
        groups,
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    })
}

fn seccomp(profile: Option<&SeccompProfile>) -> Seccomp {
    match profile.map(|profile| (profile.type_.as_str(), &profile.localhost_profile)) {
        Some(("RuntimeDefault", _)) => Seccomp::RuntimeDefault,
        // A path that is absolute stays what it is.
        Some(("Localhost", Some(path))) => Seccomp::Localhost(PathBuf::from(PROFILES).join(path)),
        _ => Seccomp::Unconfined,
    }
}

fn app_armor(profile: &AppArmorProfile) -> Option<AppArmor> {
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Unconfined", _) => Some(AppArmor::Unconfined),
        ("RuntimeDefault", _) => Some(AppArmor::RuntimeDefault),
        ("Localhost", Some(name)) => Some(AppArmor::Localhost(name.clone())),
        _ => None,
    }
}

fn se_linux(options: SELinuxOptions) -> SeLinux {
    let SELinuxOptions { user, role, type_, level } = options;
    SeLinux {
        user: user.unwrap_or_default(),
        role: role.unwrap_or_default(),
        domain: type_.unwrap_or_default(),
        level: level.unwrap_or_default(),
    }
}

/// The label of the pod's sandbox.
pub(super) fn sandbox_label(pod: &Pod) -> Option<SeLinux> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.se_linux_options.clone().map(se_linux)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::testing, *};

    fn made(pod: &Value, own: &Value) -> (Result<Privileges, String>, Result<Option<u32>, String>) {
        let pod = testing::pod(json!({
            "securityContext": pod,
            "containers": [{"name": "c", "securityContext": own}],
        }));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        (privileges(&pod, container), run_as(&pod, container).map(|(user, _)| user))
    }

    #[test]
    fn the_containers_settings_come_before_the_pods() {
        let runtime_default = json!({"type": "RuntimeDefault"});
        let pod = json!({"runAsUser": 1, "fsGroup": 5, "supplementalGroups": [6],
            "seccompProfile": runtime_default});
        let (plain, user) = made(&pod, &json!({}));
        let plain = plain.unwrap();
        assert_eq!((plain.seccomp, plain.groups), (Seccomp::RuntimeDefault, vec![6, 5]));
        assert_eq!(user, Ok(Some(1)));
        let own = json!({"runAsUser": 2, "seccompProfile": {"type": "Unconfined"},
            "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false});
        let (made, user) = made(&pod, &own);
        let made = made.unwrap();
        assert_eq!((made.seccomp, user), (Seccomp::Unconfined, Ok(Some(2))));
        assert_eq!(
            (made.add_capabilities, made.drop_capabilities),
            (vec!["NET_ADMIN".into()], vec!["ALL".into()])
        );
        assert!(made.read_only_root && made.no_new_privileges && !made.privileged);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let (_, range) = made(&json!({}), &json!({"runAsUser": -1}));
        assert_eq!(range, Err("runAsUser is out of range".to_owned()));
        let (group, _) = made(&json!({"fsGroup": -1}), &json!({}));
        assert_eq!(group, Err("fsGroup is out of range".to_owned()));
    }

    #[test]
    fn who_must_not_be_root_is_not_by_its_own_user_or_else_by_its_images() {
        let verified = |pod: Value, own: Value, image: ImageUser| {
            let pod = testing::pod(json!({
                "securityContext": pod,
                "containers": [{"name": "c", "securityContext": own}],
            }));
            let container = &pod.spec.as_ref().unwrap().containers[0];
            verify_non_root(&pod, container, &image)
        };
        let (root, other) = (|| ImageUser::Id(0), || ImageUser::Id(1000));
        let named = || ImageUser::Name("web".into());
        let non_root = || json!({"runAsNonRoot": true});
        let (as_root, as_web) = (
            Err("container has runAsNonRoot and image will run as root".to_owned()),
            Err("container has runAsNonRoot and image has non-numeric user (web), cannot verify \
                 user is non-root"
                .to_owned()),
        );
        assert_eq!(verified(json!({}), json!({}), root()), Ok(()));
        assert_eq!(verified(non_root(), json!({"runAsNonRoot": false}), root()), Ok(()));
        assert_eq!(verified(non_root(), json!({}), root()), as_root);
        assert_eq!(verified(json!({}), non_root(), root()), as_root);
        assert_eq!(verified(json!({}), non_root(), named()), as_web);
        assert_eq!(verified(json!({}), non_root(), other()), Ok(()));
        for image in [root(), named(), other()] {
            assert_eq!(verified(non_root(), json!({"runAsUser": 7}), image.clone()), Ok(()));
            let said = verified(json!({"runAsUser": 0}), non_root(), image);
            assert_eq!(said, Err("container's runAsUser breaks non-root policy".to_owned()));
        }
    }

    #[test]
    fn profiles_and_labels_are_the_containers_or_else_the_pods() {
        let pod = json!({"appArmorProfile": {"type": "RuntimeDefault"},
            "seLinuxOptions": {"type": "t", "level": "s0"}});
        let (plain, _) = made(&pod, &json!({}));
        let plain = plain.unwrap();
        assert_eq!(plain.app_armor, Some(AppArmor::RuntimeDefault));
        let label = SeLinux { domain: "t".into(), level: "s0".into(), ..SeLinux::default() };
        assert_eq!(plain.se_linux, Some(label));
        let own = json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "web"},
            "seLinuxOptions": {"user": "u", "role": "r"}});
        let (own, _) = made(&pod, &own);
        let own = own.unwrap();
        assert_eq!(own.app_armor, Some(AppArmor::Localhost("web".into())));
        let label = SeLinux { user: "u".into(), role: "r".into(), ..SeLinux::default() };
        assert_eq!(own.se_linux, Some(label));
    }

    #[test]
    fn a_profile_of_the_node_is_found_below_its_folder() {
        let (made, _) = made(
            &json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "a/b.json"}}),
            &json!({}),
        );
        let path = PathBuf::from("/var/lib/kubelet/seccomp/a/b.json");
        assert_eq!(made.unwrap().seccomp, Seccomp::Localhost(path));
    }
}
