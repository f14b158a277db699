//! An API server that misbehaves: it stands before the real one and hands on what that says, but
//! resets connections, refuses, repeats events, swaps them, cuts them off, keeps deletions to
//! itself and then claims that the history is gone (410). When it is told to calm down it behaves
//! from then on. One that swaps events ([`Manner::Lying`]) ends every watch with a last 410, those
//! too that are between two connections then, so that all is listed once more: nobody could know
//! what is true without.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, BodyStream, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::client::Body;
use mizzen_agent::kube::client::ApiServers;
use mizzen_tests::soak::Dice;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};

/// Lines of a watch that may wait to be sent on.
const LINES_MAX: usize = 64;
const GONE: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version","reason":"Expired","code":410}"#;

type Answer = Response<BoxBody<Bytes, io::Error>>;

/// How it misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Manner {
    /// In every way.
    Lying,
    /// Events come in their order, or not at all and a 410 in their place: who makes up for what is
    /// missed needs no list in the end.
    Failing,
}

/// The server.
#[derive(Clone)]
pub(super) struct Unsteady {
    /// Its URL.
    pub(super) url: String,
    /// How often it misbehaved.
    pub(super) faults: Arc<AtomicU64>,
    manner: Manner,
    calm: watch::Sender<bool>,
    /// What the watches are of that have had a 410 at their first request since then.
    told: Arc<Mutex<BTreeSet<String>>>,
    dice: Arc<Mutex<Dice>>,
    real: kube::Client,
}

impl Unsteady {
    /// Stands before the server that the kubeconfig names.
    pub(super) async fn start(kubeconfig: &Path, manner: Manner, dice: Dice) -> Self {
        let servers = ApiServers::new(Some(kubeconfig), &[]).await.unwrap();
        let real = servers.clients().unwrap().pick(0).client;
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let this = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            faults: Arc::default(),
            manner,
            calm: watch::Sender::new(false),
            told: Arc::default(),
            dice: Arc::new(Mutex::new(dice)),
            real,
        };
        let served = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let served = served.clone();
                tokio::spawn(async move {
                    let answer = service_fn(|request| served.answer(request));
                    let http = hyper::server::conn::http1::Builder::new();
                    // A connection that ends in an error was meant to.
                    let _ended = http.serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
        this
    }

    /// From now on it behaves.
    pub(super) fn calm(&self) {
        self.calm.send_replace(true);
    }

    /// Whether to misbehave, once in `n` times.
    fn fault(&self, n: usize) -> bool {
        let fault = !*self.calm.borrow() && self.dice.lock().unwrap().once_in(n);
        self.faults.fetch_add(u64::from(fault), Relaxed);
        fault
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, io::Error> {
        let uri = request.uri().path_and_query().map_or("/", |uri| uri.as_str()).to_owned();
        let watches = uri.contains("watch=true") || uri.contains("watch=1");
        if self.fault(8) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if self.fault(8) {
            let status = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::TOO_MANY_REQUESTS];
            let which = self.dice.lock().unwrap().below(2);
            return Ok(whole(status[which], Bytes::from_static(b"not now")));
        }
        if watches && self.fault(8) {
            return Ok(whole(StatusCode::GONE, Bytes::from_static(GONE.as_bytes())));
        }
        let topic = topic(&uri);
        let forwarded = Request::get(uri).body(Body::empty()).map_err(io::Error::other)?;
        let answered = self.real.send(forwarded).await.map_err(io::Error::other)?;
        let (head, body) = answered.into_parts();
        if !watches {
            let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
            return Ok(whole(head.status, body));
        }
        let (send, mut lines) = mpsc::channel(LINES_MAX);
        let this = self.clone();
        tokio::spawn(async move { this.hand_on(topic, body, send).await });
        let frames = futures::stream::poll_fn(move |context| lines.poll_recv(context));
        let frames = frames.map(|line: io::Result<Bytes>| line.map(Frame::data));
        let mut response = Response::new(BoxBody::new(StreamBody::new(frames)));
        *response.status_mut() = head.status;
        Ok(response)
    }

    /// Hands on the lines of a watch, after its own fashion, until it ends.
    async fn hand_on(&self, topic: String, body: Body, send: mpsc::Sender<io::Result<Bytes>>) {
        let mut calmed = self.calm.subscribe();
        // Who had no connection at that time, or had let it go, may have seen the last events in any
        // order.
        let lies = self.manner == Manner::Lying;
        if lies && *calmed.borrow_and_update() && self.told.lock().unwrap().insert(topic) {
            let _gone = send.send(Ok(gone())).await;
            return;
        }
        let mut frames = BodyStream::new(body);
        let (mut buffer, mut held) = (Vec::new(), None);
        loop {
            let frame = tokio::select! {
                _ = calmed.changed(), if lies => {
                    let _gone = send.send(Ok(gone())).await;
                    return;
                }
                frame = frames.next() => frame,
            };
            let Some(Ok(frame)) = frame else { return };
            buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                for said in self.misspeak(Bytes::from(line), &mut held) {
                    let ends = said.is_err() || said.as_ref().is_ok_and(|line| *line == gone());
                    if send.send(said).await.is_err() || ends {
                        return;
                    }
                }
            }
        }
    }

    /// What it makes of a line.
    fn misspeak(&self, line: Bytes, held: &mut Option<Bytes>) -> Vec<io::Result<Bytes>> {
        let deletion = line.starts_with(br#"{"type":"DELETED""#);
        if deletion && self.fault(2) {
            return vec![Ok(gone())];
        }
        if self.fault(30) {
            let half = line.slice(..line.len() / 2);
            return vec![Ok(half), Err(io::ErrorKind::ConnectionReset.into())];
        }
        if self.manner == Manner::Lying && held.is_none() && self.fault(6) {
            *held = Some(line);
            return Vec::new();
        }
        let mut said = vec![Ok(line.clone())];
        if self.fault(6) {
            said.push(Ok(line));
        }
        said.extend(held.take().map(Ok));
        said
    }
}

/// What a watch is of, wherever it begins.
fn topic(uri: &str) -> String {
    let parts = uri.split(['?', '&']).filter(|part| !part.starts_with("resourceVersion="));
    parts.collect::<Vec<_>>().join("&")
}

/// The event that says that the history is gone.
fn gone() -> Bytes {
    format!("{{\"type\":\"ERROR\",\"object\":{GONE}}}\n").into()
}

fn whole(status: StatusCode, body: Bytes) -> Answer {
    let body = Full::new(body).map_err(|never: Infallible| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
