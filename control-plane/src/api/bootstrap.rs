//! What exists from the start: the four namespaces, the first rules, the ServiceCIDR and the Service `kubernetes`
//! with its EndpointSlice, and the Service `kube-dns`.

mod addresses;
mod rules;

use std::net::IpAddr;

use http::StatusCode;
use serde_json::{Value, json};

use super::Api;
use super::admission::How;
use super::query::Target;
use super::status::{Failure, Result};
use super::update::Part;
use crate::registry::Object;
use crate::registry::service::{family, ranges};

const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];
/// Offset of the cluster DNS address in each Service range.
const DNS_INDEX: u32 = 9;

/// Where the API server is reached from pods and nodes.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Addresses that the Service `kubernetes` leads to.
    pub advertise: Vec<IpAddr>,
    /// Port on these addresses.
    pub port: u16,
}

/// Creates what is missing and brings the endpoints of `kubernetes` up to date.
pub async fn bootstrap(api: &Api, addresses: &Addresses) -> Result<()> {
    for name in NAMESPACES {
        ensure(api, ("", "namespaces"), "", json!({"metadata": {"name": name}})).await?;
    }
    rules::ensure(api).await?;
    addresses::convert_claims(api).await?;
    addresses::ensure_range(api).await?;
    for (namespace, service) in
        [("default", kubernetes(api, addresses.port)), ("kube-system", kube_dns(api))]
    {
        match ensure(api, ("", "services"), namespace, service).await {
            // Its address is in none of the ranges that are there, or is another's. A server that did
            // not start for that could not be told of better ranges either.
            Err(failure) if failure.code() == StatusCode::UNPROCESSABLE_ENTITY => {
                let why = failure.status();
                tracing::warn!(namespace, %why, "a Service of the cluster's own can't be made");
            }
            outcome => outcome?,
        }
    }
    if let Some(first) = addresses.advertise.first() {
        let endpoints = endpoints_of_kubernetes(addresses, family(*first));
        ensure(api, ("", "endpoints"), "default", endpoints).await?;
    }
    for (family, suffix) in [("IPv4", ""), ("IPv6", "-ipv6")] {
        let of_family =
            addresses.advertise.iter().filter(|address| self::family(**address) == family);
        let endpoints: Vec<Value> = of_family
            .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
            .collect();
        if endpoints.is_empty() {
            continue;
        }
        let slice = json!({
            "metadata": {"name": format!("kubernetes{suffix}"), "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "addressType": family,
            "endpoints": endpoints,
            "ports": [{"name": "https", "protocol": "TCP", "port": addresses.port}],
        });
        ensure(api, ("discovery.k8s.io", "endpointslices"), "default", slice).await?;
    }
    Ok(())
}

/// The same for clients that know no slices, which have one family.
fn endpoints_of_kubernetes(addresses: &Addresses, family: &str) -> Value {
    let of_family = addresses.advertise.iter().filter(|one| self::family(**one) == family);
    let of_family: Vec<Value> = of_family.map(|address| json!({"ip": address})).collect();
    json!({
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": of_family,
            "ports": [{"name": "https", "port": addresses.port, "protocol": "TCP"}],
        }],
    })
}

fn internal(what: &str) -> Failure {
    let message = format!("Internal error occurred: {what}");
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
}

/// Creates an object; if it exists, brings the fields given (metadata apart) up to date.
async fn ensure(
    api: &Api,
    (group, plural): (&str, &str),
    namespace: &str,
    value: Value,
) -> Result<()> {
    let kind =
        api.registry.resource(group, "v1", plural).ok_or_else(|| internal("no such kind"))?;
    let object = Object::new(value).ok_or_else(|| internal("no object"))?;
    let target = Target {
        kind,
        namespace: namespace.into(),
        name: object.name().to_owned(),
        subresource: String::new(),
    };
    if api.store.get(&target.key()).await?.is_none() {
        return api.insert(&target, object, &How::default()).await.map(drop);
    }
    let follows: &[&str] = match plural {
        "endpointslices" => &["/endpoints", "/ports"],
        "endpoints" => &["/subsets"],
        _ => &[],
    };
    if !follows.is_empty() {
        api.rewrite(&target, Part::Main, &How::default(), |old| {
            let mut new = old.clone();
            for field in follows {
                new.copy(field, &object);
            }
            Ok(new)
        })
        .await?;
    }
    Ok(())
}

/// The addresses at an index of every Service range.
fn fixed(api: &Api, index: u32) -> Vec<IpAddr> {
    api.ranges.addresses.iter().map(|range| ranges::nth(*range, index)).collect()
}

fn kubernetes(api: &Api, port: u16) -> Value {
    // Like Kubernetes', this Service has only the first family: its endpoints may have no other.
    let addresses: Vec<IpAddr> = fixed(api, 0).into_iter().take(1).collect();
    json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "clusterIP": addresses.first(),
            "clusterIPs": addresses,
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    })
}

fn kube_dns(api: &Api) -> Value {
    let port = |name: &str, number: u16, protocol: &str| json!({"name": name, "port": number, "targetPort": number, "protocol": protocol});
    let addresses = fixed(api, DNS_INDEX);
    json!({
        "metadata": {
            "name": "kube-dns",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "clusterIP": addresses.first(),
            "clusterIPs": addresses,
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {"k8s-app": "kube-dns"},
            "ports": [port("dns", 53, "UDP"), port("dns-tcp", 53, "TCP"), port("metrics", 9153, "TCP")],
        },
    })
}
