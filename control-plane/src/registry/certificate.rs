//! CertificateSigningRequests: who asks for what never changes; what is decided about it comes by
//! one subresource, the certificate by another, and no decision is taken back.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::prelude::FromDer as _;

use super::NameRule;
use super::invalid::Errors;
use super::names::{self, SUBDOMAIN_MAX};
use super::object::Object;
use super::strategy::Strategy;
use crate::api::clock;

/// [`Strategy`] of requests.
pub(super) struct Requests;

/// What a certificate may be for.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// The signer of requests that named none, before they had to.
const LEGACY: &str = "kubernetes.io/legacy-unknown";
/// The longest name of a signer: a domain, and a name of 253 and 63 characters.
const SIGNER_MAX: usize = 571;
/// The shortest time in seconds for which a certificate can be asked.
const SHORTEST: i64 = 600;

const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
/// Conditions that are true or not there, and stay.
const FINAL: [&str; 3] = [APPROVED, DENIED, "Failed"];
const CONDITIONS: &str = "/status/conditions";
const CERTIFICATE: &str = "/status/certificate";

impl Strategy for Requests {
    fn prepare_update(&self, object: &mut Object, old: &Object) {
        object.copy("/spec", old);
    }

    fn prepare_status(&self, object: &mut Object, old: &Object) {
        // Decisions come by the other subresource: what is said of them here is what they are.
        for kind in [APPROVED, DENIED] {
            let known: Vec<Value> = of_type(old, kind).cloned().collect();
            if known.len() != of_type(object, kind).count() {
                continue;
            }
            let conditions = object.at_mut(CONDITIONS).and_then(Value::as_array_mut);
            let same = conditions.into_iter().flatten().filter(|one| one["type"] == kind);
            same.zip(known).for_each(|(condition, known)| *condition = known);
        }
        date(object, old);
    }

    fn prepare_approval(&self, object: &mut Object, old: &Object) {
        date(object, old);
    }

    fn validate(&self, object: &Object, errors: &mut Errors) {
        let request = object.text("/spec/request");
        if let Some(fault) = request_fault(request) {
            errors.invalid("spec.request", request, fault);
        }
        let usages = object.list("/spec/usages");
        for (index, usage) in usages.iter().enumerate() {
            let field = format!("spec.usages[{index}]");
            if !usage.as_str().is_some_and(|usage| USAGES.contains(&usage)) {
                errors.not_supported(field.as_str(), usage.clone(), USAGES);
            }
            if usages[..index].contains(usage) {
                errors.duplicate(field, usage.clone());
            }
        }
        check_signer(object.text("/spec/signerName"), errors);
        let seconds = object.integer("/spec/expirationSeconds");
        if let Some(seconds) = seconds.filter(|seconds| *seconds < SHORTEST) {
            let why = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.invalid("spec.expirationSeconds", seconds, why);
        }
    }

    fn validate_status(&self, object: &Object, old: &Object, errors: &mut Errors) {
        check_conditions(object, old, errors);
        for kind in [APPROVED, DENIED] {
            if of_type(object, kind).count() > of_type(old, kind).count() {
                let why = format!("updates may not add a condition of type {kind:?}");
                errors.forbidden("status.conditions", why);
            }
        }
        let before = old.text(CERTIFICATE);
        if !before.is_empty() && object.text(CERTIFICATE) != before {
            let why = "updates may not modify existing certificate content";
            errors.forbidden("status.certificate", why);
        }
    }

    fn validate_approval(&self, object: &Object, old: &Object, errors: &mut Errors) {
        check_conditions(object, old, errors);
    }
}

fn of_type<'a>(object: &'a Object, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    object.list(CONDITIONS).iter().filter(move |one| one["type"] == kind)
}

