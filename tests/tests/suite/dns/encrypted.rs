//! DNS over TLS: an upstream that is asked so, and clients that ask so.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use hickory_proto::op::Message;
use mizzen_agent::dns::{Config, Source};
use mizzen_tests::{netns::Netns, wait};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    site::{NODE_LOCAL, OUTSIDE, Running, Site, config, snapshot},
    upstream::{Upstream, answer_to},
};

const SOON: Duration = Duration::from_secs(20);
/// How many questions whose names begin with "together" are answered at once, last first.
const TOGETHER: usize = 3;

/// A certificate that signs itself, for these names and addresses.
pub(super) struct Certificate(rcgen::CertifiedKey<rcgen::KeyPair>);

impl Certificate {
    pub(super) fn of(names: &[&str]) -> Self {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        Self(rcgen::generate_simple_self_signed(names).unwrap())
    }

    /// Writes `NAME.pem` and `NAME.key`.
    pub(super) fn write(&self, folder: &Path, name: &str) {
        fs::write(folder.join(format!("{name}.pem")), self.0.cert.pem()).unwrap();
        fs::write(folder.join(format!("{name}.key")), self.0.signing_key.serialize_pem()).unwrap();
    }
}

/// A client's connection over TLS to port 853.
pub(super) struct Line(tokio_rustls::client::TlsStream<TcpStream>);

impl Line {
    /// To a server that has this certificate.
    pub(super) async fn open(server: &str, certificate: &Certificate) -> std::io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.0.cert.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect((server, 853)).await?;
        let name = "dns.example".try_into().unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        Ok(Self(connector.connect(name, stream).await?))
    }

    /// The answer to a question.
    pub(super) async fn ask(&mut self, question: &[u8]) -> std::io::Result<Message> {
        let length = u16::try_from(question.len()).unwrap();
        self.0.write_all(&[&length.to_be_bytes(), question].concat()).await?;
        let mut answer = vec![0; self.0.read_u16().await?.into()];
        self.0.read_exact(&mut answer).await?;
        Message::from_vec(&answer).map_err(std::io::Error::other)
    }

    /// Waits until the server closes it in order: an end without a word is an error.
    pub(super) async fn until_closed(&mut self) -> std::io::Result<()> {
        match self.0.read(&mut [0]).await? {
            0 => Ok(()),
            _ => Err(std::io::Error::other("more than was asked for")),
        }
    }
}

/// A resolver outside that is asked over TLS, and counts connections and questions.
struct Secure {
    connections: Arc<AtomicUsize>,
    questions: Arc<AtomicUsize>,
    /// Whether a question showed how long it is.
    bare: Arc<AtomicBool>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Secure {
    fn start(netns: &Netns, at: &[SocketAddr], certificate: &Certificate) -> Self {
        let chain = vec![CertificateDer::from(certificate.0.cert.der().to_vec())];
        let key = PrivatePkcs8KeyDer::from(certificate.0.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key.into())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listeners: Vec<_> = at
            .iter()
            .map(|at| {
                let listener = netns.run(|| std::net::TcpListener::bind(at).expect("tcp 853"));
                listener.set_nonblocking(true).unwrap();
                listener
            })
            .collect();
        let (connections, questions) =
            (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let stop = CancellationToken::new();
        // Whether a connection was cut already.
        let cut = Arc::<AtomicBool>::default();
        let bare = Arc::<AtomicBool>::default();
        let shown = Arc::clone(&bare);
        let (made, asked, ends) = (connections.clone(), questions.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                for listener in listeners {
                    let listener = TcpListener::from_std(listener).unwrap();
                    let (acceptor, made, asked) = (acceptor.clone(), made.clone(), asked.clone());
                    let (cut, shown) = (cut.clone(), shown.clone());
                    tokio::spawn(async move {
                        while let Ok((stream, _)) = listener.accept().await {
                            let (acceptor, asked) = (acceptor.clone(), asked.clone());
                            let (made, cut) = (made.clone(), cut.clone());
                            let shown = shown.clone();
                            tokio::spawn(async move {
                                // Clients that don't trust us leave here.
                                let Ok(stream) = acceptor.accept(stream).await else { return };
                                made.fetch_add(1, Ordering::Relaxed);
                                let _left = converse(stream, &asked, &cut, &shown).await;
                            });
                        }
                    });
                }
                ends.cancelled().await;
            });
        });
        Self { connections, questions, bare, stop, thread: Some(thread) }
    }

    fn counted(&self) -> (usize, usize) {
        (self.connections.load(Ordering::Relaxed), self.questions.load(Ordering::Relaxed))
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.stop.cancel();
        self.thread.take().map(JoinHandle::join);
    }
}

