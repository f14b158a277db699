//! WATCH: changes of a collection as they happen.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::body::Form;
use super::filter::{Candidate, Filter};
use super::query::Target;
use super::rendering::{self, Change, Renderings};
use super::status::{Failure, Result};
use super::{Api, Body, Call, encode, list_options, table};
use crate::registry::Kind;
use crate::store::{Entry, Event, Key, Progress, Revision, StoreError, Watch};

/// How often a bookmark says how far a quiet watch has come.
const BOOKMARK_EVERY: Duration = Duration::from_mins(1);
/// Time after which a watch ends that names none: this.
const TIMEOUT: Duration = Duration::from_mins(30);
/// The longest time that a watch can ask for.
const TIMEOUT_MAX: Duration = Duration::from_hours(24 * 365);
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
        list_options::check_watch(call)?;
        let initial = Initial::asked(call);
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
        let timeout = seconds.map_or(TIMEOUT, |asked| Duration::from_secs(asked).min(TIMEOUT_MAX));
        let cursor = match self.store.watch(&target.prefix(), after).await {
            Ok(cursor) => cursor,
            Err(error) => return Ok(refused(error)),
        };
        let feed = Feed {
            encoder: Encoder {
                renderings: Arc::clone(&self.renderings),
                kind: target.kind,
                filter,
                form,
                include: table::Include::asked(call),
                headed: false,
            },
            initial: entries.into_iter(),
            initial_end: (initial == Initial::EventsAndBookmark).then_some(after),
            cursor,
            pending: Vec::new().into_iter(),
            clock: Clock::new(timeout, call.params.flag("allowWatchBookmarks")),
            shutdown: Box::pin(self.shutdown.clone().cancelled_owned()),
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
    fn asked(call: &Call) -> Self {
        if call.params.has("sendInitialEvents") {
            let asked = call.params.flag("sendInitialEvents");
            return if asked { Self::EventsAndBookmark } else { Self::None };
        }
        let whole = matches!(call.params.text("resourceVersion"), "" | "0");
        if whole { Self::Events } else { Self::None }
    }
}

/// When a watch says how far it has come, and when it ends.
struct Clock {
    /// `None` for a client that wants no bookmarks.
    next_bookmark: Option<Instant>,
    deadline: Instant,
    /// The earlier of the two. One timer for as long as the watch lives: the events go by it.
    alarm: Pin<Box<Sleep>>,
}

impl Clock {
    fn new(timeout: Duration, bookmarks: bool) -> Self {
        let now = Instant::now();
        let (deadline, next_bookmark) = (now + timeout, bookmarks.then(|| now + BOOKMARK_EVERY));
        let first = next_bookmark.map_or(deadline, |bookmark| bookmark.min(deadline));
        Self { next_bookmark, deadline, alarm: Box::pin(sleep_until(first)) }
    }

    /// Whether a bookmark is due; the next one is then a while off.
    fn bookmark(&mut self, now: Instant) -> bool {
        let due = self.next_bookmark.is_some_and(|at| at <= now);
        if due {
            let next = now + BOOKMARK_EVERY;
            self.next_bookmark = Some(next);
            self.alarm.as_mut().reset(next.min(self.deadline));
        }
        due
    }
}

