//! Subresources of pods that the pod's node answers: `log` and `exec`. The request is handed on to
//! the node part (or kubelet), the answer handed back as it comes; after `exec` both connections
//! are one stream.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, BodyStream, Empty, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::query::Target;
use super::status::{Failure, Result};
use super::{Api, Body, Call};
use crate::registry::Object;
use crate::shown;

/// The Node's annotation with the certificate that its node part shows, in DER and base64.
pub const CERTIFICATE_ANNOTATION: &str = "node.mizzen.dev/serving-certificate";
/// Where a node answers that does not say.
const KUBELET_PORT: u16 = 10250;
/// Streams from nodes at a time.
const STREAMS_MAX: usize = 512;
/// For how long a node may take to begin its answer.
const ANSWER: Duration = Duration::from_secs(30);
/// A longer refusal is cut.
const REFUSAL_MAX: usize = 64 * 1024;
/// The headers that make a connection a stream.
const UPGRADE_HEADERS: [HeaderName; 6] = [
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_ACCEPT,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_VERSION,
];

/// How the nodes are asked.
pub struct Nodes {
    certificates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    streams: Arc<Semaphore>,
}

impl Nodes {
    /// By a client certificate that they trust.
    pub fn new(certificates: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        Self { certificates, key, streams: Arc::new(Semaphore::new(STREAMS_MAX)) }
    }
}

/// What is asked of a node.
#[derive(Debug, PartialEq, Eq)]
struct Question {
    address: IpAddr,
    port: u16,
    /// The certificate that it has to show, where the Node says.
    certificate: Option<Vec<u8>>,
    path: String,
}

/// Whether a request is for a pod's node.
pub(super) fn is_for_node(target: &Target) -> bool {
    target.kind.plural == "pods" && matches!(target.subresource.as_str(), "log" | "exec")
}

impl Api {
    /// Hands a request on to the pod's node.
    pub(super) async fn connect(
        &self,
        call: &Call,
        target: &Target,
        upgrade: Option<OnUpgrade>,
    ) -> Result<Response<Body>> {
        let reads = call.method == Method::GET;
        if !reads && (target.subresource == "log" || call.method != Method::POST) {
            return Err(Failure::method_not_allowed());
        }
        let nodes = self.nodes.as_ref().ok_or_else(|| unreachable("this server asks no nodes"))?;
        let pod = self.existing(target).await?;
        let name = pod.text("/spec/nodeName");
        if name.is_empty() {
            let message = format!("pod {} does not have a host assigned", target.name);
            return Err(Failure::bad_request(message));
        }
        let node = self.store.get(&format!("{}{name}", self.node_prefix())).await?;
        let node = node.ok_or_else(|| unreachable(format!("there is no node {name:?}")))?;
        let question = question(call, target, &pod, &super::encode::object(&node)?)?;
        let permit = Arc::clone(&nodes.streams).try_acquire_owned().map_err(|_| {
            let message = "too many streams from nodes, please try again later";
            Failure::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message).retry_after(1)
        })?;
        let asked = nodes.ask(&question, &call.headers);
        let answer = match tokio::time::timeout(ANSWER, asked).await {
            Ok(answer) => answer.map_err(|why| unreachable(format!("node {name}: {why}")))?,
            Err(_elapsed) => {
                return Err(unreachable(format!("node {name} did not answer in time")));
            }
        };
        match (answer.status(), upgrade) {
            (StatusCode::SWITCHING_PROTOCOLS, Some(upgrade)) => Ok(stream(answer, upgrade, permit)),
            (StatusCode::OK, _) => Ok(body_of(answer, permit)),
            (status, _) => Err(refusal(status, answer).await),
        }
    }

    fn node_prefix(&self) -> String {
        let kind =
            self.registry.kinds().find(|kind| kind.plural == "nodes" && kind.group.is_empty());
        kind.map(|kind| kind.prefix(None)).unwrap_or_default()
    }
}

fn unreachable(message: impl Into<String>) -> Failure {
    Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
}

