//! The API server: one generic implementation of Kubernetes' API conventions, driven by the
//! [`registry`](crate::registry) and kept in a [`store`](crate::store).
//!
//! [`Api::handle`] is the whole of it, from request to response. It knows no sockets.

pub mod clock;
pub mod status;

pub(crate) mod admission;
mod asked;
mod body;
mod bootstrap;
mod connect;
mod create;
mod delete;
mod encode;
mod eviction;
mod expire;
mod fields;
mod filter;
mod gate;
mod list;
mod list_options;
mod meta;
mod openapi;
mod patch;
mod query;
mod rendering;
mod reviews;
mod strategic;
mod subresource;
mod table;
mod token;
mod update;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::audit::{Audit, Record};
use crate::authz::{Decision, User};
use crate::registry::service::Ranges;
use crate::registry::{Registry, Subresource};
use crate::store::Store;
use admission::Disabled;
use asked::Asked;
use body::Form;
use query::{Params, Target};
use rendering::Renderings;
use status::{Failure, Result};

pub use admission::Disabled as DisabledAdmission;
pub use bootstrap::{Addresses, bootstrap};
pub use connect::{CERTIFICATE_ANNOTATION, Nodes};
pub use gate::{Access, Peer};

/// Body of a response.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Longest time that a request may take, watches excepted.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// Most reading requests at a time, watches excepted.
const READS_IN_FLIGHT: usize = 400;
/// Most writing requests at a time.
const WRITES_IN_FLIGHT: usize = 200;

