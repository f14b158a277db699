//! Questions that are answered at once: whose a token is, who somebody is, and who may do what.

use http::{Method, Response, StatusCode};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde_json::{Value, json};

use super::body::Form;
use super::query::Target;
use super::status::{Failure, Result};
use super::{Api, Body, Call, clock, fields};
use crate::authn::TokenError;
use crate::authz::{Attributes, MASTERS, User, escalation, node};
use crate::registry::invalid::Errors;
use crate::registry::{Object, Review};

impl Api {
    /// Answers a review of the target's kind.
    pub(super) async fn review(
        &self,
        call: &Call,
        target: &Target,
        review: Review,
        body: &[u8],
    ) -> Result<Response<Body>> {
        if call.method != Method::POST || !target.name.is_empty() {
            return Err(Failure::method_not_allowed());
        }
        Form::among(&call.headers, &[Form::Json])?;
        let (mut object, _) = fields::read(call, target.kind, body)?;
        super::create::check_identity(&mut object, target)?;
        let status = match review {
            Review::Token => self.review_token(target, &object).await?,
            Review::Own => json!({"userInfo": user_value(&call.user)}),
            Review::OwnAccess => {
                check_question(target, &object)?;
                self.review_access(&call.user, &object)?
            }
            Review::Access => {
                check_question(target, &object)?;
                self.review_access(&subject(target, &object)?, &object)?
            }
            Review::LocalAccess => {
                check_question(target, &object)?;
                check_namespace(target, &object)?;
                self.review_access(&subject(target, &object)?, &object)?
            }
            Review::OwnRules => self.review_rules(target, &call.user, &object)?,
        };
        object.set("/status", status);
        if review == Review::Own {
            object.set("/metadata/creationTimestamp", clock::format(clock::now()));
        }
        Ok(super::json(StatusCode::CREATED, object.value()))
    }

    async fn review_token(&self, target: &Target, object: &Object) -> Result<Value> {
        let token = object.text("/spec/token");
        if token.is_empty() {
            let mut errors = Errors::default();
            errors.required("spec.token", "");
            return Err(Failure::invalid(target.kind, "", &errors));
        }
        let asked = object.list("/spec/audiences").iter().filter_map(Value::as_str);
        let asked: Vec<String> = asked.map(str::to_owned).collect();
        let authenticator = &self.access()?.authenticator;
        Ok(match authenticator.token(&*self.store, token, &asked).await {
            Ok(known) => json!({
                "authenticated": true,
                "user": user_value(&known.user),
                "audiences": known.audiences,
            }),
            Err(TokenError::Store(error)) => return Err(error.into()),
            Err(error) => json!({"user": {}, "error": error.to_string()}),
        })
    }

    fn review_access(&self, user: &User, object: &Object) -> Result<Value> {
        let text = |at: &str| object.text(at);
        let asked = if object.at("/spec/resourceAttributes").is_some() {
            Attributes {
                verb: text("/spec/resourceAttributes/verb"),
                group: text("/spec/resourceAttributes/group"),
                version: text("/spec/resourceAttributes/version"),
                resource: text("/spec/resourceAttributes/resource"),
                subresource: text("/spec/resourceAttributes/subresource"),
                namespace: text("/spec/resourceAttributes/namespace"),
                name: text("/spec/resourceAttributes/name"),
                fields: &[],
                path: "",
            }
        } else {
            let verb = text("/spec/nonResourceAttributes/verb");
            let path = text("/spec/nonResourceAttributes/path");
            Attributes { verb, path, ..Attributes::default() }
        };
        let fields = selected(object);
        let asked = Attributes { fields: &fields, ..asked };
        let decision = self.access()?.authorizer.decide(user, &asked);
        let mut status = json!({"allowed": decision.is_allowed()});
        let reason = decision.why().to_string();
        if !reason.is_empty() {
            status["reason"] = reason.into();
        }
        Ok(status)
    }

