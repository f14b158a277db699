//! What a pod refers to in the API, and what was found there. The node part looks anew before it
//! starts a container, and from time to time for volumes that follow their objects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Container, Pod, PodSpec, Secret, Service, VolumeProjection},
    jiff::Timestamp,
};

use super::super::static_pods;

/// The objects that a pod refers to, by name; all but services in its own namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `ConfigMap`s.
    pub config_maps: BTreeSet<String>,
    /// `Secret`s.
    pub secrets: BTreeSet<String>,
    /// Tokens of its service account.
    pub tokens: BTreeSet<TokenRequest>,
    /// The service account that they are of.
    pub account: String,
    /// The services of its namespace, for its environment.
    pub services: bool,
}

/// A token that a projected volume asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenRequest {
    /// Whom it is for; the API server itself where empty.
    pub audience: String,
    /// For how many seconds it has to be good.
    pub seconds: i64,
}

/// What was found. What is not in it does not exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// When it was looked for.
    pub at: Timestamp,
    /// `ConfigMap`s by name.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// `Secret`s by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Tokens of the service account.
    pub tokens: BTreeMap<TokenRequest, String>,
    /// Services of the pod's namespace, and `default/kubernetes`.
    pub services: Vec<Service>,
}

impl Inputs {
    /// Nothing was looked for, or nothing found.
    pub fn none(at: Timestamp) -> Self {
        Self {
            at,
            config_maps: BTreeMap::new(),
            secrets: BTreeMap::new(),
            tokens: BTreeMap::new(),
            services: Vec::new(),
        }
    }
}

/// How long a token is good for where the pod does not say, as by the API.
const TOKEN_SECONDS: i64 = 3600;

impl TokenRequest {
    /// The token that a projection asks for.
    pub(super) fn of(
        projection: &k8s_openapi::api::core::v1::ServiceAccountTokenProjection,
    ) -> Self {
        Self {
            audience: projection.audience.clone().unwrap_or_default(),
            seconds: projection.expiration_seconds.unwrap_or(TOKEN_SECONDS),
        }
    }
}

/// What `pod` refers to. A static pod refers to nothing: it runs without an API server.
pub fn wanted(pod: &Pod) -> Wanted {
    if static_pods::is_static(pod) { Wanted::default() } else { of_pod(pod) }
}

fn of_pod(pod: &Pod) -> Wanted {
    let mut wanted = Wanted::default();
    let Some(spec) = &pod.spec else { return wanted };
    wanted.services = spec.enable_service_links != Some(false);
    wanted.account = spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned());
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        of_container(container, &mut wanted);
    }
    of_volumes(spec, &mut wanted);
    wanted
}

/// The objects that `pod` refers to, for people.
pub fn objects(pod: &Pod) -> Vec<String> {
    let wanted = of_pod(pod);
    let named = |kind: &str, names: BTreeSet<String>| -> Vec<String> {
        names.into_iter().map(|name| format!("{kind} {name}")).collect()
    };
    let mut all = named("configmap", wanted.config_maps);
    all.extend(named("secret", wanted.secrets));
    all.extend(wanted.tokens.iter().map(|_| "a service account".to_owned()));
    all
}

fn of_container(container: &Container, wanted: &mut Wanted) {
    for source in container.env_from.iter().flatten() {
        wanted.config_maps.extend(source.config_map_ref.iter().map(|one| one.name.clone()));
        wanted.secrets.extend(source.secret_ref.iter().map(|one| one.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|one| one.value_from.as_ref()) {
        wanted.config_maps.extend(source.config_map_key_ref.iter().map(|one| one.name.clone()));
        wanted.secrets.extend(source.secret_key_ref.iter().map(|one| one.name.clone()));
    }
}

fn of_volumes(spec: &PodSpec, wanted: &mut Wanted) {
    for volume in spec.volumes.iter().flatten() {
        wanted.config_maps.extend(volume.config_map.iter().map(|one| one.name.clone()));
        wanted.secrets.extend(volume.secret.iter().filter_map(|one| one.secret_name.clone()));
        let projections = volume.projected.iter().flat_map(|one| one.sources.iter().flatten());
        for projection in projections {
            of_projection(projection, wanted);
        }
    }
}

fn of_projection(projection: &VolumeProjection, wanted: &mut Wanted) {
    wanted.config_maps.extend(projection.config_map.iter().map(|one| one.name.clone()));
    wanted.secrets.extend(projection.secret.iter().map(|one| one.name.clone()));
    wanted.tokens.extend(projection.service_account_token.iter().map(TokenRequest::of));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing, *};

    #[test]
    fn every_reference_is_found() {
        let pod = testing::pod(json!({
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "s1"}}]}],
            "containers": [{"name": "c",
                "envFrom": [{"configMapRef": {"name": "m1"}}],
                "env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m2", "key": "k"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}},
                ]}],
            "volumes": [
                {"name": "a", "configMap": {"name": "m3"}},
                {"name": "b", "secret": {"secretName": "s3"}},
                {"name": "c", "projected": {"sources": [
                    {"configMap": {"name": "m4"}}, {"secret": {"name": "s4"}},
                    {"serviceAccountToken": {"path": "t", "audience": "vault"}},
                ]}},
            ],
        }));
        let wanted = wanted(&pod);
        assert_eq!(wanted.config_maps.into_iter().collect::<Vec<_>>(), ["m1", "m2", "m3", "m4"]);
        assert_eq!(wanted.secrets.into_iter().collect::<Vec<_>>(), ["s1", "s2", "s3", "s4"]);
        let token = TokenRequest { audience: "vault".into(), seconds: 3600 };
        assert_eq!(wanted.tokens.into_iter().collect::<Vec<_>>(), [token]);
    }
}
