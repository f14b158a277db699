//! From single outcomes of a probe to its result: a change needs several in a row.

/// Counts outcomes against the thresholds.
#[derive(Clone, Debug)]
pub(super) struct Counter {
    successes_needed: u32,
    failures_needed: u32,
    last: Option<bool>,
    in_a_row: u32,
    result: Option<bool>,
}

impl Counter {
    /// With `successThreshold` and `failureThreshold`; 1 and 3 where unset.
    pub(super) fn new(successes: Option<i32>, failures: Option<i32>) -> Self {
        let needed = |value: Option<i32>, default| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|&n| n > 0).unwrap_or(default)
        };
        Self {
            successes_needed: needed(successes, 1),
            failures_needed: needed(failures, 3),
            last: None,
            in_a_row: 0,
            result: None,
        }
    }

    /// Takes in an outcome; gives the result if it has changed.
    pub(super) fn count(&mut self, success: bool) -> Option<bool> {
        self.in_a_row =
            if self.last == Some(success) { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let needed = if success { self.successes_needed } else { self.failures_needed };
        if self.in_a_row < needed || self.result == Some(success) {
            return None;
        }
        self.result = Some(success);
        self.result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+` and `-` are outcomes; the result is what was reported at each.
    fn run(counter: &mut Counter, outcomes: &str) -> String {
        let report = |outcome| match counter.count(outcome == '+') {
            Some(true) => 'Y',
            Some(false) => 'N',
            None => '.',
        };
        outcomes.chars().map(report).collect()
    }

    #[test]
    fn by_default_one_success_and_three_failures_in_a_row_count() {
        let mut counter = Counter::new(None, None);
        assert_eq!(run(&mut counter, "+--+---+-"), "Y.....NY.");
    }

    #[test]
    fn both_thresholds_are_kept() {
        let mut counter = Counter::new(Some(2), Some(1));
        assert_eq!(run(&mut counter, "++-+-++"), ".YN...Y");
    }

    #[test]
    fn nothing_is_reported_twice() {
        let mut counter = Counter::new(None, Some(2));
        assert_eq!(run(&mut counter, "-----+++"), ".N...Y..");
    }
}
