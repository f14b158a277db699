//! What the agent says of itself for `mizzen log` and `mizzen bugreport`. Not all of it is without
//! secrets: it is told to root, and `crate::redact` stands before it leaves the node.

use std::{fmt::Write as _, sync::Arc};

use hyper::StatusCode;

use super::{
    Facts,
    http::{Answer, Asked},
};
use crate::{log::Log, redact};

/// The paths.
pub(super) const PATHS: &[&str] =
    &["/v1/log", "/v1/log/tail", "/v1/config", "/v1/metrics", "/v1/process", "/v1/programs"];

impl Facts {
    /// One of [`PATHS`].
    pub(super) fn insight(&self, asked: &Asked) -> Answer {
        match asked.path.as_str() {
            "/v1/log" => self.with_log(|log| filters(log, asked)),
            "/v1/log/tail" => self.with_log(|log| Answer::text(log.tail())),
            "/v1/config" => Answer::text(self.config.clone()),
            "/v1/metrics" => Answer::text(self.metrics.render(self.programs.as_deref())),
            "/v1/process" => Answer::text(process()),
            _ => Answer::text(self.programs()),
        }
    }

    fn with_log(&self, answer: impl FnOnce(&Arc<Log>) -> Answer) -> Answer {
        match &self.log {
            Some(log) => answer(log),
            None => Answer::text("this process has no log").with(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    /// Where programs are, and how full their tables.
    fn programs(&self) -> String {
        let mut text = String::new();
        let Some(checker) = &self.checker else {
            return "the services role is off in this agent (--services=false)\n".to_owned();
        };
        let _infallible = writeln!(text, "kernel: {:?}", checker.places.features());
        match checker.places.read() {
            Ok(places) => {
                for place in places {
                    let _infallible = writeln!(text, "{place:?}");
                }
            }
            Err(error) => {
                let _infallible = writeln!(text, "places: {error}");
            }
        }
        for usage in self.metrics.tables.usage() {
            let _infallible = writeln!(text, "{usage:?}");
        }
        text
    }
}

/// What is logged, after a change where one is asked for.
fn filters(log: &Log, asked: &Asked) -> Answer {
    if !asked.changes {
        return Answer::json(&log.filters());
    }
    match log.set(asked.parameter("filter").as_deref()) {
        Ok(filters) => Answer::json(&filters),
        Err(error) => Answer::text(error.to_string()).with(StatusCode::BAD_REQUEST),
    }
}

/// The process: its arguments, its environment, its rights and limits.
fn process() -> String {
    let mut text = String::new();
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let _infallible = writeln!(text, "{}\n", arguments.join(" "));
    for (name, value) in std::env::vars_os() {
        text.push_str(&redact::variable(&name.to_string_lossy(), &value.to_string_lossy()));
    }
    for file in ["status", "limits", "cgroup"] {
        let path = format!("/proc/self/{file}");
        let read = std::fs::read_to_string(&path).unwrap_or_else(|error| error.to_string());
        let _infallible = write!(text, "\n{path}\n{read}");
    }
    text
}
