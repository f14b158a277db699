//! Roles, bindings and priority classes that exist from the start. What is missing is made, all in
//! one commit; what is there gets the rules and subjects again that it should have.

use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::{Value, json};

use super::internal;
use crate::api::status::Result;
use crate::api::{Api, create, encode};
use crate::authz::bootstrap::{AUTO_UPDATE, Made, objects};
use crate::authz::{escalation, rbac};
use crate::registry::priority::SYSTEM;
use crate::registry::{Kind, Object};
use crate::store::{Action, Expect, Op};

/// Makes what is missing.
pub(super) async fn ensure(api: &Api) -> Result<()> {
    let mut ops = Vec::new();
    for (plural, value) in priority_classes().into_iter().chain(objects()) {
        let group = if plural == "priorityclasses" { "scheduling.k8s.io" } else { rbac::GROUP };
        let kind =
            api.registry.resource(group, "v1", plural).ok_or_else(|| internal("no such kind"))?;
        let wanted = Object::new(value).ok_or_else(|| internal("no object"))?;
        ops.extend(op(api, kind, wanted).await?);
    }
    if !ops.is_empty() {
        api.store.commit(ops).await?;
    }
    Ok(())
}

fn priority_classes() -> Vec<Made> {
    let class = |(name, value, description): (&str, i64, &str)| json!({"metadata": {"name": name}, "value": value, "description": description});
    SYSTEM.into_iter().map(|one| ("priorityclasses", class(one))).collect()
}

/// What to do about one object.
async fn op(api: &Api, kind: &Kind, mut wanted: Object) -> Result<Option<Op>> {
    let key = kind.key(wanted.namespace(), wanted.name());
    let put = |object: &Object, expect| Op {
        key: key.as_str().into(),
        expect,
        action: Action::Put(encode::to_bytes(object)),
    };
    let Some(entry) = api.store.get(&key).await? else {
        encode::set_kind(&mut wanted, kind);
        create::begin(&mut wanted, kind);
        kind.strategy.default(&mut wanted);
        create::validate(kind, &wanted)?;
        return Ok(Some(put(&wanted, Expect::Absent)));
    };
    let mut object = encode::object(&entry)?;
    let annotations = object.at("/metadata/annotations");
    let kept = annotations.and_then(|all| all.get(AUTO_UPDATE)).is_some_and(|set| set == "true");
    kind.strategy.default(&mut wanted);
    let changed = kept && complete(&mut object, &wanted);
    Ok(changed.then(|| put(&object, Expect::Modified(entry.modified))))
}

/// Adds the rules and subjects that are missing; says whether there were any.
fn complete(object: &mut Object, wanted: &Object) -> bool {
    let rules = |object: &Object| -> Vec<PolicyRule> {
        let rules = object.at("/rules").cloned().unwrap_or(Value::Array(Vec::new()));
        serde_json::from_value(rules).unwrap_or_default()
    };
    let mut changed = false;
    // What is made of others is the controller's.
    if wanted.at("/aggregationRule").is_none() {
        let own = rules(object);
        let lacks = |rule: &Value| {
            let rule: Option<PolicyRule> = serde_json::from_value(rule.clone()).ok();
            rule.is_some_and(|rule| !escalation::missing(&own, &[rule]).is_empty())
        };
        let missing: Vec<Value> =
            wanted.list("/rules").iter().filter(|rule| lacks(rule)).cloned().collect();
        changed |= add(object, "/rules", &missing);
    }
    let subjects = object.list("/subjects");
    let missing: Vec<Value> =
        wanted.list("/subjects").iter().filter(|one| !subjects.contains(one)).cloned().collect();
    changed | add(object, "/subjects", &missing)
}

fn add(object: &mut Object, at: &str, missing: &[Value]) -> bool {
    if missing.is_empty() {
        return false;
    }
    let all = [object.list(at), missing].concat();
    object.set(at, all);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_added_and_what_is_more_stays() {
        let rule =
            |verbs: &[&str]| json!({"apiGroups": [""], "resources": ["pods"], "verbs": verbs});
        let subject = |name: &str| json!({"kind": "User", "name": name});
        let wanted = json!({"rules": [rule(&["get"]), rule(&["list"])], "subjects": [subject("a"), subject("b")]});
        let wanted = Object::new(wanted).unwrap();
        let found =
            json!({"rules": [rule(&["get", "delete"])], "subjects": [subject("b"), subject("c")]});
        let mut found = Object::new(found).unwrap();
        assert!(complete(&mut found, &wanted));
        assert_eq!(found.list("/rules"), [rule(&["get", "delete"]), rule(&["list"])]);
        assert_eq!(found.list("/subjects"), [subject("b"), subject("c"), subject("a")]);
        assert!(!complete(&mut found, &wanted));
    }
}
