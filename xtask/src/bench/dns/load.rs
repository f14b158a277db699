//! Load by `dnsperf`, and what it printed.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::{
    pair::{ADDRESS, At},
    seat::Seat,
};
use crate::load::Measured;

/// How much of the queries may stay without an answer, lest the rest be no measurement.
const LOST_MAX: f64 = 0.002;

/// How the load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// A hundred questions under way at all times.
    Saturating,
    /// So many questions a second, whose latencies are taken.
    PerSecond(u32),
    /// So many questions a second, however many stay without an answer.
    Flood(u32),
    /// Every question once.
    Once,
}

/// Asks a server the questions of a file for so many seconds.
pub fn run(seat: &Seat, data: &str, pace: Pace, seconds: f64) -> Result<Measured> {
    ask(seat, data, pace, seconds).map(|(measured, _)| measured)
}

/// As [`run`], and which part of the questions was answered.
pub fn ask(seat: &Seat, data: &str, pace: Pace, seconds: f64) -> Result<(Measured, f64)> {
    let path = seat.pair.folder()?.join("questions");
    fs::write(&path, data).with_context(|| format!("can't write {}", path.display()))?;
    let (path, address) = (path.display().to_string(), ADDRESS.to_string());
    let (length, rate);
    let mut argv = vec!["dnsperf", "-s", &address, "-d", &path, "-c", "4"];
    match pace {
        Pace::Saturating => {
            length = seconds.to_string();
            argv.extend(["-t", "2", "-q", "100", "-l", &length]);
        }
        Pace::PerSecond(queries) => {
            (length, rate) = (seconds.to_string(), queries.to_string());
            argv.extend(["-t", "2", "-Q", &rate, "-l", &length, "-v"]);
        }
        Pace::Flood(queries) => {
            (length, rate) = (seconds.to_string(), queries.to_string());
            // Who waits longer than a second has gone.
            argv.extend(["-Q", &rate, "-q", "60000", "-t", "1", "-l", &length, "-v"]);
        }
        Pace::Once => argv.extend(["-t", "2", "-n", "1"]),
    }
    let before = seat.process.cpu_time()?;
    let printed = seat.pair.capture(At::Client, &argv)?;
    let used = seat.process.cpu_time()?.saturating_sub(before);
    let said = Said::parse(&printed)?;
    ensure!(
        said.lost() <= LOST_MAX || matches!(pace, Pace::Flood(_)),
        "{} answered {} of {} questions",
        seat.label,
        said.completed,
        said.sent
    );
    let completed = said.completed.max(1.0);
    let measured = Measured {
        rate: said.completed / said.seconds.max(1e-9),
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        operations: said.completed as u64,
        p50_us: said.percentile(50),
        p99_us: said.percentile(99),
        cpu_us: used.as_secs_f64() * 1e6 / completed,
    };
    Ok((measured, 1.0 - said.lost()))
}

/// What `dnsperf` printed.
#[derive(Debug, Default, PartialEq)]
struct Said {
    sent: f64,
    completed: f64,
    seconds: f64,
    /// In microseconds, sorted.
    latencies: Vec<f64>,
}

impl Said {
    fn parse(text: &str) -> Result<Self> {
        let mut said = Self::default();
        for line in text.lines().map(str::trim) {
            let number = |start: &str| -> Option<f64> {
                line.strip_prefix(start)?.split_whitespace().next()?.parse().ok()
            };
            if let Some(answer) = line.strip_prefix("> ") {
                // Code, name, type, seconds; `T` in place of the code where none came.
                let seconds = answer.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok());
                said.latencies.extend(seconds.map(|seconds| seconds * 1e6));
            } else if let Some(sent) = number("Queries sent:") {
                said.sent = sent;
            } else if let Some(completed) = number("Queries completed:") {
                said.completed = completed;
            } else if let Some(seconds) = number("Run time (s):") {
                said.seconds = seconds;
            }
        }
        if said.sent <= 0.0 || said.seconds <= 0.0 {
            bail!("dnsperf printed no statistics:\n{text}");
        }
        said.latencies.sort_by(f64::total_cmp);
        Ok(said)
    }

    /// Which part of the questions stayed without an answer.
    fn lost(&self) -> f64 {
        1.0 - self.completed / self.sent
    }

    fn percentile(&self, percent: usize) -> f64 {
        let at = self.latencies.len() * percent / 100;
        self.latencies.get(at).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_and_latencies_are_read() {
        let text = "> NOERROR a.example A 0.000200\n> NXDOMAIN b.example A 0.000100\n\
                    Statistics:\n\n  Queries sent:         4\n  Queries completed:    3 (75.00%)\n  \
                    Queries lost:         1 (25.00%)\n  Run time (s):         2.000041\n";
        let said = Said::parse(text).expect("statistics");
        assert!((said.lost() - 0.25).abs() < 1e-9);
        assert_eq!(said.latencies.len(), 2);
        assert!((said.percentile(50) - 200.0).abs() < 1e-6);
        assert!(Said::parse("Usage: dnsperf").is_err());
    }
}
