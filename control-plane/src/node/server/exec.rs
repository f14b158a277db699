//! A command in a container, over a WebSocket with the subprotocol `v5.channel.k8s.io`: the first
//! octet of each message says what it is.
//!
//! | octet | from | is |
//! |---|---|---|
//! | 0 | client | standard input |
//! | 1, 2 | server | standard output, standard error |
//! | 3 | server | how the command ended, a `Status` |
//! | 4 | client | the size of the terminal |
//! | 255 | client | the end of the channel that the next octet names (v5) |
//!
//! A container runtime serves commands itself, over a socket that only the node reaches, in streams
//! ([`spdy`]). In the WebSockets that it may also speak, no channel can end by itself.

use std::{collections::BTreeSet, io, time::Duration};

use bytes::{Buf, Bytes};
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::{HeaderMap, Request, Response, StatusCode, body::Incoming, header, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::TcpStream, sync::mpsc};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message, Utf8Bytes,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};
use tokio_util::codec::Framed;

use super::{
    super::runtime::{ContainerState, ExecOutput, Runtime, Streaming},
    Body, Refusal, Server,
    spdy::{self, Channel, Frame},
};

/// The subprotocols that clients may ask for, the best first.
const PROTOCOLS: &[&str] = &["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Names a channel that ends.
const CLOSE: u8 = 255;
/// For how long the runtime may take to take a stream.
const CONNECT: Duration = Duration::from_secs(10);
/// For how long a command may run whose output comes only at its end.
const WHOLE_MAX: Duration = Duration::from_mins(10);
/// A longer message is refused.
const MESSAGE_MAX: usize = 1 << 20;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    command: Vec<String>,
    streaming: Streaming,
}

impl Options {
    fn parse(query: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let set = matches!(&*value, "1" | "true");
            match &*name {
                "command" => options.command.push(value.into_owned()),
                "input" | "stdin" => options.streaming.stdin = set,
                "output" | "stdout" => options.streaming.stdout = set,
                "error" | "stderr" => options.streaming.stderr = set,
                "tty" => options.streaming.tty = set,
                _ => {}
            }
        }
        // A terminal is one stream for both.
        options.streaming.stderr &= !options.streaming.tty;
        let Streaming { stdin, stdout, stderr, .. } = options.streaming;
        if options.command.is_empty() {
            return Err("no command was given".to_owned());
        }
        if !(stdin || stdout || stderr) {
            return Err("one of stdin, stdout and stderr has to be asked for".to_owned());
        }
        Ok(options)
    }
}

impl<R: Runtime> Server<R> {
    /// Begins a command; what follows is in the upgraded connection.
    pub(super) async fn exec(
        &self,
        mut request: Request<Incoming>,
        namespace: &str,
        pod: &str,
        container: &str,
    ) -> Result<Response<Body>, Refusal> {
        let bad = |message: String| Refusal(StatusCode::BAD_REQUEST, message);
        let options = Options::parse(request.uri().query().unwrap_or_default()).map_err(bad)?;
        let (accept, protocol) = handshake(request.headers()).map_err(bad)?;
        let (_, containers) = self.containers(namespace, pod, container).await?;
        let running = |one: &&super::Container| matches!(one.state, ContainerState::Running { .. });
        let chosen = containers.iter().find(running);
        let chosen = chosen.ok_or_else(|| bad(format!("container {container:?} does not run")))?;
        let runtime = std::sync::Arc::clone(&self.runtime);
        let (sandbox, id) = (chosen.sandbox.clone(), chosen.id.clone());
        let failed = |message: String| Refusal(StatusCode::INTERNAL_SERVER_ERROR, message);
        let text = |error: &dyn std::error::Error| super::super::runtime::process::chain(error);
        let url = runtime.exec_url(&id, &options.command, options.streaming).await;
        let upstream = match url.map_err(|error| failed(text(&error)))? {
            Some(url) => Some(dial(&url, options.streaming).await.map_err(failed)?),
            None if options.streaming.stdin || options.streaming.tty => {
                let message = "the process runtime gives commands no standard input and no \
                               terminal";
                return Err(bad(message.to_owned()));
            }
            None => None,
        };
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let Ok(upgraded) = upgrade.await else { return };
            let mut client = websocket(upgraded).await;
            let outcome = if let Some(upstream) = upstream {
                relay(&mut client, upstream).await
            } else {
                let ran = runtime.exec(&sandbox, &id, &options.command, WHOLE_MAX).await;
                whole(&mut client, ran.map_err(|error| text(&error))).await
            };
            if let Err(error) = outcome {
                tracing::debug!(%error, "a command's connection ended early");
            }
            // Clients take every other end for a lost connection.
            let normal = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
            let _gone_already = client.close(Some(normal)).await;
        });
        let mut response = Response::new(Empty::new().boxed_unsync());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        for (name, value) in [
            (header::UPGRADE, "websocket".to_owned()),
            (header::CONNECTION, "Upgrade".to_owned()),
            (header::SEC_WEBSOCKET_ACCEPT, accept),
            (header::SEC_WEBSOCKET_PROTOCOL, protocol.to_owned()),
        ] {
            let value = value.parse().map_err(|_| failed("an odd header".to_owned()))?;
            response.headers_mut().insert(name, value);
        }
        Ok(response)
    }
}

