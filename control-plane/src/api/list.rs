//! LIST: a consistent state of a collection, whole or in pages.

use std::convert::Infallible;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::body::Form;
use super::filter::{Candidate, Filter};
use super::query::Target;
use super::status::{Failure, Result};
use super::{Api, Body, Call, encode, list_options, table};
use crate::registry::Kind;
use crate::store::{Entry, Key, Query, Revision, StoreError};

/// Bytes that a list sends at a time: what bounds its memory.
const CHUNK: usize = 64 << 10;

/// Where the next page of a list begins.
#[derive(Debug, Deserialize, Serialize)]
struct Continue {
    /// The revision that all pages show; 0 for whichever is the newest.
    rv: Revision,
    /// The last key of the page before.
    after: String,
}

impl Continue {
    fn token(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!(self).to_string())
    }

    fn parse(token: &str) -> Result<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('=')).ok();
        let parsed = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        parsed.ok_or_else(|| {
            let why = "continue key is not valid: illegal base64 data or encoding";
            Failure::bad_request(format!("invalid continue token: {why}"))
        })
    }
}

/// A page of a collection.
pub(super) struct Listed {
    pub(super) revision: Revision,
    pub(super) entries: Vec<(Key, Entry)>,
    next: Option<String>,
    remaining: Option<usize>,
}

impl Listed {
    fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let Some(token) = &self.next {
            metadata["continue"] = token.as_str().into();
        }
        if let Some(count) = self.remaining {
            metadata["remainingItemCount"] = count.into();
        }
        metadata
    }
}

impl Api {
    pub(super) async fn list(
        &self,
        call: &Call,
        target: &Target,
        form: Form,
    ) -> Result<Response<Body>> {
        let filter = Filter::new(call, target)?;
        let listed = self.listed(call, target, &filter).await?;
        Ok(match form {
            Form::Json => stream(target.kind, listed),
            Form::Table => table(target.kind, listed, table::Include::asked(call)),
            Form::Metadata => {
                let head = json!({
                    "kind": "PartialObjectMetadataList",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": listed.metadata(),
                });
                streamed(&head, "items", listed.entries, |entry, out| {
                    append(&table::partial(&encode::head(&entry)?), out);
                    Ok(())
                })
            }
        })
    }

    /// The entries that a request asks for.
    pub(super) async fn listed(
        &self,
        call: &Call,
        target: &Target,
        filter: &Filter,
    ) -> Result<Listed> {
        list_options::check_list(call)?;
        // 0 is no limit, and so is one below it.
        let limit = call.params.integer("limit")?.filter(|limit| *limit > 0);
        let limit = limit.and_then(|limit| usize::try_from(limit).ok());
        let token = call.params.text("continue");
        let from = if token.is_empty() { None } else { Some(Continue::parse(token)?) };
        let at = match &from {
            Some(from) => Some(from.rv).filter(|revision| *revision > 0),
            None => self.revision_asked(call).await?,
        };
        let after = from.map(|from| from.after);
        let collected = self.collect(&target.prefix(), filter, limit, after.clone(), at).await;
        collected.map_err(|error| page_gone(error, after))
    }

    /// The entries of a prefix that pass a filter, all as of one revision.
    pub(super) async fn collect(
        &self,
        prefix: &str,
        filter: &Filter,
        limit: Option<usize>,
        mut after: Option<String>,
        mut at: Option<Revision>,
    ) -> std::result::Result<Listed, StoreError> {
        let mut listed = Listed { revision: 0, entries: Vec::new(), next: None, remaining: None };
        loop {
            let missing = limit.map(|limit| limit - listed.entries.len());
            let page = self
                .store
                .range(Query { prefix, after: after.as_deref(), limit: missing, at })
                .await?;
            listed.revision = page.revision;
            at = Some(page.revision);
            after = page.entries.last().map(|(key, _)| key.to_string());
            let wanted = page.entries.into_iter().filter(|(key, entry)| {
                filter.is_everything() || filter.matches(key, &Candidate::new(entry.value.clone()))
            });
            listed.entries.extend(wanted);
            if page.remaining == 0 {
                return Ok(listed);
            }
            if limit.is_some_and(|limit| listed.entries.len() >= limit) {
                listed.next = after.map(|after| Continue { rv: listed.revision, after }.token());
                listed.remaining = filter.is_everything().then_some(page.remaining);
                return Ok(listed);
            }
        }
    }

