//! WATCH: changes of a collection as they happen.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::body::Form;
use super::filter::Filter;
use super::query::Target;
use super::status::{Failure, Result};
use super::{Api, Body, Call, encode, table};
use crate::registry::Kind;
use crate::registry::invalid::Errors;
use crate::store::{Entry, Event, Key, Progress, Revision, StoreError, Watch};

/// How often a bookmark says how far a quiet watch has come.
const BOOKMARK_EVERY: Duration = Duration::from_mins(1);
/// Time after which a watch ends that names none: this.
const TIMEOUT: Duration = Duration::from_mins(30);
/// Bytes of initial events sent at a time.
const CHUNK: usize = 64 << 10;

/// Annotation of the bookmark that ends the initial events (KEP-3157).
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

impl Api {
    pub(super) async fn watch(
        &self,
        call: &Call,
        target: &Target,
        form: Form,
    ) -> Result<Response<Body>> {
        let filter = Filter::new(call, target)?;
        let initial = Initial::asked(call, target.kind)?;
        let asked = encode::revision(call.params.text("resourceVersion"))?.unwrap_or(0);
        let newest = self.store.revision().await?;
        let (entries, after) = match initial {
            // "Not older than" a state that was never reached here.
            Initial::EventsAndBookmark if asked > newest => {
                return Ok(refused(StoreError::Ahead { asked, newest }));
            }
            Initial::None => (Vec::new(), if asked > 0 { asked } else { newest }),
            Initial::Events | Initial::EventsAndBookmark => {
                let listed = self.collect(&target.prefix(), &filter, None, None, None).await?;
                (listed.entries, listed.revision)
            }
        };
        let seconds = call.params.number("timeoutSeconds")?.filter(|seconds| *seconds > 0);
        let timeout = seconds.map_or(TIMEOUT, Duration::from_secs);
        let cursor = match self.store.watch(&target.prefix(), after).await {
            Ok(cursor) => cursor,
            Err(error) => return Ok(refused(error)),
        };
        let feed = Feed {
            encoder: Encoder {
                kind: target.kind,
                filter,
                form,
                include: table::Include::asked(call),
                headed: false,
            },
            initial: entries.into_iter(),
            initial_end: (initial == Initial::EventsAndBookmark).then_some(after),
            cursor,
            bookmarks: call.params.flag("allowWatchBookmarks"),
            next_bookmark: Instant::now() + BOOKMARK_EVERY,
            deadline: Instant::now() + timeout,
            shutdown: self.shutdown.clone(),
            ended: false,
        };
        let chunks = futures::stream::unfold(feed, |mut feed| async move {
            let chunk = feed.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(chunk)), feed))
        });
        let body = StreamBody::new(chunks).boxed_unsync();
        Ok(super::response(StatusCode::OK, "application/json;stream=watch", body))
    }
}

/// What comes before the changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Initial {
    /// Nothing.
    None,
    /// The state as ADDED events.
    Events,
    /// The state as ADDED events, and a bookmark that says that this was all.
    EventsAndBookmark,
}

impl Initial {
    fn asked(call: &Call, kind: &Kind) -> Result<Self> {
        let version = call.params.text("resourceVersion");
        let matching = call.params.text("resourceVersionMatch");
        let mut errors = Errors::default();
        let unset = call.params.text("sendInitialEvents").is_empty();
        let initial = if unset {
            if !matching.is_empty() {
                let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
                errors.forbidden("resourceVersionMatch", why);
            }
            if matches!(version, "" | "0") { Self::Events } else { Self::None }
        } else {
            if matching != "NotOlderThan" {
                let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
                errors.forbidden("resourceVersionMatch", why);
            }
            let asked = call.params.flag("sendInitialEvents");
            if asked { Self::EventsAndBookmark } else { Self::None }
        };
        if errors.is_empty() { Ok(initial) } else { Err(Failure::invalid(kind, "", &errors)) }
    }
}

/// One watch in progress.
struct Feed {
    encoder: Encoder,
    initial: std::vec::IntoIter<(Key, Entry)>,
    initial_end: Option<Revision>,
    cursor: Box<dyn Watch>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    shutdown: CancellationToken,
    ended: bool,
}

