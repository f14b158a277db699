//! Thousands of requests by one `curl`, over connections that stay: what a benchmark needs to make
//! a large cluster in seconds.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use super::api::Api;
use crate::invoke;

/// Requests per process: each costs `curl` some memory before the first is sent.
const BATCH: usize = 4_000;
/// Requests at a time.
const PARALLEL: &str = "48";

/// A request whose answer must be a success.
#[derive(Clone, Debug)]
pub struct Request {
    /// `POST`, `PATCH`, …
    pub method: &'static str,
    /// Path at the API server.
    pub path: String,
    /// Content type of the body.
    pub content_type: &'static str,
    /// JSON.
    pub body: String,
}

/// How a run of requests is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As many as fit.
    Fast,
    /// One after the other, this many a second.
    PerSecond(u32),
}

/// Sends them. `folder` takes the list of them while that runs.
pub fn send(api: &Api, folder: &Path, requests: &[Request], pace: Pace) -> Result<()> {
    for (number, batch) in requests.chunks(BATCH).enumerate() {
        let path = folder.join(format!("requests-{}-{number}", std::process::id()));
        let text = config(api, batch);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))?;
        let codes = invoke::capture(&mut command(&path, pace));
        fs::remove_file(&path)?;
        check(&codes?, batch)?;
    }
    Ok(())
}

/// The command that sends what the file lists.
fn command(list: &Path, pace: Pace) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error"]);
    match pace {
        Pace::Fast => curl.args(["--parallel", "--parallel-max", PARALLEL]),
        Pace::PerSecond(rate) => curl.arg("--rate").arg(format!("{rate}/s")),
    };
    curl.arg("--config").arg(list);
    curl
}

/// Several processes at once, which share the requests: one sends no more than one at a time at a
/// given pace. Those that had no answer, or none that is a success: a machine that has too much to do
/// leaves one of thousands without.
pub fn send_paced(
    api: &Api,
    folder: &Path,
    requests: &[Request],
    per_second: u32,
    processes: u32,
) -> Result<Vec<Request>> {
    let mut running = Vec::new();
    for turn in 0..processes {
        let own: Vec<Request> =
            requests.iter().skip(turn as usize).step_by(processes as usize).cloned().collect();
        let path = folder.join(format!("requests-{}-paced-{turn}", std::process::id()));
        fs::write(&path, config(api, &own))?;
        let mut curl = command(&path, Pace::PerSecond(per_second / processes));
        curl.stdout(std::process::Stdio::piped()).stdin(std::process::Stdio::null());
        let child = curl.spawn().context("can't start curl")?;
        running.push((child, own, path));
    }
    let ended: Vec<_> = running
        .into_iter()
        .map(|(child, own, path)| (child.wait_with_output(), fs::remove_file(path), own))
        .collect();
    // Only now: whoever returns leaves nobody behind who still sends.
    let mut failed = Vec::new();
    for (output, removed, own) in ended {
        removed?;
        let said = output?.stdout;
        let said = String::from_utf8_lossy(&said);
        let codes = said.lines().map(Some).chain(std::iter::repeat(None));
        let bad = |code: Option<&str>| !code.is_some_and(|code| code.starts_with('2'));
        failed.extend(own.into_iter().zip(codes).filter(|(_, code)| bad(*code)).map(|(of, _)| of));
    }
    Ok(failed)
}

/// The requests in the form of `curl --config`.
fn config(api: &Api, requests: &[Request]) -> String {
    let mut text = String::new();
    for (number, request) in requests.iter().enumerate() {
        if number > 0 {
            text.push_str("next\n");
        }
        let (ca, certificate, key) = (&api.ca, &api.certificate, &api.key);
        for (option, value) in [
            ("url", format!("{}{}", api.server, request.path)),
            ("request", request.method.to_owned()),
            ("header", format!("Content-Type: {}", request.content_type)),
            ("data-binary", request.body.clone()),
            ("cacert", ca.display().to_string()),
            ("cert", certificate.display().to_string()),
            ("key", key.display().to_string()),
            ("output", "/dev/null".to_owned()),
            ("write-out", "%{http_code}\\n".to_owned()),
        ] {
            let value = if option == "write-out" {
                value
            } else {
                value.replace('\\', "\\\\").replace('"', "\\\"")
            };
            // Writing to a String can't fail.
            let _ = writeln!(text, "{option} = \"{value}\"");
        }
        text.push_str("http1.1\nsilent\nshow-error\nmax-time = 60\n");
    }
    text
}

fn check(codes: &str, requests: &[Request]) -> Result<()> {
    let good = codes.lines().filter(|code| code.starts_with('2')).count();
    let bad = codes.lines().find(|code| !code.starts_with('2')).unwrap_or("no answer");
    ensure!(
        good == requests.len(),
        "{good} of {} requests were a success, another was answered {bad}; the first is {:?}",
        requests.len(),
        requests.first()
    );
    Ok(())
}
