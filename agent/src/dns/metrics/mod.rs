//! What the resolver counts, under CoreDNS's names, so that its dashboards and alerts work.
//!
//! Labels have few values whatever clients ask: two zones (the cluster's and all others), the types
//! that CoreDNS names, response codes, and the configured upstreams.

mod answers;
mod buckets;
mod chain;
mod general;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::RecordType};

pub use self::{
    answers::count_apart,
    chain::ChainCounts,
    general::{General, Plugins, count_panics},
};
use self::{
    answers::{APART, Answers, PLACE},
    buckets::{Buckets, TIMES, Unit},
};
use super::{
    cache::{Sort, Tally},
    forward::link::LinkCounts,
    message::Transport,
};
use crate::metrics::{escaped, requests::Requests};

/// The label `server`, as CoreDNS names the one that answers port 53.
const SERVER: &str = "server=\"dns://.:53\"";
/// How many upstreams have metrics of their own; others share one.
const MAX_UPSTREAMS: usize = 64;

/// Types with a label of their own, as CoreDNS has it; all others are `other`.
const TYPES: [RecordType; 16] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::ANY,
    RecordType::CNAME,
    RecordType::DNSKEY,
    RecordType::DS,
    RecordType::HTTPS,
    RecordType::MX,
    RecordType::NS,
    RecordType::NSEC,
    RecordType::PTR,
    RecordType::SOA,
    RecordType::SRV,
    RecordType::SVCB,
    RecordType::TXT,
    RecordType::HINFO,
];

/// Response codes with a label of their own, and what CoreDNS calls them.
const CODES: [(ResponseCode, &str); 7] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::BADVERS, "BADVERS"),
];

/// What answered: the plugin of CoreDNS that would have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// The index of the cluster's names.
    Kubernetes,
    /// A table of hosts.
    Hosts,
    /// The cache, or what it says of failures.
    Cache,
    /// An upstream.
    Forward,
    /// A template.
    Template,
    /// A search list that was gone through.
    Autopath,
    /// An access rule.
    Acl,
    /// The translation of addresses.
    Dns64,
    /// Nobody: it was refused as it came.
    #[default]
    Nobody,
}

const ORIGINS: [&str; 9] =
    ["kubernetes", "hosts", "cache", "forward", "template", "autopath", "acl", "dns64", ""];

impl Origin {
    /// Whether the question was about the cluster's names.
    fn zone(self) -> usize {
        usize::from(self != Self::Kubernetes)
    }
}

/// Why a datagram got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shed {
    /// Newer ones had its place.
    Full,
    /// It had waited too long.
    Late,
    /// The kernel had no room for it.
    Socket,
}

/// What the reasons are called.
const SHED: [&str; 3] = ["full", "late", "socket"];

/// A question, as far as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How it came.
    pub transport: Transport,
    /// Whether over IPv6.
    pub ipv6: bool,
    /// The type that it asks for; none where it could not be read.
    pub kind: Option<RecordType>,
    /// Whether it asks for signatures.
    pub dnssec_ok: bool,
    /// Its octets.
    pub size: usize,
}

/// Of each kind of answer that is kept.
#[derive(Debug, Default)]
struct CacheCounts {
    requests: AtomicU64,
    /// Successes and denials.
    hits: [AtomicU64; 2],
    stale: AtomicU64,
    prefetches: AtomicU64,
    /// The same, as the cache holds them.
    entries: [AtomicU64; 2],
    evictions: [AtomicU64; 2],
}

/// Of one upstream.
#[derive(Debug)]
pub struct UpstreamCounts {
    /// By response code, and those of other codes.
    durations: [Buckets<16>; CODES.len() + 1],
    failures: AtomicU64,
    /// Of its connections over TLS.
    pub links: Arc<LinkCounts>,
}

impl UpstreamCounts {
    fn new() -> Self {
        let durations = std::array::from_fn(|_| Buckets::new(Unit::Seconds, &TIMES));
        Self { durations, failures: AtomicU64::new(0), links: Arc::default() }
    }

    /// It answered with `code` after `time`.
    pub fn answered(&self, code: ResponseCode, time: Duration) {
        self.durations[place_of(code)].observe_time(time);
    }

    /// It did not answer.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Relaxed);
    }
}