    /// The revision whose state the request demands; `None` for the newest, which is never older
    /// than what any client has seen.
    async fn revision_asked(&self, call: &Call) -> Result<Option<Revision>> {
        let asked = encode::revision(call.params.text("resourceVersion"))?;
        let Some(asked) = asked.filter(|asked| *asked > 0) else { return Ok(None) };
        let newest = self.store.revision().await?;
        if asked > newest {
            let message =
                format!("Timeout: Too large resource version: {asked}, current: {newest}");
            let failure =
                Failure::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message).retry_after(1);
            return Err(failure.because(
                "ResourceVersionTooLarge",
                "Too large resource version",
                "",
            ));
        }
        Ok(list_options::is_exact(call)?.then_some(asked))
    }
}

/// Why there is no page. Where the state is gone that the pages before showed, whoever likes may
/// have the rest of the newest.
fn page_gone(error: StoreError, after: Option<String>) -> Failure {
    const GONE: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter";
    match (error, after) {
        (StoreError::Compacted { .. }, Some(after)) => Failure::expired(format!(
            "{GONE}, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list."
        ))
        .continued_by(Continue { rv: 0, after }.token()),
        (StoreError::Ahead { .. }, Some(_)) => Failure::expired(format!("{GONE}.")),
        (StoreError::Compacted { .. }, None) => {
            Failure::expired("The resourceVersion for the provided list is too old.")
        }
        (other, _) => other.into(),
    }
}

/// The list as JSON.
pub(super) fn stream(kind: &'static Kind, listed: Listed) -> Response<Body> {
    let head = json!({"kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": listed.metadata()});
    streamed(&head, "items", listed.entries, move |entry, out| {
        encode::splice(&encode::shown(kind, entry), out);
        Ok(())
    })
}

/// The list as a table.
fn table(kind: &'static Kind, listed: Listed, include: table::Include) -> Response<Body> {
    let head = table::table(&listed.metadata(), &table::definitions(kind), &[]);
    streamed(&head, "rows", listed.entries, move |entry, out| {
        append(&table::row(kind, &encode::object(&entry)?, include), out);
        Ok(())
    })
}

/// Appends JSON.
fn append(value: &Value, out: &mut BytesMut) {
    // Writing a JSON value into memory can't fail.
    let _ = serde_json::to_writer(out.writer(), value);
}

/// A list whose items are made while it is sent: `head` with them as the field `list`, however
/// many there are.
fn streamed(
    head: &Value,
    list: &str,
    entries: Vec<(Key, Entry)>,
    show: impl Fn(Entry, &mut BytesMut) -> Result<()> + Send + 'static,
) -> Response<Body> {
    let mut head = head.clone();
    if let Some(fields) = head.as_object_mut() {
        fields.remove(list);
    }
    let mut head = head.to_string();
    head.truncate(head.len() - 1);
    for part in [",\"", list, "\":["] {
        head.push_str(part);
    }
    let mut rest = entries.into_iter();
    let mut pending = Some(head);
    let mut separator: &[u8] = b"";
    let chunks = std::iter::from_fn(move || {
        let mut chunk = BytesMut::from(pending.take()?.as_bytes());
        for (key, entry) in rest.by_ref() {
            let before = chunk.len();
            chunk.put_slice(separator);
            if let Err(failure) = show(entry, &mut chunk) {
                // The answer has begun and can't become an error any more: it ends in the middle, so
                // that nobody takes it for the whole.
                tracing::error!(%key, reason = %failure.status()["message"], "a list is cut off");
                chunk.truncate(before);
                return Some(chunk.freeze());
            }
            separator = b",";
            if chunk.len() >= CHUNK {
                pending = Some(String::new());
                return Some(chunk.freeze());
            }
        }
        chunk.put_slice(b"]}");
        Some(chunk.freeze())
    });
    let frames = chunks.map(|chunk: Bytes| Ok::<_, Infallible>(Frame::data(chunk)));
    let body = StreamBody::new(futures::stream::iter(frames));
    super::response(StatusCode::OK, "application/json", body.boxed_unsync())
}
