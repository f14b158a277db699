//! DELETE: at once, after a grace period, or when the finalizers are done.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::admission::{How, admit_delete};
use super::body::{self, Form};
use super::filter::Filter;
use super::query::Target;
use super::status::{Failure, Result};
use super::{Api, Body, Call, clock, encode, success};
use crate::registry::invalid::Errors;
use crate::registry::{Kind, Object};
use crate::store::{Action, Entry, Expect, Op, StoreError};

/// `DeleteOptions`.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    grace: Option<i64>,
    uid: Option<String>,
    pub(super) resource_version: Option<String>,
    /// What the caller says of the dependents, if anything.
    propagation: Option<Propagation>,
    pub(super) how: How,
}

/// What becomes of an object's dependents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Propagation {
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
    /// They stay.
    Orphan,
}

impl Propagation {
    /// The policy that the options name, in the words of today or of old.
    fn asked(policy: &str, orphan: Option<bool>) -> Result<Option<Self>> {
        let refused = |fill: &dyn Fn(&mut Errors)| {
            let mut errors = Errors::default();
            fill(&mut errors);
            Err(Failure::invalid_options("DeleteOptions", &errors))
        };
        let named = match policy {
            "" => None,
            "Background" => Some(Self::Background),
            "Foreground" => Some(Self::Foreground),
            "Orphan" => Some(Self::Orphan),
            other => {
                let allowed = ["Foreground", "Background", "Orphan", "nil"];
                return refused(&|errors| {
                    errors.not_supported("propagationPolicy", other, &allowed);
                });
            }
        };
        match (named, orphan) {
            (Some(_), Some(_)) => refused(&|errors| {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                errors.invalid("propagationPolicy", policy, why);
            }),
            (named, None) => Ok(named),
            (None, Some(true)) => Ok(Some(Self::Orphan)),
            (None, Some(false)) => Ok(Some(Self::Background)),
        }
    }

    /// The finalizer by which the garbage collector knows it.
    fn finalizer(self) -> Option<&'static str> {
        match self {
            Self::Background => None,
            Self::Foreground => Some(FOREGROUND),
            Self::Orphan => Some(ORPHAN),
        }
    }

    /// The policy that an earlier request left on the object.
    fn left_on(object: &Object) -> Option<Self> {
        object.list("/metadata/finalizers").iter().find_map(|one| match one.as_str() {
            Some(FOREGROUND) => Some(Self::Foreground),
            Some(ORPHAN) => Some(Self::Orphan),
            _ => None,
        })
    }
}

/// Finalizers of owners whose dependents go first, and whose dependents stay.
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

impl Options {
    /// Reads the options from the query and the body, which has precedence.
    pub(super) fn read(call: &Call, body: &[u8]) -> Result<Self> {
        let sent = if body.is_empty() { Value::Null } else { body::decode(&call.headers, body)? };
        Self::from_value(call, &sent)
    }

    /// Takes the options from a decoded `DeleteOptions`.
    pub(super) fn from_value(call: &Call, sent: &Value) -> Result<Self> {
        let how = call.how()?;
        let grace = match sent["gracePeriodSeconds"].as_i64() {
            Some(seconds) => Some(seconds),
            None => call.params.integer("gracePeriodSeconds")?,
        };
        let text = |pointer: &str| sent.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let policy = text("/propagationPolicy")
            .unwrap_or_else(|| call.params.text("propagationPolicy").to_owned());
        let orphan = match sent["orphanDependents"].as_bool() {
            None if call.params.has("orphanDependents") => {
                Some(call.params.flag("orphanDependents"))
            }
            said => said,
        };
        Ok(Self {
            // Kubernetes takes a negative time for the least that is not "at once".
            grace: grace.map(|seconds| if seconds < 0 { 1 } else { seconds }),
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
            propagation: Propagation::asked(&policy, orphan)?,
            how: How { dry_run: how.dry_run || sent["dryRun"] == json!(["All"]), ..how },
        })
    }

    /// The caller may insist on the object's identity and revision.
    pub(super) fn check(&self, kind: &Kind, object: &Object) -> Result<()> {
        let differs = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().filter(|wanted| *wanted != found).cloned()
        };
        if let Some(uid) = differs(&self.uid, object.uid()) {
            let why = format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                object.uid()
            );
            return Err(Failure::conflict(kind, object.name(), &why));
        }
        if let Some(version) = differs(&self.resource_version, object.resource_version()) {
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
                object.resource_version()
            );
            return Err(Failure::conflict(kind, object.name(), &why));
        }
        Ok(())
    }
}

/// What became of an object that somebody deletes.
pub(super) struct Deleted {
    /// Its last state.
    pub(super) object: Object,
    /// Whether it is gone, not only marked.
    pub(super) gone: bool,
}

impl Api {
    pub(super) async fn delete(
        &self,
        call: &Call,
        target: &Target,
        body: &[u8],
    ) -> Result<Response<Body>> {
        let options = Options::read(call, body)?;
        let deleted = self.remove(&target.stored(&self.registry), &options).await?;
        if deleted.gone && !target.kind.returns_deleted {
            let mut details = json!({"name": target.name, "kind": target.kind.plural, "uid": deleted.object.uid()});
            if !target.kind.group.is_empty() {
                details["group"] = target.kind.group.into();
            }
            return Ok(super::json(StatusCode::OK, &success(&details)));
        }
        Ok(Form::accepted(&call.headers)?.respond(
            target.kind,
            &deleted.object,
            call,
            StatusCode::OK,
        ))
    }

