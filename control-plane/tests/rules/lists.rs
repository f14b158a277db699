//! Parameters of lists and watches: which go together, and which state they mean.

use serde_json::{Value, json};

use crate::bed::{Bed, causes, code};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

const UNLESS: &str = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided";
const CONTINUED: &str =
    "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided";

#[tokio::test]
async fn lists_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    for (query, expected) in [
        ("resourceVersionMatch=Exact", vec![UNLESS]),
        ("resourceVersionMatch=NotOlderThan&limit=5", vec![UNLESS]),
        ("resourceVersionMatch=NotOlderThan&continue=x", vec![UNLESS, CONTINUED]),
        ("resourceVersionMatch=NotOlderThan&resourceVersion=1&continue=x", vec![CONTINUED]),
        (
            "resourceVersionMatch=Newest&resourceVersion=1",
            vec![
                "resourceVersionMatch: Unsupported value: \"Newest\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
            ],
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=0",
            vec![
                "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ],
        ),
        (
            "sendInitialEvents=true",
            vec!["sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"],
        ),
        (
            "sendInitialEvents=false",
            vec!["sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"],
        ),
    ] {
        let status = bed.get(&format!("{MAPS}?{query}")).await.unwrap_err();
        assert_eq!(causes(&status), expected, "{query}");
        assert_eq!(code(&status), 422);
        assert_eq!(status["details"]["kind"], "ListOptions");
        assert_eq!(status["details"]["group"], "meta.k8s.io");
        let message = status["message"].as_str().unwrap();
        assert!(message.starts_with("ListOptions.meta.k8s.io \"\" is invalid: "), "{message}");
        // The same of what a deletion of all of them would have.
        let status = bed.delete(&format!("{MAPS}?{query}"), &Value::Null).await.unwrap_err();
        assert_eq!(causes(&status), expected, "{query}");
    }
}

#[tokio::test]
async fn watches_that_kubernetes_refuses() {
    let bed = Bed::start().await;
    let unset = "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
    let needs = "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
    let exact =
        "resourceVersionMatch: Unsupported value: \"Exact\": supported values: \"NotOlderThan\"";
    for (query, expected) in [
        ("sendInitialEvents=true", vec![needs]),
        ("sendInitialEvents=false", vec![needs]),
        ("resourceVersionMatch=NotOlderThan", vec![unset]),
        ("resourceVersionMatch=Exact&resourceVersion=1", vec![unset, exact]),
        ("sendInitialEvents=true&resourceVersionMatch=Exact", vec![needs, exact]),
        ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&continue=x", vec![CONTINUED]),
    ] {
        let status = bed.get(&format!("{MAPS}?watch=true&{query}")).await.unwrap_err();
        assert_eq!(causes(&status), expected, "{query}");
    }
}

/// The table of the concept page "Kubernetes API Concepts", semantics of resourceVersion for lists.
#[tokio::test]
async fn lists_show_the_state_that_they_name() {
    let bed = Bed::start().await;
    let version =
        |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut versions = Vec::new();
    for name in ["a", "b", "c"] {
        let made = bed.post(MAPS, &json!({"metadata": {"name": name}})).await.unwrap();
        versions.push(version(&made));
    }
    let second = &versions[1];
    let listed = async |query: &str| {
        let list = bed.get(&format!("{MAPS}?{query}")).await.unwrap();
        (version(&list) == *second, list["items"].as_array().unwrap().len())
    };
    for (query, expected) in [
        (String::new(), (false, 3)),
        ("resourceVersion=0".to_owned(), (false, 3)),
        (format!("resourceVersion={second}"), (false, 3)),
        (format!("resourceVersion={second}&resourceVersionMatch=NotOlderThan"), (false, 3)),
        (format!("resourceVersion={second}&resourceVersionMatch=Exact"), (true, 2)),
        // A page that says nothing else is of the very revision.
        (format!("resourceVersion={second}&limit=5"), (true, 2)),
        (format!("resourceVersion={second}&limit=5&resourceVersionMatch=NotOlderThan"), (false, 3)),
        ("resourceVersion=0&limit=5".to_owned(), (false, 3)),
    ] {
        assert_eq!(listed(&query).await, expected, "{query}");
    }
    // And so is what follows it.
    let first = bed.get(&format!("{MAPS}?resourceVersion={second}&limit=1")).await.unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    assert_eq!(listed(&format!("limit=5&continue={token}")).await, (true, 1));
    assert_eq!(listed(&format!("limit=5&continue={token}&resourceVersion=0")).await, (true, 1));
    for (query, expected) in [
        (
            format!("continue={token}&resourceVersion={second}"),
            "specifying resource version is not allowed when using continue",
        ),
        (
            "continue=nonsense".to_owned(),
            "invalid continue token: continue key is not valid: illegal base64 data or encoding",
        ),
    ] {
        let status = bed.get(&format!("{MAPS}?{query}")).await.unwrap_err();
        assert_eq!((code(&status), &status["message"]), (400, &json!(expected)), "{query}");
    }
}

/// Numbers and flags as apimachinery reads them out of a query.
#[tokio::test]
async fn parameters_are_read_as_kubernetes_reads_them() {
    let bed = Bed::start().await;
    for name in ["a", "b"] {
        bed.post(MAPS, &json!({"metadata": {"name": name}})).await.unwrap();
    }
    for (query, expected) in [
        ("limit=-1", 2),
        ("limit=0", 2),
        ("limit=%2B1", 1),
        ("limit=1", 1),
        ("limit=3", 2),
        ("watch=0", 2),
        ("watch=False", 2),
    ] {
        let listed = match bed.get(&format!("{MAPS}?{query}")).await {
            Ok(list) => list["items"].as_array().unwrap().len(),
            Err(status) => panic!("{query}: {status}"),
        };
        assert_eq!(listed, expected, "{query}");
    }
    for (query, expected) in [
        ("limit=many", "strconv.ParseInt: parsing \"many\": invalid syntax"),
        ("limit=", "strconv.ParseInt: parsing \"\": invalid syntax"),
        (
            "limit=9223372036854775808",
            "strconv.ParseInt: parsing \"9223372036854775808\": value out of range",
        ),
    ] {
        let status = bed.get(&format!("{MAPS}?{query}")).await.unwrap_err();
        assert_eq!((code(&status), &status["message"]), (400, &json!(expected)), "{query}");
    }
    // What is there and empty is true.
    let status = bed.get(&format!("{MAPS}?sendInitialEvents=")).await.unwrap_err();
    let expected = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list";
    assert_eq!(causes(&status), [expected]);
    // One object is not watched by its path: whoever may get it need not be allowed to watch.
    let one = bed.get(&format!("{MAPS}/a?watch=true")).await.unwrap();
    assert_eq!(one["metadata"]["name"], "a");
}
