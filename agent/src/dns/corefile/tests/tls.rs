//! Blocks that are answered over TLS too.

use super::*;

/// A certificate and its key.
fn pem() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn with_files(text: &str) -> Result<Said, CorefileError> {
    let (certificate, key) = pem();
    read_with(text, &[("/cert", &certificate), ("/key", &key), ("/ca", &certificate)])
}

#[test]
fn one_block_for_both() {
    let said =
        with_files(".:53 tls://.:8853 {\n forward . 192.0.2.1\n tls /cert /key\n}\n").unwrap();
    let tls = said.tls.as_ref().unwrap();
    assert_eq!((tls.port, &tls.authorities), (8853, &None));
    assert_eq!(zones(&said), ["."]);
    let clients = "tls /cert /key /ca {\n client_auth require_and_verify\n}";
    let said = with_files(&format!(". tls://. {{\n {clients}\n}}\n")).unwrap();
    let tls = said.tls.as_ref().unwrap();
    assert_eq!((tls.port, tls.authorities.is_some()), (853, true));
}

#[test]
fn a_block_of_its_own_that_says_the_same() {
    let lines = "forward . 192.0.2.1 {\n policy sequential\n}\ncache 30";
    let with = |tls: &str| {
        with_files(&format!(". {{\n{lines}\n}}\ntls://. {{\n tls /cert /key\n{tls}\n}}\n"))
    };
    let said = with(lines).unwrap();
    assert!(said.tls.is_some());
    assert_eq!(zones(&said), ["."]);
    for other in ["cache 30", "forward . 192.0.2.2 {\n policy sequential\n}\ncache 30"] {
        let error = with(other).unwrap_err().to_string();
        assert!(
            error.starts_with("/Corefile:7:1: a zone is answered over TLS as in the clear"),
            "{error}"
        );
    }
}

#[test]
fn what_can_not_be() {
    for (text, place, why) in [
        ("tls://a {\n tls /cert /key\n}\n", "1:1", "as in the clear"),
        (". tls://. {\n tls /cert\n}\n", "2:2", "names a file of certificates"),
        (". tls://. {\n tls /cert /nothing\n}\n", "2:12", "can't be read"),
        (". tls://. {\n tls /cert /cert\n}\n", "2:2", "no private key"),
        (
            ". tls://. {\n tls /cert /key {\n  client_auth request\n }\n}\n",
            "3:15",
            "must be nocert",
        ),
        (". tls://. {\n tls /cert /key {\n  keylog /x\n }\n}\n", "3:3", "not supported in"),
        ("a b tls://a:853 tls://b:854 {\n tls /cert /key\n}\n", "1:17", "have one port"),
        (
            "a tls://a {\n tls /cert /key\n}\nb tls://b:854 {\n tls /cert /key\n}\n",
            "4:3",
            "one port and certificate",
        ),
    ] {
        let error = with_files(text).expect_err(text).to_string();
        assert!(error.starts_with(&format!("/Corefile:{place}: ")), "{text}: {error}");
        assert!(error.contains(why), "{text}: {error}");
    }
}
