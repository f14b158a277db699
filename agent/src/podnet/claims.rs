//! One call at a time for each attachment: an ADD that races its DEL waits its turn.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use mizzen_cni::wire::Attachment;

/// Who is at work on what.
#[derive(Debug, Default)]
pub struct Claims {
    busy: Mutex<BTreeSet<Attachment>>,
    freed: Condvar,
}

/// The right to work on one attachment, until it is dropped.
#[derive(Debug)]
pub struct Claim<'a> {
    claims: &'a Claims,
    attachment: Attachment,
}

impl Claims {
    /// Waits until `attachment` is free; `None` after `limit`.
    pub fn claim(&self, attachment: &Attachment, limit: Duration) -> Option<Claim<'_>> {
        let deadline = Instant::now() + limit;
        let mut busy = self.busy();
        while busy.contains(attachment) {
            let left = deadline.checked_duration_since(Instant::now())?;
            let waited = self.freed.wait_timeout(busy, left);
            busy = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        busy.insert(attachment.clone());
        Some(Claim { claims: self, attachment: attachment.clone() })
    }

    fn busy(&self) -> MutexGuard<'_, BTreeSet<Attachment>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim<'_> {
    /// What it is about.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.busy().remove(&self.attachment);
        self.claims.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_waits_for_the_first() {
        let claims = Claims::default();
        let attachment = Attachment { container_id: "c1".into(), ifname: "eth0".into() };
        let other = Attachment { container_id: "c2".into(), ifname: "eth0".into() };
        let first = claims.claim(&attachment, Duration::ZERO).unwrap();
        assert!(claims.claim(&attachment, Duration::from_millis(1)).is_none());
        assert!(claims.claim(&other, Duration::ZERO).is_some());
        let start = Instant::now();
        let limit = Duration::from_secs(10);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| claims.claim(&attachment, limit));
            drop(first);
            assert!(second.join().unwrap().is_some());
        });
        assert!(start.elapsed() < limit, "it was woken");
    }
}
