//! Subresources: status, scale, binding, approval, finalize. Others have files of their own.

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::body::Form;
use super::fields;
use super::patch::{Patch, no_object};
use super::query::Target;
use super::status::{Failure, Result};
use super::update::Part;
use super::{Api, Body, Call, clock, encode, subresource_of, success};
use crate::registry::invalid::Errors;
use crate::registry::selector::Selector;
use crate::registry::{Object, Subresource};
use crate::schema;

impl Api {
    pub(super) async fn subresource(
        &self,
        call: &Call,
        target: &Target,
        body: Bytes,
    ) -> Result<Response<Body>> {
        let subresource = subresource_of(target).ok_or_else(Failure::no_such_path)?;
        match (subresource, &call.method) {
            (Subresource::Status | Subresource::Approval, &Method::GET) => {
                self.get(call, target, Form::accepted(&call.headers)?).await
            }
            (Subresource::Status, &Method::PUT | &Method::PATCH) => {
                self.write_status(call, target, &body).await
            }
            (Subresource::Scale, &Method::GET) => {
                let object = self.existing(target).await?;
                Ok(super::json(StatusCode::OK, scale_of(&object).value()))
            }
            (Subresource::Scale, &Method::PUT | &Method::PATCH) => {
                self.write_scale(call, target, &body).await
            }
            (Subresource::Binding, &Method::POST) => self.bind(call, target, &body).await,
            (Subresource::Eviction, &Method::POST) => self.evict(call, target, &body).await,
            (Subresource::Token, _) => self.token(call, target, &body).await,
            (Subresource::Approval, &Method::PUT | &Method::PATCH) => {
                self.decide(call, target, &body).await
            }
            (Subresource::Finalize, &Method::PUT) => self.finalize(call, target, &body).await,
            _ => Err(Failure::method_not_allowed()),
        }
    }

    pub(super) async fn existing(&self, target: &Target) -> Result<Object> {
        let entry = self.store.get(&target.key()).await?;
        encode::object(&entry.ok_or_else(|| Failure::not_found(target.kind, &target.name))?)
    }

    async fn write_status(
        &self,
        call: &Call,
        target: &Target,
        body: &[u8],
    ) -> Result<Response<Body>> {
        let (object, warnings) = if call.method == Method::PUT {
            let (sent, warnings) = fields::read(call, target.kind, body)?;
            let stored = target.stored(&self.registry);
            (self.replace(&stored, sent, Part::Status, &call.how()?).await?.1, warnings)
        } else {
            self.patched(call, target, body, Part::Status).await?
        };
        let form = Form::accepted(&call.headers)?;
        Ok(warnings.on(form.respond(target.kind, &object, call, StatusCode::OK)))
    }

    async fn write_scale(
        &self,
        call: &Call,
        target: &Target,
        body: &[u8],
    ) -> Result<Response<Body>> {
        let sent = if call.method == Method::PUT {
            let of = schema::named("autoscaling.v1.Scale");
            Some(fields::of_type(call, of, ("v1", "autoscaling", "Scale"), body)?.0)
        } else {
            None
        };
        let patch =
            if call.method == Method::PATCH { Some(Patch::read(call, body)?) } else { None };
        let written = self
            .rewrite(target, Part::Main, &call.how()?, |old| {
                let scale = match (&sent, &patch) {
                    (Some(sent), _) => sent.clone(),
                    (None, Some(patch)) => Object::new(patch.apply(None, &scale_of(old))?)
                        .ok_or_else(|| no_object("Scale"))?,
                    (None, None) => scale_of(old),
                };
                scaled(target, old, &scale)
            })
            .await?;
        Ok(super::json(StatusCode::OK, scale_of(&written).value()))
    }

