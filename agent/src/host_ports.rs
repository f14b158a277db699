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

/// For so long who fills the tables may wait for something before nobody waits for that one.
const SETTLING: Duration = Duration::from_secs(1);

/// What is asked for and what is in force.
#[derive(Debug)]
pub struct HostPorts {
    asked: watch::Sender<Option<Asked>>,
    tables: Mutex<Tables>,
    changed: Condvar,
}

/// How far the tables are.
#[derive(Debug, Default)]
struct Tables {
    in_force: u64,
    /// What who fills them waits for, and since when.
    awaited: Option<(Instant, String)>,
}

impl Default for HostPorts {
    fn default() -> Self {
        Self { asked: watch::Sender::new(None), tables: Mutex::default(), changed: Condvar::new() }
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
        let mut tables = self.tables();
        tables.awaited = None;
        if tables.in_force < revision {
            tables.in_force = revision;
            self.changed.notify_all();
        }
    }

    /// Says what is waited for before anything is written to the tables; `None`: for nothing.
    pub fn note_awaited(&self, reason: Option<String>) {
        let mut tables = self.tables();
        let since = tables.awaited.take().map_or_else(Instant::now, |(since, _)| since);
        tables.awaited = reason.map(|reason| (since, reason));
        self.changed.notify_all();
    }

    /// Waits until the tables are as this revision asks; whether they are in time.
    pub fn wait(&self, revision: u64, limit: Duration) -> bool {
        self.wait_for(revision, limit, |_| None).is_ok()
    }

    /// As [`Self::wait`], but no longer once who fills the tables has waited for something else for
    /// a while: that is the error then.
    pub fn wait_unless_held_up(
        &self,
        revision: u64,
        limit: Duration,
    ) -> Result<(), Option<String>> {
        self.wait_for(revision, limit, |tables| {
            let (since, reason) = tables.awaited.as_ref()?;
            Some((*since + SETTLING, reason.clone()))
        })
    }

    fn wait_for(
        &self,
        revision: u64,
        limit: Duration,
        given_up: impl Fn(&Tables) -> Option<(Instant, String)>,
    ) -> Result<(), Option<String>> {
        let deadline = Instant::now() + limit;
        let mut tables = self.tables();
        while tables.in_force < revision {
            let now = Instant::now();
            let (at, reason) = match given_up(&tables) {
                Some((at, reason)) if at < deadline => (at, Some(reason)),
                _ => (deadline, None),
            };
            if at <= now {
                return Err(reason);
            }
            let waited = self.changed.wait_timeout(tables, at - now);
            tables = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// A cluster whose API server is away is not waited for by each ADD.
    #[test]
    fn cni_31_who_waits_is_told_what_the_tables_wait_for() {
        let ports = HostPorts::default();
        let revision = ports.ask(pods(1));
        let limit = Duration::from_mins(1);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| ports.wait_unless_held_up(revision, limit));
            ports.note_awaited(Some("Services".into()));
            ports.note_awaited(Some("Nodes".into()));
            assert_eq!(waiting.join().unwrap(), Err(Some("Nodes".into())));
        });
        assert_eq!(
            ports.wait_unless_held_up(revision, limit),
            Err(Some("Nodes".into())),
            "at once"
        );
        ports.note_awaited(None);
        assert_eq!(ports.wait_unless_held_up(revision, Duration::ZERO), Err(None));
        ports.note_awaited(Some("Nodes".into()));
        ports.note_in_force(revision);
        assert_eq!(ports.wait_unless_held_up(revision, limit), Ok(()));
    }
}
