//! The audit log: who did what, as JSON lines of `audit.k8s.io/v1` events at the level Metadata.
//!
//! A thread of its own writes; requests wait for room in its queue and never for the disk. A file
//! that is full is moved aside, and of those only so many are kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::authz::{Attributes, User};

/// Lines that wait to be written.
const QUEUE: usize = 4096;
/// Lines that are written at a time.
const BATCH: usize = 256;
/// Longest user agent that is kept, in bytes.
const AGENT_MAX: usize = 1024;
/// The header of an answer that names its event.
const HEADER: &str = "audit-id";

/// Time as events have it: microseconds of UTC.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Where the log is and how large it gets.
#[derive(Clone, Debug)]
pub struct Options {
    /// The file.
    pub path: PathBuf,
    /// Bytes after which it is moved aside.
    pub size_max: u64,
    /// How many files that were moved aside are kept.
    pub kept: usize,
}

/// The log could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open the audit log {path}: {reason}; check --audit-log-path, its folder's permissions and space"
)]
pub struct AuditError {
    path: PathBuf,
    reason: io::Error,
}

/// A request and its answer.
#[derive(Debug)]
pub struct Record<'a> {
    /// The path asked for.
    pub path: &'a str,
    /// Its query.
    pub query: &'a str,
    /// What was asked for.
    pub asked: Attributes<'a>,
    /// Who asked.
    pub user: &'a User,
    /// As whom.
    pub impersonated: Option<&'a User>,
    /// From where.
    pub address: Option<IpAddr>,
    /// By which program.
    pub agent: Option<&'a str>,
    /// Why it was allowed; `None` where it was not.
    pub decision: Option<String>,
    /// The HTTP status of the answer.
    pub code: u16,
    /// When the request came.
    pub received: SystemTime,
}

/// The log.
pub struct Audit {
    lines: mpsc::Sender<String>,
}

impl Audit {
    /// Opens the log and starts its thread, which ends with the log.
    pub fn open(options: Options) -> Result<Self, AuditError> {
        let path = options.path.clone();
        let failed = |reason| AuditError { path: path.clone(), reason };
        let mut file = LogFile::open(&options).map_err(failed)?;
        let (lines, mut waiting) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || {
                let mut batch: Vec<String> = Vec::new();
                while waiting.blocking_recv_many(&mut batch, BATCH) > 0 {
                    if let Err(reason) = file.append(&options, &batch.concat()) {
                        let path = options.path.display();
                        tracing::error!(%path, %reason, lost = batch.len(), "audit events are lost");
                    }
                    batch.clear();
                }
            })
            .map_err(failed)?;
        Ok(Self { lines })
    }

    /// Writes a request down, and names its event in the headers of the answer.
    pub async fn write(&self, record: Record<'_>, headers: &mut HeaderMap) {
        let id = Uuid::new_v4().to_string();
        let line = format!("{}\n", event(&record, &id, SystemTime::now()));
        if let Ok(id) = HeaderValue::from_str(&id) {
            headers.insert(HEADER, id);
        }
        // The thread ends only with the log.
        let _ = self.lines.send(line).await;
    }
}

fn time(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(TIME).unwrap_or_default()
}

/// The event of a request.
fn event(record: &Record<'_>, id: &str, now: SystemTime) -> Value {
    let asked = &record.asked;
    let streams = asked.verb == "watch" || matches!(asked.subresource, "exec" | "log" | "attach");
    let uri = match record.query {
        "" => record.path.to_owned(),
        query => format!("{}?{query}", record.path),
    };
    let mut event = json!({
        "kind": "Event",
        "apiVersion": "audit.k8s.io/v1",
        "level": "Metadata",
        "auditID": id,
        "stage": if streams { "ResponseStarted" } else { "ResponseComplete" },
        "requestURI": uri,
        "verb": asked.verb,
        "user": user(record.user),
        "responseStatus": {"metadata": {}, "code": record.code},
        "requestReceivedTimestamp": time(record.received),
        "stageTimestamp": time(now),
    });
    if let Some(impersonated) = record.impersonated {
        event["impersonatedUser"] = user(impersonated);
    }
    if let Some(address) = record.address {
        event["sourceIPs"] = json!([address]);
    }
    if let Some(agent) = record.agent {
        event["userAgent"] = agent.chars().take(AGENT_MAX).collect::<String>().into();
    }
    if asked.is_resource() {
        event["objectRef"] = object(asked);
    }
    event["annotations"] = match &record.decision {
        Some(why) => json!({
            "authorization.k8s.io/decision": "allow",
            "authorization.k8s.io/reason": why,
        }),
        None if record.code == 401 => json!({}),
        None => json!({"authorization.k8s.io/decision": "forbid"}),
    };
    event
}