impl Feed {
    /// The next bytes to send; `None` ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(chunk) = self.next_initial() {
            return Some(chunk);
        }
        while !self.ended {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return None,
                () = tokio::time::sleep_until(self.deadline) => return None,
                changed = self.cursor.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {}
            }
            // Also when changes that this watch does not want never pause.
            let bookmark = self.bookmarks && Instant::now() >= self.next_bookmark;
            let chunk = match self.cursor.take() {
                Ok(progress) => self.encode(&progress, bookmark),
                Err(error) => {
                    self.ended = true;
                    error_event(error)
                }
            };
            if !chunk.is_empty() {
                return Some(chunk);
            }
        }
        None
    }

    fn next_initial(&mut self) -> Option<Bytes> {
        let mut chunk = BytesMut::new();
        for (_, entry) in self.initial.by_ref() {
            self.encoder.event("ADDED", &entry, &mut chunk);
            if chunk.len() >= CHUNK {
                return Some(chunk.freeze());
            }
        }
        if let Some(revision) = self.initial_end.take() {
            self.encoder.bookmark(revision, true, &mut chunk);
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }

    fn encode(&mut self, progress: &Progress, bookmark: bool) -> Bytes {
        let mut chunk = BytesMut::new();
        for event in &progress.events {
            self.encoder.change(event, &mut chunk);
        }
        if bookmark {
            self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
            self.encoder.bookmark(progress.revision, false, &mut chunk);
        }
        chunk.freeze()
    }
}

/// Writes events in the form that the client wants.
struct Encoder {
    kind: &'static Kind,
    filter: Filter,
    form: Form,
    include: table::Include,
    /// Whether the client has got the definitions of the columns.
    headed: bool,
}

impl Encoder {
    /// A change as this watch sees it: what begins to match is added, what ceases is deleted.
    fn change(&mut self, event: &Arc<Event>, out: &mut BytesMut) {
        let matches = |entry: &Option<Entry>| {
            entry.as_ref().is_some_and(|entry| {
                self.filter.is_everything() || self.filter.matches(&event.key, &entry.value)
            })
        };
        let (now, before) = (matches(&event.entry), matches(&event.previous));
        let (name, entry) = match (now, before) {
            (true, false) => ("ADDED", &event.entry),
            (true, true) => ("MODIFIED", &event.entry),
            (false, true) => ("DELETED", &event.previous),
            (false, false) => return,
        };
        if let Some(entry) = entry {
            // A deletion carries the last state, at the revision of the deletion.
            let entry = Entry { modified: event.revision, ..entry.clone() };
            self.event(name, &entry, out);
        }
    }

    fn event(&mut self, name: &str, entry: &Entry, out: &mut BytesMut) {
        out.put_slice(b"{\"type\":\"");
        out.put_slice(name.as_bytes());
        out.put_slice(b"\",\"object\":");
        match (self.form, encode::object(entry)) {
            (Form::Table, Ok(object)) => {
                let row = table::row(self.kind, &object, self.include);
                let table =
                    self.table(&json!({"resourceVersion": object.resource_version()}), &[row]);
                out.put_slice(table.to_string().as_bytes());
            }
            (Form::Metadata, Ok(object)) => {
                out.put_slice(table::partial(&object).to_string().as_bytes());
            }
            _ => encode::splice(&encode::shown(self.kind, entry.clone()), out),
        }
        out.put_slice(b"}\n");
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool, out: &mut BytesMut) {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = match self.form {
            Form::Json => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata})
            }
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Form::Table => self.table(&metadata, &[]),
        };
        out.put_slice(json!({"type": "BOOKMARK", "object": object}).to_string().as_bytes());
        out.put_u8(b'\n');
    }

    fn table(&mut self, metadata: &Value, rows: &[Value]) -> Value {
        let definitions = if self.headed { json!([]) } else { table::definitions(self.kind) };
        self.headed = true;
        table::table(metadata, &definitions, rows)
    }
}

/// The answer to a watch that can't begin: a stream of one error, as clients expect it.
fn refused(error: StoreError) -> Response<Body> {
    super::respond(StatusCode::OK, error_event(error))
}

/// The event that ends a watch that can't go on.
fn error_event(error: StoreError) -> Bytes {
    let event = json!({"type": "ERROR", "object": Failure::from(error).status()});
    Bytes::from(format!("{event}\n"))
}
