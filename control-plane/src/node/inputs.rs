//! Looks in the API for what a pod refers to.

use std::{collections::BTreeMap, fmt::Debug};

use k8s_openapi::{
    Metadata,
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest as Request, TokenRequestSpec},
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ListParams, PostParams},
};
use serde::de::DeserializeOwned;

use super::{
    pod::inputs::{Inputs, Token, TokenRequest, Wanted},
    runtime::PodIdentity,
};

/// Looks for all of it. `Err` says, for people, what could not be asked for; what does not exist is
/// merely not found.
pub(super) async fn fetch(
    client: Client,
    pod: &PodIdentity,
    wanted: &Wanted,
) -> Result<Inputs, String> {
    let namespace = pod.namespace.as_str();
    let mut inputs = Inputs::none(Timestamp::now());
    if *wanted == Wanted::default() {
        return Ok(inputs);
    }
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    inputs.config_maps = by_name(&maps, &wanted.config_maps, "configmap").await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    inputs.secrets = by_name(&secrets, &wanted.secrets, "secret").await?;
    if wanted.services {
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        let listed = services.list(&ListParams::default()).await;
        let listed = listed.map_err(|error| format!("listing the services: {error}"))?;
        inputs.services = listed.items;
    }
    if namespace != "default" || !wanted.services {
        let services: Api<Service> = Api::namespaced(client.clone(), "default");
        let found = services.get_opt("kubernetes").await;
        let found = found.map_err(|error| format!("looking for the API's service: {error}"))?;
        inputs.services.extend(found);
    }
    for request in &wanted.tokens {
        let token = match wanted.held.get(request) {
            Some(held) => held.clone(),
            None => token(client.clone(), pod, &wanted.account, request).await?,
        };
        inputs.tokens.insert(request.clone(), token);
    }
    Ok(inputs)
}

async fn by_name<K>(
    api: &Api<K>,
    names: &std::collections::BTreeSet<String>,
    kind: &str,
) -> Result<BTreeMap<String, K>, String>
where
    K: Clone + Debug + DeserializeOwned + Metadata<Ty = ObjectMeta>,
{
    let mut found = BTreeMap::new();
    for name in names {
        let object = api.get_opt(name).await;
        let object = object.map_err(|error| format!("looking for {kind} {name:?}: {error}"))?;
        found.extend(object.map(|object| (name.clone(), object)));
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
    let request = Request {
        spec: TokenRequestSpec {
            audiences: Some(wanted.audience.clone())
                .filter(|audience| !audience.is_empty())
                .into_iter()
                .collect(),
            bound_object_ref: Some(bound),
            expiration_seconds: Some(wanted.seconds),
        },
        ..Request::default()
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
