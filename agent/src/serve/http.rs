//! A small HTTP/1.1 server: GET, and PUT for root alone; bodies made in memory or sent in parts, connections and time
//! bounded.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming, SizeHint},
    header,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::supervisor::TaskError;

/// Connections at once on a listener; one more waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;
/// How long a request's head may take to arrive, also on a connection kept alive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may live.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a connection may take at the end: for a request that is under way, and for the first one
/// of who has just connected. Who comes later finds the next agent.
const LEAVING: Duration = Duration::from_secs(1);
/// The pause after a failed accept: out of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of a request's head: a line, a few headers, and the longest question.
const HEAD_MAX: usize = 16 * 1024;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// The path.
    pub(crate) path: String,
    /// The query, still encoded.
    query: String,
    /// Whether something is to be changed (PUT), and not only told.
    pub(crate) changes: bool,
}

impl Asked {
    /// A path without a query.
    #[cfg(test)]
    pub(super) fn path(path: &str) -> Self {
        Self { path: path.to_owned(), ..Self::default() }
    }

    /// The same, to change something.
    #[cfg(test)]
    pub(super) fn change(path: &str, query: &str) -> Self {
        Self { path: path.to_owned(), query: query.to_owned(), changes: true }
    }

    /// The value of a parameter; the first where there are several.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        let mut pairs = form_urlencoded::parse(self.query.as_bytes());
        pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    content_type: &'static str,
    headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
    /// What follows the body, for as long as it is not closed.
    stream: Option<mpsc::Receiver<Bytes>>,
}

/// The body of a response: all of it at once, or parts as they come.
enum Body {
    Whole(Full<Bytes>),
    Parts(mpsc::Receiver<Bytes>),
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(whole) => Pin::new(whole).poll_frame(context),
            Self::Parts(parts) => {
                parts.poll_recv(context).map(|part| part.map(|part| Ok(Frame::data(part))))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(whole) => whole.size_hint(),
            Self::Parts(_) => SizeHint::default(),
        }
    }
}

impl Answer {
    pub(crate) fn text(body: impl Into<String>) -> Self {
        let content_type = "text/plain; charset=utf-8";
        let (headers, body) = (Vec::new(), body.into());
        Self { status: StatusCode::OK, content_type, headers, body, stream: None }
    }

    /// Lines of JSON, as they come.
    pub(crate) fn stream(parts: mpsc::Receiver<Bytes>) -> Self {
        let content_type = "application/x-ndjson";
        Self { content_type, stream: Some(parts), ..Self::text("") }
    }

