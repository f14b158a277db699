//! Where slot ranges live: an allocator of extents over the words of `SLOTS`, best fit, with
//! neighbours joined when they are freed.

use std::collections::{BTreeMap, BTreeSet};

use super::ids::larger;

/// Free space in `1..capacity`; word 0 is never handed out, since offset 0 means "none". It grows
/// up to a bound.
#[derive(Clone, Debug)]
pub struct Extents {
    by_offset: BTreeMap<u32, u32>,
    by_length: BTreeSet<(u32, u32)>,
    capacity: u32,
    max: u32,
}

impl Extents {
    /// All words free, and up to `max` when they are used.
    pub fn new(capacity: u32, max: u32) -> Self {
        let capacity = capacity.min(max);
        let (by_offset, by_length) = (BTreeMap::new(), BTreeSet::new());
        let mut extents = Self { by_offset, by_length, capacity, max };
        if capacity > 1 {
            extents.insert(1, capacity - 1);
        }
        extents
    }

    /// How many words there are, word 0 included.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The offset of `length` free words in a row, from the smallest gap that holds them; `None`
    /// where there is none, and no more to be had.
    pub fn allocate(&mut self, length: u32) -> Option<u32> {
        debug_assert!(length > 0, "an extent of no words");
        while self.by_length.range((length, 0)..).next().is_none() && self.capacity < self.max {
            let capacity = larger(self.capacity, self.max);
            self.free(self.capacity, capacity - self.capacity);
            self.capacity = capacity;
        }
        let &(gap, offset) = self.by_length.range((length, 0)..).next()?;
        self.remove(offset, gap);
        if gap > length {
            self.insert(offset + length, gap - length);
        }
        Some(offset)
    }

    /// Takes a certain extent; false, and nothing taken, where part of it is not free.
    pub fn reserve(&mut self, offset: u32, length: u32) -> bool {
        let Some((&start, &gap)) = self.by_offset.range(..=offset).next_back() else {
            return false;
        };
        let Some(end) = offset.checked_add(length) else { return false };
        if end > start + gap {
            return false;
        }
        self.remove(start, gap);
        if offset > start {
            self.insert(start, offset - start);
        }
        if end < start + gap {
            self.insert(end, start + gap - end);
        }
        true
    }

    /// Gives an extent back.
    pub fn free(&mut self, offset: u32, length: u32) {
        let (mut start, mut end) = (offset, offset + length);
        if let Some((&before, &gap)) = self.by_offset.range(..offset).next_back() {
            debug_assert!(before + gap <= offset, "words {offset}.. are free already");
            if before + gap == offset {
                self.remove(before, gap);
                start = before;
            }
        }
        if let Some(&gap) = self.by_offset.get(&end) {
            self.remove(end, gap);
            end += gap;
        }
        self.insert(start, end - start);
    }

    /// Free words, in gaps of any size.
    pub fn free_words(&self) -> u32 {
        self.by_offset.values().sum()
    }

    fn insert(&mut self, offset: u32, length: u32) {
        self.by_offset.insert(offset, length);
        self.by_length.insert((length, offset));
    }

    fn remove(&mut self, offset: u32, length: u32) {
        self.by_offset.remove(&offset);
        self.by_length.remove(&(length, offset));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_gap_that_fits_is_used() {
        let mut extents = Extents::new(100, 100);
        let offsets: Vec<u32> =
            [10, 5, 10, 3, 10].map(|length| extents.allocate(length).unwrap()).into();
        assert_eq!(offsets, [1, 11, 16, 26, 29]);
        extents.free(11, 5);
        extents.free(26, 3);
        assert_eq!(extents.allocate(2), Some(26));
        assert_eq!(extents.allocate(4), Some(11));
    }

    #[test]
    fn reserved_words_are_not_handed_out() {
        let mut extents = Extents::new(20, 20);
        assert!(extents.reserve(5, 10));
        assert!(!extents.reserve(14, 1));
        assert!(!extents.reserve(18, 5), "beyond the end");
        assert!(!extents.reserve(0, 1), "word 0");
        assert!(!extents.reserve(u32::MAX, 2));
        assert_eq!(extents.allocate(6), None);
        extents.free(5, 10);
        assert_eq!(extents.allocate(19), Some(1));
    }

    #[test]
    fn more_words_join_those_that_are_free_at_the_end() {
        let mut extents = Extents::new(1024, 3000);
        assert_eq!(extents.allocate(1000), Some(1));
        assert_eq!(extents.allocate(23), Some(1001), "the last ones");
        assert_eq!(extents.capacity(), 1024);
        extents.free(1001, 23);
        assert_eq!(extents.allocate(1047), Some(1001));
        assert_eq!(extents.capacity(), 2048);
        assert_eq!(extents.allocate(953), None, "beyond the bound");
        assert_eq!(extents.capacity(), 3000);
        assert_eq!(extents.allocate(952), Some(2048));
    }

    proptest! {
        #[test]
        fn extents_never_overlap_and_all_come_back(
            steps in prop::collection::vec((any::<bool>(), 1u32..20, any::<prop::sample::Index>()), 0..200)
        ) {
            let capacity = 300;
            let mut extents = Extents::new(capacity, capacity);
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (allocate, length, which) in steps {
                if allocate {
                    if let Some(offset) = extents.allocate(length) {
                        prop_assert!(offset > 0 && offset + length <= capacity);
                        let overlaps = held.iter().any(|(o, l)| offset < o + l && *o < offset + length);
                        prop_assert!(!overlaps);
                        held.push((offset, length));
                    }
                } else if !held.is_empty() {
                    let (offset, length) = held.swap_remove(which.index(held.len()));
                    extents.free(offset, length);
                }
                let used: u32 = held.iter().map(|(_, length)| length).sum();
                prop_assert_eq!(extents.free_words(), capacity - 1 - used);
            }
            for (offset, length) in held {
                extents.free(offset, length);
            }
            prop_assert_eq!(extents.allocate(capacity - 1), Some(1));
        }
    }
}
