//! Takes secrets out of texts that leave the node with `mizzen bugreport`. Pure.
//!
//! Rather too much than too little: what looks like a secret by its form (tokens, keys, user
//! information in URLs) or by the name in front of it is removed, whatever it is.

use std::{borrow::Cow, sync::LazyLock};

use regex::Regex;

/// What stands in the place of a secret.
pub const REMOVED: &str = "(removed)";

/// Names that are followed by secrets, in any case, as a part of a longer name too.
const NAMES: &str = "token|password|passwd|secret|credential|authorization|api[-_]?key|private[-_]?key\
    |access[-_]?key|client[-_]?key|key[-_]data|certificate[-_](?:authority[-_])?data|cookie|bearer";

/// Forms of secrets, and what takes their place.
static FORMS: LazyLock<Vec<(Regex, String)>> = LazyLock::new(|| {
    let forms = [
        // PEM (RFC 7468), certificates too: they name people and machines.
        (
            r"(?s)-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\z)".to_owned(),
            REMOVED.to_owned(),
        ),
        // JSON Web Tokens (RFC 7519): two or three parts, the first of which begins with `{"`.
        (r"eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){0,2}".to_owned(), REMOVED.to_owned()),
        // User information of URLs (RFC 3986 section 3.2.1).
        (r"(://)[^/@\s]+@".to_owned(), format!("${{1}}{REMOVED}@")),
        // Authentication schemes (RFC 9110 section 11).
        (r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/._~=-]{6,}".to_owned(), format!("${{1}} {REMOVED}")),
        // A list, a JSON object or a block of YAML behind such a name.
        (
            format!(
                r#"(?i)((?:--)?[\w.-]*(?:{NAMES})[\w.-]*\\*"?'?\s*[:=]\s*)(?:\[[^\]]*\]?|\{{[^}}]*\}}?)"#
            ),
            format!("${{1}}{REMOVED}"),
        ),
        (
            format!(
                r"(?im)^(?P<indent>[ \t]*(?:- )?)(?P<name>[\w.-]*(?:{NAMES})[\w.-]*[ \t]*:)[ \t]*[|>]?[+-]?[0-9]?[ \t]*\n(?:[ \t]+[^\n]*\n?|[ \t]*- [^\n]*\n?)+"
            ),
            format!("${{indent}}${{name}} {REMOVED}\n"),
        ),
        // A scalar of a line of YAML: all of the line.
        (
            format!(r#"(?im)^([ \t]*(?:- )?[\w.-]*(?:{NAMES})[\w.-]*[ \t]*:[ \t]+)[^\s"'(][^\n]*"#),
            format!("${{1}}{REMOVED}"),
        ),
        // `name: value`, `name=value`, `"name":"value"`, parameters of URLs; JSON in a JSON string.
        (
            format!(
                r#"(?i)((?:--)?[\w.-]*(?:{NAMES})[\w.-]*\\*"?'?\s*[:=]\s*)(\\+"(?:[^"\\]|\\+[^"\\])*\\*"|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;&"'}}\]]+)"#
            ),
            format!("${{1}}{REMOVED}"),
        ),
        (
            format!(r#"(?i)(--[\w-]*(?:{NAMES})[\w-]*\s+)("[^"]*"|'[^']*'|[^\s"']+)"#),
            format!("${{1}}{REMOVED}"),
        ),
        // Bootstrap tokens of kubeadm.
        (r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b".to_owned(), REMOVED.to_owned()),
    ];
    let compiled = forms.into_iter().filter_map(|(form, by)| Some((Regex::new(&form).ok()?, by)));
    compiled.collect()
});

/// The text without its secrets.
pub fn redact(text: &str) -> String {
    let mut text = Cow::Borrowed(text);
    for (form, by) in FORMS.iter() {
        if form.is_match(&text) {
            text = Cow::Owned(form.replace_all(&text, by.as_str()).into_owned());
        }
    }
    text.into_owned()
}

/// A variable of the environment: its value only where it is known to be no secret.
pub fn variable(name: &str, value: &str) -> String {
    const HARMLESS: &[&str] = &[
        "HOME",
        "HOSTNAME",
        "KUBERNETES_PORT",
        "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_SERVICE_PORT",
        "LANG",
        "MIZZEN_STATE_DIR",
        "NODE_NAME",
        "NOTIFY_SOCKET",
        "PATH",
        "POD_NAME",
        "POD_NAMESPACE",
        "PWD",
        "RUST_BACKTRACE",
        "RUST_LOG",
    ];
    let value = if HARMLESS.contains(&name) { redact(value) } else { REMOVED.to_owned() };
    format!("{name}={value}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each text holds the word `hunter` where a secret is.
    #[test]
    fn secrets_are_removed_by_form_and_by_name() {
        let jwt = "eyJhbGciOiJSUzI1NiIsImtpZCI6Imh1bnRlciJ9.eyJzdWIiOiJodW50ZXIifQ.c2lnbmF0dXJl";
        for text in [
            "token: hunter2",
            "\"token\":\"hunter2\",\"next\":1",
            "user:\n  client-key-data: aHVudGVyhunter==\n",
            "apiServer: [https://admin:hunter2@10.0.0.1:6443]",
            "https://10.0.0.1/?watch=1&access_token=hunter2&x=1",
            "Authorization: Bearer hunter2hunter2",
            "sent bearer hunter2hunter2 to it",
            "--dns-tls-token hunter2 --node-name n",
            "--password=hunter2",
            r#"{"body":"{\"password\":\"hunter2\",\"n\":1}"}"#,
            r#"{"tokens":["hunter2", "hunter3"]}"#,
            r#"{"credentials":{"user":"hunter"}}"#,
            "tokens:\n  - hunter2\n  - hunter3\nnode: n\n",
            "password: |\n  hunter2\n  hunter3\nnode: n\n",
            "  password: hunter,2x; hunter",
            "AWS_SECRET_ACCESS_KEY=hunter2",
            "password = 'hunter 2'",
            "{\"dbPassword\": \"hunt\\\"er hunter\"}",
            "-----BEGIN EC PRIVATE KEY-----\nhunter\nhunter==\n-----END EC PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\nhunter, cut off",
        ] {
            let clean = redact(text);
            assert!(!clean.contains("hunter"), "{text:?} became {clean:?}");
            assert!(clean.contains(REMOVED), "{clean:?}");
        }
        let clean = redact(&format!("login with {jwt} failed"));
        assert_eq!(clean, format!("login with {REMOVED} failed"));
        assert_eq!(
            redact("kubeadm join --x abcdef.0123456789abcdef"),
            "kubeadm join --x (removed)"
        );
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "10.96.0.1:443/TCP default/kubernetes 172.30.0.10:6443",
            "[fd00:96::1]:443 -> [fd00:30::10]:6443",
            "mizzen_datapath_events_total{event=\"socket_translated\"} 17\n",
            "apiServer: [https://10.0.0.1:6443]  # flag",
            "backend web-7d4b9-abcde ready",
            "2026-11-30T06:25:01Z  INFO mizzen_agent: started version=\"0.1.0\"",
        ] {
            assert_eq!(redact(text), text);
        }
        let text = redact("user: admin, token: abc, node: n");
        assert_eq!(text, "user: admin, token: (removed), node: n");
    }

    #[test]
    fn variables_have_their_values_only_where_these_are_known_to_be_harmless() {
        assert_eq!(variable("NODE_NAME", "node-1"), "NODE_NAME=node-1\n");
        assert_eq!(variable("ANYTHING", "hunter2"), "ANYTHING=(removed)\n");
        assert_eq!(variable("RUST_LOG", "token=hunter2"), "RUST_LOG=token=(removed)\n");
    }
}
