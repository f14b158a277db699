//! Credentials that are renewed while the agent runs: tokens and client certificates in files, at
//! servers that speak TLS and check them.

use std::{
    convert::Infallible,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use mizzen_agent::status::State;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::{TlsAcceptor, rustls};
use tokio_util::sync::CancellationToken;

use super::watch::{Agent, serve};

/// An API server without objects that knows one token.
#[derive(Clone)]
struct Guarded {
    address: SocketAddr,
    certificate: String,
    token: Arc<Mutex<String>>,
    /// Ends the connections that there are.
    connections: Arc<Mutex<CancellationToken>>,
}

impl Guarded {
    async fn start(token: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::IpAddress([127, 0, 0, 1].into())];
        let certificate = params.self_signed(&key).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let private = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            certificate: certificate.pem(),
            token: Arc::new(Mutex::new(token.to_owned())),
            connections: Arc::default(),
        };
        let served = this.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (served, acceptor) = (served.clone(), acceptor.clone());
                let ends = served.connections.lock().unwrap().clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let answer = service_fn(|request| {
                        let answer = served.answer(&request);
                        async move { Ok::<_, Infallible>(answer) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    tokio::select! {
                        _ended = http.serve_connection(TokioIo::new(stream), answer) => {}
                        () = ends.cancelled() => {}
                    }
                });
            }
        });
        this
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let said = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        if said != Some(&format!("Bearer {}", self.token.lock().unwrap())) {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 401,
                "reason": "Unauthorized", "message": "Unauthorized",
            });
            return answer(StatusCode::UNAUTHORIZED, &status);
        }
        if request.uri().query().is_some_and(|query| query.contains("watch=")) {
            return Response::new(BoxBody::new(StreamBody::new(futures::stream::pending())));
        }
        let list = json!({"metadata": {"resourceVersion": "1"}, "items": []});
        answer(StatusCode::OK, &list)
    }

    /// From now on it knows another token alone.
    fn expect(&self, token: &str) {
        token.clone_into(&mut self.token.lock().unwrap());
        let mut connections = self.connections.lock().unwrap();
        connections.cancel();
        *connections = CancellationToken::new();
    }

    /// A kubeconfig whose token is in the file `token`.
    fn kubeconfig(&self, folder: &Path) -> PathBuf {
        let ca = folder.join("ca.crt");
        fs::write(&ca, &self.certificate).unwrap();
        let server = format!("https://{}", self.address);
        kubeconfig(folder, &server, &ca, &json!({"tokenFile": folder.join("token")}))
    }
}

fn answer(status: StatusCode, body: &Value) -> Response<BoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed());
    *response.status_mut() = status;
    response
}

fn kubeconfig(folder: &Path, server: &str, ca: &Path, user: &Value) -> PathBuf {
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    let path = folder.join("kubeconfig");
    fs::write(&path, text.to_string()).unwrap();
    path
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn f46_a_token_that_was_renewed_is_read_when_the_old_one_is_refused() {
    runtime().block_on(async {
        let server = Guarded::start("first").await;
        let folder = tempfile::tempdir().unwrap();
        // As in a pod: the file is replaced, not written to.
        let write = |token: &str| {
            let next = folder.path().join("next");
            fs::write(&next, token).unwrap();
            fs::rename(next, folder.path().join("token")).unwrap();
        };
        write("first");
        let agent = Agent::start(server.kubeconfig(folder.path())).await;
        // Not `synced`: it leaves out namespaces, and a kind that was never listed waits instead.
        agent.until_board("the first token to serve", |state| *state == State::Ready).await;
        server.expect("second");
        let refused = |state: &State| matches!(state, State::Degraded(why) if why.contains("401"));
        agent.until_board("the first token to be refused", refused).await;
        // Half a minute is less than the client would keep a token for.
        write("second");
        agent.until_board("the second token to serve", |state| *state == State::Ready).await;
        agent.stop().await;
    });
}

#[test]
fn f46_client_certificates_that_were_renewed_are_read_when_the_old_ones_are_refused() {
    runtime().block_on(async {
        let folder = tempfile::tempdir().unwrap();
        let server = serve(folder.path(), ([127, 0, 0, 1], 0).into()).await;
        let pki = folder.path().join("pki");
        let own = tempfile::tempdir().unwrap();
        let (certificate, key) = (own.path().join("client.crt"), own.path().join("client.key"));
        // Signed by somebody else.
        let strange = KeyPair::generate().unwrap();
        let signed = CertificateParams::default().self_signed(&strange).unwrap();
        fs::write(&certificate, signed.pem()).unwrap();
        fs::write(&key, strange.serialize_pem()).unwrap();
        let user = json!({"client-certificate": certificate, "client-key": key});
        let address = format!("https://{}", server.addresses[0]);
        let kubeconfig = kubeconfig(own.path(), &address, &pki.join("ca.crt"), &user);
        let mut agent = Agent::start(kubeconfig).await;
        let refused = |state: &State| matches!(state, State::Waiting(why) if why.contains("tried"));
        agent.until_board("the strange certificate to be refused", refused).await;
        // One file after the other: between, they don't fit.
        fs::copy(pki.join("admin.crt"), &certificate).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        fs::copy(pki.join("admin.key"), &key).unwrap();
        agent.until("the right certificate to serve", |snapshot| snapshot.synced.all()).await;
        agent.stop().await;
        server.stop().await;
    });
}
