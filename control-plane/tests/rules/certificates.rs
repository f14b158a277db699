//! CertificateSigningRequests: what may be asked for, and that decisions stay.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::bed::{Bed, merge};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

/// A request that is signed by a key on the curve P-521, by OpenSSL.
const P_521: &str = "\
-----BEGIN CERTIFICATE REQUEST-----\n\
MIIBTzCBsQIBADAMMQowCAYDVQQDDAFhMIGbMBAGByqGSM49AgEGBSuBBAAjA4GG\n\
AAQBYWFAdU5Ysn1SsWV82/Krzr6URXxG5VkAxeNgiBEHN13Y/l0RTKEtcTN/gBuo\n\
84hezdicY4ZxFgGsN/9ka9GHG60A4DeQIgk1ASZEEA2uLHjKfVp8gdqgS7S+gVa7\n\
KuI4euEkbHfKuWwIGKffyp90jdsnmrm3NO4XZN0jmvQND4360CGgADAKBggqhkjO\n\
PQQDBAOBjAAwgYgCQgDXHX44Yfk9EWar6JMEuE83Rtmc04VivlOugtbOGcoxCEhA\n\
8pM2LMR2YOioEf1DM4QeGumMr0Fv87yv9oQt9kNYHAJCAZ7JiIRkTiWxhv/1EF/e\n\
2g0Q2xAIu69VPHoZ1USkEOAnUEGOx4TcYug+zx+30HnScSqryvT47byWOhtcglr4\n\
+JKN\n\
-----END CERTIFICATE REQUEST-----\n\
";

/// A request, PEM.
fn pem() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

fn asked(name: &str, change: &Value) -> Value {
    let mut spec = json!({
        "request": STANDARD.encode(pem()),
        "signerName": "example.com/signer",
        "usages": ["digital signature", "client auth"],
    });
    merge(&mut spec, change);
    json!({"metadata": {"name": name}, "spec": spec})
}

/// By which kind of key it is signed is the signer's to judge; that it is signed by none is not.
#[tokio::test]
async fn keys_of_any_kind_may_ask_and_none_for_another() {
    let bed = Bed::start().await;
    let strong = STANDARD.encode(P_521);
    bed.post(REQUESTS, &asked("strong", &json!({"request": strong}))).await.unwrap();
    let [one, other] = [pem(), pem()].map(|text| STANDARD.decode(body(&text)).unwrap());
    // Both end with a signature of their own over what comes before.
    let cut = one.len() - 40;
    let mixed = [&one[..cut], &other[other.len() - 40..]].concat();
    let mixed = STANDARD.encode(format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(mixed)));
    let found = bed.refused(REQUESTS, &asked("mixed", &json!({"request": mixed}))).await;
    assert!(found[0].starts_with("spec.request: Invalid value: "), "{found:?}");
    assert!(found[0].contains("x509: "), "{found:?}");
}

const BEGIN: &str = "-----BEGIN CERTIFICATE REQUEST-----";
const END: &str = "-----END CERTIFICATE REQUEST-----";

/// The base64 between the lines that begin and end a request.
fn body(pem: &str) -> String {
    let lines = pem.lines().filter(|line| !line.starts_with("-----"));
    lines.map(str::trim).collect()
}