/// The resolver's counters. Shared behind an `Arc`; counting takes no lock.
#[derive(Debug)]
pub struct Metrics {
    /// The cluster domain, with a dot at the end.
    domain: Mutex<String>,
    /// Of questions and answers, by the threads that count apart; the last are all others'.
    answers: [Answers; APART + 1],
    cache: CacheCounts,
    rejected: AtomicU64,
    /// Datagrams, by reason.
    shed: [AtomicU64; SHED.len()],
    reloads: [AtomicU64; 2],
    programming: Buckets<16>,
    /// Of the steps of server blocks.
    pub chain: ChainCounts,
    /// Of the resolver as a whole.
    pub general: General,
    upstreams: Mutex<BTreeMap<String, Arc<UpstreamCounts>>>,
    /// Of what is asked of the API server.
    requests: OnceLock<Arc<Requests>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            domain: Mutex::default(),
            answers: std::array::from_fn(|_| Answers::new()),
            cache: CacheCounts::default(),
            rejected: AtomicU64::default(),
            shed: Default::default(),
            reloads: Default::default(),
            programming: Buckets::new(Unit::Seconds, &TIMES),
            chain: ChainCounts::default(),
            general: General::default(),
            upstreams: Mutex::default(),
            requests: OnceLock::new(),
        }
    }
}

impl Metrics {
    /// Says that the role runs, for this cluster domain. Before, nothing is written.
    pub fn serve(&self, domain: &str) {
        let mut held = self.domain.lock().unwrap_or_else(PoisonError::into_inner);
        *held = format!("{}.", domain.trim_end_matches('.'));
    }

    /// Has these requests to the API server among what is written.
    pub fn follow_requests(&self, requests: Arc<Requests>) {
        // There is one agent in a process, and one set of them.
        let _first = self.requests.set(requests);
    }

    /// Those that are followed, where there are any.
    pub fn requests(&self) -> Option<&Requests> {
        self.requests.get().map(|requests| &**requests)
    }

    /// `request` was answered with so many octets and this code.
    pub fn answered(
        &self,
        request: &Request,
        origin: Origin,
        code: ResponseCode,
        size: usize,
        time: Duration,
    ) {
        self.answers[PLACE.get()].count(request, origin, code, size, time);
    }

    /// The cache was asked; whether it had an answer, a denial, or nothing.
    pub fn looked_up(&self, hit: Option<Sort>, stale: bool, prefetch: bool) {
        let cache = &self.cache;
        cache.requests.fetch_add(1, Relaxed);
        if let Some(sort) = hit {
            cache.hits[sort as usize].fetch_add(1, Relaxed);
        }
        cache.stale.fetch_add(u64::from(stale), Relaxed);
        cache.prefetches.fetch_add(u64::from(prefetch), Relaxed);
    }

    /// What the cache holds now.
    pub fn cache_holds(&self, Tally { entries, evicted }: Tally) {
        for (counts, now) in [(&self.cache.entries, entries), (&self.cache.evictions, evicted)] {
            for (count, now) in counts.iter().zip(now) {
                count.store(now, Relaxed);
            }
        }
    }

    /// A question was not asked because too many are under way.
    pub fn rejected(&self) {
        self.rejected.fetch_add(1, Relaxed);
    }

    /// So many datagrams were let go.
    pub fn shed(&self, why: Shed, count: u64) {
        self.shed[why as usize].fetch_add(count, Relaxed);
    }

    /// How many datagrams were let go for this reason.
    pub fn count_of_shed(&self, why: Shed) -> u64 {
        self.shed[why as usize].load(Relaxed)
    }

    /// A changed file was put in force, or could not be used.
    pub fn reloaded(&self, used: bool) {
        self.reloads[usize::from(!used)].fetch_add(1, Relaxed);
    }

    /// So long after the change of a headless Service's pods names follow it.
    pub fn programmed(&self, time: Duration) {
        self.programming.observe_time(time);
    }

    /// The counters of an upstream.
    pub fn upstream(&self, address: SocketAddr) -> Arc<UpstreamCounts> {
        let mut all = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        let mut name = address.to_string();
        if all.len() >= MAX_UPSTREAMS && !all.contains_key(&name) {
            "other".clone_into(&mut name);
        }
        Arc::clone(all.entry(name).or_insert_with(|| Arc::new(UpstreamCounts::new())))
    }