/// One watch in progress.
struct Feed {
    encoder: Encoder,
    initial: std::vec::IntoIter<(Key, Entry)>,
    initial_end: Option<Revision>,
    cursor: Box<dyn Watch>,
    /// What was taken from the cursor and not sent yet.
    pending: std::vec::IntoIter<Arc<Event>>,
    clock: Clock,
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl Feed {
    /// The next bytes to send; `None` ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(chunk) = self.next_initial().or_else(|| self.next_pending()) {
            return Some(chunk);
        }
        while !self.ended {
            tokio::select! {
                biased;
                () = self.shutdown.as_mut() => return None,
                () = self.clock.alarm.as_mut() => {}
                changed = self.cursor.changed() => changed.ok()?,
            }
            // Also when changes that this watch does not want never pause.
            let now = Instant::now();
            if now >= self.clock.deadline {
                return None;
            }
            let bookmark = self.clock.bookmark(now);
            let chunk = match self.cursor.take() {
                Ok(progress) => self.take(progress, bookmark),
                Err(error) => {
                    self.ended = true;
                    Some(error_event(error))
                }
            };
            if chunk.is_some() {
                return chunk;
            }
        }
        None
    }

    fn next_initial(&mut self) -> Option<Bytes> {
        let mut chunk = BytesMut::new();
        for (_, entry) in self.initial.by_ref() {
            self.encoder.event(Change::Added, entry, &mut chunk);
            if chunk.len() >= CHUNK {
                return Some(chunk.freeze());
            }
        }
        if let Some(revision) = self.initial_end.take() {
            self.encoder.bookmark(revision, true, &mut chunk);
        }
        (!chunk.is_empty()).then(|| chunk.freeze())
    }

    /// Takes in what the store tells, and returns the first of it to send. A bookmark follows all
    /// of what it speaks of: then that is one chunk.
    fn take(&mut self, progress: Progress, bookmark: bool) -> Option<Bytes> {
        self.pending = progress.events.into_iter();
        if !bookmark {
            return self.next_pending();
        }
        let mut chunk = BytesMut::new();
        while let Some(part) = self.next_pending() {
            chunk.extend_from_slice(&part);
        }
        self.encoder.bookmark(progress.revision, false, &mut chunk);
        Some(chunk.freeze())
    }

    /// The next events of those taken. Where it is one, as with most, nothing is copied.
    fn next_pending(&mut self) -> Option<Bytes> {
        let mut lines = self.pending.by_ref().filter_map(|event| self.encoder.change(&event));
        let first = lines.next()?;
        let Some(second) = lines.next() else { return Some(first) };
        let mut chunk = BytesMut::from(first);
        chunk.extend_from_slice(&second);
        while chunk.len() < CHUNK
            && let Some(line) = lines.next()
        {
            chunk.extend_from_slice(&line);
        }
        Some(chunk.freeze())
    }
}

/// Writes events in the form that the client wants.
struct Encoder {
    renderings: Arc<Renderings>,
    kind: &'static Kind,
    filter: Filter,
    form: Form,
    include: table::Include,
    /// Whether the client has got the definitions of the columns.
    headed: bool,
}

impl Encoder {
    /// A change as this watch sees it: what begins to match is added, what ceases is deleted.
    fn change(&mut self, event: &Arc<Event>) -> Option<Bytes> {
        let rendering = self.renderings.of(self.kind, event);
        let matches = |candidate: Option<&Candidate>| {
            candidate.is_some_and(|candidate| {
                self.filter.is_everything() || self.filter.matches(&event.key, candidate)
            })
        };
        let change = match (matches(rendering.now()), matches(rendering.before())) {
            (true, false) => Change::Added,
            (true, true) => Change::Modified,
            (false, true) => Change::Deleted,
            (false, false) => return None,
        };
        if self.form == Form::Json {
            return Some(rendering.line(change));
        }
        let mut line = BytesMut::new();
        self.event(change, rendering.entry(change)?, &mut line);
        Some(line.freeze())
    }

    fn event(&mut self, change: Change, entry: Entry, out: &mut BytesMut) {
        let object = match (self.form, encode::object(&entry)) {
            (Form::Table, Ok(object)) => {
                let row = table::row(self.kind, &object, self.include);
                self.table(&json!({"resourceVersion": object.resource_version()}), &[row])
            }
            (Form::Metadata, Ok(object)) => table::partial(&object),
            _ => return rendering::write(self.kind, change, entry, out),
        };
        rendering::open(change, out);
        out.put_slice(object.to_string().as_bytes());
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
