//! UPDATE: a whole object for another, and what every change of an existing object goes through.

use http::{Response, StatusCode};

use super::admission::How;
use super::body::Form;
use super::create::{TRIES, at, check_identity, validate};
use super::fields;
use super::query::Target;
use super::status::{Failure, Result};
use super::{Api, Body, Call, encode};
use crate::registry::invalid::{Errors, IMMUTABLE, field_of};
use crate::registry::{Kind, Object, counters};
use crate::store::{Action, Expect, Op, StoreError};

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything but the status.
    Main,
    /// Only the status.
    Status,
    /// Only the decisions about a certificate.
    Approval,
    /// What the change says, checked by whoever makes it.
    Raw,
}

/// Fields of the metadata that no write changes.
const IDENTITY: [&str; 10] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "generateName",
    "selfLink",
];

impl Api {
    pub(super) async fn update(
        &self,
        call: &Call,
        target: &Target,
        body: &[u8],
        form: Form,
    ) -> Result<Response<Body>> {
        let (sent, warnings) = fields::read(call, target.kind, body)?;
        let stored = target.stored(&self.registry);
        let (code, object) = self.replace(&stored, sent, Part::Main, &call.how()?).await?;
        Ok(warnings.on(form.respond(target.kind, &object, call, code)))
    }

    /// Writes the object sent over the one that is there.
    pub(super) async fn replace(
        &self,
        target: &Target,
        mut sent: Object,
        part: Part,
        how: &How,
    ) -> Result<(StatusCode, Object)> {
        let kind = target.kind;
        check_identity(&mut sent, target)?;
        if sent.name() != target.name {
            let message = format!(
                "the name of the object ({}) does not match the name on the URL ({})",
                sent.name(),
                target.name
            );
            return Err(Failure::bad_request(message));
        }
        let missing_ok =
            kind.create_on_update && part == Part::Main && sent.resource_version().is_empty();
        let unconditional = sent.resource_version().is_empty();
        let change = |_: &Object| {
            if unconditional && !kind.unconditional_update {
                let mut errors = Errors::default();
                errors.invalid("metadata.resourceVersion", 0, "must be specified for an update");
                return Err(Failure::invalid(kind, &target.name, &errors));
            }
            Ok(sent.clone())
        };
        match self.rewrite(target, part, how, change).await {
            Err(failure) if missing_ok && failure.code() == StatusCode::NOT_FOUND => {
                self.authorize_creation(target, how)?;
                Ok((StatusCode::CREATED, self.insert(target, sent, how).await?))
            }
            outcome => Ok((StatusCode::OK, outcome?)),
        }
    }

