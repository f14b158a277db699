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
        let same = |at: &str| old.is_some_and(|old| old.at(at) == new.at(at));
        if kind.plural.ends_with("bindings") {
            // Metadata may change.
            if same("/roleRef") && same("/subjects") {
                return Ok(());
            }
            return self.admit_binding(kind, new, user);
        }
        if same("/rules") && same("/aggregationRule") {
            return Ok(());
        }
        if self.may(user, "escalate", kind.plural, new.namespace(), new.name())? {
            return Ok(());
        }
        if new.at("/aggregationRule").is_some() && !same("/aggregationRule") {
            let everything = escalation::everything();
            if self.granted(user, new.namespace(), &everything)?.is_some() {
                let why = "must have cluster-admin privileges to use the aggregationRule";
                return Err(Failure::forbidden(kind, new.name(), why));
            }
        }
        let rules: Vec<PolicyRule> = read(new.at("/rules"))?;
        self.refuse_excess(kind, new, user, &rules)
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
