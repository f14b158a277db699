//! Rules as the documentation of CoreDNS's `rewrite` describes them.

use hickory_proto::{
    op::ResponseCode,
    rr::{
        RData,
        rdata::{A, CNAME, PTR, SRV},
    },
};
use proptest::prelude::*;

use super::*;

fn rule(kind: &str, from: &str, to: &str) -> Rule {
    let change = NameChange::new(kind, from, to).unwrap_or_else(|why| panic!("{why}"));
    Rule { change: Change::Name(change), goes_on: false }
}

fn with(kind: &str, from: &str, to: &str, more: impl FnOnce(&mut NameChange)) -> Rule {
    let mut change = NameChange::new(kind, from, to).unwrap_or_else(|why| panic!("{why}"));
    more(&mut change);
    Rule { change: Change::Name(change), goes_on: false }
}

fn going_on(rule: Rule) -> Rule {
    Rule { goes_on: true, ..rule }
}

fn query(name: &str) -> Query {
    Query::query(Name::from_ascii(name).unwrap(), RecordType::A)
}

fn asked(rules: &[Rule], name: &str) -> Option<String> {
    rewritten(rules, &query(name)).unwrap().map(|rewritten| rewritten.query.name().to_string())
}

#[test]
fn names_are_told_apart_in_five_ways() {
    for (kind, from, to, name, expected) in [
        ("exact", "example.net", "example.org", "Example.NET.", Some("example.org.")),
        ("exact", "example.net", "example.org", "a.example.net.", None),
        ("prefix", "foo", "bar", "foo.example.com.", Some("bar.example.com.")),
        ("prefix", "foo.", "bar.", "foo.example.com.", Some("bar.example.com.")),
        ("prefix", "foo", "bar", "coredns.foo.", None),
        ("suffix", ".schmoogle.com.", ".google.com.", "w.schmoogle.com.", Some("w.google.com.")),
        ("suffix", ".schmoogle.com", ".google.com", "schmoogle.com.", None),
        ("suffix", "com", "uk", "foo.example.com.", Some("foo.example.uk.")),
        (
            "substring",
            "service.us-west-1.example.org",
            "service.us-west-1.consul",
            "ftp.service.us-west-1.example.org.",
            Some("ftp.service.us-west-1.consul."),
        ),
        ("substring", "", "x", "a.", None),
        (
            "regex",
            r"(.*)-(us-west-1)\.example\.org",
            "{1}.service.{2}.consul",
            "ftp-us-west-1.example.org.",
            Some("ftp.service.us-west-1.consul."),
        ),
    ] {
        let rules = [rule(kind, from, to)];
        assert_eq!(asked(&rules, name).as_deref(), expected, "{kind} {from} {to}: {name}");
    }
    for (kind, from, to, why) in [
        ("glob", "a", "b", "must be exact"),
        ("regex", "(", "b", "no pattern"),
        ("regex", "(a)", "{2}", "no group 2"),
        ("exact", "a", "b..c", "no name"),
    ] {
        let error = NameChange::new(kind, from, to).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_rule_that_fits_is_the_last_unless_it_says_continue() {
    let chain = |first: Rule| [first, rule("suffix", ".b.", ".c.")];
    let first = || rule("suffix", ".a.", ".b.");
    assert_eq!(asked(&chain(first()), "x.a.").as_deref(), Some("x.b."));
    assert_eq!(asked(&chain(going_on(first())), "x.a.").as_deref(), Some("x.c."));
    assert_eq!(asked(&chain(first()), "x.b.").as_deref(), Some("x.c."), "the first does not fit");
    assert_eq!(asked(&chain(first()), "x.d."), None);
}

fn reply(answers: Vec<(&str, RData)>) -> Reply {
    let record = |(owner, data)| Record::from_rdata(Name::from_ascii(owner).unwrap(), 60, data);
    let answers = answers.into_iter().map(record).collect();
    Reply { code: ResponseCode::NoError, answers, ..Reply::default() }
}

fn a() -> RData {
    RData::A(A::new(192, 0, 2, 1))
}

/// The answer that a client gets for `name` where the question that is asked has these answers.
fn told(rules: &[Rule], name: &str, answers: Vec<(&str, RData)>) -> Vec<String> {
    let rewritten = rewritten(rules, &query(name)).unwrap().expect("a rule fits");
    let mut reply = reply(answers);
    undone(&mut reply, &rewritten.undo, &Name::from_ascii(name).unwrap());
    reply.answers.iter().map(ToString::to_string).collect()
}

fn named(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

#[test]
fn answers_to_exact_rules_are_brought_back() {
    let rules = [rule("exact", "old.example", "new.example")];
    let answers = vec![("new.example.", RData::CNAME(CNAME(named("x.new.example."))))];
    let expected = ["Old.example. 60 IN CNAME x.old.example."];
    assert_eq!(told(&rules, "Old.example.", answers), expected, "names and what they hold");
}

#[test]
fn other_answers_are_brought_back_where_it_is_said() {
    let answers = || vec![("foo.new.", a())];
    let plain = [rule("suffix", ".old", ".new")];
    assert_eq!(told(&plain, "foo.old.", answers()), ["foo.new. 60 IN A 192.0.2.1"]);
    let auto = |kind, from, to| [with(kind, from, to, |name| name.undo_by_itself().unwrap())];
    let back = ["foo.old. 60 IN A 192.0.2.1"];
    assert_eq!(told(&auto("suffix", ".old", ".new"), "foo.old.", answers()), back);
    assert_eq!(told(&auto("substring", ".old", ".new"), "foo.old.", answers()), back);
    assert_eq!(told(&auto("regex", r"(.*)\.old\.$", "{1}.new"), "foo.old.", answers()), back);
    let prefix = auto("prefix", "foo", "bar");
    assert_eq!(told(&prefix, "foo.new.", vec![("bar.new.", a())]), ["foo.new. 60 IN A 192.0.2.1"]);
    // A suffix is brought back in all names; the others only where the name itself stands.
    let target = || vec![("foo.new.", RData::CNAME(CNAME(named("other.new."))))];
    let suffix = auto("suffix", ".old", ".new");
    assert_eq!(told(&suffix, "foo.old.", target()), ["foo.old. 60 IN CNAME other.old."]);
    let regex = auto("regex", r"(.*)\.old\.$", "{1}.new");
    assert_eq!(told(&regex, "foo.old.", target()), ["foo.old. 60 IN CNAME other.new."]);
}

#[test]
fn answer_name_and_answer_value() {
    let rules =
        [with("regex", r"(.*)-(us-west-1)\.coredns\.rocks", "{1}.service.{2}.consul", |name| {
            name.undo_owner(r"(.*)\.service\.(us-west-1)\.consul", "{1}-{2}.coredns.rocks")
                .unwrap();
            name.undo_value(r"^(.*)\.node\.consul\.$", "{1}.nodes.rocks").unwrap();
        })];
    let srv = RData::SRV(SRV::new(1, 2, 3, named("n1.node.consul.")));
    assert_eq!(
        told(&rules, "ftp-us-west-1.coredns.rocks.", vec![("ftp.service.us-west-1.consul.", srv)]),
        ["ftp-us-west-1.coredns.rocks. 60 IN SRV 1 2 3 n1.nodes.rocks."]
    );
    let both = |name: &mut NameChange| {
        name.undo_by_itself().unwrap();
        assert!(name.undo_owner("a", "b").unwrap_err().contains("do not go together"));
    };
    with("suffix", "a", "b", both);
}

#[test]
fn what_several_rules_did_is_undone_last_first() {
    let auto = |from, to| with("suffix", from, to, |name| name.undo_by_itself().unwrap());
    let rules = [going_on(auto(".a", ".b")), auto(".b", ".c")];
    let answers = vec![("x.c.", RData::PTR(PTR(named("y.c."))))];
    assert_eq!(told(&rules, "x.a.", answers), ["x.a. 60 IN PTR y.a."]);
}

#[test]
fn types_and_times() {
    let of_type = |from, to| Rule { change: Change::Type { from, to }, goes_on: true };
    let any = of_type(RecordType::ANY, RecordType::HINFO);
    let test = Test::new("suffix", ".example.org").unwrap();
    let ttl = Rule { change: Change::Ttl { test, least: 15, most: 30 }, goes_on: false };
    let rules = [any, ttl];
    let question = Query::query(named("a.example.org."), RecordType::ANY);
    let rewritten = rewritten(&rules, &question).unwrap().unwrap();
    assert_eq!(rewritten.query.query_type(), RecordType::HINFO);
    let mut reply = reply(vec![("a.example.org.", a()), ("a.example.org.", a())]);
    reply.answers[1].ttl = 5;
    undone(&mut reply, &rewritten.undo, question.name());
    assert_eq!(reply.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [30, 15]);
    assert_eq!(super::rewritten(&rules, &query("example.com.")), Ok(None));
}

#[test]
fn a_name_that_is_none_is_an_error() {
    let long = "a".repeat(63);
    let rules = [rule("prefix", "x", &format!("{long}x"))];
    let error = rewritten(&rules, &query("x.example.")).unwrap_err();
    assert!(error.to_string().contains("which is no name"), "{error}");
}

proptest! {
    /// Any labels under any rule: a name, or an error; and answers stay records.
    #[test]
    fn any_name_under_any_rule(
        kind in prop::sample::select(vec!["exact", "prefix", "suffix", "substring", "regex"]),
        from in "[a-z.(*)\\\\{}0-9]{0,12}",
        to in "[a-z.{}0-9\\\\-]{0,40}",
        labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
        auto in any::<bool>(),
    ) {
        let Ok(mut change) = NameChange::new(kind, &from, &to) else { return Ok(()) };
        if auto {
            change.undo_by_itself().unwrap();
        }
        let Ok(name) = Name::from_labels(labels.iter().map(Vec::as_slice)) else { return Ok(()) };
        let rules = [Rule { change: Change::Name(change), goes_on: true }];
        let question = Query::query(name.clone(), RecordType::A);
        if let Ok(Some(rewritten)) = rewritten(&rules, &question) {
            let mut reply = reply(vec![]);
            let owner = rewritten.query.name().clone();
            reply.answers.push(Record::from_rdata(owner.clone(), 1, RData::CNAME(CNAME(owner))));
            undone(&mut reply, &rewritten.undo, &name);
            prop_assert_eq!(reply.answers.len(), 1);
        }
    }
}