/// Where to ask, and what.
fn question(call: &Call, target: &Target, pod: &Object, node: &Object) -> Result<Question> {
    let container = container(call, target, pod)?;
    let internal = node
        .list("/status/addresses")
        .iter()
        .filter(|one| one["type"] == "InternalIP")
        .find_map(|one| one["address"].as_str()?.parse().ok());
    let address =
        internal.ok_or_else(|| unreachable(format!("node {} has no InternalIP", node.name())))?;
    let port = node.integer("/status/daemonEndpoints/kubeletEndpoint/Port");
    let port = port.and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0);
    let certificate = node
        .at("/metadata/annotations")
        .and_then(|all| all.get(CERTIFICATE_ANNOTATION)?.as_str())
        .and_then(|text| STANDARD.decode(text).ok());
    let (verb, query) = match target.subresource.as_str() {
        "log" => ("containerLogs", log_query(call)),
        _ => ("exec", exec_query(call)),
    };
    let (namespace, name) = (&target.namespace, &target.name);
    let path = format!("/{verb}/{namespace}/{name}/{container}?{query}");
    Ok(Question { address, port: port.unwrap_or(KUBELET_PORT), certificate, path })
}

/// The container that is meant; of a pod with one it need not be said.
fn container(call: &Call, target: &Target, pod: &Object) -> Result<String> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod.list(list).iter();
        containers.filter_map(|one| Some(one["name"].as_str()?.to_owned())).collect()
    };
    let main = names("/spec/containers");
    let asked = call.params.text("container");
    match (asked, &main[..]) {
        ("", [only]) => Ok(only.clone()),
        ("", _) => Err(Failure::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            target.name,
            main.join(" ")
        ))),
        (asked, _) => {
            let known = main.iter().any(|name| name == asked)
                || names("/spec/initContainers").iter().any(|name| name == asked);
            if known {
                return Ok(asked.to_owned());
            }
            let message = format!("container {asked} is not valid for pod {}", target.name);
            Err(Failure::bad_request(message))
        }
    }
}

/// The options of a log. A node hears of what is true as `true`, however the client has said it.
fn log_query(call: &Call) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for name in ["follow", "previous", "timestamps"] {
        if call.params.flag(name) {
            query.append_pair(name, "true");
        }
    }
    for name in ["tailLines", "limitBytes", "sinceSeconds", "sinceTime"] {
        let value = call.params.text(name);
        if !value.is_empty() {
            query.append_pair(name, value);
        }
    }
    query.finish()
}

/// A kubelet has names of its own for the streams.
fn exec_query(call: &Call) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, own) in
        [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
    {
        if call.params.flag(name) {
            query.append_pair(own, "1");
        }
    }
    for (name, value) in form_urlencoded::parse(call.query.as_bytes()) {
        if name == "command" {
            query.append_pair("command", &value);
        }
    }
    query.finish()
}

impl Nodes {
    async fn ask(
        &self,
        question: &Question,
        headers: &HeaderMap,
    ) -> std::result::Result<Response<Incoming>, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let stream = TcpStream::connect((question.address, question.port))
            .await
            .map_err(|error| text(&error))?;
        // A node that names no certificate is taken as it is, as by a kube-apiserver without
        // `--kubelet-certificate-authority`.
        let config = shown::client(question.certificate.clone())
            .map_err(|error| text(&error))?
            .with_client_auth_cert(self.certificates.clone(), self.key.clone_key())
            .map_err(|error| text(&error))?;
        let name = ServerName::IpAddress(question.address.into());
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| text(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| text(&error))?;
        tokio::spawn(connection.with_upgrades());
        let mut host = question.address.to_string();
        if question.address.is_ipv6() {
            host = format!("[{host}]");
        }
        let _never_fails = write!(host, ":{}", question.port);
        let mut request = Request::get(&question.path).header(header::HOST, host);
        for name in &UPGRADE_HEADERS {
            for value in headers.get_all(name) {
                request = request.header(name, value);
            }
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| text(&error))?;
        sender.send_request(request).await.map_err(|error| text(&error))
    }
}

