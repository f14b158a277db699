//! The subresource `eviction` of pods: a deletion that a PodDisruptionBudget may put off.

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::admission::{How, admit_delete};
use super::delete::Options;
use super::query::Target;
use super::status::{Failure, Result};
use super::update::Part;
use super::{Api, Body, Call, body, clock, encode, success};
use crate::registry::selector::Selector;
use crate::registry::{Kind, Object};
use crate::store::Query;

/// Most pods of a budget that are on their way out at a time.
const MAX_DISRUPTED: usize = 2_000;
const VIOLATED: &str = "Cannot evict pod as it would violate the pod's disruption budget.";
/// Seconds after which a budget that has not been looked at may have been.
const RETRY: u32 = 10;

impl Api {
    pub(super) async fn evict(
        &self,
        call: &Call,
        target: &Target,
        body: &Bytes,
    ) -> Result<Response<Body>> {
        let eviction = body::decode(&call.headers, body)?;
        let named = eviction.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        if !named.is_empty() && named != target.name {
            return Err(Failure::bad_request(format!(
                "name in URL does not match name in Eviction object: {:?} vs {named:?}",
                target.name
            )));
        }
        let mut options = Options::from_value(call, &eviction["deleteOptions"])?;
        let pod = self.existing(target).await?;
        options.check(target.kind, &pod)?;
        // Before a budget is spent on somebody who may not have the pod deleted.
        admit_delete(target.kind, &pod, &options.how)?;
        if !is_free(&pod)
            && let Some(kind) = self.registry.resource("policy", "v1", "poddisruptionbudgets")
            && let Some(budget) = self.budget_of(kind, &pod).await?
        {
            if may_go_unhealthy(&budget, &pod) {
                // As it is: one that is ready by now has to be counted.
                options.resource_version.get_or_insert_with(|| pod.resource_version().to_owned());
            } else {
                self.count_down(&options.how, kind, &budget, &pod).await?;
            }
        }
        self.remove(target, &options).await?;
        Ok(super::json(StatusCode::CREATED, &success(&Value::Null)))
    }

    /// The budget that is about the pod, of which there may be one.
    async fn budget_of(&self, kind: &'static Kind, pod: &Object) -> Result<Option<Object>> {
        let prefix = kind.key(pod.namespace(), "");
        let query = Query { prefix: &prefix, after: None, limit: None, at: None };
        let mut found = None;
        for (_, entry) in &self.store.range(query).await?.entries {
            let budget = encode::object(entry)?;
            let Some(selector) = budget.at("/spec/selector") else { continue };
            let labels = pod.at("/metadata/labels").and_then(Value::as_object);
            if !Selector::from_object(selector)?.matches(labels) {
                continue;
            }
            if found.replace(budget).is_some() {
                let message = "Internal error occurred: This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                let code = StatusCode::INTERNAL_SERVER_ERROR;
                return Err(Failure::new(code, "InternalError", message));
            }
        }
        Ok(found)
    }

    /// Takes one of the disruptions that the budget allows, or says why there is none.
    async fn count_down(
        &self,
        how: &How,
        kind: &'static Kind,
        budget: &Object,
        pod: &Object,
    ) -> Result<()> {
        let target = Target {
            kind,
            namespace: budget.namespace().to_owned(),
            name: budget.name().to_owned(),
            subresource: String::new(),
        };
        self.rewrite(&target, Part::Raw, how, |budget| taken(kind, budget, pod)).await.map(drop)
    }
}

/// Whether nobody counts on the pod: it has ended, has not begun, or goes already.
fn is_free(pod: &Object) -> bool {
    let phase = pod.text("/status/phase");
    matches!(phase, "Succeeded" | "Failed" | "Pending" | "") || pod.is_terminating()
}

/// Whether the pod is not ready and the budget does not care for such.
fn may_go_unhealthy(budget: &Object, pod: &Object) -> bool {
    let is_ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
    if pod.list("/status/conditions").iter().any(is_ready) {
        return false;
    }
    let number = |field: &str| budget.integer(&format!("/status/{field}")).unwrap_or(0);
    let (current, desired) = (number("currentHealthy"), number("desiredHealthy"));
    budget.text("/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow"
        || (current >= desired && desired > 0)
}

/// The budget with one disruption less.
fn taken(kind: &Kind, budget: &Object, pod: &Object) -> Result<Object> {
    let number = |pointer: &str| budget.integer(pointer).unwrap_or(0);
    let name = budget.name();
    let refused = |why: String| {
        let code = StatusCode::TOO_MANY_REQUESTS;
        Failure::new(code, "TooManyRequests", VIOLATED).because("DisruptionBudget", &why, "")
    };
    if number("/status/observedGeneration") < number("/metadata/generation") {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refused(why).retry_after(RETRY));
    }
    let allowed = number("/status/disruptionsAllowed");
    if allowed < 0 {
        return Err(Failure::forbidden(kind, name, "pdb disruptions allowed is negative"));
    }
    let disrupted = budget.at("/status/disruptedPods").and_then(Value::as_object);
    if disrupted.is_some_and(|pods| pods.len() > MAX_DISRUPTED) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(Failure::forbidden(kind, name, why));
    }
    let mut conditions = budget.list("/status/conditions").to_vec();
    let mut condition = conditions.iter_mut().find(|one| one["type"] == "DisruptionAllowed");
    if allowed == 0 {
        let failed =
            condition.filter(|one| one["reason"] == "SyncFailed" && one["status"] == "False");
        return Err(refused(match failed {
            Some(failed) => format!(
                "The disruption budget {name} does not allow evicting pods currently because it failed sync: {}",
                failed["message"].as_str().unwrap_or_default()
            ),
            None => format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                number("/status/desiredHealthy"),
                number("/status/currentHealthy")
            ),
        }));
    }
    let now = clock::format(clock::now());
    let mut disrupted = disrupted.cloned().unwrap_or_default();
    disrupted.insert(pod.name().to_owned(), now.as_str().into());
    if allowed == 1
        && let Some(condition) = &mut condition
    {
        condition["status"] = "False".into();
        condition["reason"] = "InsufficientPods".into();
        condition["lastTransitionTime"] = now.into();
    }
    let mut new = budget.clone();
    new.set("/status/disruptionsAllowed", allowed - 1);
    new.set("/status/disruptedPods", json!(disrupted));
    if !conditions.is_empty() {
        new.set("/status/conditions", conditions);
    }
    Ok(new)
}
