//! What the steps of server blocks count, under CoreDNS's names.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{SERVER, head, sample};
use crate::dns::chain::acl::Action;

/// The counters of steps.
#[derive(Debug, Default)]
pub struct ChainCounts {
    completed: AtomicU64,
    translated: AtomicU64,
    /// By [`Action`].
    judged: [AtomicU64; 4],
    unlogged: AtomicU64,
}

impl ChainCounts {
    /// A search list was gone through to an answer.
    pub fn completed(&self) {
        self.completed.fetch_add(1, Relaxed);
    }

    /// IPv6 addresses were made of IPv4 addresses.
    pub fn translated(&self) {
        self.translated.fetch_add(1, Relaxed);
    }

    /// Access rules said what is done with a question.
    pub fn judged(&self, action: Action) {
        self.judged[action as usize].fetch_add(1, Relaxed);
    }

    /// There was no room for a line of the query log.
    pub fn unlogged(&self) {
        self.unlogged.fetch_add(1, Relaxed);
    }

    /// All of them, in the text format of Prometheus.
    pub(super) fn write(&self, text: &mut String) {
        let [allowed, blocked, filtered, dropped] = &self.judged;
        for (name, help, count) in [
            ("coredns_autopath_success_total", "Search lists gone through", &self.completed),
            (
                "coredns_dns64_requests_translated_total",
                "Answers with IPv6 addresses made of IPv4 addresses",
                &self.translated,
            ),
            ("coredns_acl_allowed_requests_total", "Questions that acl rules allow", allowed),
            ("coredns_acl_blocked_requests_total", "Questions that acl rules refuse", blocked),
            ("coredns_acl_filtered_requests_total", "Answers that acl rules hide", filtered),
            ("coredns_acl_dropped_requests_total", "Questions that acl rules drop", dropped),
            (
                "mizzen_dns_query_log_dropped_total",
                "Lines of the query log for which there was no room",
                &self.unlogged,
            ),
        ] {
            head(text, name, "counter", help);
            sample(text, name, SERVER, count);
        }
    }
}
