//! A client that counts its requests.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use futures::{FutureExt as _, future::BoxFuture};
use hyper::{Request, Response};
use tower::Service;

use crate::metrics::requests::Requests;

/// A client, and where its requests to one server are counted.
#[derive(Clone, Debug)]
pub(super) struct Counted<S> {
    pub(super) inner: S,
    pub(super) host: Arc<str>,
    pub(super) requests: Arc<Requests>,
}

impl<S, B, A> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<A>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (method, since) = (request.method().clone(), Instant::now());
        let (host, requests) = (Arc::clone(&self.host), Arc::clone(&self.requests));
        let asking = self.inner.call(request);
        async move {
            let answer = asking.await;
            let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            requests.done(method.as_str(), &host, code, since.elapsed());
            answer
        }
        .boxed()
    }
}
