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
    let kept = match (source.age_seconds, source.left_seconds) {
        (Some(age), Some(0)) => format!("; an answer of {age} s ago has outlived its time"),
        (Some(age), Some(left)) => format!(", kept for {age} s, good for {left} s more"),
        _ => String::new(),
    };
    let zone = &source.zone;
    match &*source.kind {
        "cluster" if source.objects.is_empty() => {
            format!("the cluster's names ({zone}): nothing has it")
        }
        "cluster" => format!("the cluster's names ({zone}): {}", source.objects.join(", ")),
        "hosts" => format!("the table of hosts of {zone}"),
        "cache" => format!("the cache{kept}; zone {zone} asks {}", source.upstreams.join(", ")),
        "upstream" => format!("zone {zone}, which asks {}{kept}", source.upstreams.join(", ")),
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
            upstreams: vec!["192.0.2.1:53".into()],
            age_seconds: Some(3),
            left_seconds: Some(27),
            ..Source::default()
        }];
        let (text, _) = print(&body(&question)).unwrap();
        assert!(
            text.contains("the cache, kept for 3 s, good for 27 s more; zone . asks"),
            "{text}"
        );
    }
}
