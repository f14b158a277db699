//! CREATE: a new object from a body.

use bytes::Bytes;
use http::{Response, StatusCode};
use uuid::Uuid;

use super::admission::How;
use super::body::Form;
use super::fields;
use super::query::Target;
use super::status::{Failure, Result};
use super::{Api, Body, Call, clock, encode};
use crate::registry::invalid::Errors;
use crate::registry::strategy::{ClaimError, Claims};
use crate::registry::{Kind, Object, names};
use crate::store::{Action, Expect, Op, Revision, StoreError};

/// Letters of generated names: no vowels, no look-alikes.
pub(super) const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Longest prefix of a generated name.
const GENERATED_PREFIX: usize = 58;
/// How often a write is tried again that lost a race it may lose.
pub(super) const TRIES: usize = 16;

impl Api {
    pub(super) async fn create(
        &self,
        call: &Call,
        target: Target,
        body: Bytes,
        form: Form,
    ) -> Result<Response<Body>> {
        if target.kind.is_namespaced() && target.namespace.is_empty() {
            return Err(Failure::method_not_allowed());
        }
        let (object, warnings) = fields::read(call, target.kind, &body)?;
        let stored = target.stored(&self.registry);
        let created = self.insert(&stored, object, &call.how()?).await?;
        Ok(warnings.on(form.respond(target.kind, &created, call, StatusCode::CREATED)))
    }

    /// Makes `object` real in the target's namespace.
    pub(super) async fn insert(
        &self,
        target: &Target,
        mut object: Object,
        how: &How,
    ) -> Result<Object> {
        let kind = target.kind;
        check_identity(&mut object, target)?;
        if !object.resource_version().is_empty() {
            return Err(Failure::bad_request(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        self.check_namespace(target, &object).await?;
        let generated =
            object.name().is_empty() && !object.text("/metadata/generateName").is_empty();
        begin(&mut object, kind);
        for _ in 0..TRIES {
            let mut object = object.clone();
            if generated {
                generate_name(&mut object);
            }
            kind.fill(&mut object);
            kind.strategy.prepare_create(&mut object);
            self.admit_create(kind, &mut object, how).await?;
            if !how.is_own() {
                validate_new(kind, &object)?;
            }
            let claims = self.claim(kind, &mut object, None).await?;
            if how.dry_run {
                return Ok(object);
            }
            let key = kind.key(object.namespace(), object.name());
            let put = Op {
                key: key.as_str().into(),
                expect: Expect::Absent,
                action: Action::Put(encode::to_bytes(&object)),
            };
            match self.store.commit([vec![put], claims].concat()).await {
                Ok(revision) => return Ok(at(object, revision)),
                Err(StoreError::Conflict { key: held, .. }) if *held == *key && !generated => {
                    return Err(Failure::already_exists(kind, object.name()));
                }
                // Somebody else got the name or an address first: choose again.
                Err(StoreError::Conflict { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(Failure::already_exists(kind, object.text("/metadata/generateName")).retry_after(1))
    }

    /// Claims what the kind needs from the cluster's ranges.
    pub(super) async fn claim(
        &self,
        kind: &Kind,
        object: &mut Object,
        old: Option<&Object>,
    ) -> Result<Vec<Op>> {
        let claims = Claims { store: &*self.store, ranges: &self.ranges };
        kind.strategy.claim(object, old, claims).await.map_err(|error| match error {
            ClaimError::Invalid(errors) => Failure::invalid(kind, object.name(), &errors),
            ClaimError::Store(error) => error.into(),
            ClaimError::Exhausted(_) => Failure::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                format!("Internal error occurred: failed to allocate: {error}"),
            ),
        })
    }

    /// Nothing new comes into a namespace that does not exist or goes away.
    async fn check_namespace(&self, target: &Target, object: &Object) -> Result<()> {
        if target.namespace.is_empty() {
            return Ok(());
        }
        let Some(namespaces) = self.registry.resource("", "v1", "namespaces") else {
            return Ok(());
        };
        let entry = self.store.get(&namespaces.key("", &target.namespace)).await?;
        let entry = entry.ok_or_else(|| Failure::not_found(namespaces, &target.namespace))?;
        if encode::object(&entry)?.is_terminating() {
            let name = if object.name().is_empty() {
                object.text("/metadata/generateName")
            } else {
                object.name()
            };
            let why = format!(
                "unable to create new content in namespace {} because it is being terminated",
                target.namespace
            );
            let message = format!("namespace {} is being terminated", target.namespace);
            return Err(Failure::forbidden(target.kind, name, &why).because(
                "NamespaceTerminating",
                &message,
                "metadata.namespace",
            ));
        }
        Ok(())
    }
}

/// The object at the revision that a commit gave it.
pub(super) fn at(mut object: Object, revision: Revision) -> Object {
    object.set("/metadata/resourceVersion", revision.to_string());
    object
}

/// The body must be of the kind and in the namespace that the path says.
pub(super) fn check_identity(object: &mut Object, target: &Target) -> Result<()> {
    let kind = target.kind;
    let (version, named) = (object.text("/apiVersion"), object.text("/kind"));
    if !version.is_empty() && version != kind.api_version() {
        return Err(Failure::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            kind.api_version()
        )));
    }
    if !named.is_empty() && named != kind.kind {
        return Err(Failure::bad_request(format!(
            "{named} in version {version:?} cannot be handled as a {}",
            kind.kind
        )));
    }
    encode::set_kind(object, kind);
    if kind.is_namespaced() {
        let namespace = object.namespace();
        if !namespace.is_empty() && namespace != target.namespace {
            return Err(Failure::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request: {namespace} and {}",
                target.namespace
            )));
        }
        object.set("/metadata/namespace", target.namespace.as_str());
    } else {
        object.remove("/metadata/namespace");
    }
    Ok(())
}

/// What every new object gets, and what nobody may bring.
pub(super) fn begin(object: &mut Object, kind: &Kind) {
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "managedFields",
        "generation",
    ] {
        object.remove(&format!("/metadata/{field}"));
    }
    if kind.has(crate::registry::Subresource::Status) && !kind.strategy.keeps_status_on_create() {
        object.remove("/status");
    }
    object.set("/metadata/uid", Uuid::new_v4().to_string());
    object.set("/metadata/creationTimestamp", clock::format(clock::now()));
    if kind.counts_generations {
        object.set("/metadata/generation", 1);
    }
}

fn generate_name(object: &mut Object) {
    let prefix = object.text("/metadata/generateName");
    let mut name: String = prefix.chars().take(GENERATED_PREFIX).collect();
    let random = Uuid::new_v4().into_bytes();
    name.extend(
        random[..5].iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])),
    );
    object.set("/metadata/name", name);
}

