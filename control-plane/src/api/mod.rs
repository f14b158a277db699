//! The API server: one generic implementation of Kubernetes' API conventions, driven by the
//! [`registry`](crate::registry) and kept in a [`store`](crate::store).
//!
//! [`Api::handle`] is the whole of it, from request to response. It knows no sockets.

pub mod clock;
pub mod status;

mod body;
mod bootstrap;
mod connect;
mod create;
mod delete;
mod encode;
mod expire;
mod filter;
mod list;
mod meta;
mod openapi;
mod patch;
mod query;
mod strategic;
mod subresource;
mod table;
mod update;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::registry::service::Ranges;
use crate::registry::{Registry, Subresource};
use crate::store::Store;
use body::Form;
use query::{Params, Target};
use status::{Failure, Result};

pub use bootstrap::{Addresses, bootstrap};
pub use connect::{CERTIFICATE_ANNOTATION, Nodes};

/// Body of a response.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Longest time that a request may take, watches excepted.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// Most reading requests at a time, watches excepted.
const READS_IN_FLIGHT: usize = 400;
/// Most writing requests at a time.
const WRITES_IN_FLIGHT: usize = 200;

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Somebody with a certificate of the cluster's CA. May do everything: there is no
    /// authorization yet.
    Certificate,
    /// Anybody else. May ask for health and version.
    Anonymous,
}

/// The API server.
pub struct Api {
    store: Arc<dyn Store>,
    registry: Registry,
    ranges: Ranges,
    reads: Semaphore,
    writes: Semaphore,
    shutdown: CancellationToken,
    nodes: Option<Nodes>,
}

impl Api {
    /// A server over a store. Watches end when `shutdown` is cancelled.
    pub fn new(store: Arc<dyn Store>, ranges: Ranges, shutdown: CancellationToken) -> Self {
        Self {
            store,
            registry: Registry::default(),
            ranges,
            reads: Semaphore::new(READS_IN_FLIGHT),
            writes: Semaphore::new(WRITES_IN_FLIGHT),
            shutdown,
            nodes: None,
        }
    }

    /// With a way to ask nodes for what only they have: logs of and commands in containers.
    pub fn with_nodes(self, nodes: Nodes) -> Self {
        Self { nodes: Some(nodes), ..self }
    }

    /// Answers one request.
    pub async fn handle<B>(&self, request: Request<B>, caller: Caller) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let (mut parts, body) = request.into_parts();
        let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let query = parts.uri.query().unwrap_or_default();
        let call = Call {
            params: Params::parse(query),
            query: query.to_owned(),
            path: parts.uri.path().to_owned(),
            method: parts.method,
            headers: parts.headers,
        };
        let outcome = match call.general(caller) {
            Some(answer) => answer,
            // What a node sends goes on for as long as it likes: the limits are others.
            None => match Target::parse(&call.path, &self.registry).filter(connect::is_for_node) {
                Some(target) => self.connect(&call, &target, upgrade).await,
                None => self.limited(&call, body).await,
            },
        };
        let response = outcome.unwrap_or_else(Failure::into_response);
        tracing::debug!(method = %call.method, path = call.path, code = response.status().as_u16(), "request");
        response
    }

    /// Answers within the limits of time and concurrency.
    async fn limited<B>(&self, call: &Call, body: B) -> Result<Response<Body>>
    where
        B: hyper::body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let reading = call.method == Method::GET || call.method == Method::HEAD;
        let permits = if reading { &self.reads } else { &self.writes };
        let busy = || {
            let message = "too many requests, please try again later";
            Failure::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message).retry_after(1)
        };
        // A watch holds its permit only until its response begins.
        let _permit = permits.try_acquire().map_err(|_| busy())?;
        let answer = async {
            let body = body::read(body).await?;
            self.route(call, body).await
        };
        tokio::time::timeout(REQUEST_TIMEOUT, answer).await.unwrap_or_else(|_| {
            let message = "Timeout: request did not complete within the allotted timeout";
            Err(Failure::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message))
        })
    }

    async fn route(&self, call: &Call, body: Bytes) -> Result<Response<Body>> {
        if let Some(answer) = meta::answer(&self.registry, call) {
            return answer;
        }
        if let Some(document) = openapi::answer(&self.registry, &call.path) {
            return Ok(json(StatusCode::OK, &document));
        }
        let target = Target::parse(&call.path, &self.registry).ok_or_else(Failure::no_such_path)?;
        if !target.subresource.is_empty() {
            return self.subresource(call, &target, body).await;
        }
        let form = Form::accepted(&call.headers)?;
        let watching = call.params.flag("watch");
        match (&call.method, target.name.is_empty()) {
            (&Method::GET, _) if watching => self.watch(call, &target, form).await,
            (&Method::GET, true) => self.list(call, &target, form).await,
            (&Method::GET, false) => self.get(call, &target, form).await,
            (&Method::POST, true) => self.create(call, target, body, form).await,
            (&Method::PUT, false) => self.update(call, &target, &body, form).await,
            (&Method::PATCH, false) => self.patch(call, &target, &body, form).await,
            (&Method::DELETE, false) => self.delete(call, &target, &body).await,
            (&Method::DELETE, true) => self.delete_collection(call, &target, &body).await,
            _ => Err(Failure::method_not_allowed()),
        }
    }

    async fn get(&self, call: &Call, target: &Target, form: Form) -> Result<Response<Body>> {
        let entry = self.store.get(&target.key()).await?;
        let entry = entry.ok_or_else(|| Failure::not_found(target.kind, &target.name))?;
        if form == Form::Json {
            return Ok(respond(StatusCode::OK, encode::bytes(&entry)));
        }
        Ok(form.respond(target.kind, &encode::object(&entry)?, call, StatusCode::OK))
    }
}

/// A request without its body.
struct Call {
    method: Method,
    path: String,
    params: Params,
    /// The parameters as they were sent, for those that may come more than once.
    query: String,
    headers: HeaderMap,
}

impl Call {
    /// A request for tests.
    #[cfg(test)]
    fn new(method: Method, path: &str, query: &str) -> Self {
        let (params, headers) = (Params::parse(query), HeaderMap::new());
        Self { method, path: path.to_owned(), params, query: query.to_owned(), headers }
    }

    /// Answers what is not the API's: health, and callers who may not go further.
    fn general(&self, caller: Caller) -> Option<Result<Response<Body>>> {
        match self.path.as_str() {
            "/healthz" | "/livez" | "/readyz" => Some(Ok(text("ok"))),
            "/version" | "/version/" => Some(Ok(json(StatusCode::OK, &meta::version()))),
            _ if caller == Caller::Anonymous => Some(Err(Failure::unauthorized())),
            _ => None,
        }
    }
}

/// A response that holds JSON text.
fn respond(code: StatusCode, body: Bytes) -> Response<Body> {
    response(code, "application/json", Full::new(body).boxed_unsync())
}

fn response(code: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, private"));
    response
}

/// A response that holds a JSON value.
fn json(code: StatusCode, value: &Value) -> Response<Body> {
    respond(code, Bytes::from(value.to_string()))
}

fn text(text: &'static str) -> Response<Body> {
    response(StatusCode::OK, "text/plain; charset=utf-8", Full::from(text).boxed_unsync())
}

/// The `Status` of a request that succeeded and has no object to show.
fn success(details: &Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// Whether `name` is the path segment of a subresource of the target's kind.
fn subresource_of(target: &Target) -> Option<Subresource> {
    target.kind.subresources.iter().copied().find(|known| known.name() == target.subresource)
}
