//! Services: types and defaults. What they may be is in [`validate`]; addresses and ports are
//! claimed in [`claims`].

pub(crate) mod addresses;
mod claims;
pub mod ranges;
mod validate;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use uuid::Uuid;

pub use ranges::{Ranges, family};

use super::invalid::Errors;
use super::object::Object;
use super::pod::or;
use super::strategy::{ClaimError, Claims, Strategy};
use crate::store::Op;

/// Where a search for what is free begins.
fn random() -> u32 {
    // The first 32 bits of a version 4 UUID are all random.
    Uuid::new_v4().as_fields().0
}

/// Seconds that client affinity lasts when nothing else is said.
const AFFINITY_SECONDS: i64 = 10_800;

/// [`Strategy`] of services.
pub(super) struct Services;

/// Whether the Service has an address of its own, or is headless.
fn has_cluster_ip(object: &Object) -> bool {
    object.text("/spec/type") != "ExternalName"
}

/// Whether the Service says that it wants no address.
fn is_headless(object: &Object) -> bool {
    has_cluster_ip(object) && object.text("/spec/clusterIP") == "None"
}

/// Whether the Service is reached on nodes.
fn has_node_ports(object: &Object) -> bool {
    match object.text("/spec/type") {
        "NodePort" => true,
        "LoadBalancer" => {
            object.at("/spec/allocateLoadBalancerNodePorts") != Some(&Value::Bool(false))
        }
        _ => false,
    }
}

/// Whether the Service is reached from outside of the cluster.
fn is_external(object: &Object) -> bool {
    match object.text("/spec/type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !object.list("/spec/externalIPs").is_empty(),
        _ => false,
    }
}

/// Whether the Service has a port for health checks of its local endpoints.
fn has_health_check(object: &Object) -> bool {
    object.text("/spec/type") == "LoadBalancer"
        && object.text("/spec/externalTrafficPolicy") == "Local"
}

impl Strategy for Services {
    fn default(&self, object: &mut Object) {
        object.default("/spec/sessionAffinity", "None");
        object.default("/spec/type", "ClusterIP");
        match object.text("/spec/sessionAffinity") {
            "ClientIP" => object
                .default("/spec/sessionAffinityConfig/clientIP/timeoutSeconds", AFFINITY_SECONDS),
            "None" => drop(object.remove("/spec/sessionAffinityConfig")),
            _ => {}
        }
        let kind = object.text("/spec/type").to_owned();
        if kind != "ExternalName" {
            object.default("/spec/internalTrafficPolicy", "Cluster");
        }
        if is_external(object) {
            object.default("/spec/externalTrafficPolicy", "Cluster");
        }
        if kind == "LoadBalancer" {
            object.default("/spec/allocateLoadBalancerNodePorts", true);
        }
        if let Some(Value::Array(ports)) = object.at_mut("/spec/ports") {
            for port in ports.iter_mut().filter_map(Value::as_object_mut) {
                or(port, "protocol", "TCP");
                let number = port.get("port").cloned().unwrap_or_default();
                if matches!(port.get("targetPort"), None | Some(Value::Null))
                    || port["targetPort"] == json!(0)
                    || port["targetPort"] == json!("")
                {
                    port.insert("targetPort".to_owned(), number);
                }
                if port.get("nodePort") == Some(&json!(0)) {
                    port.remove("nodePort");
                }
            }
        }
    }

    fn prepare_create(&self, object: &mut Object) {
        object.set("/status", json!({"loadBalancer": {}}));
    }

    fn prepare_update(&self, object: &mut Object, old: &Object) {
        claims::keep_allocated(object, old);
        claims::drop_what_the_type_has_not(object, old);
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        validate::service(object, errors);
    }

    fn validate_update(&self, object: &Object, old: &Object, errors: &mut Errors) {
        validate::change(object, old, errors);
    }

    fn claim<'a>(
        &'a self,
        object: &'a mut Object,
        old: Option<&'a Object>,
        claims: Claims<'a>,
    ) -> BoxFuture<'a, Result<Vec<Op>, ClaimError>> {
        Box::pin(claims::claim(object, old, claims))
    }

    fn release(&self, object: &Object) -> Vec<Op> {
        claims::release(object)
    }
}