/// The key that accepts a WebSocket, and the subprotocol (RFC 6455, section 4.2).
fn handshake(headers: &HeaderMap) -> Result<(String, &'static str), String> {
    let get = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let asks = get(header::UPGRADE).is_some_and(|value| value.eq_ignore_ascii_case("websocket"));
    let (true, Some(key)) = (asks, get(header::SEC_WEBSOCKET_KEY)) else {
        return Err("commands run over a WebSocket: kubectl 1.31 and later speaks it".to_owned());
    };
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offered: Vec<&str> = offered
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let chosen = PROTOCOLS.iter().find(|protocol| offered.contains(protocol));
    let chosen = chosen.ok_or_else(|| format!("of {offered:?} none is one of {PROTOCOLS:?}"))?;
    Ok((derive_accept_key(key.as_bytes()), chosen))
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX))
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn websocket(upgraded: Upgraded) -> Socket {
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(limits())).await
}

/// Connects to the runtime's own server of commands, and opens the streams that are asked for.
async fn dial(url: &str, streaming: Streaming) -> Result<Streams, String> {
    let connect = async {
        let failed = |error: &dyn std::fmt::Display| {
            format!("the runtime's server of commands at {url}: {error}")
        };
        let uri: hyper::Uri = url.parse().map_err(|error| failed(&error))?;
        let authority = uri.authority().ok_or_else(|| failed(&"it has no address"))?;
        let stream = TcpStream::connect((authority.host(), authority.port_u16().unwrap_or(80)));
        let stream = stream.await.map_err(|error| failed(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
        tokio::spawn(connection.with_upgrades());
        let request = Request::post(uri.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, authority.as_str())
            .header(header::UPGRADE, spdy::UPGRADE)
            .header(header::CONNECTION, "Upgrade")
            .header("x-stream-protocol-version", spdy::PROTOCOL)
            .body(Empty::<Bytes>::new())
            .map_err(|error| failed(&error))?;
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(failed(&response.status()));
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| failed(&error))?;
        let mut streams = Framed::new(TokioIo::new(upgraded), spdy::Codec::default());
        open(&mut streams, streaming).await.map_err(|error| failed(&error))?;
        Ok(streams)
    };
    match tokio::time::timeout(CONNECT, connect).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(format!("no answer from the runtime at {url} in time")),
    }
}

