//! How many packets of their own the programs send: answers cost the node what questions cost
//! whoever asks, and the source of a question may be forged. Cf. `net.ipv4.icmp_ratelimit`.

use crate::limits::{ANSWERS_BURST, ANSWERS_PER_SECOND};

/// What answers are limited by: a flood of what asks for one kind silences no other.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP resets.
    Reset,
    /// Ports that are unreachable.
    Unreachable,
    /// Hop limits that ran out.
    TimeExceeded,
    /// Packets too big.
    TooBig,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Reset, Self::Unreachable, Self::TimeExceeded, Self::TooBig];
}

/// A bucket for each kind.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buckets([Bucket; Kind::ALL.len()]);

impl Buckets {
    /// Takes a token of this kind's, if there is one at this moment of a monotonic clock.
    #[inline(always)]
    pub fn take(&mut self, kind: Kind, now_ns: u64) -> bool {
        self.0[kind as usize].take(now_ns)
    }
}

/// Nanoseconds in which a new token comes.
const TOKEN_NS: u64 = 1_000_000_000 / ANSWERS_PER_SECOND;

/// A bucket of tokens, kept as one number: the tokens taken so far are worth the time until
/// `spent_ns`. A bucket that was never used is full.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    spent_ns: u64,
}

impl Bucket {
    /// Takes a token, if there is one at this moment of a monotonic clock.
    #[inline(always)]
    pub const fn take(&mut self, now_ns: u64) -> bool {
        // No more than a full bucket is kept, however long nothing was taken.
        let full = now_ns.saturating_sub(ANSWERS_BURST * TOKEN_NS);
        let spent = if self.spent_ns < full { full } else { self.spent_ns };
        if spent + TOKEN_NS > now_ns {
            return false;
        }
        self.spent_ns = spent + TOKEN_NS;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 3_600 * 1_000_000_000;

    fn taken(bucket: &mut Bucket, now_ns: u64, tries: u64) -> u64 {
        (0..tries).map(|_| u64::from(bucket.take(now_ns))).sum()
    }

    #[test]
    fn a_flood_of_one_kind_silences_no_other() {
        for flooded in Kind::ALL {
            let mut buckets = Buckets::default();
            while buckets.take(flooded, HOUR) {}
            for other in Kind::ALL {
                assert_eq!(buckets.take(other, HOUR), other != flooded, "{flooded:?} {other:?}");
            }
        }
    }

    #[test]
    fn a_burst_and_then_as_many_as_come() {
        let mut bucket = Bucket::default();
        assert_eq!(taken(&mut bucket, HOUR, 10_000), ANSWERS_BURST);
        assert_eq!(taken(&mut bucket, HOUR + TOKEN_NS * 3, 10), 3);
        assert_eq!(taken(&mut bucket, HOUR + TOKEN_NS * 4 - 1, 10), 0);
        assert_eq!(taken(&mut bucket, 2 * HOUR, 10_000), ANSWERS_BURST, "full and no fuller");
    }

    proptest! {
        #[test]
        fn never_more_than_the_rate(pauses in proptest::collection::vec(0..5_000_000_u64, 1..2_000)) {
            let mut bucket = Bucket::default();
            let mut now = HOUR;
            let mut sum = 0;
            for pause in pauses {
                now += pause;
                sum += taken(&mut bucket, now, 7);
                prop_assert!(sum <= ANSWERS_BURST + (now - HOUR) / TOKEN_NS);
            }
        }
    }
}
