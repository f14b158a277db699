//! Finds upstreams that lead back to this resolver, whatever stands in between: each is asked for
//! a name that nobody else knows, and if that question arrives here, it is one. As with CoreDNS the
//! type is HINFO, which nobody asks for. Not at the start alone: whenever upstreams fail or
//! questions pile up, which is what a loop looks like from within.

use std::{
    collections::HashSet,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use hickory_proto::{
    op::Query,
    rr::{Name, RecordType},
};
use tokio::time::timeout_at;

use super::{Forwarder, exchange, lock};
use crate::dns::{message::Question, name::LowerName};

/// The probes under way.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// Names, in lower-case wire form, that were asked for and did not come back yet.
    out: Mutex<HashSet<Box<[u8]>>>,
    suspicious: AtomicBool,
}

impl Probes {
    /// Something happened that a loop may have caused.
    pub(super) fn suspect(&self) {
        self.suspicious.store(true, Relaxed);
    }
}

impl Forwarder {
    /// Whether something happened since the last call that a loop may have caused.
    pub fn take_suspicion(&self) -> bool {
        self.probes.suspicious.swap(false, Relaxed)
    }

    /// Whether a client's question is one of our probes.
    pub fn is_probe(&self, question: &Question) -> bool {
        question.query.query_type() == RecordType::HINFO
            && lock(&self.probes.out).remove(LowerName::of(question.query.name()).wire())
    }

    /// Asks every upstream for a name of its own, and notes which of these came back.
    pub async fn probe(self: Arc<Self>) {
        let upstreams = self.routes.iter().enumerate().flat_map(|(route, zone)| {
            (0..zone.upstreams.len()).map(move |upstream| (route, upstream))
        });
        let probes = upstreams.map(|(route, upstream)| self.probe_one(route, upstream));
        futures::future::join_all(probes).await;
    }

    async fn probe_one(&self, place: usize, upstream: usize) {
        let Some((route, health)) = self.at(place) else { return };
        let Some(address) = route.upstreams.get(upstream).map(|named| named.address) else {
            return;
        };
        let Some(way) = self.way(place, upstream) else { return };
        let labels = [any_number(), any_number()].map(|number| format!("{number:016x}"));
        let name = Name::from_labels(labels.iter().map(String::as_bytes));
        let Ok(name) = name.and_then(|name| name.append_domain(&route.zone)) else { return };
        let key: Box<[u8]> = LowerName::of(&name).wire().into();
        lock(&self.probes.out).insert(key.clone());
        let question = Question::plain(Query::query(name, RecordType::HINFO));
        let until = Instant::now() + self.limits.attempt;
        let asking = exchange::ask(way, &question, &self.metrics.general.passed_over);
        // The answer does not matter, nor does whether there is one.
        drop(timeout_at(until.into(), asking).await);
        let came_back = !lock(&self.probes.out).remove(&key);
        if lock(health).set_looping(upstream, came_back) {
            tracing::warn!(upstream = %address, looping = came_back, "loop of resolvers");
        }
    }
}

/// A number that is another one each time.
pub(in crate::dns) fn any_number() -> usize {
    // The state is seeded by the system and counts up from there.
    usize::try_from(RandomState::new().hash_one(()) & 0xffff_ffff).unwrap_or_default()
}