async fn converse(
    mut stream: TlsStream<TcpStream>,
    asked: &AtomicUsize,
    cut: &AtomicBool,
    bare: &AtomicBool,
) -> std::io::Result<()> {
    let mut together = Vec::new();
    loop {
        let length = stream.read_u16().await?;
        let mut octets = vec![0; usize::from(length)];
        stream.read_exact(&mut octets).await?;
        bare.fetch_or(length % 128 != 0, Ordering::Relaxed);
        let query = Message::from_vec(&octets).map_err(std::io::Error::other)?;
        asked.fetch_add(1, Ordering::Relaxed);
        let name = query.queries[0].name().to_lowercase().to_string();
        if name.starts_with("silent") {
            continue;
        }
        if name.starts_with("cut") && !cut.swap(true, Ordering::Relaxed) {
            // Without a word, as one does that restarts.
            return Ok(());
        }
        let known = if name.starts_with("together") || name.starts_with("cut") {
            "www.example.org."
        } else {
            &name
        };
        let answer = answer_to(&query, known).to_vec().map_err(std::io::Error::other)?;
        if name.starts_with("together") {
            together.push(answer);
            if together.len() < TOGETHER {
                continue;
            }
        } else {
            together.push(answer);
        }
        while let Some(answer) = together.pop() {
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await?;
            stream.write_all(&answer).await?;
        }
        stream.flush().await?;
        if name.starts_with("ext.") {
            // The last one on this connection.
            return stream.shutdown().await;
        }
    }
}

/// A site, an upstream over TLS, and a resolver that asks it as `forward` says.
struct Served {
    site: Site,
    secure: Secure,
    running: Running,
    _folder: TempDir,
}

/// `forward`: with `CA` in the place of the file of the authority.
fn asking(names: &[&str], forward: &str) -> Served {
    let site = Site::new();
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::of(names);
    certificate.write(folder.path(), "ca");
    let at = OUTSIDE.map(|address| SocketAddr::new(address.parse().unwrap(), 853));
    let secure = Secure::start(&site.outside, &at, &certificate);
    let forward = forward.replace("CA", folder.path().join("ca.pem").to_str().unwrap());
    let path = folder.path().join("Corefile");
    fs::write(&path, format!(". {{\n{forward}\n}}\n")).unwrap();
    let follows = Config { source: Source::Corefile(path), ..config(&[]) };
    let running = Running::start(&site, follows, snapshot());
    Served { site, secure, running, _folder: folder }
}

#[test]
fn an_upstream_is_asked_over_one_connection() {
    for (place, address) in OUTSIDE.iter().enumerate() {
        let address =
            if address.contains(':') { format!("[{address}]") } else { (*address).to_owned() };
        let served = asking(
            &["dns.example"],
            &format!("forward . tls://{address} {{\n tls CA\n tls_servername dns.example\n}}"),
        );
        let ask = |question: &str| served.site.dig(&format!("@{} {question}", NODE_LOCAL[place]));
        // The first of them may also have looked for loops.
        assert_eq!(ask("+short www.example.org A"), "192.0.2.80\n");
        assert_eq!(ask("+short +tcp www.example.org AAAA"), "2001:db8::50\n");
        let (connections, questions) = served.secure.counted();
        assert!(connections == 1 && questions >= 2, "{connections} {questions}");
        // Several are under way on it, and answered last first.
        std::thread::scope(|scope| {
            for number in 0..TOGETHER {
                let name = format!("+short together-{number}.example.org A");
                scope.spawn(move || assert_eq!(ask(&name), "192.0.2.80\n"));
            }
        });
        assert_eq!(served.secure.counted().0, 1);
        // It closes the connection: the next question makes another.
        assert_eq!(ask("+short ext.interwebs.test A"), "192.0.2.80\n");
        assert_eq!(ask("+short v4.example.org A"), "192.0.2.80\n");
        assert_eq!(served.secure.counted().0, 2);
        // It cuts the connection with a question on it, which goes by another; nobody failed.
        assert_eq!(ask("+short cut.example.org A"), "192.0.2.80\n");
        assert_eq!(served.secure.counted().0, 3);
        assert!(!served.secure.bare.load(Ordering::Relaxed), "all questions are padded");
        let mut text = String::new();
        served.running.metrics.write(&mut text);
        let labels = format!("proxy_name=\"forward\",to=\"{address}:853\",proto=\"tcp-tls\"");
        let misses = format!("coredns_proxy_conn_cache_misses_total{{{labels}}} 3\n");
        assert!(text.contains(&misses), "{text}");
        let to = format!("proxy_name=\"forward\",to=\"{address}:853\"");
        let failures = format!("coredns_proxy_healthcheck_failures_total{{{to}}} 0\n");
        assert!(text.contains(&failures), "{text}");
    }
}