/// Opens streams, until all are open on the other side: what is sent before is lost there.
async fn open(streams: &mut Streams, streaming: Streaming) -> io::Result<()> {
    let Streaming { stdin, stdout, stderr, tty } = streaming;
    let wanted = [
        (stdin, Channel::Stdin),
        (stdout, Channel::Stdout),
        (stderr, Channel::Stderr),
        (true, Channel::Error),
        (tty, Channel::Resize),
    ];
    let mut missing = BTreeSet::new();
    for (_, channel) in wanted.into_iter().filter(|(wanted, _)| *wanted) {
        streams.send(Frame::Open(channel)).await?;
        missing.insert(channel);
    }
    while !missing.is_empty() {
        match streams.next().await.transpose()? {
            Some(Frame::Opened(channel)) => {
                missing.remove(&channel);
            }
            Some(Frame::Ping(id)) => streams.send(Frame::Ping(id)).await?,
            Some(Frame::Other) => {}
            Some(frame) => return Err(io::Error::other(format!("it answered with {frame:?}"))),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
    Ok(())
}

type SocketError = tokio_tungstenite::tungstenite::Error;
/// The streams of a command at the runtime.
type Streams = Framed<TokioIo<Upgraded>, spdy::Codec>;

/// Hands on what comes, until one side ends: each direction by itself, for a command that is not read
/// from does not read either.
async fn relay(client: &mut Socket, runtime: Streams) -> Result<(), SocketError> {
    let (mut to_client, mut from_client) = client.split();
    let (mut to_runtime, mut from_runtime) = runtime.split();
    let (ping, mut pings) = mpsc::channel(1);
    let inwards = async {
        loop {
            let frame = tokio::select! {
                Some(id) = pings.recv() => Some(Frame::Ping(id)),
                message = from_client.next() => match message.transpose()? {
                    Some(Message::Binary(data)) => of_client(data),
                    Some(Message::Close(_)) | None => return Ok(()),
                    Some(_) => None,
                },
            };
            if let Some(frame) = frame {
                to_runtime.send(frame).await?;
            }
        }
    };
    let outwards = async {
        while let Some(frame) = from_runtime.next().await.transpose()? {
            match frame {
                Frame::Data { channel, data, .. } if !data.is_empty() => {
                    to_client.send(framed(channel as u8, &data)).await?;
                }
                Frame::Data { last: true, channel: Channel::Error, .. }
                | Frame::Reset(Channel::Error)
                | Frame::GoAway => break,
                Frame::Ping(id) => drop(ping.try_send(id)), // one of many will do
                _ => {}
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = inwards => ended,
        ended = outwards => ended,
    }
}

/// What a client's message is to the runtime.
fn of_client(mut message: Bytes) -> Option<Frame> {
    let mut number = message.try_get_u8().ok()?;
    let last = number == CLOSE;
    if last {
        number = message.try_get_u8().ok()?;
        message.clear();
    }
    let channel = Channel::from_number(number)?;
    let is_clients = matches!(channel, Channel::Stdin | Channel::Resize);
    is_clients.then_some(Frame::Data { channel, last, data: message })
}

/// A message to the client.
fn framed(channel: u8, data: &[u8]) -> Message {
    let mut frame = vec![channel];
    frame.extend_from_slice(data);
    Message::Binary(frame.into())
}

/// Sends what a command wrote, and how it ended.
async fn whole(client: &mut Socket, ran: Result<ExecOutput, String>) -> Result<(), SocketError> {
    if let Ok(ran) = &ran {
        client.send(framed(Channel::Stdout as u8, ran.output.as_bytes())).await?;
    }
    let status = status(&ran.map(|ran| ran.exit_code)).to_string();
    client.send(framed(Channel::Error as u8, status.as_bytes())).await
}

/// How a command ended, as clients understand it.
fn status(ended: &Result<i32, String>) -> serde_json::Value {
    match ended {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(message) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "message": message,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_understood_or_refused() {
        let options = Options::parse("command=sh&command=-c&command=a+b&input=1&output=1&tty=1");
        let streaming = Streaming { stdin: true, stdout: true, stderr: false, tty: true };
        let command = ["sh", "-c", "a b"].map(str::to_owned).to_vec();
        assert_eq!(options, Ok(Options { command, streaming }));
        let terminal = Options::parse("command=a&output=1&error=1&tty=1").unwrap();
        assert!(!terminal.streaming.stderr, "a terminal has no standard error of its own");
        assert!(Options::parse("output=1").unwrap_err().contains("no command"));
        assert!(Options::parse("command=a").unwrap_err().contains("stdout"));
    }

    #[test]
    fn only_what_a_command_reads_is_handed_on_and_its_end() {
        let data = |channel, last, text: &'static str| {
            Some(Frame::Data { channel, last, data: Bytes::from_static(text.as_bytes()) })
        };
        let to = |message: &'static [u8]| of_client(Bytes::from_static(message));
        assert_eq!(to(b"\0text"), data(Channel::Stdin, false, "text"));
        assert_eq!(to(b"\x04{}"), data(Channel::Resize, false, "{}"));
        assert_eq!(to(b"\xff\0"), data(Channel::Stdin, true, ""));
        for odd in [&b""[..], b"\x01text", b"\x03{}", b"\x09", b"\xff", b"\xff\x01"] {
            assert_eq!(to(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_websocket_is_accepted_with_the_best_protocol() {
        let headers = |protocols: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::UPGRADE, "WebSocket".parse().unwrap());
            // The example of RFC 6455, section 1.3.
            headers.insert(header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ==".parse().unwrap());
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocols.parse().unwrap());
            headers
        };
        let accepted = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        let both = headers("v4.channel.k8s.io, v5.channel.k8s.io");
        assert_eq!(handshake(&both), Ok((accepted.clone(), "v5.channel.k8s.io")));
        assert_eq!(handshake(&headers("v4.channel.k8s.io")), Ok((accepted, "v4.channel.k8s.io")));
        assert!(handshake(&headers("v1")).unwrap_err().contains("v1"));
        assert!(handshake(&HeaderMap::new()).unwrap_err().contains("WebSocket"));
    }

    #[test]
    fn ends_are_told_as_clients_read_them() {
        assert_eq!(status(&Ok(0))["status"], "Success");
        let failed = status(&Ok(3));
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
        assert_eq!(status(&Err("lost".into()))["message"], "lost");
    }
}
