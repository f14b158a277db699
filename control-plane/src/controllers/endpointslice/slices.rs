//! Fits endpoints into slices with as few writes as possible.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::endpoint::{self, Family, Ports};
use super::{
    HEADLESS, LAST_APPLIED, MANAGED_BY, MANAGER, OVER_CAPACITY, SERVICE_NAME, Seen, TRIGGER_TIME,
};
use crate::controllers::ownership;
use crate::controllers::write::Write;

/// The most endpoints in a slice (`--max-endpoints-per-slice` of Kubernetes).
const MAX_ENDPOINTS: usize = 100;

/// What all slices of a Service and family have in common.
pub(super) struct Template {
    meta: ObjectMeta,
    family: Family,
}

impl Template {
    pub(super) fn new(seen: &Seen<'_>, family: Family) -> Self {
        let service = seen.service;
        let meta = ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            annotations: annotations(service, seen.trigger),
            owner_references: Some(vec![ownership::controller_reference(service)]),
            ..ObjectMeta::default()
        };
        Self::of(meta, family)
    }

    /// What slices of a family have, whoever they are for.
    pub(super) fn of(meta: ObjectMeta, family: Family) -> Self {
        Self { meta, family }
    }
}

/// The labels of the Service, and those by which slices are found.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    let spec = service.spec.as_ref();
    if spec.and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels
}

/// The annotations of the Service but for kubectl's, and the time of the change.
fn annotations(service: &Service, trigger: Option<Timestamp>) -> Option<BTreeMap<String, String>> {
    let mut annotations = service.annotations().clone();
    annotations.remove(LAST_APPLIED);
    annotations.remove(OVER_CAPACITY);
    annotations.remove(TRIGGER_TIME);
    if let Some(trigger) = trigger {
        annotations.insert(TRIGGER_TIME.to_owned(), trigger.to_string());
    }
    (!annotations.is_empty()).then_some(annotations)
}

/// A slice under work.
struct Draft<'a> {
    seen: &'a Arc<EndpointSlice>,
    ports: Ports,
    endpoints: Vec<Endpoint>,
    /// Whether it has to be written anyway.
    changed: bool,
}

/// The writes that make the slices of a family hold exactly these endpoints.
///
/// Endpoints stay where they are. New ones go into slices that are written anyway, then into
/// those with room; what does not fit anywhere makes new slices. A slice that is left empty is
/// filled with what would make a new one, and deleted otherwise.
pub(super) fn fit(
    template: &Template,
    slices: &[&Arc<EndpointSlice>],
    groups: BTreeMap<Ports, Vec<Endpoint>>,
) -> Vec<Write> {
    let mut drafts: Vec<Draft<'_>> = slices
        .iter()
        .filter(|slice| slice.metadata.deletion_timestamp.is_none())
        .map(|slice| Draft {
            seen: slice,
            ports: endpoint::from_api(slice.ports.as_deref()),
            endpoints: Vec::new(),
            changed: !is_dressed(slice, template),
        })
        .collect();
    let mut homeless: Vec<(Ports, Vec<Endpoint>)> = Vec::new();
    for (ports, endpoints) in groups {
        let mut rest = keep_in_place(&mut drafts, &ports, endpoints);
        fill(&mut drafts, &ports, &mut rest, |draft| draft.changed);
        fill(&mut drafts, &ports, &mut rest, |_| true);
        let placeholder = ports.is_empty() && rest.is_empty();
        if placeholder && drafts.iter().all(|draft| draft.endpoints.is_empty()) {
            homeless.push((ports.clone(), Vec::new()));
        }
        while !rest.is_empty() {
            let tail = rest.split_off(rest.len().min(MAX_ENDPOINTS));
            homeless.push((ports.clone(), std::mem::replace(&mut rest, tail)));
        }
    }
    conclude(template, drafts, homeless)
}

