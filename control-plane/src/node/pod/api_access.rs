//! The volume with the token of the service account, which the API server gives to every pod. The
//! process runtime has no volumes: it runs pods without it, and refuses those that their users
//! wrote.

use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::api::admission::{MOUNT, VOLUME};

fn is_given(volume: &Volume) -> bool {
    volume.name.starts_with(VOLUME) && volume.projected.is_some()
}

/// Takes the volume out of a pod.
pub(in super::super) fn remove(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    let Some(volumes) = &mut spec.volumes else { return };
    let given: Vec<String> =
        volumes.iter().filter(|volume| is_given(volume)).map(|one| one.name.clone()).collect();
    volumes.retain(|volume| !given.contains(&volume.name));
    let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    for mounts in containers.filter_map(|container| container.volume_mounts.as_mut()) {
        mounts.retain(|mount| mount.mount_path != MOUNT || !given.contains(&mount.name));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing, *};

    #[test]
    fn only_what_the_api_server_gave_is_taken_out() {
        let mut pod = testing::pod(json!({
            "containers": [{"name": "a", "volumeMounts": [
                {"name": "kube-api-access-x", "mountPath": MOUNT}, {"name": "own", "mountPath": "/own"}]}],
            "volumes": [{"name": "kube-api-access-x", "projected": {"sources": []}},
                {"name": "own", "emptyDir": {}}],
        }));
        remove(&mut pod);
        let spec = pod.spec.unwrap();
        let names: Vec<_> = spec.volumes.iter().flatten().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["own"]);
        let mounts: Vec<_> = spec.containers[0]
            .volume_mounts
            .iter()
            .flatten()
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(mounts, ["own"]);
    }
}
