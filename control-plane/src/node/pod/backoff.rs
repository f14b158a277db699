//! How long to wait before something is tried again.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

/// The first wait after a container's second end, and after a failed pull.
const FIRST: Duration = Duration::from_secs(10);
/// The longest wait.
const LONGEST: Duration = Duration::from_mins(5);
/// A container that ran for so long starts from the beginning.
const RESET_AFTER: Duration = Duration::from_mins(10);
/// The first wait after a call of the runtime or the API failed.
const CALL_FIRST: Duration = Duration::from_secs(1);
/// The longest wait for such a call.
const CALL_LONGEST: Duration = Duration::from_secs(30);

/// When a container may be started again, and what its next wait will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Not before.
    pub at: Timestamp,
    /// How long this wait is.
    pub wait: Duration,
    /// The wait after the next end.
    pub next_wait: Duration,
}

/// The restart of a container that ran from `started` to `finished` and was given `wait` to wait
/// at its end: at once at first, then 10 s, doubling to 300 s; anew after ten good minutes.
pub fn restart(started: Timestamp, finished: Timestamp, wait: Duration) -> Restart {
    let ran = Duration::try_from(finished.duration_since(started)).unwrap_or_default();
    let wait = if ran >= RESET_AFTER { Duration::ZERO } else { wait };
    let next_wait = if wait.is_zero() { FIRST } else { (wait * 2).min(LONGEST) };
    Restart { at: later(finished, wait), wait, next_wait }
}

/// The wait after the `attempts`-th failed pull of an image, counted from 1.
pub fn pull(attempts: u32) -> Duration {
    doubled(FIRST, attempts, LONGEST)
}

/// The wait after the `attempts`-th failed call in a row, counted from 1.
pub fn call(attempts: u32) -> Duration {
    doubled(CALL_FIRST, attempts, CALL_LONGEST)
}

fn doubled(first: Duration, attempts: u32, longest: Duration) -> Duration {
    let doublings = attempts.saturating_sub(1).min(16);
    (first * (1 << doublings)).min(longest)
}

/// `at` and so much more, for ever where that is past the end of time.
pub fn later(at: Timestamp, wait: Duration) -> Timestamp {
    at.checked_add(wait).unwrap_or(Timestamp::MAX)
}

/// A duration as Kubernetes writes it in messages: `10s`, `2m40s`, `5m0s`.
pub fn text(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if seconds < 60 => format!("{seconds}s"),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn restarts_wait_0_10_20_and_so_on_to_300_seconds() {
        let mut wait = Duration::ZERO;
        let mut waits = Vec::new();
        for _ in 0..9 {
            let restart = restart(at(0), at(1), wait);
            assert_eq!(restart.at, later(at(1), restart.wait));
            waits.push(restart.wait.as_secs());
            wait = restart.next_wait;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn ten_good_minutes_begin_anew() {
        let long = restart(at(0), at(600), Duration::from_mins(5));
        assert_eq!((long.wait, long.next_wait), (Duration::ZERO, FIRST));
        let short = restart(at(0), at(599), Duration::from_mins(5));
        assert_eq!((short.wait, short.next_wait), (LONGEST, LONGEST));
    }

    #[test]
    fn pulls_and_calls_wait_longer_each_time_up_to_a_bound() {
        let seconds = |waits: [Duration; 4]| waits.map(|wait| wait.as_secs());
        assert_eq!(seconds([pull(1), pull(2), pull(5), pull(60)]), [10, 20, 160, 300]);
        assert_eq!(seconds([call(1), call(2), call(5), call(u32::MAX)]), [1, 2, 16, 30]);
    }

    #[test]
    fn durations_read_as_in_kubernetes() {
        let texts = [10, 60, 160, 300].map(|seconds| text(Duration::from_secs(seconds)));
        assert_eq!(texts, ["10s", "1m0s", "2m40s", "5m0s"]);
    }
}
