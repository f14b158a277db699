//! `DefaultIngressClass`: an Ingress that names no class gets the one that is marked as default.

use crate::api::status::Result;
use crate::api::{Api, encode};
use crate::registry::{Kind, Object};
use crate::store::Query;

/// The annotation that marks it.
const DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// The annotation by which an Ingress names a class in the old way.
const OLD_WAY: &str = "kubernetes.io/ingress.class";
/// The prefix of the store's keys of ingress classes.
const PREFIX: &str = "networking.k8s.io/ingressclasses/";

fn annotation<'a>(object: &'a Object, key: &str) -> Option<&'a str> {
    object.at("/metadata/annotations")?.get(key)?.as_str()
}

impl Api {
    /// Gives a new Ingress its class. Of several defaults the newest counts, as in Kubernetes.
    pub(super) async fn admit_ingress_class(&self, _kind: &Kind, new: &mut Object) -> Result<()> {
        if new.at("/spec/ingressClassName").is_some() || annotation(new, OLD_WAY).is_some() {
            return Ok(());
        }
        let query = Query { prefix: PREFIX, after: None, limit: None, at: None };
        let page = self.store.range(query).await?;
        let classes = page.entries.iter().filter_map(|(_, entry)| encode::object(entry).ok());
        let mut defaults: Vec<Object> =
            classes.filter(|class| annotation(class, DEFAULT) == Some("true")).collect();
        defaults.sort_by(|one, other| {
            let made = |class: &Object| class.text("/metadata/creationTimestamp").to_owned();
            made(other).cmp(&made(one)).then_with(|| one.name().cmp(other.name()))
        });
        if let Some(class) = defaults.first() {
            new.set("/spec/ingressClassName", class.name().to_owned());
        }
        Ok(())
    }
}