    pub(crate) fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(body) => Self { content_type: "application/json", ..Self::text(body) },
            Err(error) => Self::text(error.to_string()).with(StatusCode::INTERNAL_SERVER_ERROR),
        }
    }

    pub(crate) fn with(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// With one more header; nothing where its value can't be one.
    pub(crate) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn not_found(paths: &[&str]) -> Self {
        let body = format!("not here; there is {}\n", paths.join(", "));
        Self::text(body).with(StatusCode::NOT_FOUND)
    }

    fn into_response(self) -> Response<Body> {
        let body = match self.stream {
            Some(parts) => Body::Parts(parts),
            None => Body::Whole(Full::new(Bytes::from(self.body))),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let content_type = header::HeaderValue::from_static(self.content_type);
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        for (name, value) in self.headers {
            if let Ok(value) = header::HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

/// Connections that are switched from HTTP to another protocol (RFC 9110 7.8), one at a time.
#[derive(Clone, Debug)]
pub(super) struct Switch {
    path: &'static str,
    protocol: &'static str,
    place: Arc<Semaphore>,
    streams: mpsc::Sender<(UnixStream, OwnedSemaphorePermit)>,
}

impl Switch {
    /// Those that ask at `path` for `protocol` go to `streams`.
    pub(super) fn new(
        path: &'static str,
        protocol: &'static str,
        streams: mpsc::Sender<(UnixStream, OwnedSemaphorePermit)>,
    ) -> Self {
        Self { path, protocol, place: Arc::new(Semaphore::new(1)), streams }
    }

    /// The answer to a request for another protocol; `None` where it is none.
    fn answer(&self, request: &mut Request<Incoming>) -> Option<Answer> {
        let protocol = request.headers().get(header::UPGRADE)?.to_str().ok()?;
        if request.uri().path() != self.path || !protocol.eq_ignore_ascii_case(self.protocol) {
            return None;
        }
        let Ok(place) = Arc::clone(&self.place).try_acquire_owned() else {
            let why = "another agent has asked for it before, and is not ready yet";
            return Some(Answer::text(why).with(StatusCode::CONFLICT));
        };
        let (upgrade, streams) = (hyper::upgrade::on(request), self.streams.clone());
        tokio::spawn(async move {
            // Who asked may be gone, and so may who attends.
            let Ok(upgraded) = upgrade.await else { return };
            if let Ok(parts) = upgraded.downcast::<TokioIo<UnixStream>>() {
                let _gone = streams.send((parts.io.into_inner(), place)).await;
            }
        });
        let switching = Answer::text("").with(StatusCode::SWITCHING_PROTOCOLS);
        Some(switching.header("connection", "upgrade").header("upgrade", self.protocol))
    }
}

/// Serves a TCP listener until cancelled.
pub(super) async fn serve_tcp<R, F>(
    listener: TcpListener,
    routes: R,
    cancel: CancellationToken,
) -> Result<(), TaskError>
where
    R: Fn(Asked) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    serve_shared(listener, routes, Arc::new(Semaphore::new(CONNECTIONS_MAX)), cancel).await
}

/// As [`serve_tcp`], with a number of connections that several listeners share.
pub(crate) async fn serve_shared<R, F>(
    listener: TcpListener,
    routes: R,
    connections: Arc<Semaphore>,
    cancel: CancellationToken,
) -> Result<(), TaskError>
where
    R: Fn(Asked) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let accept = || async { listener.accept().await.map(|(stream, _)| Some(stream)) };
    serve(accept, routes, None, connections, cancel).await
}

/// Serves a Unix socket until cancelled. Only root, and the user that the agent runs as, are let
/// in, whatever the mode of the file.
pub(super) async fn serve_unix<R, F>(
    listener: UnixListener,
    routes: R,
    switch: Switch,
    cancel: CancellationToken,
) -> Result<(), TaskError>
where
    R: Fn(Asked) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let own = nix::unistd::geteuid().as_raw();
    let accept = || async {
        let (stream, _) = listener.accept().await?;
        let uid = stream.peer_cred()?.uid();
        if uid == 0 || uid == own {
            return Ok(Some(stream));
        }
        tracing::warn!(uid, "turned away from agent.sock");
        Ok(None)
    };
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    serve(accept, routes, Some(switch), connections, cancel).await
}

/// Accepts while there is room; one connection more waits here, the others in the kernel's queue.
async fn serve<A, AF, S, R, F>(
    accept: A,
    routes: R,
    switch: Option<Switch>,
    connections: Arc<Semaphore>,
    cancel: CancellationToken,
) -> Result<(), TaskError>
where
    A: Fn() -> AF,
    AF: Future<Output = io::Result<Option<S>>>,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    R: Fn(Asked) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let tracker = TaskTracker::new();
    loop {
        // At the end, who waits in the kernel's queue is left to the next agent.
        let accepted = tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok(Some(stream)) => {
                // Who was accepted is no longer in that queue: dropped here, they were reset.
                let late = async {
                    cancel.cancelled().await;
                    tokio::time::sleep(LEAVING).await;
                };
                let permit = tokio::select! {
                    biased;
                    permit = Arc::clone(&connections).acquire_owned() => permit?,
                    () = late => break,
                };
                let (routes, switch) = (routes.clone(), switch.clone());
                let cancel = cancel.clone();
                tracker.spawn(async move {
                    let _permit = permit;
                    connection(stream, routes, switch, cancel).await;
                });
            }
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    tracker.close();
    tracker.wait().await;
    Ok(())
}

async fn connection<S, R, F>(
    stream: S,
    routes: R,
    switch: Option<Switch>,
    cancel: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    R: Fn(Asked) -> F,
    F: Future<Output = Answer>,
{
    // A stream lasts for as long as who asked listens.
    let streaming = Arc::<AtomicBool>::default();
    let asked = CancellationToken::new();
    let service = service_fn(|mut request: Request<Incoming>| {
        let get = request.method() == Method::GET;
        // Things are changed where root alone asks.
        let changes = request.method() == Method::PUT && switch.is_some();
        let switched = switch.as_ref().filter(|_| get).and_then(|it| it.answer(&mut request));
        let answer = ((get || changes) && switched.is_none()).then(|| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            routes(Asked { path: request.uri().path().to_owned(), query, changes })
        });
        let streams = Arc::clone(&streaming);
        asked.cancel();
        async move {
            let answer = match (answer, switched) {
                (_, Some(switched)) => switched,
                (Some(answer), None) => answer.await,
                (None, None) => Answer::text("GET only\n").with(StatusCode::METHOD_NOT_ALLOWED),
            };
            streams.store(answer.stream.is_some(), Relaxed);
            Ok::<_, Infallible>(answer.into_response())
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let too_long = async {
        tokio::time::sleep(CONNECTION_TIMEOUT).await;
        while streaming.load(Relaxed) {
            tokio::time::sleep(CONNECTION_TIMEOUT).await;
        }
    };
    let mut served = std::pin::pin!(served);
    tokio::select! {
        () = cancel.cancelled() => {}
        () = too_long => return,
        ended = served.as_mut() => return said(ended),
    }
    if streaming.load(Relaxed) {
        return;
    }
    let leaves = async {
        tokio::select! {
            () = asked.cancelled() => {}
            ended = served.as_mut() => return said(ended),
        }
        served.as_mut().graceful_shutdown();
        said(served.await);
    };
    let _in_time = tokio::time::timeout(LEAVING, leaves).await;
}

fn said(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::trace!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        sync::Notify,
    };

    use super::*;

    /// Who has connected is answered, though the server is told to stop before it hears anything, or
    /// while the answer is made; who is at rest is told that it ends.
    #[tokio::test]
    async fn who_has_connected_is_answered_at_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let (cancel, asked) = (CancellationToken::new(), Arc::<Notify>::default());
        let (stop, heard) = (cancel.clone(), Arc::clone(&asked));
        let routes = move |of: Asked| {
            let (stop, heard) = (stop.clone(), Arc::clone(&heard));
            async move {
                heard.notify_one();
                if of.path == "/slow" {
                    stop.cancelled().await;
                }
                Answer::text("answered")
            }
        };
        let server = tokio::spawn(serve_tcp(listener, routes, cancel.clone()));
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut silent = TcpStream::connect(at).await.unwrap();
        let mut rests = TcpStream::connect(at).await.unwrap();
        rests.write_all(request("/").as_bytes()).await.unwrap();
        asked.notified().await;
        let mut slow = TcpStream::connect(at).await.unwrap();
        slow.write_all(request("/slow").as_bytes()).await.unwrap();
        asked.notified().await;
        cancel.cancel();
        tokio::task::yield_now().await;
        silent.write_all(request("/").as_bytes()).await.unwrap();
        for stream in [&mut silent, &mut rests, &mut slow] {
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            assert!(said.contains(" 200 OK") && said.ends_with("answered"), "{said:?}");
        }
        server.await.unwrap().unwrap();
    }

    /// Of two agents that hold one listener, one of them answers, however the end of the first and a
    /// connection meet.
    #[tokio::test]
    async fn who_connects_at_the_end_is_answered_by_one_of_two_agents() {
        for _ in 0..64 {
            let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            held.set_nonblocking(true).unwrap();
            let (at, next) = (held.local_addr().unwrap(), held.try_clone().unwrap());
            let mut client = TcpStream::connect(at).await.unwrap();
            client.write_all(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n").await.unwrap();
            let serve = |held, cancel| {
                let routes = |_| async { Answer::text("answered") };
                serve_tcp(TcpListener::from_std(held).unwrap(), routes, cancel)
            };
            let (ended, runs) = (CancellationToken::new(), CancellationToken::new());
            ended.cancel();
            serve(held, ended).await.unwrap();
            let server = tokio::spawn(serve(next, runs.clone()));
            let mut said = String::new();
            client.read_to_string(&mut said).await.unwrap();
            assert!(said.ends_with("answered"), "{said:?}");
            runs.cancel();
            server.await.unwrap().unwrap();
        }
    }
}
