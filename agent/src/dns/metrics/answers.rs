//! What is counted of questions and answers, apart for each thread that answers datagrams: no two
//! of them write to the same memory, and who reads adds up.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use hickory_proto::op::ResponseCode;

use super::{
    CODES, ORIGINS, Origin, Request, TYPES,
    buckets::{Buckets, SIZES, TIMES, Unit},
    head, place_of, sample, sample_if_any,
};
use crate::dns::message::Transport;

/// How many threads count apart; others count together.
pub(super) const APART: usize = 8;

thread_local! {
    /// Where this thread counts.
    pub(super) static PLACE: Cell<usize> = const { Cell::new(APART) };
}

/// Has this thread count apart from others, in the place with that number.
pub fn count_apart(number: usize) {
    PLACE.set(number.min(APART));
}

/// The counters of one place, in cache lines of its own.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Answers {
    /// By zone, transport, family and type.
    requests: [[[[AtomicU64; TYPES.len() + 1]; 2]; 2]; 2],
    /// By zone, code and origin.
    responses: [[[AtomicU64; ORIGINS.len()]; CODES.len() + 1]; 2],
    durations: [Buckets<16>; 2],
    /// By zone and transport.
    request_sizes: [[Buckets<14>; 2]; 2],
    response_sizes: [[Buckets<14>; 2]; 2],
    dnssec_requests: [AtomicU64; 2],
}

impl Answers {
    pub(super) fn new() -> Self {
        let sizes =
            || std::array::from_fn(|_| std::array::from_fn(|_| Buckets::new(Unit::Octets, &SIZES)));
        Self {
            requests: Default::default(),
            responses: Default::default(),
            durations: std::array::from_fn(|_| Buckets::new(Unit::Seconds, &TIMES)),
            request_sizes: sizes(),
            response_sizes: sizes(),
            dnssec_requests: Default::default(),
        }
    }

    /// `request` was answered with so many octets and this code.
    pub(super) fn count(
        &self,
        request: &Request,
        origin: Origin,
        code: ResponseCode,
        size: usize,
        time: Duration,
    ) {
        let zone = origin.zone();
        let transport = usize::from(request.transport != Transport::Udp);
        let kind = TYPES.iter().position(|kind| Some(*kind) == request.kind);
        let kind = kind.unwrap_or(TYPES.len());
        let family = usize::from(request.ipv6);
        self.requests[zone][transport][family][kind].fetch_add(1, Relaxed);
        self.responses[zone][place_of(code)][origin as usize].fetch_add(1, Relaxed);
        self.durations[zone].observe_time(time);
        self.request_sizes[zone][transport].observe(request.size as u64);
        self.response_sizes[zone][transport].observe(size as u64);
        if request.dnssec_ok {
            self.dnssec_requests[zone].fetch_add(1, Relaxed);
        }
    }

    /// Adds what was counted in another place.
    pub(super) fn add(&self, other: &Self) {
        for (ours, theirs) in self.counters().zip(other.counters()) {
            ours.fetch_add(theirs.load(Relaxed), Relaxed);
        }
        for (ours, theirs) in self.durations.iter().zip(&other.durations) {
            ours.add(theirs);
        }
        for (ours, theirs) in self.sizes().zip(other.sizes()) {
            ours.add(theirs);
        }
    }

    fn counters(&self) -> impl Iterator<Item = &AtomicU64> {
        let requests = self.requests.iter().flatten().flatten().flatten();
        let responses = self.responses.iter().flatten().flatten();
        requests.chain(responses).chain(&self.dnssec_requests)
    }

    fn sizes(&self) -> impl Iterator<Item = &Buckets<14>> {
        self.request_sizes.iter().flatten().chain(self.response_sizes.iter().flatten())
    }

    fn write_requests(&self, text: &mut String, zones: &[String; 2]) {
        let name = "coredns_dns_requests_total";
        head(text, name, "counter", "Questions by zone, transport, family and type");
        let names = TYPES.iter().map(ToString::to_string).chain(["other".to_owned()]);
        let names: Vec<_> = names.collect();
        for (zone, by_transport) in zones.iter().zip(&self.requests) {
            for (proto, by_family) in ["udp", "tcp"].iter().zip(by_transport) {
                for (family, by_type) in ["1", "2"].iter().zip(by_family) {
                    for (kind, count) in names.iter().zip(by_type) {
                        let labels =
                            format!("{zone},proto=\"{proto}\",family=\"{family}\",type=\"{kind}\"");
                        sample_if_any(text, name, &labels, count);
                    }
                }
            }
        }
        let name = "coredns_dns_do_requests_total";
        head(text, name, "counter", "Questions with the DO bit");
        for (zone, count) in zones.iter().zip(&self.dnssec_requests) {
            sample(text, name, zone, count);
        }
    }

    fn write_responses(&self, text: &mut String, zones: &[String; 2]) {
        let name = "coredns_dns_responses_total";
        head(text, name, "counter", "Answers by zone, code and what answered");
        let codes: Vec<_> = CODES.iter().map(|(_, name)| *name).chain(["other"]).collect();
        for (zone, by_code) in zones.iter().zip(&self.responses) {
            for (code, by_origin) in codes.iter().zip(by_code) {
                for (origin, count) in ORIGINS.iter().zip(by_origin) {
                    let labels = format!("{zone},rcode=\"{code}\",plugin=\"{origin}\"");
                    sample_if_any(text, name, &labels, count);
                }
            }
        }
        let name = "coredns_dns_request_duration_seconds";
        head(text, name, "histogram", "How long questions took");
        for (zone, durations) in zones.iter().zip(&self.durations) {
            durations.write(text, name, zone);
        }
    }

    fn write_sizes(&self, text: &mut String, zones: &[String; 2]) {
        for (name, help, sizes) in [
            ("coredns_dns_request_size_bytes", "Octets of questions", &self.request_sizes),
            ("coredns_dns_response_size_bytes", "Octets of answers", &self.response_sizes),
        ] {
            head(text, name, "histogram", help);
            for (zone, by_transport) in zones.iter().zip(sizes) {
                for (proto, sizes) in ["udp", "tcp"].iter().zip(by_transport) {
                    sizes.write(text, name, &format!("{zone},proto=\"{proto}\""));
                }
            }
        }
    }

    /// Everything, in the text format of Prometheus.
    pub(super) fn write(&self, text: &mut String, zones: &[String; 2]) {
        self.write_requests(text, zones);
        self.write_responses(text, zones);
        self.write_sizes(text, zones);
    }
}