#[test]
fn an_upstream_that_can_not_show_its_name_is_not_asked() {
    for (names, forward) in [
        (&["dns.example"][..], "forward . tls://192.0.2.100%other.example {\n tls CA\n}"),
        (&["dns.example"], "forward . tls://192.0.2.100 {\n tls CA\n}"),
        (&["192.0.2.100"], "forward . tls://192.0.2.100"),
    ] {
        let served = asking(names, forward);
        let said = served.site.dig(&format!("@{} www.example.org A", NODE_LOCAL[0]));
        assert!(said.contains("status: SERVFAIL"), "{forward}: {said}");
        assert_eq!(served.secure.counted().1, 0, "{forward}");
    }
    let by_address = asking(&["192.0.2.100"], "forward . tls://192.0.2.100 {\n tls CA\n}");
    let said = by_address.site.dig(&format!("@{} +short www.example.org A", NODE_LOCAL[0]));
    assert_eq!(said, "192.0.2.80\n", "without a name its address has to be in the certificate");
}

#[test]
fn dns_60_another_upstream_is_asked_where_tls_is_silent() {
    let served = asking(
        &["dns.example"],
        "forward . tls://192.0.2.100%dns.example 192.0.2.101 {\n policy sequential\n tls CA\n}",
    );
    let upstream = Upstream::start(&served.site.outside, &["192.0.2.101".parse().unwrap()]);
    let ask = |name: &str| served.site.dig(&format!("@{} {name} A", NODE_LOCAL[0]));
    assert!(ask("silent.example.org").contains("status: SERVFAIL"));
    assert!(upstream.times_asked("silent.example.org.") >= 1);
}

#[test]
fn clients_are_answered_over_tls() {
    let site = Site::new();
    let folder = tempfile::tempdir().unwrap();
    let write = |names: &[&str]| {
        let certificate = Certificate::of(names);
        certificate.write(folder.path(), "server");
    };
    write(&["dns.example"]);
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (path, pem, key) = (folder.path().join("Corefile"), at("server.pem"), at("server.key"));
    let corefile = format!(".:53 tls://.:853 {{\nkubernetes cluster.local\ntls {pem} {key}\n}}\n");
    fs::write(&path, corefile).unwrap();
    let follows = Config { source: Source::Corefile(path.clone()), ..config(&[]) };
    let running = Running::start(&site, follows, snapshot());
    let ask = |address: &str, name: &str| {
        let tls = format!("+tls +tls-ca={pem} +tls-hostname={name}");
        site.dig(&format!("@{address} {tls} +short web.default.svc.cluster.local A"))
    };
    wait::until("the port", SOON, || match ask(NODE_LOCAL[0], "dns.example") {
        said if said == "10.96.1.1\n" => Ok(()),
        said => Err(said),
    });
    assert_eq!(ask(NODE_LOCAL[1], "dns.example"), "10.96.1.1\n");
    assert_ne!(ask(NODE_LOCAL[0], "other.example"), "10.96.1.1\n", "dig looks at the name");
    for address in NODE_LOCAL {
        let name = "web.default.svc.cluster.local A";
        let padded = site.dig(&format!("@{address} +tls +padding=128 {name}"));
        assert!(padded.contains("; PAD: ") && padded.contains("MSG SIZE  rcvd: 468"), "{padded}");
        let clear = site.dig(&format!("@{address} +tcp +padding=128 {name}"));
        assert!(!clear.contains("; PAD: ") && clear.contains("10.96.1.1"), "{clear}");
    }
    // Another certificate: connections from now on get it.
    write(&["other.example"]);
    wait::until("the new certificate", SOON, || match ask(NODE_LOCAL[1], "other.example") {
        said if said == "10.96.1.1\n" => Ok(()),
        said => Err(said),
    });
    // One that can't be used leaves the old one in force.
    fs::write(&key, "nothing").unwrap();
    running.until("the error", |state| format!("{state:?}").contains("no private key"));
    assert_eq!(ask(NODE_LOCAL[0], "other.example"), "10.96.1.1\n");
    // Without it the port is closed.
    fs::write(&path, ". {\nkubernetes cluster.local\n}\n").unwrap();
    wait::until("the end", SOON, || match ask(NODE_LOCAL[0], "other.example") {
        said if said.contains("10.96.1.1") => Err(said),
        _ => Ok(()),
    });
}
