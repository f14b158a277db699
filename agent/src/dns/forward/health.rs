//! Which upstream to ask first: those that answered last time, in the order of the configuration;
//! then those that did not. Knows no clock.

use std::time::{Duration, Instant};

/// For how long an upstream that failed once is passed over; doubles with each further failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest that it is passed over.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How the upstreams are.
#[derive(Debug)]
pub struct Health {
    upstreams: Vec<Option<Failing>>,
    /// Those that lead back to us.
    looping: Vec<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    pause: Duration,
    until: Instant,
    /// Whether a question is asked of it to see whether it is back.
    probed: bool,
}

impl Health {
    /// So many upstreams, of none of which anything bad is known.
    pub fn new(upstreams: usize) -> Self {
        Self { upstreams: vec![None; upstreams], looping: vec![false; upstreams] }
    }

    /// Says whether an upstream leads back to us; whether that is news.
    pub fn set_looping(&mut self, place: usize, looping: bool) -> bool {
        self.looping.get_mut(place).is_some_and(|was| std::mem::replace(was, looping) != looping)
    }

    /// Those that lead back to us.
    pub fn looping(&self) -> Vec<usize> {
        (0..self.looping.len()).filter(|place| self.looping[*place]).collect()
    }

    /// In what order to ask; those that lead back to us are not asked. Those that are well begin
    /// with another one for each `turn`. One whose pause is over comes first again, for this question only:
    /// the next ones pass over it until it has answered, so that a dead upstream delays one
    /// question in each pause and not all of them.
    pub fn order(&mut self, now: Instant, turn: usize) -> Vec<usize> {
        let count = self.upstreams.len();
        let turned = (0..count).map(|place| (place + turn % count) % count);
        let mut order: Vec<_> = turned.filter(|place| !self.looping[*place]).collect();
        let probed = self
            .upstreams
            .iter()
            .position(|state| state.is_some_and(|failing| failing.until <= now));
        if let Some(failing) = probed.and_then(|place| self.upstreams[place].as_mut()) {
            (failing.until, failing.probed) = (now + failing.pause, true);
        }
        // Stable: equals stay in their order.
        order.sort_by_key(|place| {
            let failing = self.upstreams[*place].filter(|_| probed != Some(*place));
            failing.map(|failing| failing.until)
        });
        order
    }

    /// Whether there is somebody to ask, and all have failed.
    pub fn all_failing(&self) -> bool {
        let asked = self.upstreams.iter().zip(&self.looping).filter(|(_, looping)| !**looping);
        let mut asked = asked.map(|(state, _)| state.is_some()).peekable();
        asked.peek().is_some() && asked.all(|failing| failing)
    }

    /// It answered: whatever was, is forgotten.
    pub fn answered(&mut self, place: usize) {
        if let Some(state) = self.upstreams.get_mut(place) {
            *state = None;
        }
    }

    /// It did not answer, or not in time.
    pub fn failed(&mut self, place: usize, now: Instant) {
        if let Some(state) = self.upstreams.get_mut(place) {
            let pause = state.map_or(FIRST_PAUSE, |failing| {
                // Questions that were under way together count as one failure.
                let again = failing.probed || failing.until <= now;
                if again { failing.pause * 2 } else { failing.pause }
            });
            let pause = pause.min(LONGEST_PAUSE);
            *state = Some(Failing { pause, until: now + pause, probed: false });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_60_a_failed_upstream_is_asked_last() {
        let now = Instant::now();
        let mut health = Health::new(3);
        assert_eq!(health.order(now, 0), [0, 1, 2]);
        health.failed(0, now);
        assert_eq!(health.order(now, 0), [1, 2, 0]);
        health.failed(2, now + Duration::from_millis(1));
        assert_eq!(health.order(now, 0), [1, 0, 2]);
        assert!(!health.all_failing());
        health.failed(1, now);
        assert!(health.all_failing());
        health.answered(2);
        assert!(!health.all_failing() && !Health::new(0).all_failing());
    }

    #[test]
    fn dns_61_recovery_is_probed_by_one_question_and_a_success_clears() {
        let now = Instant::now();
        let mut health = Health::new(2);
        health.failed(0, now);
        let later = now + FIRST_PAUSE;
        assert_eq!(health.order(later, 0), [0, 1], "the pause is over");
        assert_eq!(health.order(later, 0), [1, 0], "one probe at a time");
        health.answered(0);
        assert_eq!(health.order(later, 0), [0, 1]);
        assert_eq!(health.order(later, 0), [0, 1]);
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let mut now = Instant::now();
        let mut health = Health::new(2);
        for _ in 0..20 {
            health.failed(0, now);
            now += LONGEST_PAUSE;
            assert_eq!(health.order(now, 0), [0, 1], "no pause is longer than the longest");
            now += LONGEST_PAUSE;
        }
        health.failed(0, now);
        assert_eq!(health.order(now + LONGEST_PAUSE / 2, 0), [1, 0], "but by now it is long");
    }

    #[test]
    fn dns_61_pauses_grow_where_each_probe_takes_its_time_to_fail() {
        let (mut now, silent) = (Instant::now(), Duration::from_millis(900));
        let mut health = Health::new(2);
        health.failed(0, now);
        for pause in [1, 2, 4, 8, 16, 30, 30].map(Duration::from_secs) {
            let not_yet = now + pause.saturating_sub(silent);
            assert_eq!(health.order(not_yet, 0), [1, 0], "passed over for {pause:?}");
            now += pause;
            assert_eq!(health.order(now, 0), [0, 1], "probed after {pause:?}");
            now += silent;
            for _together in 0..3 {
                health.failed(0, now);
            }
        }
    }

    #[test]
    fn turns_begin_with_another_one() {
        let now = Instant::now();
        let mut health = Health::new(3);
        assert_eq!(health.order(now, 1), [1, 2, 0]);
        health.failed(1, now);
        assert_eq!(health.order(now, 1), [2, 0, 1], "the failed one is last in any turn");
        assert_eq!(health.order(now, usize::MAX).len(), 3);
        assert_eq!(Health::new(0).order(now, 7), [0; 0]);
    }

    #[test]
    fn dns_65_an_upstream_that_leads_back_to_us_is_not_asked() {
        let now = Instant::now();
        let mut health = Health::new(2);
        assert!(health.set_looping(0, true) && !health.set_looping(0, true), "said once");
        assert_eq!((health.order(now, 0), health.looping()), (vec![1], vec![0]));
        health.failed(1, now);
        assert_eq!(health.order(now, 0), [1], "not even when nobody else is left");
        assert!(health.set_looping(0, false));
        assert_eq!(health.order(now, 0), [0, 1]);
    }
}
