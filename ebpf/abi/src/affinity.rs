//! Session affinity (`sessionAffinity: ClientIP`): which backend a client keeps, on the socket and
//! the packet path alike (reference B71-B79b).
//!
//! A client is an address: that of the pod behind a socket, or a packet's source. What it keeps
//! counts per set, so per service port and family, whichever frontend was dialled (B74).

use crate::{addr::Addr, layout::record};

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
    fn b72_it_ends_after_the_timeout_and_not_before() {
        let kept = Affinity { seen_s: 100, ..Affinity::default() };
        assert!(!kept.is_over(10, 110));
        assert!(kept.is_over(10, 111));
        assert!(!kept.is_over(10, 99), "a clock that is a second behind");
    }
}
