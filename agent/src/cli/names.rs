//! `mizzen dns`: the text of an explained name.

use std::fmt::Write as _;

use hickory_proto::rr::RecordType;

use super::inspect::Outcome;
use crate::{
    dns::explain::{Explained, Source},
    serve::names::Answers,
};

/// A type of record, as the command line has it.
pub(super) fn record_type(text: &str) -> Result<String, String> {
    let upper = text.to_uppercase();
    match upper.parse::<RecordType>() {
        Ok(_) => Ok(upper),
        Err(_) => Err("it is none such as A, AAAA, SRV, PTR or TXT".to_owned()),
    }
}

/// The answers as text. Degraded where nothing is found.
pub(super) fn print(body: &str) -> anyhow::Result<(String, Outcome)> {
    let answers: Answers = serde_json::from_str(body)?;
    let mut text = String::new();
    for question in &answers.questions {
        explained(&mut text, question);
    }
    let found = answers.questions.last().is_some_and(Explained::found);
    Ok((text, if found { Outcome::Ok } else { Outcome::Degraded }))
}

/// Writing to a String can't fail.
fn explained(text: &mut String, question: &Explained) {
    let Explained { name, r#type, code, took_ms, .. } = question;
    let nothing = if code == "NOERROR" && question.answers.is_empty() {
        ", of that type there is nothing"
    } else {
        ""
    };
    let _ = writeln!(text, "{name} {type}: {code}{nothing} ({took_ms} ms)");
    if !question.reason.is_empty() {
        let _ = writeln!(text, "  because  {}", question.reason);
    }
    for source in &question.sources {
        let _ = writeln!(text, "  from     {}", said(source, name));
    }
    for answer in &question.answers {
        let _ = writeln!(text, "  answer   {answer}");
    }
}

/// What answers, or has a part in the answer; with the name where that is not what was asked.
fn said(source: &Source, asked: &str) -> String {
    let of = if source.name.is_empty() || source.name == asked {
        String::new()
    } else {
        format!("{}: ", source.name)
    };
    of + &place(source)
}

fn place(source: &Source) -> String {
    let zone = &source.zone;
    let by = source.answered_by.as_deref();
    match &*source.kind {
        "cluster" if source.objects.is_empty() => {
            format!("the cluster's names ({zone}): nothing has it")
        }
        "cluster" => format!("the cluster's names ({zone}): {}", source.objects.join(", ")),
        "hosts" => format!("the table of hosts of {zone}"),
        "cache" => {
            let (age, left) =
                (source.age_seconds.unwrap_or_default(), source.left_seconds.unwrap_or_default());
            let said = by.map_or_else(
                || format!("none of {} answered", source.upstreams.join(", ")),
                |by| format!("{by} said so"),
            );
            format!("the cache (zone {zone}): {age} s ago {said}, good for {left} s more")
        }
        "upstream" => match (by, source.age_seconds) {
            (Some(by), None) => format!("upstream {by} (zone {zone})"),
            (by, age) => {
                let asks =
                    format!("zone {zone}, which asks {}: no answer", source.upstreams.join(", "));
                let outlived = by
                    .zip(age)
                    .map(|(by, age)| format!("; what {by} said {age} s ago has outlived its time"));
                asks + &outlived.unwrap_or_default()
            }
        },
        "nobody" if zone.is_empty() => "nobody: no zone of the configuration has it".to_owned(),
        "nobody" => format!("nobody: zone {zone} has no upstream for it"),
        step => format!("{step}: {}", source.objects.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_found_is_ok_and_one_that_is_not_is_degraded() {
        let source = Source {
            kind: "cluster".into(),
            zone: "cluster.local.".into(),
            objects: vec!["Service default/web".into()],
            ..Source::default()
        };
        let mut question = Explained {
            name: "web.default.svc.cluster.local.".into(),
            r#type: "A".into(),
            code: "NOERROR".into(),
            answers: vec!["web.default.svc.cluster.local. 5 IN A 10.96.1.1".into()],
            reason: String::new(),
            took_ms: 0,
            sources: vec![source],
        };
        let body = |question: &Explained| {
            let questions = vec![question.clone()];
            let answers = Answers { node: "n".into(), from: String::new(), questions };
            serde_json::to_string(&answers).unwrap()
        };
        let (text, outcome) = print(&body(&question)).unwrap();
        assert_eq!(outcome, Outcome::Ok);
        assert!(text.contains("(cluster.local.): Service default/web\n"), "{text}");
        question.answers.clear();
        let (text, outcome) = print(&body(&question)).unwrap();
        assert_eq!(outcome, Outcome::Degraded);
        assert!(text.contains("NOERROR, of that type there is nothing"), "{text}");
        question.sources = vec![Source {
            kind: "cache".into(),
            zone: ".".into(),
            upstreams: vec!["192.0.2.1:53".into(), "192.0.2.2:53".into()],
            answered_by: Some("192.0.2.2:53".into()),
            age_seconds: Some(3),
            left_seconds: Some(27),
            ..Source::default()
        }];
        let (text, _) = print(&body(&question)).unwrap();
        let kept = "the cache (zone .): 3 s ago 192.0.2.2:53 said so, good for 27 s more\n";
        assert!(text.contains(kept), "{text}");
    }

    #[test]
    fn of_upstreams_the_one_that_answered_is_named() {
        let asked = Source {
            kind: "upstream".into(),
            zone: ".".into(),
            upstreams: vec!["192.0.2.1:53".into(), "192.0.2.2:53".into()],
            ..Source::default()
        };
        let by = Some("192.0.2.2:53".to_owned());
        let answered = Source { answered_by: by.clone(), ..asked.clone() };
        assert_eq!(place(&answered), "upstream 192.0.2.2:53 (zone .)");
        let nobody = "zone ., which asks 192.0.2.1:53, 192.0.2.2:53: no answer";
        assert_eq!(place(&asked), nobody);
        let stale = Source {
            answered_by: by,
            age_seconds: Some(90),
            left_seconds: Some(0),
            ..asked.clone()
        };
        let outlived = "; what 192.0.2.2:53 said 90 s ago has outlived its time";
        assert_eq!(place(&stale), format!("{nobody}{outlived}"));
        let failed =
            Source { kind: "cache".into(), age_seconds: Some(1), left_seconds: Some(4), ..asked };
        let said = "the cache (zone .): 1 s ago none of 192.0.2.1:53, 192.0.2.2:53 answered, good for 4 s more";
        assert_eq!(place(&failed), said);
    }
}
