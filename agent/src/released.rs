//! Addresses that this node's pods have no more, on their way from the pod network to the loop that
//! ends what led to them. Who releases one never waits, and an address that is released again while
//! it waits is one: a node has so many addresses and no more.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::Notify;

/// So many wait at most. The range of a node's pods has fewer.
const WAITING_MAX: usize = 65_536;

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<BTreeSet<IpAddr>>,
    news: Notify,
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, BTreeSet<IpAddr>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of those who release addresses.
#[derive(Clone, Debug)]
pub struct Announcer(Weak<Shared>);

/// The end of who follows.
#[derive(Debug)]
pub struct Released(Arc<Shared>);

/// Both ends.
pub fn channel() -> (Announcer, Released) {
    let shared = Arc::<Shared>::default();
    (Announcer(Arc::downgrade(&shared)), Released(shared))
}

impl Announcer {
    /// Says that nobody has these addresses any more. Gives how many of them there was no room for;
    /// none where nobody follows.
    pub fn announce(&self, addresses: &[IpAddr]) -> usize {
        let Some(shared) = self.0.upgrade() else { return 0 };
        let mut waiting = shared.waiting();
        let mut left_out = 0;
        for address in addresses {
            if waiting.len() < WAITING_MAX {
                waiting.insert(*address);
            } else {
                left_out += usize::from(!waiting.contains(address));
            }
        }
        drop(waiting);
        shared.news.notify_one();
        left_out
    }
}

impl Released {
    /// Waits until there are some, and takes all of them.
    pub async fn recv(&mut self) -> BTreeSet<IpAddr> {
        loop {
            let released = self.take();
            if !released.is_empty() {
                return released;
            }
            self.0.news.notified().await;
        }
    }

    /// Takes those that wait.
    pub fn take(&self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut self.0.waiting())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> IpAddr {
        u32::try_from(n).unwrap().to_be_bytes().into()
    }

    #[tokio::test]
    async fn what_is_released_while_nobody_looks_waits() {
        let (announcer, mut released) = channel();
        for n in [1, 2, 1] {
            assert_eq!(announcer.announce(&[address(n)]), 0);
        }
        assert_eq!(released.recv().await, [address(1), address(2)].into());
        assert!(released.take().is_empty());
        let waiting = tokio::spawn(async move { released.recv().await });
        tokio::task::yield_now().await;
        announcer.announce(&[address(3)]);
        assert_eq!(waiting.await.unwrap(), [address(3)].into());
    }

    #[test]
    fn what_has_no_room_is_told_and_what_is_there_already_is_not() {
        let (announcer, released) = channel();
        let all: Vec<IpAddr> = (0..WAITING_MAX).map(address).collect();
        assert_eq!(announcer.announce(&all), 0);
        assert_eq!(announcer.announce(&[all[0], address(WAITING_MAX)]), 1);
        assert_eq!(released.take().len(), WAITING_MAX);
        assert_eq!(announcer.announce(&[address(WAITING_MAX)]), 0);
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let (announcer, released) = channel();
        drop(released);
        assert_eq!(announcer.announce(&[address(1)]), 0);
    }
}
