//! Ids of sets and backends: handed out in turn, so that an id that was freed is the last to be
//! used again. A flow or a socket that still names a freed id then meets no stranger.

/// A space of ids from 1 up; 0 means "none" in every table.
#[derive(Clone, Debug)]
pub struct IdSpace {
    used: Vec<u64>,
    capacity: u32,
    next: u32,
}

const BITS: u32 = u64::BITS;

impl IdSpace {
    /// The ids `1..capacity`, all free.
    pub fn new(capacity: u32) -> Self {
        let mut space = Self { used: vec![0; capacity.div_ceil(BITS) as usize], capacity, next: 1 };
        space.set(0, true);
        space
    }

    /// Marks an id as used. False where it is out of bounds or was used already.
    pub fn take(&mut self, id: u32) -> bool {
        let free = id < self.capacity && !self.is_used(id);
        if free {
            self.set(id, true);
        }
        free
    }

    /// Goes on after `id`: it was in use once, so that those after it are older.
    pub fn resume_after(&mut self, id: u32) {
        self.next = self.next.max(id.saturating_add(1));
    }

    /// The id that has been free for longest, as far as known; `None` where all are used.
    pub fn allocate(&mut self) -> Option<u32> {
        if self.next >= self.capacity {
            self.next = 1;
        }
        let id =
            self.first_free(self.next, self.capacity).or_else(|| self.first_free(1, self.next))?;
        self.set(id, true);
        self.next = id + 1;
        Some(id)
    }

    /// Frees an id.
    pub fn free(&mut self, id: u32) {
        debug_assert!(id != 0 && self.is_used(id), "id {id} is not in use");
        self.set(id, false);
    }

    /// Frees several.
    pub fn free_all(&mut self, ids: impl IntoIterator<Item = u32>) {
        for id in ids {
            self.free(id);
        }
    }

    fn first_free(&self, from: u32, to: u32) -> Option<u32> {
        let mut id = from;
        while id < to {
            let free = !self.used[(id / BITS) as usize] >> (id % BITS);
            if free != 0 {
                let found = id + free.trailing_zeros();
                return (found < to).then_some(found);
            }
            id = (id / BITS + 1) * BITS;
        }
        None
    }

    fn is_used(&self, id: u32) -> bool {
        self.used[(id / BITS) as usize] >> (id % BITS) & 1 == 1
    }

    fn set(&mut self, id: u32, used: bool) {
        let bit = 1 << (id % BITS);
        let word = &mut self.used[(id / BITS) as usize];
        *word = if used { *word | bit } else { *word & !bit };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_id_comes_back_last() {
        let mut ids = IdSpace::new(4);
        assert_eq!((ids.allocate(), ids.allocate()), (Some(1), Some(2)));
        ids.free(1);
        assert_eq!((ids.allocate(), ids.allocate(), ids.allocate()), (Some(3), Some(1), None));
    }

    #[test]
    fn ids_beyond_a_word_of_the_bitmap_are_found() {
        let mut ids = IdSpace::new(200);
        for id in 1..200 {
            assert!(ids.take(id));
        }
        assert!(!ids.take(7), "taken twice");
        assert!(!ids.take(200), "out of bounds");
        assert_eq!(ids.allocate(), None);
        ids.free(129);
        assert_eq!(ids.allocate(), Some(129));
    }

    #[test]
    fn after_a_restart_ids_go_on_behind_the_last_that_was_used() {
        let mut ids = IdSpace::new(100);
        ids.take(10);
        ids.resume_after(20);
        ids.resume_after(10);
        assert_eq!(ids.allocate(), Some(21));
    }
}