#[tokio::test]
async fn requests_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let text = STANDARD.encode("no request");
    let other = STANDARD.encode(pem().replace("CERTIFICATE REQUEST", "CERTIFICATE"));
    let block = "PEM block type must be CERTIFICATE REQUEST";
    let form = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
    for (change, expected) in [
        (json!({"request": text}), format!("spec.request: Invalid value: \"{text}\": {block}")),
        (json!({"request": other}), format!("spec.request: Invalid value: \"{other}\": {block}")),
        (json!({"usages": []}), "spec.usages: Required value".to_owned()),
        (
            json!({"usages": ["client auth", "client auth"]}),
            "spec.usages[1]: Duplicate value: \"client auth\"".to_owned(),
        ),
        (json!({"signerName": ""}), "spec.signerName: Required value".to_owned()),
        (
            json!({"signerName": "kubernetes.io/legacy-unknown"}),
            "spec.signerName: Invalid value: \"kubernetes.io/legacy-unknown\": the legacy signerName is not allowed via this API version".to_owned(),
        ),
        (
            json!({"signerName": "signer"}),
            format!("spec.signerName: Invalid value: \"signer\": {form}"),
        ),
        (
            json!({"signerName": "a.b/c/d"}),
            format!("spec.signerName: Invalid value: \"a.b/c/d\": {form}"),
        ),
        (
            json!({"signerName": "local/signer"}),
            "spec.signerName: Invalid value: \"local\": should be a domain with at least two segments separated by dots".to_owned(),
        ),
        (
            json!({"expirationSeconds": 599}),
            "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)".to_owned(),
        ),
    ] {
        assert_eq!(bed.refused(REQUESTS, &asked("a", &change)).await, [expected], "{change}");
    }
    let usage = bed.refused(REQUESTS, &asked("a", &json!({"usages": ["flying"]}))).await;
    assert!(usage[0].starts_with("spec.usages[0]: Unsupported value: \"flying\": supported values: \"any\", \"cert sign\", "), "{usage:?}");
    let label = bed.refused(REQUESTS, &asked("a", &json!({"signerName": "Example.com/x"}))).await;
    assert!(label[0].starts_with("spec.signerName: Invalid value: \"Example.com\": validating label \"Example\": a lowercase RFC 1123 label"), "{label:?}");
    // Signed by another key than the one in it: its last octets are turned over.
    let good = pem();
    let block = x509_parser::pem::parse_x509_pem(good.as_bytes()).unwrap().1;
    let mut octets = block.contents;
    let last = octets.len() - 1;
    octets[last] ^= 1;
    let lines = STANDARD.encode(octets);
    let forged = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{lines}\n-----END CERTIFICATE REQUEST-----\n"
    );
    let forged = json!({"request": STANDARD.encode(forged)});
    let found = bed.refused(REQUESTS, &asked("a", &forged)).await;
    assert!(found[0].starts_with("spec.request: Invalid value: "), "{found:?}");
    bed.post(REQUESTS, &asked("a", &json!({"expirationSeconds": 600}))).await.unwrap();
}

fn condition(kind: &str, status: &str) -> Value {
    json!({"type": kind, "status": status, "reason": "Test"})
}

fn conditions(list: &[Value]) -> Value {
    json!({"status": {"conditions": list}})
}

#[tokio::test]
async fn decisions_exclude_each_other_and_stay() {
    let bed = Bed::start().await;
    bed.post(REQUESTS, &asked("a", &json!({}))).await.unwrap();
    let approval = format!("{REQUESTS}/a/approval");
    let (approved, denied) = (condition("Approved", "True"), condition("Denied", "True"));
    for (list, expected) in [
        (
            vec![approved.clone(), denied.clone()],
            "status.conditions[1].type: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive",
        ),
        (
            vec![approved.clone(), approved.clone()],
            "status.conditions[1].type: Duplicate value: \"Approved\"",
        ),
        (
            vec![condition("Approved", "False")],
            "status.conditions[0].status: Unsupported value: \"False\": supported values: \"True\"",
        ),
        (
            vec![condition("Other", "Maybe")],
            "status.conditions[0].status: Unsupported value: \"Maybe\": supported values: \"False\", \"True\", \"Unknown\"",
        ),
        (vec![condition("", "True")], "status.conditions[0].type: Required value"),
    ] {
        assert_eq!(bed.refused_change(&approval, &conditions(&list)).await, [expected]);
    }
    let status = format!("{REQUESTS}/a/status");
    assert_eq!(
        bed.refused_change(&status, &conditions(std::slice::from_ref(&approved))).await,
        ["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""]
    );
    let decided =
        bed.patch("merge", &approval, &conditions(std::slice::from_ref(&approved))).await.unwrap();
    let told = &decided["status"]["conditions"][0];
    assert!(told["lastUpdateTime"].is_string() && told["lastTransitionTime"].is_string(), "{told}");
    let removed =
        "status.conditions: Forbidden: updates may not remove a condition of type \"Approved\"";
    for path in [&approval, &status] {
        assert_eq!(bed.refused_change(path, &conditions(&[])).await, [removed]);
    }
    // By PUT too, and whoever says something else of it by the status says nothing.
    let mut sent = decided.clone();
    sent["status"]["conditions"] = json!([approved, denied]);
    let refused = bed.put(&approval, &sent).await.unwrap_err();
    assert_eq!(refused["reason"], "Invalid", "{refused}");
    let mut other = told.clone();
    other["message"] = "changed".into();
    let failed = condition("Failed", "True");
    let written = bed.patch("merge", &status, &conditions(&[other, failed])).await.unwrap();
    assert_eq!(&written["status"]["conditions"][0], told);
    assert_eq!(written["status"]["conditions"][1]["type"], "Failed");
    // A certificate is issued once.
    let certificate = |text: &str| json!({"status": {"certificate": STANDARD.encode(text)}});
    bed.patch("merge", &status, &certificate("one")).await.unwrap();
    assert_eq!(
        bed.refused_change(&status, &certificate("two")).await,
        ["status.certificate: Forbidden: updates may not modify existing certificate content"]
    );
}
