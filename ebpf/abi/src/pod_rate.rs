//! How much a pod may send, as the node holds it to that: a bucket, kept as the time at which all that
//! was sent would have gone at its rate. The queue in the pod's own namespace keeps to the rate
//! without losing anything; this is for who took that queue away.

use crate::layout::record;

record! {
    /// A pod's bucket.
    pub struct PodRate: 24, 8 {
        /// Octets per second; not 0.
        pub rate: u64,
        /// Nanoseconds that may be sent ahead.
        pub ahead_ns: u64,
        /// When all that was sent would have gone, in nanoseconds of the monotonic clock.
        pub due_ns: u64,
    }
}

impl PodRate {
    /// A full bucket that lets pass so many octets per second, and so many at once.
    pub const fn new(rate: u64, burst: u64) -> Self {
        let rate = if rate == 0 { 1 } else { rate };
        let ahead_ns = burst.saturating_mul(1_000_000_000) / rate;
        Self { rate, ahead_ns, due_ns: 0 }
    }

    /// When the packets sent so far and one of `length` octets will have gone, if that one may go at
    /// this moment.
    #[inline(always)]
    pub const fn admit(&self, now_ns: u64, length: u32) -> Option<u64> {
        let due = if self.due_ns > now_ns { self.due_ns } else { now_ns };
        if due - now_ns > self.ahead_ns {
            return None;
        }
        // The verifier takes no division that could fail.
        let rate = if self.rate == 0 { 1 } else { self.rate };
        Some(due + length as u64 * 1_000_000_000 / rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Octets that pass in so many nanoseconds to who sends as fast as it can.
    fn passed(mut rate: PodRate, from: u64, lasting: u64, length: u32) -> u64 {
        let mut octets = 0;
        for now in (from..from + lasting).step_by(1_000) {
            if let Some(due) = rate.admit(now, length) {
                rate.due_ns = due;
                octets += u64::from(length);
            }
        }
        octets
    }

    #[test]
    fn what_passes_is_the_rate_and_the_burst() {
        const SECOND: u64 = 1_000_000_000;
        for (length, burst) in [(100, 10_000), (1500, 100_000), (65_536, 131_072)] {
            let octets = passed(PodRate::new(1_000_000, burst), 7 * SECOND, SECOND, length);
            let most = 1_000_000 + burst + 2 * u64::from(length);
            let least = 1_000_000 - u64::from(length);
            assert!((least..=most).contains(&octets), "{octets} of {length} each");
        }
    }

    #[test]
    fn a_silence_is_worth_no_more_than_the_burst() {
        let mut rate = PodRate::new(1_000_000, 10_000);
        rate.due_ns = rate.admit(0, 1_000).unwrap();
        let hour = 3_600_000_000_000;
        assert!(passed(rate, hour, 1_000_000, 1_000) <= 10_000 + 2_000 + 1_000);
        // The extremes neither overflow nor divide by zero.
        assert_eq!(PodRate::new(0, 1).rate, 1);
        assert!(PodRate::new(u64::MAX, u64::MAX).admit(u64::MAX / 2, u32::MAX).is_some());
        assert!(PodRate::new(1, u64::MAX).admit(0, 65_536).is_some());
    }
}
