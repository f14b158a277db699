//! Properties of reading a configuration: whatever a file holds, the agent has a configuration or an
//! error that says where to look, and what it shows of itself reads back as the same.

use proptest::{prelude::*, sample};

use super::*;

/// A line of a file: a field and a value, and whether the value is one of the field's type.
#[derive(Clone, Debug)]
struct Line {
    key: String,
    value: String,
    fits: bool,
}

/// Values of a type of the table that fit it, and such that don't.
fn values(form: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match form {
        "bool" => (&["true", "false"], &["maybe", "1", "[true]", "{}"]),
        "u8" => (&["0", "4", "255"], &["256", "-1", "x", "[4]", "1.5"]),
        "u16" => (&["0", "1", "4789", "65535"], &["65536", "-1", "x", "[80]", "1.5"]),
        "u32" => (&["0", "1500", "200000"], &["4294967296", "-1", "many", "{}"]),
        "SocketAddr" => (
            &["127.0.0.1:80", "\"[::]:10256\"", "0.0.0.0:0"],
            &["here", "127.0.0.1", "[]", "127.0.0.1:99999"],
        ),
        "Vec<std::net::IpAddr>" => {
            (&["[]", "[10.96.0.10]", "[10.96.0.10, 'fd00:96::a']"], &["10.96.0.10", "[x]", "{}"])
        }
        "Vec<String>" => (
            &["[]", "[a]", "[10.0.0.0/8, 'fd00::/8']", "[primary]", "['']", "[\"#\", ': x']"],
            &["a", "[[a]]", "{a: b}", "7"],
        ),
        "crate::dns::native::Blocks" => (
            &["[]", "[{zones: [a], forward: [{to: [192.0.2.1]}]}]"],
            &["a", "[{zones: 1}]", "[{unheard: []}]"],
        ),
        _ => (
            &["a", "\"\"", "'ü # x'", "\"a: b\\n\\u0007\"", "'007'", "/run/x", "'null'"],
            &["[a]", "{a: b}"],
        ),
    }
}

fn line() -> impl Strategy<Value = Line> {
    let fields: Vec<_> = fields::all().map(|field| (field.key(), field.form)).collect();
    (sample::select(fields), any::<sample::Index>(), prop::bool::weighted(0.97)).prop_map(
        |((key, form), at, fits)| {
            let (good, bad) = values(form);
            let value = at.get(if fits { good } else { bad });
            Line { key, value: (*value).to_owned(), fits }
        },
    )
}

/// A file, each field in it once.
fn file() -> impl Strategy<Value = Vec<Line>> {
    prop::collection::vec(line(), 0..12).prop_map(|mut lines| {
        let mut seen = std::collections::BTreeSet::new();
        lines.retain(|line| seen.insert(line.key.clone()));
        lines
    })
}

fn text_of(lines: &[Line]) -> String {
    let head = format!("apiVersion: {API_VERSION}\n");
    lines.iter().fold(head, |text, Line { key, value, .. }| text + &format!("{key}: {value}\n"))
}

/// All that an error says.
fn told(error: &ConfigError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn layered(file: fields::File) -> Config {
    fields::layer(Flags::default(), file, fields::File::default()).0
}

proptest! {
    /// A value that is not of its field's type is named by field and line; in its order, the first.
    #[test]
    fn what_does_not_fit_is_named_by_line(lines in file()) {
        let text = text_of(&lines);
        let wrong = lines.iter().position(|line| !line.fits);
        match (parse(&text, Path::new("agent.yaml")), wrong) {
            (Ok(_), None) => {}
            (Err(error), Some(at)) => {
                let told = told(&error);
                let place = format!("line {} ", at + 2);
                prop_assert!(told.contains("agent.yaml"), "{told}\n{text}");
                prop_assert!(told.contains(&lines[at].key), "{told}\n{text}");
                prop_assert!(told.contains(&place), "{told}\n{text}");
            }
            (outcome, _) => prop_assert!(false, "{outcome:?}\n{text}"),
        }
    }

    /// What a configuration shows is a file that means the same, which shows the same.
    #[test]
    fn what_is_shown_reads_back_as_the_same(lines in file()) {
        let text = text_of(&lines);
        let Ok(file) = parse(&text, Path::new("agent.yaml")) else { return Ok(()) };
        let (config, origins) =
            fields::layer(Flags::default(), file, fields::File::default());
        let resolved = Resolved { config, notes: Vec::new(), origins, kube_proxy: None };
        let shown = resolved.show();
        let again = parse(&shown, Path::new("shown"));
        let again = again.map_err(|error| TestCaseError::fail(format!("{}\n{shown}", told(&error))));
        prop_assert_eq!(&layered(again?), &resolved.config, "{}", shown);
        for line in &lines {
            let from_file = shown.lines().any(|shown| {
                shown.starts_with(&format!("{}: ", line.key)) && shown.ends_with("  # file")
            });
            prop_assert!(from_file, "{}: {shown}", line.key);
        }
    }

    /// The order of fields means nothing.
    #[test]
    fn fields_may_stand_in_any_order(lines in file(), seed in any::<u64>()) {
        let mut turned = lines.clone();
        turned.sort_by_key(|line| {
            line.key.bytes().fold(seed, |fold, byte| fold.rotate_left(7) ^ u64::from(byte))
        });
        let path = Path::new("agent.yaml");
        let [one, other] = [&lines, &turned].map(|lines| parse(&text_of(lines), path).ok());
        prop_assert_eq!(one, other);
    }

    /// A value that can't be is named by its field, which there is; so is its line, where the file
    /// says it.
    #[test]
    fn what_can_not_be_is_named_by_field_and_line(lines in file()) {
        let text = text_of(&lines);
        let path = Path::new("agent.yaml");
        let Ok(file) = parse(&text, path) else { return Ok(()) };
        let Err(error) = layered(file).check() else { return Ok(()) };
        let error = error.placed(path, &text);
        let ConfigError::Value { field, flag, place, why } = &error else {
            return Err(TestCaseError::fail(format!("{error:?}")));
        };
        let known = fields::all().find(|of| of.key() == *field);
        prop_assert!(known.is_some_and(|of| of.name.replace('_', "-") == *flag), "{error}");
        prop_assert!(!why.is_empty());
        // What is wrong may be that another field is missing.
        if let Some(at) = lines.iter().position(|line| line.key == *field) {
            prop_assert_eq!(place, &format!(" in agent.yaml, line {}", at + 2));
        }
    }

    /// Any text at all: an answer, and no panic.
    #[test]
    fn any_text_is_answered(
        text in "\\PC{0,200}",
        lines in file(),
        at in any::<sample::Index>(),
        cut in any::<sample::Index>(),
    ) {
        let good = text_of(&lines);
        let boundaries: Vec<_> = good.char_indices().map(|(at, _)| at).collect();
        let (at, cut) = (*at.get(&boundaries), *cut.get(&boundaries));
        let (from, to) = (at.min(cut), at.max(cut));
        // Alone, in the midst of a file, and in the place of a part of it.
        for text in [
            text.clone(),
            format!("{}{text}{}", &good[..at], &good[at..]),
            format!("{}{text}{}", &good[..from], &good[to..]),
        ] {
            match parse(&text, Path::new("agent.yaml")) {
                Ok(file) => drop(layered(file).check()),
                Err(error) => prop_assert!(told(&error).contains("agent.yaml")),
            }
            // The same text as kube-proxy's.
            if let Ok(taken) = kube_proxy::take(&text) {
                drop(layered(taken.settings).check());
            }
        }
    }
}