    /// Everything, in the text format of Prometheus; nothing where the role does not run.
    pub fn write(&self, text: &mut String) {
        let domain = self.domain.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if domain.is_empty() {
            return;
        }
        let zones = [domain.as_str(), "."]
            .map(|zone| format!("{SERVER},zone=\"{}\",view=\"\"", escaped(zone)));
        let answers = Answers::new();
        self.answers.iter().for_each(|counted| answers.add(counted));
        answers.write(text, &zones);
        let name = "coredns_shed_dropped_total";
        head(text, name, "counter", "Datagrams let go without an answer");
        for (reason, count) in SHED.iter().zip(&self.shed) {
            sample(text, name, &format!("reason=\"{reason}\""), count);
        }
        self.write_cache(text);
        self.write_upstreams(text);
        self.chain.write(text);
        self.general.write(text);
        let name = "coredns_kubernetes_dns_programming_duration_seconds";
        head(text, name, "histogram", "From a change of a headless service's pods to its names");
        self.programming.write(text, name, "service_kind=\"headless_with_selector\"");
        if let Some(requests) = self.requests.get() {
            requests.write(text);
        }
        let [used, failed] = &self.reloads;
        for (name, help, count) in [
            ("coredns_reload_total", "Changed files that were put in force", used),
            ("coredns_reload_failed_total", "Changed files that could not be used", failed),
        ] {
            head(text, name, "counter", help);
            sample(text, name, "", count);
        }
    }

    fn write_cache(&self, text: &mut String) {
        let cache = &self.cache;
        let labels = format!("{SERVER},zones=\".\",view=\"\"");
        let of_type = |kind: &str| format!("{SERVER},type=\"{kind}\",zones=\".\",view=\"\"");
        for (name, kind, help, counts) in [
            ("coredns_cache_hits_total", "counter", "Answers out of the cache", &cache.hits),
            ("coredns_cache_evictions_total", "counter", "Entries without room", &cache.evictions),
            ("coredns_cache_entries", "gauge", "Entries of the cache", &cache.entries),
        ] {
            head(text, name, kind, help);
            for (sort, count) in ["success", "denial"].iter().zip(counts) {
                sample(text, name, &of_type(sort), count);
            }
        }
        for (name, kind, help, count) in [
            ("coredns_cache_requests_total", "counter", "Look-ups in the cache", &cache.requests),
            (
                "coredns_cache_prefetch_total",
                "counter",
                "Answers asked for early",
                &cache.prefetches,
            ),
            (
                "coredns_cache_served_stale_total",
                "counter",
                "Answers beyond their time",
                &cache.stale,
            ),
        ] {
            head(text, name, kind, help);
            sample(text, name, &labels, count);
        }
    }

    fn write_upstreams(&self, text: &mut String) {
        let name = "coredns_forward_max_concurrent_rejects_total";
        head(text, name, "counter", "Questions not asked because too many were under way");
        sample(text, name, "", &self.rejected);
        let all = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "coredns_proxy_request_duration_seconds";
        head(text, name, "histogram", "How long upstreams took");
        let codes: Vec<_> = CODES.iter().map(|(_, name)| *name).chain(["other"]).collect();
        for (to, counts) in &*all {
            for (code, durations) in codes.iter().zip(&counts.durations) {
                if !durations.is_empty() {
                    let labels = format!("proxy_name=\"forward\",to=\"{to}\",rcode=\"{code}\"");
                    durations.write(text, name, &labels);
                }
            }
        }
        let name = "coredns_proxy_healthcheck_failures_total";
        head(text, name, "counter", "Questions that upstreams did not answer");
        for (to, counts) in &*all {
            let labels = format!("proxy_name=\"forward\",to=\"{to}\"");
            sample(text, name, &labels, &counts.failures);
        }
        for (name, help, count) in [
            (
                "coredns_proxy_conn_cache_hits_total",
                "Questions over TLS that found a connection",
                (|counts| &counts.links.found) as fn(&UpstreamCounts) -> &AtomicU64,
            ),
            (
                "coredns_proxy_conn_cache_misses_total",
                "Questions over TLS that had to make a connection",
                |counts| &counts.links.made,
            ),
        ] {
            head(text, name, "counter", help);
            for (to, counts) in &*all {
                let labels = format!("proxy_name=\"forward\",to=\"{to}\",proto=\"tcp-tls\"");
                sample_if_any(text, name, &labels, count(counts));
            }
        }
    }
}