    fn review_rules(&self, target: &Target, user: &User, object: &Object) -> Result<Value> {
        let namespace = object.text("/spec/namespace");
        if namespace.is_empty() {
            return Err(Failure::bad_request("no namespace on request"));
        }
        let (mut rules, missing) =
            self.access()?.authorizer.read(|rules, _| rules.of_user(user, namespace));
        if user.is_in(MASTERS) {
            rules.splice(0..0, escalation::everything());
        }
        let mut errors: Vec<String> = missing.iter().map(ToString::to_string).collect();
        if node::identity(user).is_some() {
            errors.push("node authorizer does not support user rule resolution".to_owned());
        }
        let (urls, resources): (Vec<PolicyRule>, Vec<PolicyRule>) =
            rules.into_iter().partition(|rule| rule.non_resource_urls.is_some());
        let mut status = json!({
            "resourceRules": resources.iter().map(resource_rule).collect::<Vec<_>>(),
            "nonResourceRules": urls.iter().map(url_rule).collect::<Vec<_>>(),
            "incomplete": !errors.is_empty(),
        });
        if !errors.is_empty() {
            tracing::debug!(kind = target.kind.kind, ?errors, "rules are not complete");
            status["evaluationError"] = errors.join(", ").into();
        }
        Ok(status)
    }
}

fn resource_rule(rule: &PolicyRule) -> Value {
    let mut value = json!({"verbs": rule.verbs});
    let fields = [
        ("apiGroups", &rule.api_groups),
        ("resources", &rule.resources),
        ("resourceNames", &rule.resource_names),
    ];
    for (name, list) in fields {
        if let Some(list) = list {
            value[name] = json!(list);
        }
    }
    value
}

fn url_rule(rule: &PolicyRule) -> Value {
    json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls})
}

/// A user as the API shows it.
pub(super) fn user_value(user: &User) -> Value {
    let mut value = json!({"username": user.name});
    if !user.uid.is_empty() {
        value["uid"] = user.uid.as_str().into();
    }
    if !user.groups.is_empty() {
        value["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

/// What the field selector of a question demands to be equal.
fn selected(object: &Object) -> Vec<(String, String)> {
    let requirements = object.list("/spec/resourceAttributes/fieldSelector/requirements");
    let equal = |one: &&Value| {
        one["operator"] == "In" && one["values"].as_array().is_some_and(|values| values.len() == 1)
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    requirements
        .iter()
        .filter(equal)
        .map(|one| (text(&one["key"]), text(&one["values"][0])))
        .collect()
}

/// Of a resource or of a path has to be asked.
fn check_question(target: &Target, object: &Object) -> Result<()> {
    let resource = object.at("/spec/resourceAttributes");
    let path = object.at("/spec/nonResourceAttributes");
    let mut errors = Errors::default();
    let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
    if let (Some(_), Some(path)) = (resource, path) {
        let why = "cannot be specified in combination with resourceAttributes";
        errors.invalid("spec.nonResourceAttributes", path.clone(), why);
    }
    if resource.is_none() && path.is_none() {
        errors.invalid("spec.resourceAttributes", Value::Null, why);
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::invalid(target.kind, "", &errors)) }
}

fn check_namespace(target: &Target, object: &Object) -> Result<()> {
    let at = "/spec/resourceAttributes/namespace";
    let mut errors = Errors::default();
    if object.text(at) != target.namespace {
        let why = "must match metadata.namespace";
        errors.invalid("spec.resourceAttributes.namespace", object.text(at), why);
    }
    if object.at("/spec/nonResourceAttributes").is_some() {
        let path = object.at("/spec/nonResourceAttributes").cloned().unwrap_or_default();
        let why = "disallowed on this kind of request";
        errors.invalid("spec.nonResourceAttributes", path, why);
    }
    if errors.is_empty() { Ok(()) } else { Err(Failure::invalid(target.kind, "", &errors)) }
}

/// The user that a question is about.
fn subject(target: &Target, object: &Object) -> Result<User> {
    let texts = |value: Option<&Value>| -> Vec<String> {
        let list = value.and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let extra = object.at("/spec/extra").and_then(Value::as_object).into_iter().flatten();
    let user = User {
        name: object.text("/spec/user").to_owned(),
        uid: object.text("/spec/uid").to_owned(),
        groups: texts(object.at("/spec/groups")),
        extra: extra.map(|(key, values)| (key.to_lowercase(), texts(Some(values)))).collect(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        let mut errors = Errors::default();
        errors.invalid("spec.user", "", "at least one of user or group must be specified");
        return Err(Failure::invalid(target.kind, "", &errors));
    }
    Ok(user)
}
