//! The room in which clients wait for upstreams: so many at most, the oldest of whom makes room for
//! a newer one. Who has waited longest has the least time left, and may have gone.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use tokio::sync::oneshot;

use super::lock;

/// The room.
#[derive(Debug)]
pub(super) struct Room {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// The oldest first, with the way to tell it that its chair is another's.
    chairs: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A chair in it, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Chair {
    number: u64,
    room: Arc<Room>,
    told: oneshot::Receiver<()>,
}

impl Room {
    /// A room with so many chairs.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// A chair, which was the oldest's where none is free.
    pub(super) fn enter(self: &Arc<Self>) -> Chair {
        let (tell, told) = oneshot::channel();
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.chairs.insert(number, tell);
        if state.chairs.len() > self.limit
            && let Some((_, oldest)) = state.chairs.pop_first()
        {
            // It may be leaving already.
            let _told = oldest.send(());
        }
        drop(state);
        Chair { number, room: Arc::clone(self), told }
    }
}

impl Chair {
    /// Returns when the chair is another's.
    pub(super) async fn lost(&mut self) {
        // The other end is dropped by this chair alone.
        let _told = (&mut self.told).await;
    }
}

impl Drop for Chair {
    fn drop(&mut self) {
        lock(&self.room.state).chairs.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn lost(chair: &mut Chair) -> bool {
        chair.lost().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_makes_room_and_who_leaves_does() {
        let room = Room::new(3);
        let mut chairs: Vec<_> = (0..3).map(|_| room.enter()).collect();
        drop(chairs.remove(1));
        chairs.push(room.enter());
        assert_eq!(chairs.iter_mut().map(lost).collect::<Vec<_>>(), [false; 3]);
        chairs.push(room.enter());
        assert_eq!(chairs.iter_mut().map(lost).collect::<Vec<_>>(), [true, false, false, false]);
        // Its chair is another's already, which stays.
        drop(chairs.remove(0));
        assert_eq!(lock(&room.state).chairs.len(), 3);
        chairs.push(room.enter());
        assert_eq!(chairs.iter_mut().map(lost).collect::<Vec<_>>(), [true, false, false, false]);
        chairs.clear();
        assert!(lock(&room.state).chairs.is_empty());
    }
}