fn user(user: &User) -> Value {
    let mut value = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        value["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

fn object(asked: &Attributes<'_>) -> Value {
    let mut value = json!({"resource": asked.resource});
    for (field, text) in [
        ("namespace", asked.namespace),
        ("name", asked.name),
        ("apiGroup", asked.group),
        ("apiVersion", asked.version),
        ("subresource", asked.subresource),
    ] {
        if !text.is_empty() {
            value[field] = text.into();
        }
    }
    value
}

/// The file in use.
struct LogFile {
    file: File,
    size: u64,
}

impl LogFile {
    fn open(options: &Options) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&options.path)?;
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }

    fn append(&mut self, options: &Options, text: &str) -> io::Result<()> {
        let length = text.len() as u64;
        if self.size > 0 && self.size + length > options.size_max {
            self.rotate(options)?;
        }
        self.file.write_all(text.as_bytes())?;
        self.size += length;
        Ok(())
    }

    /// Moves the files on by one: `audit.log` to `audit.log.1`, that to `audit.log.2`, ….
    fn rotate(&mut self, options: &Options) -> io::Result<()> {
        for number in (1..options.kept).rev() {
            let (from, to) = (aside(&options.path, number), aside(&options.path, number + 1));
            if from.exists() {
                fs::rename(from, to)?;
            }
        }
        if options.kept == 0 {
            fs::remove_file(&options.path)?;
        } else {
            fs::rename(&options.path, aside(&options.path, 1))?;
        }
        *self = Self::open(options)?;
        Ok(())
    }
}

fn aside(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_who_did_what() {
        let (user, other) = (User::new("root", &["system:masters"]), User::new("jane", &[]));
        let record = Record {
            path: "/apis/apps/v1/namespaces/a/deployments/d/scale",
            query: "dryRun=All",
            asked: Attributes {
                verb: "patch",
                group: "apps",
                version: "v1",
                resource: "deployments",
                subresource: "scale",
                namespace: "a",
                name: "d",
                ..Attributes::default()
            },
            user: &user,
            impersonated: Some(&other),
            address: Some("192.0.2.1".parse().unwrap()),
            agent: Some("kubectl"),
            decision: Some("RBAC: …".to_owned()),
            code: 200,
            received: SystemTime::UNIX_EPOCH,
        };
        let event = event(&record, "id", SystemTime::UNIX_EPOCH);
        assert_eq!(
            event,
            json!({
                "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata",
                "auditID": "id", "stage": "ResponseComplete", "verb": "patch",
                "requestURI": "/apis/apps/v1/namespaces/a/deployments/d/scale?dryRun=All",
                "user": {"username": "root", "groups": ["system:masters"]},
                "impersonatedUser": {"username": "jane", "groups": []},
                "sourceIPs": ["192.0.2.1"], "userAgent": "kubectl",
                "objectRef": {"resource": "deployments", "namespace": "a", "name": "d",
                    "apiGroup": "apps", "apiVersion": "v1", "subresource": "scale"},
                "responseStatus": {"metadata": {}, "code": 200},
                "requestReceivedTimestamp": "1970-01-01T00:00:00.000000Z",
                "stageTimestamp": "1970-01-01T00:00:00.000000Z",
                "annotations": {"authorization.k8s.io/decision": "allow",
                    "authorization.k8s.io/reason": "RBAC: …"},
            })
        );
    }

    #[test]
    fn a_full_file_is_moved_aside_and_only_some_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.log");
        let options = Options { path: path.clone(), size_max: 10, kept: 2 };
        let mut file = LogFile::open(&options).unwrap();
        for line in ["first\n", "second\n", "third\n", "fourth\n"] {
            file.append(&options, line).unwrap();
        }
        let text = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(text(path.clone()), "fourth\n");
        assert_eq!(text(aside(&path, 1)), "third\n");
        assert_eq!(text(aside(&path, 2)), "second\n");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    }
}
