//! Templates as the documentation of CoreDNS's `template` has them.

use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn texts(all: &[&str]) -> Vec<Text> {
    all.iter().map(|text| Text::new(text).unwrap_or_else(|why| panic!("{why}"))).collect()
}

fn patterns(all: &[&str]) -> Vec<Pattern> {
    all.iter().map(|text| Pattern::new(text).unwrap()).collect()
}

fn template(zone: &str, kind: RecordType, matches: &[&str], answers: &[&str]) -> Template {
    Template {
        zones: vec![name(zone)],
        kind: (kind != RecordType::ANY).then_some(kind),
        patterns: patterns(matches),
        answers: texts(answers),
        ..Template::default()
    }
}

fn falling(template: Template) -> Template {
    Template { fallthrough: vec![Name::root()], ..template }
}

fn ask(templates: &[Template], text: &str, kind: RecordType) -> Option<Reply> {
    answer(templates, &Query::query(name(text), kind), "192.0.2.7".parse().unwrap())
}

fn said(templates: &[Template], text: &str, kind: RecordType) -> Vec<String> {
    let reply = ask(templates, text, kind).unwrap_or_else(|| panic!("{text} falls through"));
    assert_eq!(reply.code, ResponseCode::NoError, "{text}: {reply:?}");
    reply.answers.iter().map(ToString::to_string).collect()
}

/// `ip-a-b-c-d.example` and back.
#[test]
fn groups_by_name() {
    let forward = falling(template(
        "example.",
        RecordType::A,
        &["(^|[.])ip-(?P<a>[0-9]*)-(?P<b>[0-9]*)-(?P<c>[0-9]*)-(?P<d>[0-9]*)[.]example[.]$"],
        &["{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.{{ .Group.c }}.{{ .Group.d }}"],
    ));
    let back = template(
        "in-addr.arpa.",
        RecordType::PTR,
        &["^(?P<d>[0-9]*)[.](?P<c>[0-9]*)[.](?P<b>[0-9]*)[.](?P<a>[0-9]*)[.]in-addr[.]arpa[.]$"],
        &[
            "{{ .Name }} 60 IN PTR ip-{{ .Group.a }}-{{ .Group.b }}-{{ .Group.c }}-{{ .Group.d }}.example.",
        ],
    );
    let all = [forward, back];
    assert_eq!(
        said(&all, "IP-10-1-2-3.example.", RecordType::A),
        ["ip-10-1-2-3.example. 60 IN A 10.1.2.3"]
    );
    assert_eq!(
        said(&all, "3.2.1.10.in-addr.arpa.", RecordType::PTR),
        ["3.2.1.10.in-addr.arpa. 60 IN PTR ip-10-1-2-3.example."]
    );
    assert_eq!(ask(&all, "www.example.", RecordType::A), None, "falls through");
    assert_eq!(ask(&all, "ip-10-1-2-3.example.", RecordType::AAAA), None, "another type");
    assert_eq!(ask(&all, "ip-10-1-2-3.example.com.", RecordType::A), None, "another zone");
    let code = |text: &str| ask(&all, text, RecordType::PTR).unwrap().code;
    assert_eq!(code("10.in-addr.arpa."), ResponseCode::ServFail, "no fallthrough");
    assert_eq!(
        ask(&all, "ip-10-1-2-300.example.", RecordType::A).unwrap().code,
        ResponseCode::ServFail,
        "what it makes is no record"
    );
}

#[test]
fn groups_by_number_and_the_sections() {
    let template = Template {
        code: ResponseCode::NXDomain,
        authorities: texts(&["{{ index .Match 1 }} 60 IN SOA ns.{{ index .Match 1 }} \
                              hostmaster.{{ index .Match 1 }} (1 60 60 60 60)"]),
        additionals: texts(&["ns0.example. IN 60 A 203.0.113.8"]),
        explanation: Some(21),
        ..template("example.com.", RecordType::ANY, &[r"example\.com\.(dc1\.example\.com\.)$"], &[])
    };
    let reply = ask(&[template], "www.example.com.dc1.example.com.", RecordType::MX).unwrap();
    assert_eq!(reply.code, ResponseCode::NXDomain);
    assert!(reply.authoritative);
    assert_eq!(
        reply.authorities[0].to_string(),
        "dc1.example.com. 60 IN SOA ns.dc1.example.com. hostmaster.dc1.example.com. 1 60 60 60 60"
    );
    assert_eq!(reply.additionals[0].to_string(), "ns0.example. 60 IN A 203.0.113.8");
    assert_eq!(reply.explanation, Some(Explanation::Configured(21)));
}

