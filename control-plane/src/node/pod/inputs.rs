//! What a pod refers to in the API, and what was found there. The node part looks anew before it
//! starts a container, and from time to time for volumes that follow their objects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{ConfigMap, Container, Pod, PodSpec, Secret, Service, VolumeProjection},
    jiff::{SignedDuration, Timestamp},
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
    /// Those that are there and are good for a while yet.
    pub held: BTreeMap<TokenRequest, Token>,
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

/// A token, and when a new one is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub text: String,
    /// When four fifths of its time are over, or a day after it was asked for.
    pub renew: Timestamp,
}

impl Token {
    /// A token that was asked for now and holds for so many seconds.
    pub fn new(text: String, now: Timestamp, seconds: i64) -> Self {
        let seconds = (seconds - seconds / 5).clamp(0, RENEW_MAX);
        let renew = now.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(now);
        Self { text, renew }
    }
}

/// Something that a pod refers to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// A `ConfigMap`.
    ConfigMap(String),
    /// A `Secret`.
    Secret(String),
    /// A token of its service account.
    Token(TokenRequest),
    /// The services of its environment.
    Services,
}

/// What was found. What is not in it does not exist, unless it is in `unknown`.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// When it was looked for.
    pub at: Timestamp,
    /// `ConfigMap`s by name.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// `Secret`s by name.
    pub secrets: BTreeMap<String, Secret>,
    /// Tokens of the service account.
    pub tokens: BTreeMap<TokenRequest, Token>,
    /// Services of the pod's namespace, and `default/kubernetes`.
    pub services: Vec<Service>,
    /// What could not be asked for, and why, for people: it holds up who needs it, though that may
    /// be optional, and nobody else.
    pub unknown: BTreeMap<Reference, String>,
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
            unknown: BTreeMap::new(),
        }
    }

    /// A `ConfigMap`; `None` where there is none.
    pub(super) fn config_map(&self, name: &str) -> Result<Option<&ConfigMap>, String> {
        self.known(&Reference::ConfigMap(name.to_owned()), self.config_maps.get(name))
    }

    /// A `Secret`; `None` where there is none.
    pub(super) fn secret(&self, name: &str) -> Result<Option<&Secret>, String> {
        self.known(&Reference::Secret(name.to_owned()), self.secrets.get(name))
    }

    /// A token; `None` where none was asked for.
    pub(super) fn token(&self, request: TokenRequest) -> Result<Option<&Token>, String> {
        let found = self.tokens.get(&request);
        self.known(&Reference::Token(request), found)
    }

    /// The services.
    pub(super) fn services(&self) -> Result<&[Service], String> {
        self.known(&Reference::Services, &self.services)
    }

    fn known<T>(&self, reference: &Reference, found: T) -> Result<T, String> {
        self.unknown.get(reference).map_or(Ok(found), |why| Err(why.clone()))
    }
}

/// The longest that a token is used, in seconds.
const RENEW_MAX: i64 = 24 * 3600;
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

impl Wanted {
    /// With the tokens that are good for a while yet, which need not be asked for again.
    pub(super) fn holding(mut self, inputs: Option<&Inputs>, now: Timestamp) -> Self {
        let held = inputs.into_iter().flat_map(|inputs| &inputs.tokens);
        let good =
            held.filter(|(request, token)| self.tokens.contains(request) && now < token.renew);
        self.held = good.map(|(request, token)| (request.clone(), token.clone())).collect();
        self
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
    fn a_token_is_kept_until_four_fifths_of_its_time_are_over() {
        let request = TokenRequest { audience: String::new(), seconds: 3600 };
        let mut inputs = Inputs::none(testing::at(0));
        let token = Token::new("t".into(), testing::at(0), 3600);
        inputs.tokens.insert(request.clone(), token);
        let mut wanted = Wanted::default();
        wanted.tokens.insert(request);
        let held =
            |seconds: i64| wanted.clone().holding(Some(&inputs), testing::at(seconds)).held.len();
        assert_eq!((held(0), held(2879), held(2880)), (1, 1, 0));
        let year = Token::new("t".into(), testing::at(0), 365 * 24 * 3600);
        assert_eq!(year.renew, testing::at(RENEW_MAX));
        // What is not wanted any more is not kept.
        assert_eq!(Wanted::default().holding(Some(&inputs), testing::at(0)).held.len(), 0);
    }

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
