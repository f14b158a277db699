//! `errors`: a line for each question that upstreams could not answer, or one for many where a rule
//! says so. What failed is noted where it failed; the lines are written by a task of its own behind
//! a bounded queue.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::op::{Query, ResponseCode};
use tokio::sync::mpsc;

use crate::dns::{
    answer::Explanation,
    chain::text::{self, Pattern},
};

/// Lines that wait to be written; more are lost.
const WAITING: usize = 1024;
/// Under which name lines are logged.
const TARGET: &str = "mizzen_agent::dns::errors";

/// What is said of a block's failures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Errors {
    /// Which are counted instead; the first that fits counts it.
    pub consolidated: Vec<Consolidated>,
}

/// Failures that are counted for a while, and then said together.
#[derive(Clone, Debug, PartialEq)]
pub struct Consolidated {
    /// For how long.
    pub period: Duration,
    /// Those in whose reason this is found.
    pub pattern: Pattern,
    /// How loud they are said.
    pub level: Level,
}

/// How loud something is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// As an error.
    #[default]
    Error,
    /// As a warning.
    Warning,
    /// For information.
    Info,
    /// For those who look for faults.
    Debug,
}

impl Level {
    /// The level of that name in a Corefile.
    pub fn named(name: &str) -> Result<Self, String> {
        Ok(match name {
            "error" => Self::Error,
            "warning" => Self::Warning,
            "info" => Self::Info,
            "debug" => Self::Debug,
            other => return Err(format!("{other:?} must be error, warning, info or debug")),
        })
    }
}

/// A question that failed.
#[derive(Debug)]
struct Failure {
    errors: Arc<Errors>,
    query: Query,
    explanation: Explanation,
}

/// The way to the log.
#[derive(Debug)]
pub(super) struct ErrorLog(mpsc::Sender<Failure>);

impl ErrorLog {
    /// A log and the task that writes it, which ends with the log.
    pub(super) fn start() -> Self {
        let (failures, queue) = mpsc::channel(WAITING);
        tokio::spawn(write(queue));
        Self(failures)
    }

    /// Has it said that a question failed. Where too much is said already, it is not.
    pub(super) fn note(&self, errors: &Arc<Errors>, query: &Query, explanation: Explanation) {
        let (errors, query) = (Arc::clone(errors), query.clone());
        drop(self.0.try_send(Failure { errors, query, explanation }));
    }
}

/// Why it failed, ending as CoreDNS's errors do where there is one for it: patterns of Corefiles
/// look for that.
fn reason(explanation: Explanation) -> String {
    match explanation {
        Explanation::NoReachableAuthority => format!("{}: i/o timeout", explanation.text()),
        Explanation::Unreachable => format!("{}: connection refused", explanation.text()),
        other => other.text().to_owned(),
    }
}

/// Failures that are counted.
#[derive(Debug, Default)]
struct Counts(Vec<Count>);

#[derive(Debug)]
struct Count {
    rule: Consolidated,
    failures: u64,
    until: Instant,
}

impl Counts {
    /// Counts a failure; whether any rule of `errors` has it counted.
    fn count(&mut self, errors: &Errors, reason: &str, now: Instant) -> bool {
        let fits = |rule: &&Consolidated| rule.pattern.is_in(reason);
        let Some(rule) = errors.consolidated.iter().find(fits) else { return false };
        let known = self.0.iter_mut().find(|count| count.rule == *rule);
        if let Some(count) = known {
            count.failures += 1;
        } else {
            self.0.push(Count { rule: rule.clone(), failures: 1, until: now + rule.period });
        }
        true
    }

    /// The lines of those whose time is over, which are forgotten.
    fn due(&mut self, now: Instant) -> Vec<(Level, String)> {
        let due = self.0.extract_if(.., |count| count.until <= now);
        due.map(|count| {
            let Count { rule, failures, .. } = count;
            let (pattern, period) = (rule.pattern.as_str(), rule.period);
            (rule.level, format!("{failures} errors like '{pattern}' occurred in last {period:?}"))
        })
        .collect()
    }
}

async fn write(mut queue: mpsc::Receiver<Failure>) {
    let mut counts = Counts::default();
    loop {
        let next = counts.0.iter().map(|count| count.until).min();
        // Far enough away where nothing is counted.
        let next = next.unwrap_or_else(|| Instant::now() + Duration::from_hours(1));
        tokio::select! {
            failure = queue.recv() => match failure {
                Some(failure) => {
                    let reason = reason(failure.explanation);
                    if !counts.count(&failure.errors, &reason, Instant::now()) {
                        say(Level::Error, &line(&failure.query, &reason));
                    }
                }
                None => break,
            },
            () = tokio::time::sleep_until(next.into()) => {}
        }
        for (level, line) in counts.due(Instant::now()) {
            say(level, &line);
        }
    }
    // What was counted is said, though its time is not over.
    for count in &mut counts.0 {
        count.until = Instant::now();
    }
    for (level, line) in counts.due(Instant::now()) {
        say(level, &line);
    }
}

fn line(query: &Query, reason: &str) -> String {
    let code = u16::from(ResponseCode::ServFail);
    format!("{code} {} {}: {reason}", text::of(query.name()), query.query_type())
}

fn say(level: Level, line: &str) {
    match level {
        Level::Error => tracing::error!(target: TARGET, "{line}"),
        Level::Warning => tracing::warn!(target: TARGET, "{line}"),
        Level::Info => tracing::info!(target: TARGET, "{line}"),
        Level::Debug => tracing::debug!(target: TARGET, "{line}"),
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Name, RecordType};

    use super::*;

    #[test]
    fn failures_are_counted_by_the_first_rule_that_fits() {
        let rule = |pattern: &str, seconds, level| Consolidated {
            period: Duration::from_secs(seconds),
            pattern: Pattern::new(pattern).unwrap(),
            level,
        };
        let errors = Errors {
            consolidated: vec![
                rule(".* i/o timeout$", 300, Level::Warning),
                rule("timeout", 30, Level::Error),
                rule("^all ", 30, Level::Error),
            ],
        };
        let (mut counts, now) = (Counts::default(), Instant::now());
        let timeout = reason(Explanation::NoReachableAuthority);
        let looping = reason(Explanation::Loop);
        assert!(counts.count(&errors, &timeout, now));
        assert!(counts.count(&errors, &timeout, now + Duration::from_secs(1)));
        assert!(counts.count(&errors, &looping, now));
        assert!(!counts.count(&errors, &reason(Explanation::Overloaded), now), "said at once");
        assert_eq!(counts.due(now + Duration::from_secs(29)), []);
        let said = counts.due(now + Duration::from_secs(30));
        assert_eq!(said, [(Level::Error, "1 errors like '^all ' occurred in last 30s".into())]);
        let said = counts.due(now + Duration::from_mins(5));
        let expected = "2 errors like '.* i/o timeout$' occurred in last 300s";
        assert_eq!(said, [(Level::Warning, expected.into())]);
        assert_eq!(counts.due(now + Duration::from_hours(1)), [], "once");
    }

    #[test]
    fn a_line_is_as_corednss() {
        let query = Query::query(Name::from_ascii("Example.org.").unwrap(), RecordType::A);
        let line = line(&query, &reason(Explanation::NoReachableAuthority));
        assert_eq!(line, "2 example.org. A: no upstream resolver answered in time: i/o timeout");
    }
}
