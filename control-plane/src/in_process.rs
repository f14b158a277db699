//! The API server as a [`tower::Service`]: requests of this process go to it as they are, without
//! connection, TLS and HTTP in between.

use std::convert::Infallible;
use std::fmt::Display;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Body as HttpBody;

use crate::api::{Api, Body, Peer};
use crate::authn;
use crate::authz::{ANONYMOUS, User};

/// Requests of one user. Cloning is cheap.
///
/// What needs a connection to take over (`exec`) is refused by it; serve the control plane on a
/// socket for that.
#[derive(Clone)]
pub struct InProcess {
    api: Arc<Api>,
    peer: Arc<Peer>,
}

impl InProcess {
    /// Requests of a user whose word is taken. Nobody's word can be taken for being anonymous: then
    /// a request is whose token it brings, as on a connection without a certificate.
    pub(crate) fn new(api: Arc<Api>, user: User) -> Self {
        let known = (user.name != ANONYMOUS).then(|| authn::accepted(user));
        Self { api, peer: Arc::new(Peer::new(known, None)) }
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Display,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    /// Always ready: who is too much is answered with 429, as on a socket.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { api, peer } = self.clone();
        Box::pin(async move { Ok(api.handle(request, &peer).await) })
    }
}
