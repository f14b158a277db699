//! Looks in the API for what a pod refers to.

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest as ApiRequest, TokenRequestSpec},
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use super::{
    pod::inputs::{Inputs, Reference, Token, TokenRequest, Wanted},
    runtime::PodIdentity,
};

/// How long the API server may take for one object, and for all of a pod's.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_FOR_ALL: Duration = Duration::from_secs(30);

/// Looks for all of it. What does not exist is merely not found, and what could not be asked for, or
/// is not answered in time, is noted with the reason.
pub(super) async fn fetch(client: Client, pod: &PodIdentity, wanted: &Wanted) -> Inputs {
    let end = Instant::now() + PATIENCE_FOR_ALL;
    let namespace = pod.namespace.as_str();
    let mut inputs = Inputs::none(Timestamp::now());
    if *wanted == Wanted::default() {
        return inputs;
    }
    let unknown = &mut inputs.unknown;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    for name in &wanted.config_maps {
        let found = in_time(end, by_name(&maps, name, "configmap")).await;
        let found = noted(unknown, Reference::ConfigMap(name.clone()), found);
        inputs.config_maps.extend(found.flatten().map(|map| (name.clone(), map)));
    }
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    for name in &wanted.secrets {
        let found = in_time(end, by_name(&secrets, name, "secret")).await;
        let found = noted(unknown, Reference::Secret(name.clone()), found);
        inputs.secrets.extend(found.flatten().map(|secret| (name.clone(), secret)));
    }
    let found = in_time(end, services(client.clone(), namespace, wanted.services)).await;
    inputs.services = noted(unknown, Reference::Services, found).unwrap_or_default();
    for request in &wanted.tokens {
        let token = if let Some(held) = wanted.held.get(request) {
            Ok(held.clone())
        } else {
            let asked = token(client.clone(), pod, &wanted.account, request);
            in_time(end, asked).await
        };
        let token = noted(unknown, Reference::Token(request.clone()), token);
        inputs.tokens.extend(token.map(|token| (request.clone(), token)));
    }
    inputs
}

/// The answer, where it comes before the end and as soon as one may expect.
async fn in_time<T>(
    end: Instant,
    asked: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match timeout_at(end.min(Instant::now() + PATIENCE), asked).await {
        Ok(answer) => answer,
        Err(_elapsed) => Err("the API server did not answer in time".to_owned()),
    }
}

/// What was found, or a note of why nobody knows.
fn noted<T>(
    unknown: &mut BTreeMap<Reference, String>,
    reference: Reference,
    found: Result<T, String>,
) -> Option<T> {
    found.map_err(|why| unknown.insert(reference, why)).ok()
}

async fn by_name<K>(api: &Api<K>, name: &str, kind: &str) -> Result<Option<K>, String>
where
    K: Clone + Debug + DeserializeOwned,
{
    let object = api.get_opt(name).await;
    object.map_err(|error| format!("looking for {kind} {name:?}: {error}"))
}

/// The services of the environment: those of the namespace where they are `wanted`, and the API's
/// own.
async fn services(client: Client, namespace: &str, wanted: bool) -> Result<Vec<Service>, String> {
    let mut found = Vec::new();
    if wanted {
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        let listed = services.list(&ListParams::default()).await;
        found = listed.map_err(|error| format!("listing the services: {error}"))?.items;
    }
    if namespace != "default" || !wanted {
        let services: Api<Service> = Api::namespaced(client, "default");
        let own = services.get_opt("kubernetes").await;
        found.extend(own.map_err(|error| format!("looking for the API's service: {error}"))?);
    }
    Ok(found)
}

/// A token of the service account, good as long as the pod is there.
async fn token(
    client: Client,
    pod: &PodIdentity,
    account: &str,
    wanted: &TokenRequest,
) -> Result<Token, String> {
    let api: Api<ServiceAccount> = Api::namespaced(client, &pod.namespace);
    let bound = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
    };
    let request = ApiRequest {
        spec: TokenRequestSpec {
            audiences: Some(wanted.audience.clone())
                .filter(|audience| !audience.is_empty())
                .into_iter()
                .collect(),
            bound_object_ref: Some(bound),
            expiration_seconds: Some(wanted.seconds),
        },
        ..ApiRequest::default()
    };
    let now = Timestamp::now();
    let answer = api.create_token_request(account, &PostParams::default(), &request).await;
    let failed = |why: String| format!("asking for a token of service account {account:?}: {why}");
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    let status = answer.status.ok_or_else(|| failed("there is none".to_owned()))?;
    // It may hold for another time than was asked for.
    let seconds = status.expiration_timestamp.0.as_second() - now.as_second();
    Ok(Token::new(status.token, now, seconds))
}

#[cfg(test)]
mod tests {
    use http::{Request, Response, StatusCode};
    use http_body_util::Full;
    use serde_json::{Value, json};

    use super::*;

    /// An API server that says of some paths what `answers` has, and of all others that there is
    /// no such thing.
    fn client(answers: &'static [(&str, u16)]) -> Client {
        let answer = move |request: Request<kube::client::Body>| async move {
            let path = request.uri().path();
            let code = answers.iter().find(|(end, _)| path.ends_with(end)).map_or(404, |one| one.1);
            let body = match code {
                200 if path.ends_with("services") => json!({"metadata": {}, "items": []}),
                200 => json!({"metadata": {"name": "found"}}),
                _ => status(code),
            };
            let response = Response::builder().status(StatusCode::from_u16(code).unwrap());
            let body = Full::new(bytes::Bytes::from(body.to_string()));
            Ok::<_, std::convert::Infallible>(response.body(body).unwrap())
        };
        Client::new(tower::service_fn(answer), "default")
    }

    fn status(code: u16) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "reason": if code == 404 { "NotFound" } else { "Forbidden" }, "message": "not for you"})
    }

    #[tokio::test]
    async fn what_can_not_be_asked_for_keeps_nothing_else_from_being_found() {
        let client = client(&[
            ("/configmaps/mine", 200),
            ("/configmaps/theirs", 403),
            ("/secrets/mine", 200),
            ("/secrets/theirs", 500),
            ("/services", 503),
        ]);
        let pod = PodIdentity { namespace: "default".into(), name: "web".into(), uid: "u".into() };
        let names = || ["gone", "mine", "theirs"].map(str::to_owned).into();
        let token = TokenRequest { audience: "vault".into(), seconds: 600 };
        let wanted = Wanted {
            config_maps: names(),
            secrets: names(),
            tokens: [token.clone()].into(),
            services: true,
            account: "default".into(),
            ..Wanted::default()
        };
        let found = fetch(client, &pod, &wanted).await;
        assert_eq!(found.config_maps.keys().collect::<Vec<_>>(), ["mine"]);
        assert_eq!(found.secrets.keys().collect::<Vec<_>>(), ["mine"]);
        let unknown: Vec<_> = found.unknown.keys().cloned().collect();
        let theirs = || "theirs".to_owned();
        let expected = [
            Reference::ConfigMap(theirs()),
            Reference::Secret(theirs()),
            Reference::Token(token),
            Reference::Services,
        ];
        assert_eq!(unknown, expected);
        let why = &found.unknown[&Reference::ConfigMap(theirs())];
        assert!(why.contains("looking for configmap \"theirs\"") && why.contains("not for you"));
    }
}
