//! Session affinity (`sessionAffinity: ClientIP`): which backend a client keeps, on the socket and
//! the packet path alike (reference B71-B79b).
//!
//! A client is an address: that of the pod behind a socket, or a packet's source. What it keeps
//! counts per set, so per service port and family, whichever frontend was dialled (B74).

use crate::{addr::Addr, layout::record, select::Slots};

record! {
    /// A client of a set.
    pub struct AffinityKey: 20, 4 {
        /// The client's address.
        pub client: Addr,
        /// The set.
        pub set: u32,
    }

    /// What the client keeps. The first two fields are replaced in place by one store
    /// ([`Self::choice`]): whoever reads them sees a backend, and where that one was seen to be.
    #[repr(align(8))]
    pub struct Affinity: 16, 8 {
        /// The backend's id.
        pub backend: u32,
        /// The slots that were seen to hold it ([`crate::select::Slots::view`]).
        pub view: u32,
        /// When it was last asked for, in seconds of `bpf_ktime_get_coarse_ns`.
        pub seen_s: u32,
        /// Seconds for which it was kept when it was seen there: the entry may be swept after them.
        pub timeout_s: u32,
    }
}

/// A backend that a client keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The backend's id.
    pub backend: u32,
    /// Whether it was found in other slots than those in which it was seen before.
    pub is_new_view: bool,
}

impl Affinity {
    /// A backend and its view as the word that is read and written at once.
    #[inline(always)]
    pub const fn choice(backend: u32, view: u32) -> u64 {
        (view as u64) << 32 | backend as u64
    }

    /// The backend and the view of such a word.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the halves are what is asked for")]
    pub const fn of_choice(choice: u64) -> (u32, u32) {
        (choice as u32, (choice >> 32) as u32)
    }

    /// The backend that the client goes on to, of these slots; none where it chooses anew. `offers`
    /// says whether a backend is among the slots, which costs a search: it is asked where a flip of
    /// the set came between, since a backend that leaves the window, to terminate perhaps, does so
    /// by one.
    #[inline(always)]
    pub fn kept(
        &self,
        slots: &Slots,
        now_s: u32,
        offers: impl FnOnce(u32) -> bool,
    ) -> Option<Kept> {
        if self.is_over(slots.affinity_s, now_s) {
            return None;
        }
        let is_new_view = self.view != slots.view();
        if is_new_view && !offers(self.backend) {
            return None;
        }
        Some(Kept { backend: self.backend, is_new_view })
    }

    /// Whether the client's last flow is more than `timeout_s` ago.
    #[inline(always)]
    pub const fn is_over(&self, timeout_s: u32, now_s: u32) -> bool {
        // Another processor may have written a second that is ahead of ours.
        let idle = now_s.wrapping_sub(self.seen_s);
        idle < u32::MAX / 2 && idle > timeout_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_the_first_word_of_the_record() {
        let kept = Affinity { backend: 7, view: 9, ..Affinity::default() };
        // SAFETY: the record is aligned for it, and any bytes are a word.
        let word = unsafe { *core::ptr::from_ref(&kept).cast::<u64>() };
        assert_eq!(word, Affinity::choice(7, 9));
        assert_eq!(Affinity::of_choice(word), (7, 9));
    }

    #[test]
    fn b76_a_backend_is_looked_for_when_the_set_was_flipped() {
        let slots = Slots { set: 3, generation: 5, first: 40, count: 2, affinity_s: 10 };
        let kept = Affinity { backend: 7, view: slots.view(), seen_s: 100, ..Affinity::default() };
        let found = kept.kept(&slots, 105, |_| panic!("nothing changed"));
        assert_eq!(found, Some(Kept { backend: 7, is_new_view: false }));
        let flipped = Slots { generation: 6, ..slots };
        let found = kept.kept(&flipped, 105, |id| id == 7);
        assert_eq!(found, Some(Kept { backend: 7, is_new_view: true }));
        assert_eq!(kept.kept(&flipped, 105, |_| false), None, "it left");
        assert_eq!(kept.kept(&flipped, 111, |_| true), None, "it is over");
    }

    #[test]
    fn b72_it_ends_after_the_timeout_and_not_before() {
        let kept = Affinity { seen_s: 100, ..Affinity::default() };
        assert!(!kept.is_over(10, 110));
        assert!(kept.is_over(10, 111));
        assert!(!kept.is_over(10, 99), "a clock that is a second behind");
    }
}
