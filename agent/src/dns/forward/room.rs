//! The room in which clients wait for upstreams: so many at most. For one more the oldest of the
//! client that has most there makes room: who has waited longest has the least time left, and may
//! have gone, and no client takes the room from all others.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use tokio::sync::oneshot;

use super::{lock, shares::Client};

/// The room.
#[derive(Debug)]
pub(super) struct Room {
    limit: usize,
    state: Mutex<State>,
}

/// Chairs by their numbers, the oldest first, with the way to tell that one is another's.
type Chairs = BTreeMap<u64, oneshot::Sender<()>>;

#[derive(Debug, Default)]
struct State {
    next: u64,
    taken: usize,
    /// By their clients; none without any.
    chairs: HashMap<Client, Chairs>,
}

impl State {
    /// Takes a chair away, where it is still there.
    fn clear(&mut self, client: Client, number: u64) -> Option<oneshot::Sender<()>> {
        let chairs = self.chairs.get_mut(&client)?;
        let chair = chairs.remove(&number)?;
        if chairs.is_empty() {
            self.chairs.remove(&client);
        }
        self.taken -= 1;
        Some(chair)
    }

    /// The oldest of the client that has most; of several such the oldest of all.
    fn oldest_of_most(&self) -> Option<(Client, u64)> {
        let oldest = |chairs: &Chairs| chairs.first_key_value().map(|(number, _)| *number);
        let most = self.chairs.iter();
        let (client, chairs) =
            most.max_by_key(|(_, chairs)| (chairs.len(), Reverse(oldest(chairs))))?;
        Some((*client, oldest(chairs)?))
    }
}

/// A chair in it, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Chair {
    client: Client,
    number: u64,
    room: Arc<Room>,
    told: oneshot::Receiver<()>,
}

impl Room {
    /// A room with so many chairs.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, state: Mutex::default() })
    }

    /// A chair for `client`, which was another's where none is free.
    pub(super) fn enter(self: &Arc<Self>, client: Client) -> Chair {
        let (tell, told) = oneshot::channel();
        let mut state = lock(&self.state);
        let number = state.next;
        state.next += 1;
        state.taken += 1;
        state.chairs.entry(client).or_default().insert(number, tell);
        if state.taken > self.limit
            && let Some((client, number)) = state.oldest_of_most()
            && let Some(oldest) = state.clear(client, number)
        {
            // It may be leaving already.
            let _told = oldest.send(());
        }
        drop(state);
        Chair { client, number, room: Arc::clone(self), told }
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
        lock(&self.room.state).clear(self.client, self.number);
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
        let mut chairs: Vec<_> = (0..3).map(|_| room.enter(None)).collect();
        drop(chairs.remove(1));
        chairs.push(room.enter(None));
        assert_eq!(chairs.iter_mut().map(lost).collect::<Vec<_>>(), [false; 3]);
        chairs.push(room.enter(None));
        assert_eq!(chairs.iter_mut().map(lost).collect::<Vec<_>>(), [true, false, false, false]);
        // Its chair is another's already, which stays.
        drop(chairs.remove(0));
        assert_eq!(lock(&room.state).taken, 3);
        chairs.push(room.enter(None));
        assert_eq!(chairs.iter_mut().map(lost).collect::<Vec<_>>(), [true, false, false, false]);
        chairs.clear();
        assert!(lock(&room.state).chairs.is_empty());
    }

    #[test]
    fn who_has_most_makes_room_for_those_who_have_less() {
        let room = Room::new(4);
        let client = |number: u8| Some([192, 0, 2, number].into());
        let mut first = room.enter(client(1));
        let mut hogs: Vec<_> = (0..5).map(|_| room.enter(client(2))).collect();
        let mut last = room.enter(client(3));
        assert!(!lost(&mut first) && !lost(&mut last));
        let gone = [true, true, true, false, false];
        assert_eq!(hogs.iter_mut().map(lost).collect::<Vec<_>>(), gone);
        drop((first, hogs, last));
        let state = lock(&room.state);
        assert_eq!((state.taken, state.chairs.len()), (0, 0));
    }
}
