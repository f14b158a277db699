//! The agent's own log: to standard error, by a filter that can be changed while it runs, with its last
//! lines kept for `mizzen bugreport`.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter, reload};

/// Octets of the last lines that are kept.
const TAIL_MAX: usize = 128 * 1024;

/// What is logged: `mizzen log`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// In force.
    pub filter: String,
    /// What the configuration says.
    pub configured: String,
}

/// Why a filter is none.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It can't be read.
    #[error(
        "log filter {filter:?}: {source}; it is a level (error, warn, info, debug, trace), or levels of \
         parts such as `info,mizzen_agent::dns=debug`"
    )]
    Parse {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Nobody logs any more.
    #[error("change the log filter")]
    Gone(#[from] reload::Error),
}

/// Puts another filter in the place of the present one.
type Reload = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// The log of this process.
pub struct Log {
    reload: Reload,
    filters: Mutex<Filters>,
    tail: Arc<Tail>,
}

/// The last lines.
#[derive(Debug, Default)]
struct Tail {
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    all: VecDeque<Box<str>>,
    octets: usize,
}

impl Log {
    /// Logs from now on; `format` is `text` or `json`.
    pub fn start(filter: &str, format: &str) -> Result<Self, FilterError> {
        let tail = Arc::<Tail>::default();
        let log = tracing_subscriber::fmt()
            .with_env_filter(parse(filter)?)
            .with_writer(Tee(Arc::clone(&tail)));
        let reload: Reload = if format == "json" {
            let log = log.json().with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Box::new(move |filter| handle.reload(filter))
        } else {
            let log = log.with_ansi(false).with_filter_reloading();
            let handle = log.reload_handle();
            log.init();
            Box::new(move |filter| handle.reload(filter))
        };
        let filters = Filters { filter: filter.to_owned(), configured: filter.to_owned() };
        Ok(Self { reload, filters: Mutex::new(filters), tail })
    }

    /// What is logged.
    pub fn filters(&self) -> Filters {
        self.filters.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Logs by another filter from now on; by the configured one where none is given.
    pub fn set(&self, filter: Option<&str>) -> Result<Filters, FilterError> {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        let filter = filter.map_or_else(|| filters.configured.clone(), str::to_owned);
        (self.reload)(parse(&filter)?)?;
        // At a level that is seen whatever the filter is, as far as it lets anything pass.
        tracing::error!(before = filters.filter, now = filter, "the log filter was changed");
        filters.filter = filter;
        Ok(filters.clone())
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let lines = self.tail.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.all.iter().map(AsRef::as_ref).collect()
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("filters", &self.filters()).finish_non_exhaustive()
    }
}

/// A filter as it is meant.
fn parse(filter: &str) -> Result<EnvFilter, FilterError> {
    // The client reports every failed attempt as an error; the watches say what it means.
    let quiet = if filter.contains("kube_client") { "" } else { ",kube_client=off" };
    EnvFilter::try_new(format!("{filter}{quiet}"))
        .map_err(|source| FilterError::Parse { filter: filter.to_owned(), source })
}

impl Tail {
    fn add(&self, line: &[u8]) {
        let line: Box<str> = String::from_utf8_lossy(line).into();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.octets += line.len();
        lines.all.push_back(line);
        while lines.octets > TAIL_MAX
            && let Some(first) = lines.all.pop_front()
        {
            lines.octets -= first.len();
        }
    }
}

/// Writes to standard error, and keeps what it wrote.
struct Tee(Arc<Tail>);

/// One event.
struct Entry<'a>(&'a Tail);

impl<'a> MakeWriter<'a> for Tee {
    type Writer = Entry<'a>;

    fn make_writer(&'a self) -> Entry<'a> {
        Entry(&self.0)
    }
}

impl io::Write for Entry<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        // An event is written at once.
        self.0.add(buffer);
        io::stderr().write_all(buffer)?;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more_than_there_is_room_for() {
        let tail = Tail::default();
        let line = |n: usize| format!("{n:09}\n");
        for n in 0..20_000 {
            tail.add(line(n).as_bytes());
        }
        let lines = tail.lines.lock().unwrap();
        assert!(lines.octets <= TAIL_MAX && lines.octets > TAIL_MAX - 20);
        assert_eq!(lines.all.back().map(AsRef::as_ref), Some(&*line(19_999)));
        assert_eq!(lines.all.iter().map(|line| line.len()).sum::<usize>(), lines.octets);
    }

    #[test]
    fn a_filter_that_can_not_be_is_refused_with_what_one_is() {
        assert!(parse("info,mizzen_agent::dns=debug").is_ok());
        let error = parse("mizzen_agent=loud").unwrap_err().to_string();
        assert!(error.contains("loud") && error.contains("mizzen_agent::dns=debug"), "{error}");
    }
}