/// Checks a new object.
fn validate_new(kind: &Kind, object: &Object) -> Result<()> {
    let mut errors = faults(kind, object);
    kind.strategy.validate_create(object, &mut errors);
    refuse(kind, object, &errors)
}

/// Checks metadata, what the row demands, and what the kind's strategy demands.
pub(super) fn validate(kind: &Kind, object: &Object) -> Result<()> {
    refuse(kind, object, &faults(kind, object))
}

fn refuse(kind: &Kind, object: &Object, errors: &Errors) -> Result<()> {
    if errors.is_empty() { Ok(()) } else { Err(Failure::invalid(kind, object.name(), errors)) }
}

fn faults(kind: &Kind, object: &Object) -> Errors {
    let mut errors = Errors::default();
    match object.name() {
        "" => errors.required("metadata.name", "name or generateName is required"),
        name => {
            if let Some(fault) = names::fault(name, kind.names) {
                errors.invalid("metadata.name", name, fault);
            }
        }
    }
    names::check_labels(object.at("/metadata/labels"), "metadata.labels", &mut errors);
    names::check_annotations(
        object.at("/metadata/annotations"),
        "metadata.annotations",
        &mut errors,
    );
    for (index, owner) in object.list("/metadata/ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                errors.invalid(
                    format!("metadata.ownerReferences[{index}].{field}"),
                    owner[field].clone(),
                    format!("{field} must not be empty"),
                );
            }
        }
    }
    kind.check(object, &mut errors);
    errors
}
