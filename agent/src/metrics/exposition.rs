//! A strict reader of Prometheus' text format (version 0.0.4), for tests. It knows nothing of how the
//! text is written.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use super::*;

/// Labels, in order.
type Labels = BTreeMap<String, String>;

/// A metric: its kind, and the samples below its head by their names.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    has_help: bool,
    samples: Vec<(String, Labels, f64)>,
}

fn is_name(name: &str, colons: bool) -> bool {
    let may = |c: char| c.is_ascii_alphanumeric() || c == '_' || colons && c == ':';
    name.chars().all(may) && name.chars().next().is_some_and(|c| !c.is_ascii_digit())
}

/// Reads `{name="value",…}`, with what is behind it.
fn labels(mut rest: &str) -> Result<(Labels, &str), String> {
    let mut found = Labels::new();
    loop {
        let (name, behind) = rest.split_once("=\"").ok_or("a label without a value")?;
        if !is_name(name, false) {
            return Err(format!("{name:?} is no label's name"));
        }
        let (mut value, mut chars) = (String::new(), behind.char_indices());
        let end = loop {
            match chars.next().ok_or("a value without an end")? {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, c @ ('\\' | '"'))) => c,
                    other => return Err(format!("{other:?} is not escaped so")),
                }),
                (_, c) => value.push(c),
            }
        };
        if found.insert(name.to_owned(), value).is_some() {
            return Err(format!("label {name} twice"));
        }
        let behind = &behind[end + 1..];
        match (behind.strip_prefix(','), behind.strip_prefix('}')) {
            (Some(next), _) => rest = next,
            (_, Some(end)) => return Ok((found, end)),
            _ => return Err(format!("{behind:?} behind a label")),
        }
    }
}

fn number(text: &str) -> Result<f64, String> {
    match text {
        "+Inf" => Ok(f64::INFINITY),
        _ if text.contains(|c: char| !c.is_ascii_digit() && !"+-.e".contains(c)) => {
            Err(format!("{text:?} is no number"))
        }
        _ => text.parse().map_err(|error| format!("{text:?}: {error}")),
    }
}

fn sample(line: &str) -> Result<(String, Labels, f64), String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, rest) = line.split_at(end);
    if !is_name(name, true) {
        return Err(format!("{name:?} is no metric's name"));
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Labels::new(), rest),
    };
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    Ok((name.to_owned(), labels, number(value)?))
}

/// Whether a sample may be below a head of that name and kind.
fn belongs(sample: &str, name: &str, kind: &str) -> bool {
    let behind = sample.strip_prefix(name);
    match kind {
        "histogram" => matches!(behind, Some("_bucket" | "_sum" | "_count")),
        _ => behind == Some(""),
    }
}

/// Reads all of it: the metrics by name, or the first line that is wrong.
fn read(text: &str) -> Result<BTreeMap<String, Family>, String> {
    if !text.ends_with('\n') {
        return Err("the last line has no end".to_owned());
    }
    let (mut families, mut series) = (BTreeMap::<String, Family>::new(), BTreeSet::new());
    let mut current = String::new();
    for line in text.lines() {
        let wrong = |why: String| format!("{line:?}: {why}");
        if let Some(head) = line.strip_prefix("# ") {
            let mut words = head.splitn(3, ' ');
            let (what, name) = (words.next(), words.next().ok_or_else(|| wrong("no name".into()))?);
            let rest = words.next().unwrap_or_default();
            if name != current && families.contains_key(name) {
                return Err(wrong("its samples are not together".to_owned()));
            }
            name.clone_into(&mut current);
            let family = families.entry(current.clone()).or_default();
            match what {
                Some("HELP") if !family.has_help && !rest.is_empty() => family.has_help = true,
                Some("TYPE")
                    if family.kind.is_empty()
                        && ["counter", "gauge", "histogram"].contains(&rest) =>
                {
                    rest.clone_into(&mut family.kind);
                }
                _ => return Err(wrong("no head, or twice".to_owned())),
            }
            continue;
        }
        let read = sample(line).map_err(wrong)?;
        let family = families.get_mut(&current).ok_or_else(|| wrong("no head".to_owned()))?;
        if !belongs(&read.0, &current, &family.kind) {
            return Err(wrong(format!("not below the head of {current}")));
        }
        if !series.insert((read.0.clone(), read.1.clone())) {
            return Err(wrong("the series is there twice".to_owned()));
        }
        family.samples.push(read);
    }
    families.values().try_for_each(histogram).map(|()| families)
}

