//! Ids of sets and backends: handed out in turn, so that an id that was freed is the last to be
//! used again. A flow or a socket that still names a freed id then meets no stranger.

/// A space of ids from 1 up; 0 means "none" in every table. It grows up to a bound.
#[derive(Clone, Debug)]
pub struct IdSpace {
    used: Vec<u64>,
    /// How many bits of `used` are set.
    in_use: u32,
    capacity: u32,
    max: u32,
    next: u32,
}

const BITS: u32 = u64::BITS;

impl IdSpace {
    /// The ids `1..capacity`, all free, and up to `max` when they are used.
    pub fn new(capacity: u32, max: u32) -> Self {
        let capacity = capacity.min(max);
        let mut space = Self { used: Vec::new(), in_use: 0, capacity: 0, max, next: 1 };
        space.resize(capacity);
        space.set(0, true);
        space
    }

    /// How many ids there are, 0 included.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// How many of them are used, 0 included.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    fn resize(&mut self, capacity: u32) {
        self.capacity = capacity;
        self.used.resize(capacity.div_ceil(BITS) as usize, 0);
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

    /// Begins where `seed` says, if every id was in use once: then nothing tells which ones were
    /// freed last, and agents that start again and again would all begin with the same.
    pub fn begin_at(&mut self, seed: u32) {
        if self.next >= self.capacity && self.capacity > 1 {
            self.next = 1 + seed % (self.capacity - 1);
        }
    }

    /// The id that has been free for longest, as far as known; `None` where all are used. A
    /// sixteenth stays free as long as there can be more, so that no id is used again at once.
    pub fn allocate(&mut self) -> Option<u32> {
        if self.in_use >= self.capacity - self.capacity / 16 && self.capacity < self.max {
            self.resize(larger(self.capacity, self.max));
        }
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
        match (used, *word & bit != 0) {
            (true, false) => self.in_use += 1,
            (false, true) => self.in_use -= 1,
            _ => {}
        }
        *word = if used { *word | bit } else { *word & !bit };
    }
}

/// The capacity that follows: an eighth more, so that what is held twice for a moment, and what
/// lies idle afterwards, stay in proportion.
pub(super) fn larger(capacity: u32, max: u32) -> u32 {
    let step = (capacity / 8).max(1).next_multiple_of(STEP);
    capacity.saturating_add(step).min(max)
}

/// Capacities grow by multiples of this, a few pages of records.
const STEP: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_id_comes_back_last() {
        let mut ids = IdSpace::new(4, 4);
        assert_eq!((ids.allocate(), ids.allocate()), (Some(1), Some(2)));
        ids.free(1);
        assert_eq!((ids.allocate(), ids.allocate(), ids.allocate()), (Some(3), Some(1), None));
    }

    #[test]
    fn ids_beyond_a_word_of_the_bitmap_are_found() {
        let mut ids = IdSpace::new(200, 200);
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
    fn more_ids_are_there_before_the_last_is_used() {
        let mut ids = IdSpace::new(1024, 5000);
        let used: Vec<_> = std::iter::from_fn(|| ids.allocate()).collect();
        assert!(used.into_iter().eq(1..5000), "each once, up to the bound");
        assert_eq!((ids.capacity(), ids.in_use()), (5000, 5000));

        let mut ids = IdSpace::new(1024, 5000);
        for _ in 0..959 {
            ids.allocate();
        }
        assert_eq!(ids.capacity(), 1024);
        ids.free(7);
        ids.allocate();
        assert_eq!(ids.capacity(), 1024, "what is freed makes room");
        ids.allocate();
        assert_eq!(ids.capacity(), 2048);
    }

    #[test]
    fn after_a_restart_ids_go_on_behind_the_last_that_was_used() {
        let mut ids = IdSpace::new(100, 100);
        ids.take(10);
        ids.resume_after(20);
        ids.resume_after(10);
        ids.begin_at(50);
        assert_eq!(ids.allocate(), Some(21));
    }

    #[test]
    fn where_every_id_was_in_use_once_agents_begin_at_different_ones() {
        let first = |seed| {
            let mut ids = IdSpace::new(100, 100);
            ids.resume_after(99);
            ids.begin_at(seed);
            ids.allocate()
        };
        assert_eq!([first(0), first(41), first(98), first(99)], [1, 42, 99, 1].map(Some));
    }
}
