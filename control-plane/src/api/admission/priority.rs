//! `Priority`: a pod has the value of its priority class, or of the default one.

use serde_json::Value;

use crate::api::status::{Failure, Result};
use crate::api::{Api, encode};
use crate::registry::{Kind, Object};
use crate::store::Query;

/// What a pod preempts whose class does not say.
const PREEMPTS: &str = "PreemptLowerPriority";
/// The prefix of the store's keys of priority classes.
const PREFIX: &str = "scheduling.k8s.io/priorityclasses/";

impl Api {
    /// Gives a new pod its priority.
    pub(super) async fn admit_priority(&self, kind: &Kind, pod: &mut Object) -> Result<()> {
        let named = pod.text("/spec/priorityClassName").to_owned();
        let class = if named.is_empty() {
            self.default_class().await?
        } else {
            let entry = self.store.get(&format!("{PREFIX}{named}")).await?;
            let Some(entry) = entry else {
                let why = format!("no PriorityClass with name {named} was found");
                return Err(Failure::forbidden(kind, pod.name(), &why));
            };
            Some(encode::object(&entry)?)
        };
        let value = class.as_ref().and_then(|class| class.integer("/value")).unwrap_or(0);
        let policy = class.as_ref().map(|class| class.text("/preemptionPolicy"));
        let policy = policy.filter(|policy| !policy.is_empty()).unwrap_or(PREEMPTS).to_owned();
        let given = pod.at("/spec/priority").and_then(Value::as_i64);
        if given.is_some_and(|given| given != value) {
            let why = format!(
                "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
                given.unwrap_or_default()
            );
            return Err(Failure::forbidden(kind, pod.name(), &why));
        }
        let asked = pod.text("/spec/preemptionPolicy");
        if !asked.is_empty() && asked != policy {
            let why = format!(
                "the string value of PreemptionPolicy ({asked}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
            );
            return Err(Failure::forbidden(kind, pod.name(), &why));
        }
        if let Some(class) = &class {
            pod.set("/spec/priorityClassName", class.name().to_owned());
        }
        pod.set("/spec/priority", value);
        pod.set("/spec/preemptionPolicy", policy);
        Ok(())
    }

    /// Looks at a new or changed class: one alone is that of pods that name none.
    pub(super) async fn admit_default_priority(&self, kind: &Kind, class: &Object) -> Result<()> {
        if !class.flag("/globalDefault") {
            return Ok(());
        }
        match self.default_class().await? {
            Some(other) if other.name() != class.name() => {
                let why = format!(
                    "PriorityClass {} is already marked as default. Only one default can exist",
                    other.name()
                );
                Err(Failure::forbidden(kind, class.name(), &why))
            }
            _ => Ok(()),
        }
    }

    /// The class of pods that name none: of several the one of least value.
    async fn default_class(&self) -> Result<Option<Object>> {
        let query = Query { prefix: PREFIX, after: None, limit: None, at: None };
        let page = self.store.range(query).await?;
        let classes = page.entries.iter().filter_map(|(_, entry)| encode::object(entry).ok());
        let defaults = classes.filter(|class| class.flag("/globalDefault"));
        Ok(defaults.min_by_key(|class| class.integer("/value").unwrap_or(0)))
    }
}
