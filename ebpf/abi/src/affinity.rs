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

    /// What the client keeps. Fields are replaced one by one in place: each is checked before it
    /// is trusted, so that a mixture is no worse than a choice made anew.
    pub struct Affinity: 16, 4 {
        /// The backend's id.
        pub backend: u32,
        /// The generation of the set in which the window of `window` was seen to hold the backend.
        pub generation: u32,
        /// First slot of that window: windows of one generation differ by it and by their use.
        pub window: u32,
        /// When the last flow was opened, in seconds of `bpf_ktime_get_boot_ns`.
        pub seen_s: u32,
    }
}

impl Affinity {
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
    fn b72_it_ends_after_the_timeout_and_not_before() {
        let kept = Affinity { seen_s: 100, ..Affinity::default() };
        assert!(!kept.is_over(10, 110));
        assert!(kept.is_over(10, 111));
        assert!(!kept.is_over(10, 99), "a clock that is a second behind");
    }
}
