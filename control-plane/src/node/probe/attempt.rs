//! One attempt of a probe.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::{api::core::v1::HTTPGetAction, apimachinery::pkg::util::intstr::IntOrString};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use super::super::{pod::state::ProbeTarget, runtime::Runtime};

/// Success, or why not, for people.
pub(in super::super) async fn attempt<R: Runtime>(
    runtime: &R,
    target: &ProbeTarget,
    timeout: Duration,
) -> Result<(), String> {
    let probe = &target.probe;
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        // The runtime ends the command when the time is over.
        let outcome = runtime.exec(&target.sandbox, &target.container, &command, timeout).await;
        return match outcome {
            Ok(output) if output.exit_code == 0 => Ok(()),
            Ok(output) => Err(format!("exit code {}: {}", output.exit_code, output.output)),
            Err(error) => Err(format!("{error}: {}", error.source)),
        };
    }
    let ask = async {
        if let Some(get) = &probe.http_get {
            let address = address(target, get.host.as_deref(), &get.port)?;
            http(address, get).await
        } else if let Some(grpc) = &probe.grpc {
            let port = IntOrString::Int(grpc.port);
            let address = address(target, None, &port)?;
            super::grpc::check(address, grpc.service.as_deref().unwrap_or_default()).await
        } else if let Some(tcp) = &probe.tcp_socket {
            let address = address(target, tcp.host.as_deref(), &tcp.port)?;
            TcpStream::connect(address).await.map(drop).map_err(|error| error.to_string())
        } else {
            Err("the probe names nothing to do".to_owned())
        }
    };
    match tokio::time::timeout(timeout, ask).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(format!("no answer within {} s", timeout.as_secs())),
    }
}

/// Where to connect to: the pod's first address, unless the probe names a host.
fn address(
    target: &ProbeTarget,
    host: Option<&str>,
    port: &IntOrString,
) -> Result<SocketAddr, String> {
    let address = match host.filter(|host| !host.is_empty()) {
        Some(host) => {
            host.parse::<IpAddr>().map_err(|_| format!("the host {host:?} is not an address"))?
        }
        None => target.address.ok_or("the pod has no address")?,
    };
    let number = match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => target.ports.get(name).copied().or(name.parse().ok()),
    };
    match number.filter(|&number| number != 0) {
        Some(number) => Ok(SocketAddr::new(address, number)),
        None => Err(format!("{port:?} is not a port of the container")),
    }
}

/// A GET; any status from 200 to 399 is success.
async fn http(address: SocketAddr, get: &HTTPGetAction) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let request = request(address, get)?;
    let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
    if get.scheme.as_deref() == Some("HTTPS") {
        let stream = super::tls::connect(stream, address.ip()).await?;
        return exchange(stream, request).await;
    }
    exchange(stream, request).await
}

async fn exchange<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| text(&error))?;
    let mut answered = std::pin::pin!(sender.send_request(request));
    let response = tokio::select! {
        response = &mut answered => response,
        // The connection may end with the answer already delivered.
        ended = connection => {
            ended.map_err(|error| text(&error))?;
            answered.await
        }
    };
    let response = response.map_err(|error| text(&error))?;
    let status = response.status().as_u16();
    if (200..400).contains(&status) { Ok(()) } else { Err(format!("status {status}")) }
}

fn request(address: SocketAddr, get: &HTTPGetAction) -> Result<Request<Empty<Bytes>>, String> {
    let path = get.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut builder = Request::get(path);
    let headers = get.http_headers.iter().flatten();
    let own: Vec<_> = headers.map(|one| (one.name.as_str(), one.value.as_str())).collect();
    let defaults = [
        ("host", address.to_string()),
        ("user-agent", "kube-probe/1.35".into()),
        ("accept", "*/*".into()),
    ];
    for (name, value) in &defaults {
        if !own.iter().any(|(given, _)| given.eq_ignore_ascii_case(name)) {
            builder = builder.header(*name, value);
        }
    }
    for (name, value) in own {
        builder = builder.header(name, value);
    }
    builder
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::{api::core::v1::Probe, jiff::Timestamp};
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::{super::super::pod::state::ProbeKind, *};

    fn target(port: u16) -> ProbeTarget {
        ProbeTarget {
            container: "c".into(),
            sandbox: "s".into(),
            kind: ProbeKind::Readiness,
            probe: Probe::default(),
            address: Some("127.0.0.1".parse().unwrap()),
            ports: BTreeMap::from([("http".to_owned(), port)]),
            started_at: Timestamp::now(),
        }
    }

    fn get(value: serde_json::Value) -> HTTPGetAction {
        serde_json::from_value(value).unwrap()
    }

    /// Serves one connection with `answer`; gives the request and the probe's outcome.
    async fn served(answer: &str, action: serde_json::Value) -> (String, Result<(), String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = target(listener.local_addr().unwrap().port());
        let action = get(action);
        let address = address(&target, None, &action.port).unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..length]).to_ascii_lowercase()
        };
        tokio::join!(serve, http(address, &action))
    }

    #[tokio::test]
    async fn statuses_from_200_to_399_are_success() {
        for (status, success) in
            [(200, true), (204, true), (302, true), (399, true), (400, false), (503, false)]
        {
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
            let (_, outcome) = served(&answer, json!({"port": "http"})).await;
            assert_eq!(outcome.is_ok(), success, "{status}: {outcome:?}");
        }
    }

    #[tokio::test]
    async fn the_request_names_the_probe_and_carries_its_headers() {
        let action = json!({"path": "healthz?x=1", "port": "http",
            "httpHeaders": [{"name": "Host", "value": "web"}, {"name": "X-A", "value": "b"}]});
        let (request, outcome) =
            served("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", action).await;
        outcome.unwrap();
        assert!(request.starts_with("get /healthz?x=1 http/1.1\r\n"), "{request}");
        for line in ["host: web\r\n", "x-a: b\r\n", "user-agent: kube-probe/1.35\r\n"] {
            assert!(request.contains(line), "{request}");
        }
        assert_eq!(request.matches("host:").count(), 1);
    }

    #[tokio::test]
    async fn no_answer_and_no_listener_are_failures() {
        let (_, outcome) = served("", json!({"port": "http"})).await;
        assert!(outcome.is_err());
        let address = "127.0.0.1:1".parse().unwrap();
        assert!(http(address, &get(json!({"port": 1}))).await.is_err());
    }

    #[test]
    fn ports_are_found_by_number_and_by_name() {
        let target = target(8080);
        let number = |port: serde_json::Value| {
            let port = serde_json::from_value(port).unwrap();
            address(&target, None, &port).map(|address| address.port())
        };
        assert_eq!(number(json!(81)), Ok(81));
        assert_eq!(number(json!("http")), Ok(8080));
        assert!(number(json!("none")).is_err());
        assert!(number(json!(0)).is_err());
        assert!(number(json!(70000)).is_err());
        let host = address(&target, Some("::1"), &IntOrString::Int(81)).unwrap();
        assert_eq!(host.to_string(), "[::1]:81");
    }
}