fn place_of(code: ResponseCode) -> usize {
    CODES.iter().position(|(known, _)| *known == code).unwrap_or(CODES.len())
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String can't fail.
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn sample(text: &mut String, name: &str, labels: &str, count: &AtomicU64) {
    let count = count.load(Relaxed);
    let _ = if labels.is_empty() {
        writeln!(text, "{name} {count}")
    } else {
        writeln!(text, "{name}{{{labels}}} {count}")
    };
}

/// Of many possible labels only those are written that occurred.
fn sample_if_any(text: &mut String, name: &str, labels: &str, count: &AtomicU64) {
    if count.load(Relaxed) > 0 {
        sample(text, name, labels, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_counted_under_the_names_of_coredns() {
        let metrics = Metrics::default();
        let mut text = String::new();
        metrics.write(&mut text);
        assert_eq!(text, "", "nothing where the role does not run");
        metrics.serve("cluster.local");
        let request = Request {
            transport: Transport::Tcp,
            ipv6: true,
            kind: Some(RecordType::AAAA),
            dnssec_ok: true,
            size: 40,
        };
        let millisecond = Duration::from_millis(1);
        metrics.answered(&request, Origin::Kubernetes, ResponseCode::NXDomain, 90, millisecond);
        let odd = Request { kind: Some(RecordType::Unknown(65_280)), ..request };
        metrics.answered(&odd, Origin::Forward, ResponseCode::NoError, 900, millisecond);
        metrics.looked_up(Some(Sort::Denial), true, false);
        let upstream = metrics.upstream("192.0.2.1:53".parse().unwrap());
        upstream.answered(ResponseCode::ServFail, millisecond);
        metrics.write(&mut text);
        let zone = |zone: &str| format!("server=\"dns://.:53\",zone=\"{zone}\",view=\"\"");
        let (ours, others) = (zone("cluster.local."), zone("."));
        let tcp = "proto=\"tcp\"";
        for line in [
            format!("coredns_dns_requests_total{{{ours},{tcp},family=\"2\",type=\"AAAA\"}} 1"),
            format!("coredns_dns_requests_total{{{others},{tcp},family=\"2\",type=\"other\"}} 1"),
            format!("coredns_dns_do_requests_total{{{ours}}} 1"),
            format!(
                "coredns_dns_responses_total{{{ours},rcode=\"NXDOMAIN\",plugin=\"kubernetes\"}} 1"
            ),
            format!("coredns_dns_request_duration_seconds_bucket{{{others},le=\"0.001\"}} 1"),
            format!("coredns_dns_response_size_bytes_bucket{{{ours},{tcp},le=\"100\"}} 1"),
            format!("coredns_dns_response_size_bytes_sum{{{others},{tcp}}} 900"),
            "coredns_proxy_request_duration_seconds_count{proxy_name=\"forward\",\
             to=\"192.0.2.1:53\",rcode=\"SERVFAIL\"} 1"
                .to_owned(),
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
        }
        let samples = text.lines().filter(|line| line.contains("coredns_dns_requests_total{"));
        assert_eq!(samples.count(), 2, "only what occurred");
    }

    #[test]
    fn threads_count_apart_and_are_added_up() {
        let metrics = Metrics::default();
        metrics.serve("cluster.local");
        let request = Request {
            transport: Transport::Udp,
            ipv6: false,
            kind: Some(RecordType::A),
            dnssec_ok: true,
            size: 40,
        };
        let answered = || {
            let time = Duration::from_millis(1);
            metrics.answered(&request, Origin::Kubernetes, ResponseCode::NoError, 90, time);
        };
        answered();
        std::thread::scope(|scope| {
            for number in [0, 1, 1, 99] {
                scope.spawn(move || {
                    count_apart(number);
                    answered();
                });
            }
        });
        let mut text = String::new();
        metrics.write(&mut text);
        let labels = "server=\"dns://.:53\",zone=\"cluster.local.\",view=\"\"";
        for line in [
            format!(
                "coredns_dns_requests_total{{{labels},proto=\"udp\",family=\"1\",type=\"A\"}} 5"
            ),
            format!(
                "coredns_dns_responses_total{{{labels},rcode=\"NOERROR\",plugin=\"kubernetes\"}} 5"
            ),
            format!("coredns_dns_do_requests_total{{{labels}}} 5"),
            format!("coredns_dns_request_duration_seconds_count{{{labels}}} 5"),
            format!("coredns_dns_request_size_bytes_sum{{{labels},proto=\"udp\"}} 200"),
            format!("coredns_dns_response_size_bytes_sum{{{labels},proto=\"udp\"}} 450"),
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
        }
    }

    #[test]
    fn upstreams_beyond_the_bound_share_a_label() {
        let metrics = Metrics::default();
        metrics.serve("cluster.local");
        for port in 1..200 {
            metrics.upstream(([192, 0, 2, 1], port).into()).failed();
        }
        let mut text = String::new();
        metrics.write(&mut text);
        let labels = text.matches("coredns_proxy_healthcheck_failures_total{").count();
        assert_eq!(labels, MAX_UPSTREAMS + 1);
        assert!(text.contains("to=\"other\"} 135\n"), "{text}");
    }
}