/// Buckets rise, and the last is `+Inf` with the count.
fn histogram(family: &Family) -> Result<(), String> {
    if family.kind != "histogram" {
        return Ok(());
    }
    let mut buckets = BTreeMap::<Labels, Vec<(f64, f64)>>::new();
    let mut counts = BTreeMap::<Labels, f64>::new();
    for (name, labels, value) in &family.samples {
        let mut labels = labels.clone();
        match labels.remove("le") {
            Some(bound) => buckets.entry(labels).or_default().push((number(&bound)?, *value)),
            None if name.ends_with("_count") => _ = counts.insert(labels, *value),
            None => {}
        }
    }
    for (labels, buckets) in &buckets {
        let rises = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        let last = buckets.last().map(|(bound, count)| (bound.is_infinite(), Some(count)));
        if !rises || last != Some((true, counts.get(labels))) {
            return Err(format!("{labels:?}: {buckets:?} of {counts:?}"));
        }
    }
    if buckets.len() == counts.len() { Ok(()) } else { Err(format!("{counts:?} {buckets:?}")) }
}

/// By Prometheus' own reader, where there is one. What it finds odd in names that are kube-proxy's it
/// says, and is no error of the format.
fn by_promtool(text: &str) {
    let command = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn();
    let Ok(mut child) = command else { return };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let status = child.wait().unwrap();
    // 3: it is read, and a name is not to its liking.
    assert!(status.success() || status.code() == Some(3), "{status}");
}

struct Programs;

impl ProgramCounters for Programs {
    fn read(&self) -> Vec<(Counter, u64)> {
        Counter::ALL.iter().map(|counter| (*counter, 1)).collect()
    }
}

/// With something in everything that has labels, among it what has to be escaped.
fn full() -> Metrics {
    let metrics = Metrics::default();
    let odd = "odd\\name\"s\n";
    metrics.tables.healed("bandwidth", 2);
    metrics.proxy.synced(Duration::from_millis(3), &[]);
    metrics.proxy.healthz(false);
    let requests = Arc::<requests::Requests>::default();
    metrics.dns.follow_requests(Arc::clone(&requests));
    metrics.dns.serve("cluster.local");
    requests.done("GET", odd, Some(200), Duration::from_millis(7));
    requests.done("GET", "192.0.2.1:6443", None, Duration::from_secs(9));
    metrics
}

#[test]
fn the_whole_text_is_read_by_others() {
    let text = full().render(Some(&Programs));
    let families = read(&text).unwrap_or_else(|why| panic!("{why}\n{text}"));
    for (name, family) in &families {
        assert!(family.has_help && !family.kind.is_empty(), "{name}");
    }
    let requests = &families["rest_client_requests_total"].samples;
    let hosts: BTreeSet<_> = requests.iter().map(|(_, labels, _)| &*labels["host"]).collect();
    assert_eq!(hosts, BTreeSet::from(["192.0.2.1:6443", "odd\\name\"s\n"]));
    assert!(families.len() > 60, "{}", families.len());
    by_promtool(&text);
}

#[test]
fn what_is_not_of_the_format_is_found() {
    let head = "# HELP a b\n# TYPE a counter\n";
    assert!(read(&format!("{head}a 1\n")).is_ok());
    for wrong in [
        "a 1",
        "b 1\n",
        "a 1\na 2\n",
        "a{x=\"1\"} 1\na{x=\"1\"} 1\n",
        "a{x=\"\\q\"} 1\n",
        "a{x=\"1\" 1\n",
        "a{x=\"1\",x=\"2\"} 1\n",
        "a{0=\"1\"} 1\n",
        "a one\n",
        "a  1\n",
        "a{} 1\n",
        "# TYPE a counter\n",
        "# TYPE b summary\n",
        "# HELP b c\n# TYPE b counter\nb 1\n# HELP a b\n",
    ] {
        assert!(read(&format!("{head}{wrong}")).is_err(), "{wrong}");
    }
    let head = "# HELP h b\n# TYPE h histogram\n";
    let good = "h_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n";
    assert!(read(&format!("{head}{good}")).is_ok());
    for (from, to) in
        [("\"1\"} 1", "\"1\"} 3"), ("count 2", "count 3"), ("+Inf", "2"), ("h_sum", "h")]
    {
        assert!(read(&format!("{head}{}", good.replace(from, to))).is_err(), "{from}");
    }
}
