//! Saying what is being done and how long it took: one line a step, colours only on terminals.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use anyhow::Result;

/// Runs `work` as a named step on standard error, and says how long it took.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    say("==>", "1;34", what);
    let result = work();
    let took = seconds(start.elapsed());
    match &result {
        Ok(_) => say("   ", "32", &format!("{what}: done in {took}")),
        Err(_) => say("   ", "1;31", &format!("{what}: failed after {took}")),
    }
    result
}

/// A line that is not a step of its own.
pub fn note(what: &str) {
    say("   ", "0", what);
}

/// A duration as people read it.
pub fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn say(mark: &str, colour: &str, what: &str) {
    let mut stderr = std::io::stderr().lock();
    // Nothing can be done about a closed standard error.
    let _ignored = if stderr.is_terminal() {
        writeln!(stderr, "\x1b[{colour}m{mark}\x1b[0m {what}")
    } else {
        writeln!(stderr, "{mark} {what}")
    };
}