/// The API server.
pub struct Api {
    store: Arc<dyn Store>,
    registry: Registry,
    ranges: Ranges,
    reads: Semaphore,
    writes: Semaphore,
    shutdown: CancellationToken,
    nodes: Option<Nodes>,
    access: Option<Access>,
    disabled: Disabled,
    audit: Option<Audit>,
    renderings: Arc<Renderings>,
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
            access: None,
            disabled: Disabled::default(),
            audit: None,
            renderings: Arc::default(),
        }
    }

    /// With a way to ask nodes for what only they have: logs of and commands in containers.
    pub fn with_nodes(self, nodes: Nodes) -> Self {
        Self { nodes: Some(nodes), ..self }
    }

    /// With a way to know users and their rights. A server without lets nobody in.
    pub fn with_access(self, access: Access) -> Self {
        Self { access: Some(access), ..self }
    }

    /// Without some of the admission plugins.
    pub fn without(self, disabled: Disabled) -> Self {
        Self { disabled, ..self }
    }

    /// With a log of who did what.
    pub fn with_audit(self, audit: Audit) -> Self {
        Self { audit: Some(audit), ..self }
    }

    /// Answers one request.
    pub async fn handle<B>(&self, request: Request<B>, peer: &Peer) -> Response<Body>
    where
        B: hyper::body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        let (mut parts, body) = request.into_parts();
        let upgrade = parts.extensions.remove::<hyper::upgrade::OnUpgrade>();
        let received = SystemTime::now();
        let query = parts.uri.query().unwrap_or_default();
        let mut call = Call::read(parts.method, parts.uri.path(), query, parts.headers);
        let decision = self.admit(&mut call, peer).await;
        let outcome = match &decision {
            Err(failure) => Err(failure.clone()),
            Ok(_) => self.answer(&call, upgrade, body).await,
        };
        self.enforce(&call.asked);
        let mut response = outcome.unwrap_or_else(Failure::into_response);
        let code = response.status();
        tracing::debug!(method = %call.method, path = call.path, code = code.as_u16(), "request");
        if let Some(audit) = &self.audit {
            let record = call.record(peer, decision.ok().as_ref(), code, received);
            audit.write(record, response.headers_mut()).await;
        }
        response
    }

    /// Answers a request that was let in.
    async fn answer<B>(
        &self,
        call: &Call,
        upgrade: Option<hyper::upgrade::OnUpgrade>,
        body: B,
    ) -> Result<Response<Body>>
    where
        B: hyper::body::Body<Data = Bytes> + Send,
        B::Error: std::fmt::Display,
    {
        if let Some(answer) = self.general(call) {
            return answer;
        }
        // What a node sends goes on for as long as it likes: the limits are others.
        match Target::parse(&call.path, &self.registry).filter(connect::is_for_node) {
            Some(target) => self.connect(call, &target, upgrade).await,
            None => self.limited(call, body).await,
        }
    }

    /// Answers what is not about objects: health, the version, and by what tokens are known.
    fn general(&self, call: &Call) -> Option<Result<Response<Body>>> {
        let issuer = || self.access().map(|access| access.authenticator.issuer());
        let document = |content_type, value: Value| {
            let body = Full::from(value.to_string()).boxed_unsync();
            response(StatusCode::OK, content_type, body)
        };
        match call.path.as_str() {
            "/healthz" | "/livez" | "/readyz" => Some(Ok(text("ok"))),
            "/version" | "/version/" => Some(Ok(json(StatusCode::OK, &meta::version()))),
            "/.well-known/openid-configuration" => {
                Some(issuer().map(|issuer| document("application/json", issuer.discovery())))
            }
            "/openid/v1/jwks" => Some(
                issuer().map(|issuer| document("application/jwk-set+json", issuer.public_keys())),
            ),
            _ => None,
        }
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
            return Ok(document);
        }
        let target = Target::parse(&call.path, &self.registry).ok_or_else(Failure::no_such_path)?;
        let deprecated = target.kind.deprecated;
        let response = self.on_target(call, target, body).await?;
        Ok(fields::Warnings::of(deprecated).on(response))
    }

    async fn on_target(&self, call: &Call, target: Target, body: Bytes) -> Result<Response<Body>> {
        if let Some(review) = target.kind.review {
            return self.review(call, &target, review, &body).await;
        }
        if !target.subresource.is_empty() {
            return self.subresource(call, &target, body).await;
        }
        let form = Form::accepted(&call.headers)?;
        let watching = call.params.flag("watch");
        match (&call.method, target.name.is_empty()) {
            (&Method::GET, true) if watching => self.watch(call, &target, form).await,
            (&Method::GET, true) => self.list(call, &target, form).await,
            (&Method::GET, false) => self.get(call, &target, form).await,
            (&Method::POST, true) => self.create(call, target, body, form).await,
            (&Method::PUT, false) => self.update(call, &target, &body, form).await,
            (&Method::PATCH, false) => self.patch(call, &target, &body, form).await,
            (&Method::DELETE, false) => self.delete(call, &target, &body).await,
            (&Method::DELETE, true) if target.kind.verbs.contains(&"deletecollection") => {
                self.delete_collection(call, &target, &body).await
            }
            _ => Err(Failure::method_not_allowed()),
        }
    }

    async fn get(&self, call: &Call, target: &Target, form: Form) -> Result<Response<Body>> {
        let entry = self.store.get(&target.key()).await?;
        let entry = entry.ok_or_else(|| Failure::not_found(target.kind, &target.name))?;
        if form == Form::Json {
            let entry = encode::shown(target.kind, entry);
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
    /// What it asks for.
    asked: Asked,
    /// Who is taken to ask.
    user: Arc<User>,
    /// Who asks in truth, where that is somebody else.
    impersonator: Option<Arc<User>>,
}

impl Call {
    /// A request of which nobody knows yet who sends it.
    fn read(method: Method, path: &str, query: &str, headers: HeaderMap) -> Self {
        let params = Params::parse(query);
        Self {
            asked: Asked::of(&method, path, &params),
            method,
            path: path.to_owned(),
            params,
            query: query.to_owned(),
            headers,
            user: Arc::new(User::anonymous()),
            impersonator: None,
        }
    }

    /// A request for tests.
    #[cfg(test)]
    fn new(method: Method, path: &str, query: &str) -> Self {
        Self::read(method, path, query, HeaderMap::new())
    }

    /// What the audit log keeps of it.
    fn record<'a>(
        &'a self,
        peer: &Peer,
        decision: Option<&Decision>,
        code: StatusCode,
        received: SystemTime,
    ) -> Record<'a> {
        let text = |name| self.headers.get(name).and_then(|value| value.to_str().ok());
        Record {
            path: &self.path,
            query: &self.query,
            asked: self.asked.attributes(),
            user: self.impersonator.as_ref().unwrap_or(&self.user),
            impersonated: self.impersonator.as_ref().map(|_| &*self.user),
            address: peer.address(),
            agent: text(header::USER_AGENT),
            decision: decision.map(|decision| decision.why().to_string()),
            code: code.as_u16(),
            received,
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