    /// Changes the target: reads it, lets `change` make the new object, checks and commits; again
    /// if somebody else wrote in between and the new object does not insist on a revision.
    pub(super) async fn rewrite(
        &self,
        target: &Target,
        part: Part,
        how: &How,
        mut change: impl FnMut(&Object) -> Result<Object> + Send,
    ) -> Result<Object> {
        let kind = target.kind;
        let key = target.key();
        for _ in 0..TRIES {
            let entry = self
                .store
                .get(&key)
                .await?
                .ok_or_else(|| Failure::not_found(kind, &target.name))?;
            let old = encode::object(&entry)?;
            let mut new = change(&old)?;
            check_preconditions(kind, &new, &old)?;
            if part == Part::Main {
                kind.fill(&mut new);
            }
            prepare(kind, part, &mut new, &old);
            match part {
                Part::Main if !how.is_own() => check_change(kind, &new, &old)?,
                Part::Status if !how.is_own() => check_status(kind, &new, &old)?,
                Part::Approval => check_approval(kind, &new, &old)?,
                Part::Main | Part::Status | Part::Raw => {}
            }
            self.admit_update(kind, part, &new, &old, how).await?;
            let claims = if part == Part::Main {
                self.claim(kind, &mut new, Some(&old)).await?
            } else {
                Vec::new()
            };
            if part == Part::Main {
                count_generation(kind, &mut new, &old);
            }
            if new == old || how.dry_run {
                return Ok(new);
            }
            let expect = Expect::Modified(entry.modified);
            let (action, with) = if is_finished(&new) {
                // What the old object holds: the claims of the new one were not made.
                (self.deletion(kind, &old).await?, kind.strategy.release(&old))
            } else {
                (Action::Put(encode::to_bytes(&new)), claims)
            };
            let write = Op { key: key.as_str().into(), expect, action };
            match self.store.commit([vec![write], with].concat()).await {
                Ok(revision) => return Ok(at(new, revision)),
                Err(StoreError::Conflict { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
        Err(Failure::stale(kind, &target.name))
    }
}

/// Whether an object that is being deleted has nothing left to wait for.
pub(super) fn is_finished(object: &Object) -> bool {
    object.is_terminating()
        && !object.has_finalizers()
        && object.integer("/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
}

/// The writer may insist on the object's revision and identity.
fn check_preconditions(kind: &Kind, new: &Object, old: &Object) -> Result<()> {
    let version = new.resource_version();
    if !version.is_empty() && version != old.resource_version() {
        return Err(Failure::stale(kind, old.name()));
    }
    if !new.uid().is_empty() && new.uid() != old.uid() {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            new.uid(),
            old.uid()
        );
        return Err(Failure::conflict(kind, old.name(), &why));
    }
    Ok(())
}

/// Restores what this write may not change.
fn prepare(kind: &Kind, part: Part, new: &mut Object, old: &Object) {
    encode::set_kind(new, kind);
    if part == Part::Raw {
        return;
    }
    for field in IDENTITY {
        new.copy(&format!("/metadata/{field}"), old);
    }
    new.remove("/metadata/managedFields");
    if part == Part::Approval {
        let sent = std::mem::replace(new, old.clone());
        new.copy("/status/conditions", &sent);
        kind.strategy.prepare_approval(new, old);
        return;
    }
    if part == Part::Status {
        // Labels and annotations are written by either way.
        let sent = std::mem::replace(new, old.clone());
        new.copy("/status", &sent);
        new.copy("/metadata", &sent);
        kind.strategy.prepare_status(new, old);
        return;
    }
    if kind.has(crate::registry::Subresource::Status) {
        new.copy("/status", old);
    }
    kind.strategy.prepare_update(new, old);
}

/// Checks the new object and that only what may change has changed.
fn check_change(kind: &Kind, new: &Object, old: &Object) -> Result<()> {
    validate(kind, new)?;
    let mut errors = Errors::default();
    for pointer in kind.immutable {
        if new.at(pointer) != old.at(pointer) {
            errors.invalid(
                field_of(pointer),
                new.at(pointer).cloned().unwrap_or_default(),
                IMMUTABLE,
            );
        }
    }
    check_finalizers(new, old, &mut errors);
    kind.strategy.validate_update(new, old, &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(Failure::invalid(kind, old.name(), &errors)) }
}

/// Checks a status, and what its writer changes of the metadata.
fn check_status(kind: &Kind, new: &Object, old: &Object) -> Result<()> {
    let mut errors = Errors::default();
    if new.at("/metadata") != old.at("/metadata") {
        validate(kind, new)?;
        check_finalizers(new, old, &mut errors);
    }
    counters::check(kind.counters, new, old, &mut errors);
    kind.strategy.validate_status(new, old, &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(Failure::invalid(kind, old.name(), &errors)) }
}

/// Checks decisions.
fn check_approval(kind: &Kind, new: &Object, old: &Object) -> Result<()> {
    let mut errors = Errors::default();
    kind.strategy.validate_approval(new, old, &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(Failure::invalid(kind, old.name(), &errors)) }
}

/// An object that is being deleted waits for nobody who comes later.
fn check_finalizers(new: &Object, old: &Object, errors: &mut Errors) {
    if !old.is_terminating() {
        return;
    }
    let before = old.list("/metadata/finalizers");
    let added: Vec<String> = new
        .list("/metadata/finalizers")
        .iter()
        .filter(|one| !before.contains(one))
        .map(ToString::to_string)
        .collect();
    if !added.is_empty() {
        let why = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.join(", ")
        );
        errors.forbidden("metadata.finalizers", why);
    }
}

/// Counts a change of what the user wants: of anything but metadata and status, unless the kind
/// says otherwise.
fn count_generation(kind: &Kind, new: &mut Object, old: &Object) {
    let wanted = |object: &Object| {
        let mut value = object.value().clone();
        for field in ["metadata", "status"] {
            value.as_object_mut().map(|fields| fields.remove(field));
        }
        value
    };
    let moves = || wanted(new) != wanted(old) || kind.strategy.moves_generation(new, old);
    if kind.counts_generations && moves() {
        new.set("/metadata/generation", old.integer("/metadata/generation").unwrap_or(0) + 1);
    }
}
