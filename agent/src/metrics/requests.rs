//! Requests to the API server, under the names of CoreDNS's plugin `kubernetes`, which has them from
//! client-go: how many, what came of them, and how long their answers took to begin.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::{escaped, histogram::Histogram};

/// What is said in the place of a code where there was no answer.
const NO_ANSWER: &str = "<error>";
/// Codes and methods that are told apart at most, for each server: others are not counted.
const SERIES_MAX: usize = 64;
/// client-go's upper bounds, in seconds.
const BOUNDS: [f64; 9] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0];

/// The counters. Shared behind an `Arc`; requests are few.
#[derive(Debug, Default)]
pub struct Requests {
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    /// By method, code and host.
    counts: BTreeMap<[String; 3], u64>,
    /// By method and host.
    durations: BTreeMap<[String; 2], Histogram>,
}

impl All {
    fn write_counts(&self, text: &mut String, name: &str) {
        let help = "Requests to the API server by method, code and host";
        // Writing to a String can't fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for ([method, code, host], count) in &self.counts {
            let host = escaped(host);
            let labels = format!("method=\"{method}\",code=\"{code}\",host=\"{host}\"");
            let _ = writeln!(text, "{name}{{{labels}}} {count}");
        }
    }
}

impl Requests {
    /// A request with that method had an answer from `host` with that code, or none, after `took`.
    pub fn done(&self, method: &str, host: &str, code: Option<u16>, took: Duration) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let code = code.map_or_else(|| NO_ANSWER.to_owned(), |code| code.to_string());
        let key = [method.to_owned(), code, host.to_owned()];
        if all.counts.len() >= SERIES_MAX && !all.counts.contains_key(&key) {
            return;
        }
        *all.counts.entry(key).or_default() += 1;
        let durations = all.durations.entry([method.to_owned(), host.to_owned()]);
        durations.or_insert_with(|| Histogram::new(BOUNDS.to_vec())).observe(took);
    }

    /// Their number, under kube-proxy's name.
    pub fn write_as_kube_proxy(&self, text: &mut String) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.write_counts(text, "rest_client_requests_total");
    }

    /// In the text format of Prometheus, under CoreDNS's names.
    pub fn write(&self, text: &mut String) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.write_counts(text, "coredns_kubernetes_rest_client_requests_total");
        let name = "coredns_kubernetes_rest_client_request_duration_seconds";
        let help = "How long answers of the API server took to begin";
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        for ([verb, host], durations) in &all.durations {
            let host = escaped(host);
            durations.write_samples(text, name, &format!("verb=\"{verb}\",host=\"{host}\""));
        }
        let name = "coredns_kubernetes_rest_client_rate_limiter_duration_seconds";
        let help = "How long requests were held back: the agent holds none back";
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        for ([verb, host], durations) in &all.durations {
            let at_once = Histogram::new(BOUNDS.to_vec());
            at_once.observe_instants(durations.count());
            let host = escaped(host);
            at_once.write_samples(text, name, &format!("verb=\"{verb}\",host=\"{host}\""));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_came_of_them() {
        let requests = Requests::default();
        let ms = Duration::from_millis;
        requests.done("GET", "192.0.2.1:6443", Some(200), ms(5));
        requests.done("GET", "192.0.2.1:6443", Some(200), ms(500));
        requests.done("PATCH", "192.0.2.1:6443", None, ms(9000));
        let mut text = String::new();
        requests.write(&mut text);
        requests.write_as_kube_proxy(&mut text);
        let name = "coredns_kubernetes_rest_client";
        let (get, patch) =
            ("verb=\"GET\",host=\"192.0.2.1:6443\"", "verb=\"PATCH\",host=\"192.0.2.1:6443\"");
        for line in [
            format!(
                "{name}_requests_total{{method=\"GET\",code=\"200\",host=\"192.0.2.1:6443\"}} 2\n"
            ),
            format!(
                "{name}_requests_total{{method=\"PATCH\",code=\"<error>\",host=\"192.0.2.1:6443\"}} 1\n"
            ),
            "rest_client_requests_total{method=\"GET\",code=\"200\",host=\"192.0.2.1:6443\"} 2\n"
                .to_owned(),
            format!("{name}_request_duration_seconds_bucket{{{get},le=\"0.005\"}} 1\n"),
            format!("{name}_request_duration_seconds_bucket{{{get},le=\"0.5\"}} 2\n"),
            format!("{name}_request_duration_seconds_sum{{{get}}} 0.505\n"),
            format!("{name}_request_duration_seconds_bucket{{{patch},le=\"8\"}} 0\n"),
            format!("{name}_request_duration_seconds_bucket{{{patch},le=\"+Inf\"}} 1\n"),
            format!("{name}_rate_limiter_duration_seconds_bucket{{{get},le=\"0.005\"}} 2\n"),
            format!("{name}_rate_limiter_duration_seconds_sum{{{get}}} 0\n"),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
    }

    #[test]
    fn an_odd_server_does_not_make_series_without_end() {
        let requests = Requests::default();
        for code in 0..1000 {
            requests.done("GET", "192.0.2.1:6443", Some(code), Duration::ZERO);
        }
        let mut text = String::new();
        requests.write(&mut text);
        requests.write_as_kube_proxy(&mut text);
        let of_each = text.lines().filter(|line| line.starts_with("rest_client_requests_total{"));
        assert_eq!(of_each.count(), SERIES_MAX);
    }
}