    pub(super) async fn delete_collection(
        &self,
        call: &Call,
        target: &Target,
        body: &[u8],
    ) -> Result<Response<Body>> {
        let options = Options::read(call, body)?;
        let filter = Filter::new(call, target)?;
        let listed = self.listed(call, target, &filter).await?;
        for (_, entry) in &listed.entries {
            let object = encode::object(entry)?;
            let one = Target {
                namespace: object.namespace().to_owned(),
                name: object.name().to_owned(),
                ..target.clone()
            };
            match self.remove(&one, &options).await {
                Err(failure) if failure.code() != StatusCode::NOT_FOUND => return Err(failure),
                _ => {}
            }
        }
        Ok(super::list::stream(target.kind, listed))
    }

    /// Deletes the target, or marks it.
    pub(super) async fn remove(&self, target: &Target, options: &Options) -> Result<Deleted> {
        let kind = target.kind;
        loop {
            let entry = self
                .store
                .get(&target.key())
                .await?
                .ok_or_else(|| Failure::not_found(kind, &target.name))?;
            let old = encode::object(&entry)?;
            options.check(kind, &old)?;
            admit_delete(kind, &old, &options.how)?;
            if let Some(why) = kind.strategy.forbids_deletion(&old) {
                return Err(Failure::forbidden(kind, &target.name, why));
            }
            let (object, gone) = mark(kind, &old, options);
            if options.how.dry_run || (!gone && object == old) {
                return Ok(Deleted { object, gone });
            }
            match self.commit_deletion(target, &entry, &object, gone).await {
                Ok(object) => return Ok(Deleted { object, gone }),
                Err(StoreError::Conflict { .. }) => {}
                Err(other) => return Err(other.into()),
            }
        }
    }

    /// How an object goes: for most there is nothing afterwards.
    pub(super) async fn deletion(
        &self,
        kind: &Kind,
        object: &Object,
    ) -> std::result::Result<Action, StoreError> {
        let successor = kind.strategy.successor(object, &*self.store).await?;
        Ok(successor.map_or(Action::Delete, Action::Put))
    }

    async fn commit_deletion(
        &self,
        target: &Target,
        entry: &Entry,
        object: &Object,
        gone: bool,
    ) -> std::result::Result<Object, StoreError> {
        let expect = Expect::Modified(entry.modified);
        let action = if gone {
            self.deletion(target.kind, object).await?
        } else {
            Action::Put(encode::to_bytes(object))
        };
        let mut ops = vec![Op { key: target.key().into(), expect, action }];
        if gone {
            ops.extend(target.kind.strategy.release(object));
        }
        let revision = self.store.commit(ops).await?;
        Ok(super::create::at(object.clone(), revision))
    }
}

/// The object as the deletion leaves it, and whether it is gone then.
fn mark(kind: &Kind, old: &Object, options: &Options) -> (Object, bool) {
    let mut object = old.clone();
    set_propagation(&mut object, kind, options.propagation);
    let grace = kind.strategy.grace_period(old, options.grace).unwrap_or(0).max(0);
    if !object.is_terminating() {
        object
            .set("/metadata/deletionTimestamp", clock::format(clock::now().saturating_add(grace)));
        object.set("/metadata/deletionGracePeriodSeconds", grace);
        if let Some(generation) = old.integer("/metadata/generation") {
            object.set("/metadata/generation", generation + 1);
        }
        if kind.kind == "Namespace" {
            object.set("/status/phase", "Terminating");
        }
    } else if let Some(was) = old.integer("/metadata/deletionGracePeriodSeconds")
        && options.grace.is_some()
        && grace < was
    {
        // A second request may only shorten the time.
        let until =
            clock::parse(old.text("/metadata/deletionTimestamp")).unwrap_or_else(clock::now);
        let until = until.saturating_sub(was).saturating_add(grace);
        object.set("/metadata/deletionTimestamp", clock::format(until));
        object.set("/metadata/deletionGracePeriodSeconds", grace);
    }
    let gone = super::update::is_finished(&object);
    (object, gone)
}

/// Foreground and orphan deletion wait for the garbage collector, which sees a finalizer. What a
/// caller says replaces what an earlier one has said; whoever says nothing leaves that, or has what
/// is usual for the kind.
fn set_propagation(object: &mut Object, kind: &Kind, asked: Option<Propagation>) {
    let usual = if kind.orphans { Propagation::Orphan } else { Propagation::Background };
    let policy = asked.or_else(|| Propagation::left_on(object)).unwrap_or(usual);
    let before = object.list("/metadata/finalizers");
    let ours = |one: &Value| *one == FOREGROUND || *one == ORPHAN;
    let mut finalizers: Vec<Value> = before.iter().filter(|one| !ours(one)).cloned().collect();
    finalizers.extend(policy.finalizer().map(Value::from));
    if finalizers.is_empty() {
        object.remove("/metadata/finalizers");
    } else if finalizers != before {
        object.set("/metadata/finalizers", finalizers);
    }
}
