//! Probes by HTTP. Redirects on the same host are followed, and the last answer counts; one to
//! another host is not, for that host's health is not the container's.

use bytes::Bytes;
use http::{StatusCode, Uri};
use http_body_util::Empty;
use hyper::{Request, Response, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use url::{Host, Position, Url};

/// No attempt asks more often: whoever redirects further leads round in a circle.
const REQUESTS_MAX: usize = 10;

/// A GET; any status from 200 to 399 is success. Maybe there is a warning.
pub(super) async fn check(
    host: &str,
    port: u16,
    get: &HTTPGetAction,
) -> Result<Option<String>, String> {
    let mut question = Question::first(host, port, get)?;
    for _ in 0..REQUESTS_MAX {
        let response = question.ask(get).await?;
        let status = response.status();
        if !(200..400).contains(&status.as_u16()) {
            return Err(format!("status {}", status.as_u16()));
        }
        let Some(location) = redirect(&response) else {
            return Ok(status.is_redirection().then(|| format!("it ends with status {status}")));
        };
        let location = location?;
        let next = question.url.join(&location).map_err(|error| format!("{location}: {error}"))?;
        if next.host() != question.url.host() {
            return Ok(Some(format!("it is redirected to another host: {location}")));
        }
        question.keeps_host &= Url::parse(&location).is_err();
        question.url = next;
    }
    Err(format!("redirected more than {} times", REQUESTS_MAX - 1))
}

/// Where an answer says to ask instead.
fn redirect(response: &Response<Incoming>) -> Option<Result<String, String>> {
    let redirects = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    let location = response.headers().get(header::LOCATION)?;
    let text = location.to_str().map(str::to_owned).map_err(|error| error.to_string());
    redirects.contains(&response.status()).then_some(text)
}

/// What is asked for, and of whom.
struct Question {
    url: Url,
    /// The `Host` that the probe's headers give is meant: no redirect named another.
    keeps_host: bool,
}

impl Question {
    fn first(host: &str, port: u16, get: &HTTPGetAction) -> Result<Self, String> {
        let scheme = if get.scheme.as_deref() == Some("HTTPS") { "https" } else { "http" };
        let authority = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let path = get.path.as_deref().unwrap_or_default();
        let slash = if path.starts_with('/') { "" } else { "/" };
        let text = format!("{scheme}://{authority}:{port}{slash}{path}");
        let url = Url::parse(&text).map_err(|error| format!("{text}: {error}"))?;
        Ok(Self { url, keeps_host: true })
    }

    async fn ask(&self, get: &HTTPGetAction) -> Result<Response<Incoming>, String> {
        let host = match self.url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(format!("{} names no host", self.url)),
        };
        let port = self.url.port_or_known_default().ok_or("an unknown scheme")?;
        let request = self.request(port, get)?;
        let stream = TcpStream::connect((host.as_str(), port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        match self.url.scheme() {
            "http" => exchange(stream, request).await,
            "https" => exchange(super::tls::connect(stream, &host).await?, request).await,
            other => Err(format!("{other:?} is not a scheme of probes")),
        }
    }

    fn request(&self, port: u16, get: &HTTPGetAction) -> Result<Request<Empty<Bytes>>, String> {
        let path = &self.url[Position::BeforePath..Position::AfterQuery];
        let path: Uri = path.parse().map_err(|error| format!("{path}: {error}"))?;
        let mut builder = Request::get(path);
        let headers = get.http_headers.iter().flatten();
        let own: Vec<_> = headers
            .map(|one| (one.name.as_str(), one.value.as_str()))
            .filter(|(name, _)| self.keeps_host || !name.eq_ignore_ascii_case("host"))
            .collect();
        let defaults = [
            ("host", format!("{}:{port}", self.url.host_str().unwrap_or_default())),
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
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String>
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
    response.map_err(|error| text(&error))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn get(value: Value) -> HTTPGetAction {
        serde_json::from_value(value).unwrap()
    }

    /// Serves as many connections as there are `answers`; gives the requests and the probe's
    /// outcome. `PORT` in an answer is the server's.
    async fn served(
        host: &str,
        answers: &[&str],
        action: Value,
    ) -> (Vec<String>, Result<Option<String>, String>) {
        let bind = if host == "::1" { "[::1]:0" } else { "127.0.0.1:0" };
        let listener = TcpListener::bind(bind).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let action = get(action);
        let serve = async {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                let answer = answer.replace("PORT", &port.to_string());
                stream.write_all(answer.as_bytes()).await.unwrap();
                requests.push(String::from_utf8_lossy(&request[..length]).to_ascii_lowercase());
            }
            requests
        };
        tokio::join!(serve, check(host, port, &action))
    }

    fn redirect_to(location: &str) -> String {
        format!("HTTP/1.1 302 X\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n")
    }

    const FINE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    const BAD: &str = "HTTP/1.1 500 X\r\ncontent-length: 0\r\n\r\n";

    #[tokio::test]
    async fn statuses_from_200_to_399_are_success() {
        for (status, success) in
            [(200, true), (204, true), (302, true), (399, true), (400, false), (503, false)]
        {
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n");
            let (_, outcome) = served("127.0.0.1", &[&answer], json!({"port": 1})).await;
            assert_eq!(outcome.is_ok(), success, "{status}: {outcome:?}");
        }
    }

    #[tokio::test]
    async fn the_request_names_the_probe_and_carries_its_headers() {
        let action = json!({"path": "healthz?x=1", "port": 1,
            "httpHeaders": [{"name": "Host", "value": "web"}, {"name": "X-A", "value": "b"}]});
        let (requests, outcome) = served("::1", &[FINE], action).await;
        assert_eq!(outcome, Ok(None));
        let request = &requests[0];
        assert!(request.starts_with("get /healthz?x=1 http/1.1\r\n"), "{request}");
        for line in ["host: web\r\n", "x-a: b\r\n", "user-agent: kube-probe/1.35\r\n"] {
            assert!(request.contains(line), "{request}");
        }
        assert_eq!(request.matches("host:").count(), 1);
    }

    #[tokio::test]
    async fn no_answer_and_no_listener_are_failures() {
        let (_, outcome) = served("127.0.0.1", &[""], json!({"port": 1})).await;
        assert!(outcome.is_err());
        assert!(check("127.0.0.1", 1, &get(json!({"port": 1}))).await.is_err());
    }

    #[tokio::test]
    async fn a_redirect_on_the_same_host_is_followed_and_the_last_answer_counts() {
        let web = json!({"path": "/a/b", "port": 1,
            "httpHeaders": [{"name": "Host", "value": "web"}]});
        for (location, asked, host) in [
            ("c?d", "get /a/c?d ", "host: web\r\n"),
            ("/login", "get /login ", "host: web\r\n"),
            ("http://127.0.0.1:PORT/login", "get /login ", "host: 127.0.0.1:"),
        ] {
            let first = redirect_to(location);
            let (requests, outcome) = served("127.0.0.1", &[&first, BAD], web.clone()).await;
            assert_eq!(outcome, Err("status 500".to_owned()), "{location}");
            assert!(requests[1].starts_with(asked) && requests[1].contains(host), "{requests:?}");
            let (_, outcome) = served("127.0.0.1", &[&first, FINE], web.clone()).await;
            assert_eq!(outcome, Ok(None), "{location}");
        }
        let circle = redirect_to("/");
        let answers = [circle.as_str(); REQUESTS_MAX];
        let (_, outcome) = served("::1", &answers, json!({"port": 1})).await;
        assert_eq!(outcome, Err("redirected more than 9 times".to_owned()));
    }

    #[tokio::test]
    async fn a_redirect_to_another_host_is_a_success_with_a_warning() {
        for location in ["http://192.0.2.1/", "https://[2001:db8::1]:8443/x", "//elsewhere/x"] {
            let answer = redirect_to(location);
            let (_, outcome) = served("127.0.0.1", &[&answer], json!({"port": 1})).await;
            assert!(outcome.unwrap().unwrap().contains(location));
        }
    }

    #[tokio::test]
    async fn a_host_may_be_a_name() {
        let (requests, outcome) = served("localhost", &[FINE], json!({"port": 1})).await;
        assert_eq!(outcome, Ok(None));
        assert!(requests[0].contains("host: localhost:"), "{requests:?}");
    }
}