/// Puts the endpoints that a slice with these ports holds back into it, in their order there,
/// renewed. Returns those that no slice holds.
fn keep_in_place(drafts: &mut [Draft<'_>], ports: &Ports, wanted: Vec<Endpoint>) -> Vec<Endpoint> {
    let order: Vec<Identity> = wanted.iter().map(identity).collect();
    let mut wanted: HashMap<Identity, Endpoint> =
        wanted.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    for draft in drafts.iter_mut().filter(|draft| draft.ports == *ports) {
        for held in &draft.seen.endpoints {
            match wanted.remove(&identity(held)) {
                Some(endpoint) => {
                    draft.changed |= endpoint != *held;
                    draft.endpoints.push(endpoint);
                }
                None => draft.changed = true,
            }
        }
    }
    order.iter().filter_map(|identity| wanted.remove(identity)).collect()
}

/// Moves endpoints into slices with these ports that have room and that `eligible` names.
fn fill(
    drafts: &mut [Draft<'_>],
    ports: &Ports,
    rest: &mut Vec<Endpoint>,
    eligible: impl Fn(&Draft<'_>) -> bool,
) {
    let mut candidates: Vec<&mut Draft<'_>> = drafts
        .iter_mut()
        .filter(|draft| draft.ports == *ports && !draft.endpoints.is_empty() && eligible(draft))
        .collect();
    // The fullest first, so that slices become full instead of many.
    candidates.sort_by_key(|draft| std::cmp::Reverse(draft.endpoints.len()));
    for draft in candidates {
        let room = MAX_ENDPOINTS.saturating_sub(draft.endpoints.len()).min(rest.len());
        draft.changed |= room > 0;
        draft.endpoints.extend(rest.drain(..room));
    }
}

fn conclude(
    template: &Template,
    drafts: Vec<Draft<'_>>,
    mut homeless: Vec<(Ports, Vec<Endpoint>)>,
) -> Vec<Write> {
    let (empty, full): (Vec<_>, Vec<_>) =
        drafts.into_iter().partition(|draft| draft.endpoints.is_empty());
    let changed = full.into_iter().filter(|draft| draft.changed);
    let mut writes: Vec<Write> = changed
        .map(|draft| replacement(template, draft.seen, &draft.ports, draft.endpoints))
        .collect();
    for draft in empty {
        // Best a slice that has those ports already.
        let same = homeless.iter().position(|(ports, _)| *ports == draft.ports);
        let index = same.or_else(|| homeless.len().checked_sub(1));
        match index.map(|index| homeless.remove(index)) {
            None => writes.push(Write::delete(&**draft.seen)),
            Some((ports, endpoints)) => {
                let same = draft.ports == ports && draft.seen.endpoints == endpoints;
                if !same || !is_dressed(draft.seen, template) {
                    writes.push(replacement(template, draft.seen, &ports, endpoints));
                }
            }
        }
    }
    writes.extend(homeless.into_iter().map(|(ports, endpoints)| {
        Write::Create(
            EndpointSlice {
                metadata: template.meta.clone(),
                address_type: template.family.name().to_owned(),
                endpoints,
                ports: Some(endpoint::to_api(&ports)),
            }
            .into(),
        )
    }));
    writes
}

fn replacement(
    template: &Template,
    seen: &Arc<EndpointSlice>,
    ports: &Ports,
    endpoints: Vec<Endpoint>,
) -> Write {
    let mut slice = (**seen).clone();
    slice.metadata.labels.clone_from(&template.meta.labels);
    slice.metadata.annotations.clone_from(&template.meta.annotations);
    slice.metadata.owner_references.clone_from(&template.meta.owner_references);
    slice.endpoints = endpoints;
    slice.ports = Some(endpoint::to_api(ports));
    Write::Replace(slice.into())
}

/// Whether labels, annotations and owner are as they should be. The trigger time alone is no
/// reason for a write.
fn is_dressed(slice: &EndpointSlice, template: &Template) -> bool {
    let annotations = |meta: &ObjectMeta| {
        let mut annotations = meta.annotations.clone().unwrap_or_default();
        annotations.remove(TRIGGER_TIME);
        annotations
    };
    let meta = &slice.metadata;
    meta.labels == template.meta.labels
        && meta.owner_references == template.meta.owner_references
        && annotations(meta) == annotations(&template.meta)
}

/// What makes two endpoints the same one, however its conditions change.
type Identity = (Vec<String>, Option<String>);

fn identity(endpoint: &Endpoint) -> Identity {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    (endpoint.addresses.clone(), uid)
}