#[test]
fn fields_numbers_and_what_is_left_out() {
    let hex = template(
        "example.",
        RecordType::A,
        &["^ip0a(?P<b>[a-f0-9]{2})(?P<c>[a-f0-9]{2})(?P<d>[a-f0-9]{2})[.]example[.]$"],
        &["{{ .Name }} 60 IN A 10.{{ parseInt .Group.b 16 8 }}.{{ parseInt .Group.c 16 8 }}.\
           {{ parseInt .Group.d 16 8 }}"],
    );
    assert_eq!(
        said(&[hex], "ip0a7b7b7b.example.", RecordType::A),
        ["ip0a7b7b7b.example. 60 IN A 10.123.123.123"]
    );
    let octet = template(
        "example.",
        RecordType::TXT,
        &["^(?P<x>[a-f0-9]+)[.]"],
        &["{{ .Name }} TXT {{ parseInt .Group.x 16 8 }}"],
    );
    assert_eq!(
        said(std::slice::from_ref(&octet), "ff.example.", RecordType::TXT),
        ["ff.example. 3600 IN TXT 255"]
    );
    let reply = ask(&[octet], "100.example.", RecordType::TXT).unwrap();
    assert_eq!(reply.code, ResponseCode::ServFail, "it has more bits");
    let fields = template(
        "Example.",
        RecordType::TXT,
        &[],
        &["{{.Zone}} {{ .Class }} {{ .Type }} \"{{ .Remote }} {{ .Question.Name }}\""],
    );
    assert_eq!(
        said(&[fields], "A.example.", RecordType::TXT),
        ["example. 3600 IN TXT 192.0.2.7 A.example."]
    );
    let alias =
        template("foogle.com.", RecordType::ANY, &[], &["foogle.com 60 IN CNAME google.com"]);
    assert_eq!(
        said(&[alias], "foogle.com.", RecordType::A),
        ["foogle.com. 60 IN CNAME google.com."]
    );
}

#[test]
fn a_blank_beside_a_minus_goes() {
    let trims =
        template("e.", RecordType::A, &["(1)"], &["e. 5 IN A 1.2.3. {{- index .Match 1 -}} 0"]);
    assert_eq!(said(&[trims], "1.e.", RecordType::A), ["e. 5 IN A 1.2.3.10"]);
}

#[test]
fn what_go_can_do_besides_is_an_error() {
    for text in [
        "{{ if .Name }}x{{ end }}",
        "{{ $x := 1 }}",
        "{{ .Message.Id }}",
        "{{ .Name | printf \"%s\" }}",
        "{{ index .Match x }}",
        "{{ .Group. }}",
        "{{ parseInt .Name 99 8 }}",
        "{{}}",
        "{{ .Meta \"kubernetes/client-namespace\" }}",
    ] {
        let error = Text::new(text).unwrap_err();
        assert!(error.contains("is not supported in a template"), "{text}: {error}");
    }
    assert!(Text::new("{{ .Name").unwrap_err().contains("no end"));
    let of = |matches: &[&str], text: &str| {
        template("e.", RecordType::A, matches, &[]).check(&Text::new(text).unwrap())
    };
    assert!(of(&["(?P<a>.)"], "{{ .Group.a }} A 1.2.3.4").is_ok());
    assert!(of(&["(?P<a>.)"], "{{ .Group.b }} A 1.2.3.4").unwrap_err().contains("group \"b\""));
    assert!(of(&["(.)"], "{{ index .Match 2 }} A 1.2.3.4").unwrap_err().contains("group 2"));
    assert!(of(&[], "{{ index .Match 0 }} A 1.2.3.4").is_ok());
    assert!(of(&[], "e. 60 IN A 1.2.3").unwrap_err().contains("is no record"));
    assert!(of(&[], "").is_err());
}

proptest! {
    /// Any name in any record text: a record, or a failure, and no other record than one.
    #[test]
    fn any_name_in_any_place(
        labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..30), 0..6),
        before in "[a-z. \"();$@0-9\\\\]{0,20}",
        behind in "[a-zA-Z. \"();$@0-9\\\\]{0,30}",
        kind in prop::sample::select(vec!["A", "TXT", "CNAME", "SOA", "MX", "CAA", "HTTPS", "NAPTR"]),
    ) {
        let Ok(owner) = Name::from_labels(labels.iter().map(Vec::as_slice)) else { return Ok(()) };
        for text in [
            format!("{before}{{{{ .Name }}}}{behind}"),
            format!("{{{{ .Name }}}} 60 IN {kind} {behind}"),
            format!("e. {kind} {before}{{{{ .Name }}}}"),
        ] {
            let Ok(text) = Text::new(&text) else { continue };
            let template = Template { zones: vec![Name::root()], answers: vec![text], ..Template::default() };
            let query = Query::query(owner.clone(), RecordType::A);
            let reply = answer(&[template], &query, "::1".parse().unwrap()).unwrap();
            prop_assert!(reply.answers.len() <= 1);
        }
    }

    #[test]
    fn any_text(text in "[{} .$\"a-zA-Z0-9|-]{0,60}") {
        if let Ok(text) = Text::new(&text) {
            let _any = Template::default().check(&text);
        }
    }
}
