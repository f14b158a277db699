//! `mizzen bugreport`: what a maintainer needs, in one file, without secrets.

use std::{
    fs::{self, OpenOptions},
    io::{self, IsTerminal as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};
use k8s_openapi::jiff::Timestamp;

use super::inspect::{Outcome, get};
use crate::redact::redact;

/// Where it goes.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct BugReport {
    /// The file that is written, which must not be there, or - for standard output
    /// [default: mizzen-bugreport-TIME.tar.gz]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

/// The name of standard output.
const STDOUT: &str = "-";

/// What the agent is asked, each with the file that the answer goes to.
const ASKED: &[(&str, &str)] = &[
    ("status.json", "/v1/status"),
    ("check.json", "/v1/check"),
    ("config.yaml", "/v1/config"),
    ("process.txt", "/v1/process"),
    ("programs.txt", "/v1/programs"),
    ("log.json", "/v1/log"),
    ("log.txt", "/v1/log/tail"),
    ("metrics.txt", "/v1/metrics"),
    ("diff.json", "/v1/diff"),
    ("services.json", "/v1/services"),
    ("backends.json", "/v1/backends"),
    ("flows.json", "/v1/flows?limit=10000"),
    ("pods.json", "/v1/pods"),
    ("routes.json", "/v1/routes"),
];

/// What the kernel says of this node.
const KERNEL: &[&str] = &[
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/net/snmp",
    "/proc/net/netstat",
    "/proc/net/sockstat",
    "/proc/net/route",
    "/proc/net/ipv6_route",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv6/conf/all/forwarding",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/net/ipv4/ip_local_reserved_ports",
    "/proc/sys/net/core/bpf_jit_enable",
    "/proc/sys/kernel/bpf_stats_enabled",
    "/proc/sys/kernel/unprivileged_bpf_disabled",
    "/proc/self/mountinfo",
    "/proc/self/cgroup",
];

/// Octets of a file of the kernel's that are taken at most.
const KERNEL_MAX: usize = 1 << 20;

impl BugReport {
    /// Writes the file.
    pub(super) fn execute(&self, state_dir: &Path) -> anyhow::Result<Outcome> {
        let now = Timestamp::now();
        let path = self.file.clone().unwrap_or_else(|| {
            PathBuf::from(format!("mizzen-bugreport-{}.tar.gz", now.as_second()))
        });
        let gathered = || gather(|question| get(state_dir, question), now);
        let (place, count) = if path.as_os_str() == STDOUT {
            let stdout = io::stdout().lock();
            anyhow::ensure!(
                !stdout.is_terminal(),
                "standard output is a terminal: lead it to a file, or name one with --file"
            );
            let texts = gathered();
            pack(stdout, &texts, now).context("write to standard output")?;
            ("to standard output".to_owned(), texts.len())
        } else {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let file = file.with_context(|| {
                format!(
                    "make {}, where no file may be yet; --file names another, and - is standard \
                     output, for where nothing can be written",
                    path.display()
                )
            })?;
            let texts = gathered();
            pack(file, &texts, now).with_context(|| format!("write {}", path.display()))?;
            (path.display().to_string(), texts.len())
        };
        // Beside the archive, where that goes to standard output.
        eprintln!(
            "wrote {place}: {count} files, with secrets removed. It names pods, services and \
             addresses of this cluster: look into it before you hand it on."
        );
        Ok(Outcome::Ok)
    }
}

/// All texts, by the names of their files, without secrets. What can't be had has the reason in its
/// place.
fn gather(ask: impl Fn(&str) -> anyhow::Result<String>, now: Timestamp) -> Vec<(String, String)> {
    let version = env!("CARGO_PKG_VERSION");
    let mut texts = vec![("about.txt".to_owned(), format!("mizzen {version}\n{now}\n"))];
    for (name, question) in ASKED {
        let text = ask(question).unwrap_or_else(|error| format!("not to be had: {error:#}\n"));
        texts.push(((*name).to_owned(), redact(&text)));
    }
    for path in KERNEL {
        let text = match fs::read(path) {
            Ok(octets) => {
                let length = octets.len().min(KERNEL_MAX);
                String::from_utf8_lossy(&octets[..length]).into_owned()
            }
            Err(error) => format!("not to be had: {error}\n"),
        };
        let name = path.trim_start_matches('/').replace('/', ".");
        texts.push((format!("kernel/{name}.txt"), redact(&text)));
    }
    texts
}

/// An archive of them (POSIX tar, gzip).
fn pack(file: impl Write, texts: &[(String, String)], now: Timestamp) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, text) in texts {
        let mut header = tar::Header::new_ustar();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(u64::try_from(now.as_second()).unwrap_or_default());
        archive.append_data(&mut header, format!("mizzen-bugreport/{name}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.flush()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// The files of an archive.
    fn unpacked(archive: &[u8]) -> Vec<(String, String)> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (name, text)
        });
        entries.collect()
    }

    /// Whatever the agent answers.
    #[test]
    fn no_secret_gets_into_the_file() {
        let secret = "hunter2hunter2";
        let answers = |question: &str| match question {
            "/v1/config" => {
                Ok(format!("apiServer: [\"https://x:{secret}@10.0.0.1\"]\ntoken: {secret}\n"))
            }
            "/v1/process" => Ok(format!("mizzen-agent run --dns-token {secret}\n")),
            "/v1/log/tail" => Ok(format!("WARN refused Authorization: Bearer {secret}\n")),
            "/v1/metrics" => anyhow::bail!("the answer had password={secret} in it"),
            _ => Ok(format!("{{\"name\":\"a\",\"clientSecret\":\"{secret}\"}}")),
        };
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut file = Vec::new();
        pack(&mut file, &gather(answers, now), now).unwrap();
        let files = unpacked(&file);
        assert_eq!(files.len(), 1 + ASKED.len() + KERNEL.len());
        for (name, text) in &files {
            assert!(name.starts_with("mizzen-bugreport/"), "{name}");
            assert!(!text.contains("hunter2"), "{name}: {text}");
        }
        let of = |name: &str| {
            let found = files.iter().find(|(file, _)| file.ends_with(name));
            found.map(|(_, text)| text.as_str()).unwrap()
        };
        assert!(of("config.yaml").contains("10.0.0.1"), "the rest is there");
        assert!(of("metrics.txt").contains("not to be had"));
        assert!(of("kernel/proc.version.txt").contains("Linux"));
    }

    #[test]
    fn a_file_that_is_there_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.tar.gz");
        fs::write(&path, "mine").unwrap();
        let report = BugReport { file: Some(path.clone()) };
        let error = report.execute(folder.path()).unwrap_err();
        assert!(error.to_string().contains("--file"), "{error:#}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        // No agent is no reason to have no report.
        let other = folder.path().join("other.tar.gz");
        BugReport { file: Some(other.clone()) }.execute(folder.path()).unwrap();
        assert!(
            unpacked(&fs::read(&other).unwrap())
                .iter()
                .any(|(_, text)| text.contains("agent.sock"))
        );
    }
}