/// The answer's body as it comes; cut off where the node ends it early.
fn body_of(
    answer: Response<Incoming>,
    permit: tokio::sync::OwnedSemaphorePermit,
) -> Response<Body> {
    let frames = BodyStream::new(answer.into_body())
        .take_while(|frame| futures::future::ready(frame.is_ok()))
        .filter_map(move |frame| {
            let _until_the_end = &permit;
            futures::future::ready(frame.ok().map(Ok::<_, Infallible>))
        });
    let body = StreamBody::new(frames).boxed_unsync();
    super::response(StatusCode::OK, "text/plain; charset=utf-8", body)
}

/// Both connections become one.
fn stream(
    answer: Response<Incoming>,
    upgrade: OnUpgrade,
    permit: tokio::sync::OwnedSemaphorePermit,
) -> Response<Body> {
    let mut response = Response::new(Empty::new().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in &UPGRADE_HEADERS {
        if let Some(value) = answer.headers().get(name) {
            response.headers_mut().insert(name.clone(), value.clone());
        }
    }
    tokio::spawn(async move {
        let (Ok(client), Ok(node)) = tokio::join!(upgrade, hyper::upgrade::on(answer)) else {
            return;
        };
        let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
        let _until_one_side_ends = tokio::io::copy_bidirectional(&mut client, &mut node).await;
        drop(permit);
    });
    response
}

/// What the node said no with.
async fn refusal(status: StatusCode, answer: Response<Incoming>) -> Failure {
    let body = Limited::new(answer.into_body(), REFUSAL_MAX).collect().await;
    let said = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    let said = said.unwrap_or_else(|_| format!("the node answers {status}"));
    match status {
        StatusCode::NOT_FOUND => Failure::new(status, "NotFound", said),
        StatusCode::BAD_REQUEST => Failure::bad_request(said),
        _ => unreachable(said),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::Registry;

    fn asked(path: &str, query: &str, containers: &[&str]) -> Result<Question> {
        let target = Target::parse(path, &Registry::default()).unwrap();
        let call = Call::new(Method::GET, path, query);
        let named: Vec<_> = containers.iter().map(|name| json!({"name": name})).collect();
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": named}});
        let node = json!({
            "metadata": {"name": "n", "annotations": {CERTIFICATE_ANNOTATION: "AQI="}},
            "status": {
                "addresses": [{"type": "Hostname", "address": "n"},
                    {"type": "InternalIP", "address": "192.0.2.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 4711}},
            },
        });
        question(&call, &target, &Object::new(pod).unwrap(), &Object::new(node).unwrap())
    }

    #[test]
    fn a_log_is_asked_of_the_node_with_the_options_that_it_has() {
        let path = "/api/v1/namespaces/default/pods/p/log";
        let question = asked(path, "follow=true&tailLines=5&pretty=1", &["main"]).unwrap();
        assert_eq!(question.path, "/containerLogs/default/p/main?follow=true&tailLines=5");
        assert_eq!((question.address.to_string().as_str(), question.port), ("192.0.2.1", 4711));
        assert_eq!(question.certificate, Some(vec![1, 2]));
        // As the Python client writes them.
        let question = asked(path, "follow=False&timestamps=True", &["main"]).unwrap();
        assert_eq!(question.path, "/containerLogs/default/p/main?timestamps=true");
    }

    #[test]
    fn a_command_is_asked_with_all_its_words_and_the_kubelets_names_for_streams() {
        let path = "/api/v1/namespaces/default/pods/p/exec";
        let query =
            "command=sh&command=-c&command=echo+a%26b&container=side&stdin=true&stdout=true";
        let question = asked(path, query, &["main", "side"]).unwrap();
        let expected =
            "/exec/default/p/side?input=1&output=1&command=sh&command=-c&command=echo+a%26b";
        assert_eq!(question.path, expected);
    }

    #[test]
    fn a_container_that_is_not_there_or_not_named_is_an_error() {
        let path = "/api/v1/namespaces/default/pods/p/log";
        let message = |query: &str, containers: &[&str]| {
            let status = asked(path, query, containers).unwrap_err().status();
            status["message"].as_str().unwrap().to_owned()
        };
        assert_eq!(
            message("", &["a", "b"]),
            "a container name must be specified for pod p, choose one of: [a b]"
        );
        assert_eq!(message("container=x", &["a"]), "container x is not valid for pod p");
    }
}
