//! How many each client has of what there is a bounded number of, so that no one takes all of it.

use std::{collections::HashMap, net::IpAddr};

/// A client, by its address; nobody where the agent asks by itself.
pub(super) type Client = Option<IpAddr>;

/// How many times what is free one client may have.
const OF_WHAT_IS_FREE: usize = 3;

/// How many each has. Who has none takes no room.
#[derive(Debug, Default)]
pub(super) struct Shares(HashMap<Client, usize>);

impl Shares {
    /// How many `client` has.
    pub(super) fn of(&self, client: Client) -> usize {
        self.0.get(&client).copied().unwrap_or(0)
    }

    /// One more is `client`'s.
    pub(super) fn add(&mut self, client: Client) {
        *self.0.entry(client).or_insert(0) += 1;
    }

    /// One less is.
    pub(super) fn remove(&mut self, client: Client) {
        let left = self.of(client).saturating_sub(1);
        if left == 0 {
            self.0.remove(&client);
        } else {
            self.0.insert(client, left);
        }
    }

    /// Whether `client` may have one more where so many are `free`: the more it has, the more have to
    /// be left. One alone comes to three quarters of all, and two to three sevenths each, so that who
    /// comes then finds some; of four or fewer one may have all.
    pub(super) fn may_grow(&self, client: Client, free: usize) -> bool {
        free > 0 && self.of(client) <= OF_WHAT_IS_FREE.saturating_mul(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many places of `all` each of so many clients comes to that want as many as they can have.
    fn taken(all: usize, clients: u8) -> Vec<usize> {
        let mut shares = Shares::default();
        let clients: Vec<Client> =
            (0..clients).map(|number| Some([192, 0, 2, number].into())).collect();
        let mut free = all;
        loop {
            let before = free;
            for client in &clients {
                if shares.may_grow(*client, free) {
                    shares.add(*client);
                    free -= 1;
                }
            }
            if free == before {
                return clients.iter().map(|client| shares.of(*client)).collect();
            }
        }
    }

    #[test]
    fn whoever_takes_all_that_it_may_leaves_some() {
        assert_eq!(taken(400, 1), [301]);
        assert_eq!(taken(400, 2), [172, 172]);
        assert_eq!(taken(400, 100), [4; 100]);
        for all in 1..=4 {
            assert_eq!(taken(all, 1), [all]);
        }
        assert_eq!(taken(8, 1), [7]);
    }

    #[test]
    fn who_has_none_takes_no_room() {
        let (mut shares, client) = (Shares::default(), Some([192, 0, 2, 1].into()));
        for _ in 0..2 {
            shares.add(client);
        }
        shares.remove(client);
        assert_eq!((shares.of(client), shares.of(None)), (1, 0));
        shares.remove(client);
        shares.remove(client);
        assert!(shares.0.is_empty());
    }
}
