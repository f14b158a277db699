//! The pods' host ports on their way from the pod network, which knows them first, to the loop that
//! fills the tables, and the answer that they are in force. ADD waits for it: a runtime that was
//! told of success may be asked at the port at once.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::model::pod::HostPortPods;

/// All host ports at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Counts what was asked, from 1.
    pub revision: u64,
    /// By pod.
    pub pods: Arc<HostPortPods>,
}

/// What is asked for and what is in force.
#[derive(Debug)]
pub struct HostPorts {
    asked: watch::Sender<Option<Asked>>,
    in_force: Mutex<u64>,
    changed: Condvar,
}

impl Default for HostPorts {
    fn default() -> Self {
        Self { asked: watch::Sender::new(None), in_force: Mutex::new(0), changed: Condvar::new() }
    }
}

impl HostPorts {
    /// Where no pod can have any.
    pub fn none() -> Self {
        let ports = Self::default();
        ports.ask(HostPortPods::new());
        ports
    }

    /// Says that these are the host ports from now on; which revision that is. Until the first
    /// call nothing is known, and nothing is removed.
    pub fn ask(&self, pods: HostPortPods) -> u64 {
        let mut revision = 0;
        self.asked.send_if_modified(|asked| match asked {
            Some(before) if *before.pods == pods => {
                revision = before.revision;
                false
            }
            before => {
                revision = before.as_ref().map_or(0, |before| before.revision) + 1;
                *before = Some(Asked { revision, pods: Arc::new(pods) });
                true
            }
        });
        revision
    }

    /// What is asked for; `None` until it is known.
    pub fn follow(&self) -> watch::Receiver<Option<Asked>> {
        self.asked.subscribe()
    }

    /// Says that the tables are as this revision asks.
    pub fn note_in_force(&self, revision: u64) {
        let mut in_force = self.in_force();
        if *in_force < revision {
            *in_force = revision;
            self.changed.notify_all();
        }
    }

    /// Waits until the tables are as this revision asks; whether they are in time.
    pub fn wait(&self, revision: u64, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut in_force = self.in_force();
        while *in_force < revision {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(in_force, left);
            in_force = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn in_force(&self) -> MutexGuard<'_, u64> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectKey, pod::HostPortPod};

    fn pods(serial: u64) -> HostPortPods {
        let (addresses, ports) = (Vec::new(), [].into());
        let pod = HostPortPod { addresses, ports, serial };
        [(ObjectKey::new("default", "web"), Arc::new(pod))].into()
    }

    #[test]
    fn who_waits_for_a_revision_gets_it_or_one_after_it() {
        let ports = HostPorts::default();
        let follower = ports.follow();
        assert_eq!(*follower.borrow(), None, "nothing is known before it is said");
        assert_eq!([ports.ask(pods(1)), ports.ask(pods(1)), ports.ask(pods(2))], [1, 1, 2]);
        assert_eq!(follower.borrow().as_ref().unwrap().revision, 2);
        assert!(!ports.wait(1, Duration::ZERO));
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(ports.wait(1, Duration::from_mins(1))));
            ports.note_in_force(2);
        });
        ports.note_in_force(1);
        assert!(ports.wait(2, Duration::ZERO));
    }
}