    async fn bind(&self, call: &Call, target: &Target, body: &[u8]) -> Result<Response<Body>> {
        let of = schema::named("core.v1.Binding");
        let (binding, _) = fields::of_type(call, of, ("v1", "", "Binding"), body)?;
        let node = binding.text("/target/name").to_owned();
        if node.is_empty() {
            let mut errors = Errors::default();
            errors.required("target.name", "");
            return Err(Failure::invalid(target.kind, &target.name, &errors));
        }
        self.rewrite(target, Part::Raw, &call.how()?, |old| {
            let conflict = |why: String| Err(Failure::conflict(target.kind, &target.name, &why));
            if !binding.uid().is_empty() && binding.uid() != old.uid() {
                return conflict(format!(
                    "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                    binding.uid(),
                    old.uid()
                ));
            }
            if old.is_terminating() {
                return conflict(format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    target.name
                ));
            }
            if !old.list("/spec/schedulingGates").is_empty() {
                return conflict(format!(
                    "pod {} has non-empty .spec.schedulingGates",
                    target.name
                ));
            }
            match old.text("/spec/nodeName") {
                "" => Ok(bound(old, &node)),
                taken => {
                    conflict(format!("pod {} is already assigned to node {taken:?}", target.name))
                }
            }
        })
        .await?;
        Ok(super::json(StatusCode::CREATED, &success(&Value::Null)))
    }

    /// Writes the decisions about a certificate.
    async fn decide(&self, call: &Call, target: &Target, body: &[u8]) -> Result<Response<Body>> {
        let form = Form::accepted(&call.headers)?;
        if call.method == Method::PATCH {
            let (object, warnings) = self.patched(call, target, body, Part::Approval).await?;
            return Ok(warnings.on(form.respond(target.kind, &object, call, StatusCode::OK)));
        }
        let (sent, warnings) = fields::read(call, target.kind, body)?;
        let (_, object) = self.replace(target, sent, Part::Approval, &call.how()?).await?;
        Ok(warnings.on(form.respond(target.kind, &object, call, StatusCode::OK)))
    }

    async fn finalize(&self, call: &Call, target: &Target, body: &[u8]) -> Result<Response<Body>> {
        let (sent, _) = fields::read(call, target.kind, body)?;
        let object = self
            .rewrite(target, Part::Raw, &call.how()?, |old| {
                if !sent.resource_version().is_empty()
                    && sent.resource_version() != old.resource_version()
                {
                    return Err(Failure::stale(target.kind, &target.name));
                }
                let mut new = old.clone();
                new.copy("/spec/finalizers", &sent);
                Ok(new)
            })
            .await?;
        Ok(Form::accepted(&call.headers)?.respond(target.kind, &object, call, StatusCode::OK))
    }
}

/// The pod on its node, and the condition that says so.
fn bound(old: &Object, node: &str) -> Object {
    let mut pod = old.clone();
    pod.set("/spec/nodeName", node);
    let mut conditions = old.list("/status/conditions").to_vec();
    conditions.retain(|one| one["type"] != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": clock::format(clock::now()),
    }));
    pod.set("/status/conditions", conditions);
    pod
}

/// `autoscaling/v1 Scale` of an object.
fn scale_of(object: &Object) -> Object {
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {},
        "spec": {"replicas": object.integer("/spec/replicas").unwrap_or(0)},
        "status": {"replicas": object.integer("/status/replicas").unwrap_or(0)},
    });
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        scale["metadata"][field] = object.text(&format!("/metadata/{field}")).into();
    }
    if let Ok(selector) = Selector::from_object(object.at("/spec/selector").unwrap_or(&Value::Null))
    {
        scale["status"]["selector"] = selector.to_string().into();
    }
    Object::new(scale).unwrap_or_else(|| object.clone())
}

/// The object with the replicas that a Scale demands.
fn scaled(target: &Target, old: &Object, scale: &Object) -> Result<Object> {
    let version = scale.resource_version();
    if !version.is_empty() && version != old.resource_version() {
        return Err(Failure::stale(target.kind, &target.name));
    }
    let replicas = scale.integer("/spec/replicas").unwrap_or(0);
    if replicas < 0 {
        let mut errors = Errors::default();
        errors.invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Failure::invalid(target.kind, &target.name, &errors));
    }
    let mut new = old.clone();
    new.set("/spec/replicas", replicas);
    Ok(new)
}
