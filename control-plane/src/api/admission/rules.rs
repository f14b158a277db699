//! That nobody grants by roles and bindings what they don't have, unless a rule lets them
//! `escalate` or `bind`.

use k8s_openapi::api::rbac::v1::{PolicyRule, RoleRef};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::How;
use crate::api::Api;
use crate::api::status::{Failure, Result};
use crate::authz::rbac::GROUP;
use crate::authz::{Attributes, MASTERS, User, escalation};
use crate::registry::{Kind, Object};

fn read<T: DeserializeOwned + Default>(value: Option<&Value>) -> Result<T> {
    let Some(value) = value else { return Ok(T::default()) };
    serde_json::from_value(value.clone())
        .map_err(|error| Failure::bad_request(format!("the rules can't be read: {error}")))
}

/// What the garbage collector writes of an object, and what the server keeps of every write.
const BOOKKEEPING: [&str; 9] = [
    "/apiVersion",
    "/kind",
    "/metadata/deletionGracePeriodSeconds",
    "/metadata/deletionTimestamp",
    "/metadata/finalizers",
    "/metadata/generation",
    "/metadata/managedFields",
    "/metadata/ownerReferences",
    "/metadata/resourceVersion",
];

/// Whether a change grants nothing whatever the role says, as the garbage collector's does.
fn is_bookkeeping(new: &Object, old: &Object) -> bool {
    let rest = |object: &Object| {
        let mut rest = object.clone();
        for field in BOOKKEEPING {
            rest.remove(field);
        }
        rest
    };
    rest(new) == rest(old)
}

/// Whether a role is made of others.
fn aggregates(role: &Object) -> bool {
    !role.list("/aggregationRule/clusterRoleSelectors").is_empty()
}

impl Api {
    /// Looks at a new or changed role or binding.
    pub(super) fn admit_rules(
        &self,
        kind: &Kind,
        new: &Object,
        old: Option<&Object>,
        how: &How,
    ) -> Result<()> {
        let (Some(user), Some(_)) = (&how.by, &self.access) else { return Ok(()) };
        if user.is_in(MASTERS) {
            return Ok(());
        }
        if kind.plural.ends_with("bindings") {
            // Metadata may change.
            let same = |at: &str| old.is_some_and(|old| old.at(at) == new.at(at));
            if same("/roleRef") && same("/subjects") {
                return Ok(());
            }
            return self.admit_binding(kind, new, user);
        }
        // Rules that stay are looked at too: a label makes them a part of other roles.
        if old.is_some_and(|old| is_bookkeeping(new, old)) {
            return Ok(());
        }
        if self.may(user, "escalate", kind.plural, new.namespace(), new.name())? {
            return Ok(());
        }
        let rules: Vec<PolicyRule> = read(new.at("/rules"))?;
        self.refuse_excess(kind, new, user, &rules)?;
        // Who takes the aggregation away keeps the rules that it gathered.
        if aggregates(new) || old.is_some_and(aggregates) {
            let everything = escalation::everything();
            if self.granted(user, new.namespace(), &everything)?.is_some() {
                let why = "must have cluster-admin privileges to use the aggregationRule";
                return Err(Failure::forbidden(kind, new.name(), why));
            }
        }
        Ok(())
    }

    fn admit_binding(&self, kind: &Kind, new: &Object, user: &User) -> Result<()> {
        let role: RoleRef = read(new.at("/roleRef"))?;
        let of_namespace = role.kind == "Role";
        let plural = if of_namespace { "roles" } else { "clusterroles" };
        let namespace = new.namespace();
        if self.may(user, "bind", plural, namespace, &role.name)? {
            return Ok(());
        }
        let access = self.access()?;
        let rules = access
            .authorizer
            .read(|rules, _| rules.of_role(&role, namespace).map(|rules| rules.to_vec()).ok());
        let Some(rules) = rules else {
            let known = self.registry.resource(GROUP, "v1", plural);
            return Err(known.map_or_else(Failure::no_such_path, |known| {
                Failure::not_found(known, &role.name)
            }));
        };
        self.refuse_excess(kind, new, user, &rules)
    }

    fn may(
        &self,
        user: &User,
        verb: &str,
        resource: &str,
        namespace: &str,
        name: &str,
    ) -> Result<bool> {
        let asked =
            Attributes { verb, group: GROUP, resource, namespace, name, ..Attributes::default() };
        Ok(self.access()?.authorizer.decide(user, &asked).is_allowed())
    }

    /// Why a user may not grant rules in a namespace, if so.
    fn granted(
        &self,
        user: &User,
        namespace: &str,
        wanted: &[PolicyRule],
    ) -> Result<Option<String>> {
        let own = self.access()?.authorizer.read(|rules, _| rules.of_user(user, namespace));
        Ok(escalation::forbids(user, &own, wanted))
    }

    fn refuse_excess(
        &self,
        kind: &Kind,
        new: &Object,
        user: &User,
        wanted: &[PolicyRule],
    ) -> Result<()> {
        match self.granted(user, new.namespace(), wanted)? {
            Some(why) => Err(Failure::forbidden(kind, new.name(), &why)),
            None => Ok(()),
        }
    }
}