/// Conditions say since when they hold; whoever leaves that out means now, or as before.
fn date(object: &mut Object, old: &Object) {
    let now = json!(clock::format(clock::now()));
    let before = old.list(CONDITIONS);
    let conditions = object.at_mut(CONDITIONS).and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter(|one| one.is_object()) {
        let same = |other: &&Value| ["type", "status"].iter().all(|of| other[of] == condition[of]);
        let since = before.iter().find(same).map(|one| one["lastTransitionTime"].clone());
        let since = since.filter(|since| !since.is_null()).unwrap_or_else(|| now.clone());
        for (field, value) in [("lastUpdateTime", now.clone()), ("lastTransitionTime", since)] {
            if condition[field].is_null() {
                condition[field] = value;
            }
        }
    }
}

/// What is wrong with a request: PEM in base64.
fn request_fault(request: &str) -> Option<&'static str> {
    const NO_REQUEST: &str = "PEM block type must be CERTIFICATE REQUEST";
    let text = STANDARD.decode(request).unwrap_or_default();
    let block = x509_parser::pem::parse_x509_pem(&text).ok().map(|(_, block)| block);
    let Some(block) = block.filter(|block| block.label == "CERTIFICATE REQUEST") else {
        return Some(NO_REQUEST);
    };
    let Ok((_, request)) = X509CertificationRequest::from_der(&block.contents) else {
        return Some("x509: malformed certificate request");
    };
    match request.verify_signature() {
        Err(X509Error::SignatureVerificationError) => {
            Some("x509: the request is not signed by the key that it names")
        }
        // What it asks for, and by which kind of key, is the signer's to judge.
        Ok(()) | Err(_) => None,
    }
}

/// Checks the name of a signer: a domain, and a name below it.
fn check_signer(name: &str, errors: &mut Errors) {
    let field = "spec.signerName";
    if name.is_empty() {
        errors.required(field, "");
        return;
    }
    if name == LEGACY {
        let why = "the legacy signerName is not allowed via this API version";
        errors.invalid(field, name, why);
        return;
    }
    let segments: Vec<&str> = name.split('/').collect();
    let [domain, path] = segments[..] else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.invalid(field, name, why);
        return;
    };
    if domain.len() > SUBDOMAIN_MAX {
        errors.too_long(field, SUBDOMAIN_MAX);
    }
    for (segment, rule) in [(domain, NameRule::Label), (path, NameRule::Subdomain)] {
        let fault = segment.split('.').find_map(|label| Some((label, names::fault(label, rule)?)));
        if let Some((label, fault)) = fault {
            errors.invalid(field, segment, format!("validating label {label:?}: {fault}"));
        }
    }
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        errors.invalid(field, domain, why);
    }
    if name.len() > SIGNER_MAX {
        errors.too_long(field, SIGNER_MAX);
    }
}

/// Checks conditions that take the place of others.
fn check_conditions(object: &Object, old: &Object, errors: &mut Errors) {
    let conditions = object.list(CONDITIONS);
    for (index, condition) in conditions.iter().enumerate() {
        let at = |field: &str| format!("status.conditions[{index}].{field}");
        let kind = condition["type"].as_str().unwrap_or_default();
        if kind.is_empty() {
            errors.required(at("type"), "");
        }
        let allowed: &[&str] =
            if FINAL.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        match condition["status"].as_str().unwrap_or_default() {
            "" => errors.required(at("status"), ""),
            status if !allowed.contains(&status) => {
                errors.not_supported(at("status"), status, allowed);
            }
            _ => {}
        }
        let before = |other: &str| conditions[..index].iter().any(|one| one["type"] == other);
        let excludes = match kind {
            APPROVED => before(DENIED),
            DENIED => before(APPROVED),
            _ => false,
        };
        if excludes {
            let why = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(at("type"), kind, why);
        }
        if before(kind) {
            errors.duplicate(at("type"), kind);
        }
    }
    for kind in FINAL {
        if of_type(object, kind).count() < of_type(old, kind).count() {
            let why = format!("updates may not remove a condition of type {kind:?}");
            errors.forbidden("status.conditions", why);
        }
    }
}
