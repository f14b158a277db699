//! What a kind does beyond its row: defaults, preparation, checks, graceful deletion and claims.

use std::net::IpAddr;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::invalid::Errors;
use super::object::Object;
use super::service::Ranges;
use crate::store::{Op, Store, StoreError};

/// Behaviour of a special kind. Every method has the behaviour of a plain kind as its default.
pub trait Strategy: Sync {
    /// Fills in what the API documents as default. Runs on every object written.
    fn default(&self, _object: &mut Object) {}

    /// Changes a new object before it is checked, after defaults: sets the first status.
    fn prepare_create(&self, _object: &mut Object) {}

    /// Changes an updated object before it is checked. Its status is the old one's already.
    fn prepare_update(&self, _object: &mut Object, _old: &Object) {}

    /// Changes an object of which the status is written.
    fn prepare_status(&self, _object: &mut Object, _old: &Object) {}

    /// Changes an object of which the decisions are written.
    fn prepare_approval(&self, _object: &mut Object, _old: &Object) {}

    /// Checks what only a new object has to keep to.
    fn validate_create(&self, _object: &Object, _errors: &mut Errors) {}

    /// Checks an object.
    fn validate(&self, _object: &Object, _errors: &mut Errors) {}

    /// Checks what may change. Immutable fields of the row are checked already.
    fn validate_update(&self, _object: &Object, _old: &Object, _errors: &mut Errors) {}

    /// Checks a status that is written. The counters of the row are checked already.
    fn validate_status(&self, _object: &Object, _old: &Object, _errors: &mut Errors) {}

    /// Checks decisions that are written.
    fn validate_approval(&self, _object: &Object, _old: &Object, _errors: &mut Errors) {}

    /// Whether `metadata.generation` moves though nothing but metadata has changed.
    fn moves_generation(&self, _object: &Object, _old: &Object) -> bool {
        false
    }

    /// Whether a POST may bring a status, as a node does that registers itself.
    fn keeps_status_on_create(&self) -> bool {
        false
    }

    /// Seconds that the object stays, marked, until its owner confirms the deletion; 0 deletes at
    /// once. `None` if the kind knows no graceful deletion.
    fn grace_period(&self, _object: &Object, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Why the object may not be deleted, if so.
    fn forbids_deletion(&self, _object: &Object) -> Option<&'static str> {
        None
    }

    /// Claims cluster-wide values for the object (addresses, ports), in the commit that writes it.
    fn claim<'a>(
        &'a self,
        _object: &'a mut Object,
        _old: Option<&'a Object>,
        _claims: Claims<'a>,
    ) -> BoxFuture<'a, Result<Vec<Op>, ClaimError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// Gives claimed values back, in the commit that removes the object.
    fn release(&self, _object: &Object) -> Vec<Op> {
        Vec::new()
    }

    /// What takes the place of an object that is deleted, as it is stored, in the same commit:
    /// where others rely on there being one.
    fn successor<'a>(
        &'a self,
        _deleted: &'a Object,
        _store: &'a dyn Store,
    ) -> BoxFuture<'a, Result<Option<Bytes>, StoreError>> {
        Box::pin(async { Ok(None) })
    }
}

/// A kind with nothing special.
pub struct Plain;
impl Strategy for Plain {}

/// What claims are made from.
#[derive(Clone, Copy)]
pub struct Claims<'a> {
    /// Where claims are recorded.
    pub store: &'a dyn Store,
    /// The ranges to choose from.
    pub ranges: &'a Ranges,
}

/// Why a claim failed.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The object asks for what it can't have.
    #[error("invalid")]
    Invalid(Errors),
    /// Nothing is left to claim.
    #[error("range is full: {0}")]
    Exhausted(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether `text` is an IP address, and which.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}
