//! Admission: what a write has to pass, and what it gets added, between its authorization and the
//! store. A file for each concern; the names are those of Kubernetes' plugins.
//!
//! | plugin | does |
//! |---|---|
//! | `NamespaceLifecycle` | nothing new in a namespace that goes away (in `create`), some never go |
//! | `NodeRestriction` | nodes write about themselves and their pods only |
//! | `ServiceAccount` | pods have an account that exists, and its token in their containers |
//! | `Priority` | pods have the value of their priority class |
//! | `DefaultTolerationSeconds` | pods stay for five minutes on a node that is away (in the strategy of pods) |
//! | `DefaultIngressClass`, `DefaultStorageClass` | an Ingress or a claim without class gets the default one |
//!
//! That nobody grants more than they have, by roles and bindings, is looked at here too.

mod default_class;
mod node_restriction;
mod priority;
mod rules;
mod service_account;

use std::sync::Arc;

use serde_json::Value;

use super::reviews::user_value;
use super::status::Result;
use super::update::Part;
use super::{Api, Call};
use crate::authz::{User, node};
use crate::registry::{Kind, Object};

/// How a write is made, and by whom.
#[derive(Clone, Debug, Default)]
pub(super) struct How {
    /// Nothing is stored.
    pub(super) dry_run: bool,
    /// Who writes; the server itself where nobody does.
    pub(super) by: Option<Arc<User>>,
}

impl How {
    /// Whether the server writes itself: what it says is not checked. Where it is reached may be a
    /// loopback address, which nobody else may give to a Service.
    pub(super) fn is_own(&self) -> bool {
        self.by.is_none()
    }

    /// Who writes, if that is a node.
    fn node(&self) -> Option<(&User, &str)> {
        let user = self.by.as_deref()?;
        Some((user, node::identity(user)?))
    }
}

impl Call {
    /// How this request writes.
    pub(super) fn how(&self) -> Result<How> {
        Ok(How { dry_run: self.params.dry_run()?, by: Some(Arc::clone(&self.user)) })
    }
}

/// Which plugins are off.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disabled {
    /// `ServiceAccount`: pods need no account that exists, and get no token.
    pub service_account: bool,
}

fn is(kind: &Kind, group: &str, plural: &str) -> bool {
    kind.group == group && kind.plural == plural
}

impl Api {
    /// Looks at a new object, and adds to it.
    pub(super) async fn admit_create(
        &self,
        kind: &Kind,
        object: &mut Object,
        how: &How,
    ) -> Result<()> {
        if let Some((user, node)) = how.node() {
            self.restrict_create(kind, object, user, node).await?;
        }
        if is(kind, "", "pods") {
            self.admit_account(kind, object).await?;
            self.admit_priority(kind, object).await?;
        } else if is(kind, "scheduling.k8s.io", "priorityclasses") {
            self.admit_default_priority(kind, object).await?;
        } else if is(kind, "networking.k8s.io", "ingresses") {
            self.admit_class(&default_class::INGRESS, object).await?;
        } else if is(kind, "", "persistentvolumeclaims") {
            self.admit_class(&default_class::STORAGE, object).await?;
        } else if kind.group == crate::authz::rbac::GROUP {
            self.admit_rules(kind, object, None, how)?;
        } else if is(kind, "certificates.k8s.io", "certificatesigningrequests") {
            name_requester(object, how);
        }
        Ok(())
    }

    /// Looks at a changed object.
    pub(super) async fn admit_update(
        &self,
        kind: &Kind,
        part: Part,
        new: &Object,
        old: &Object,
        how: &How,
    ) -> Result<()> {
        if let Some((user, node)) = how.node() {
            node_restriction::update(kind, part, new, old, user, node)?;
        }
        if kind.group == crate::authz::rbac::GROUP {
            self.admit_rules(kind, new, Some(old), how)?;
        } else if is(kind, "scheduling.k8s.io", "priorityclasses") {
            self.admit_default_priority(kind, new).await?;
        }
        Ok(())
    }
}

/// Who asks for a certificate is who sends the request, whatever it says.
fn name_requester(object: &mut Object, how: &How) {
    for field in ["username", "uid", "groups", "extra"] {
        object.remove(&format!("/spec/{field}"));
    }
    let user = how.by.as_deref().map(user_value);
    for (field, value) in user.as_ref().and_then(Value::as_object).into_iter().flatten() {
        object.set(&format!("/spec/{field}"), value.clone());
    }
}

/// Looks at a deletion.
pub(super) fn admit_delete(kind: &Kind, old: &Object, how: &How) -> Result<()> {
    match how.node() {
        Some((user, node)) => node_restriction::delete(kind, old, user, node),
        None => Ok(()),
    }
}
