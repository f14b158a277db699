//! A real etcd for one test, and a door before it that can be shut.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mizzen_control_plane::store::{Etcd, EtcdOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// The longest that anything here may take.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);

/// What is missing where it can't be started.
const PACKAGE: &str = "etcd, from Debian's etcd-server";

/// An etcd of one member. Ends with the test.
pub(crate) struct Server {
    pub(crate) client: SocketAddr,
    peer: SocketAddr,
    process: Child,
    directory: tempfile::TempDir,
}

impl Server {
    /// Starts one that holds nothing.
    pub(crate) async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..10 {
            let (client, peer) = (free(), free());
            let mut process = command(&directory, (client, "http"), peer).spawn().expect(PACKAGE);
            // Somebody else may have taken a port meanwhile: then it ends.
            if answers(&options_of(client), &mut process).await {
                return Self { client, peer, process, directory };
            }
            let _ = process.kill();
            let _ = process.wait();
        }
        panic!("etcd does not start");
    }

    /// Where it is, for a store.
    pub(crate) fn options(&self) -> EtcdOptions {
        options_of(self.client)
    }

    /// A store over it.
    pub(crate) async fn store(&self) -> Etcd {
        Etcd::open(&self.options()).await.unwrap()
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again where it was, with what it held.
    pub(crate) async fn start_again(&mut self) {
        let mut command = command(&self.directory, (self.client, "http"), self.peer);
        self.process = command.spawn().expect(PACKAGE);
        let answers = answers(&self.options(), &mut self.process).await;
        assert!(answers, "etcd does not start again");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts one that talks TLS, and only to those with a certificate of its CA. The store's options
/// beside it have one.
pub(crate) async fn start_with_tls() -> (Server, EtcdOptions) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(at("ca.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let signed = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(at(&format!("{name}.crt")), signed.pem()).unwrap();
        std::fs::write(at(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let options = |client: SocketAddr| EtcdOptions {
        ca_file: Some(at("ca.crt")),
        identity: Some((at("client.crt"), at("client.key"))),
        compact_every: None,
        ..EtcdOptions::new(vec![format!("https://{client}")])
    };
    for _ in 0..10 {
        let (client, peer) = (free(), free());
        let mut process = command(&directory, (client, "https"), peer)
            .args(["--client-cert-auth", "--trusted-ca-file"])
            .arg(at("ca.crt"))
            .arg("--cert-file")
            .arg(at("server.crt"))
            .arg("--key-file")
            .arg(at("server.key"))
            .spawn()
            .expect(PACKAGE);
        let options = options(client);
        if answers(&options, &mut process).await {
            return (Server { client, peer, process, directory }, options);
        }
        let _ = process.kill();
        let _ = process.wait();
    }
    panic!("etcd does not start with TLS");
}

/// Where a store finds etcd at an address.
pub(crate) fn options_of(address: SocketAddr) -> EtcdOptions {
    EtcdOptions { compact_every: None, ..EtcdOptions::new(vec![format!("http://{address}")]) }
}

fn free() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn command(
    directory: &tempfile::TempDir,
    (client, scheme): (SocketAddr, &str),
    peer: SocketAddr,
) -> Command {
    let (client, peer) = (format!("{scheme}://{client}"), format!("http://{peer}"));
    let mut command = Command::new("etcd");
    command
        .args(["--name", "one", "--data-dir"])
        .arg(directory.path().join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")])
        .args(["--heartbeat-interval", "50", "--election-timeout", "300"])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Waits until it answers. `false` if it ended instead.
async fn answers(options: &EtcdOptions, process: &mut Child) -> bool {
    let answer = async {
        loop {
            if process.try_wait().unwrap().is_some() {
                return false;
            }
            let asked = tokio::time::timeout(Duration::from_secs(5), Etcd::open(options));
            if matches!(asked.await, Ok(Ok(_))) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, answer).await.expect("etcd answers in time")
}

/// A door before a server: what goes through it can be cut off.
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    open: watch::Sender<bool>,
}

impl Door {
    /// An open door.
    pub(crate) async fn before(server: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (open, is_open) = watch::channel(true);
        tokio::spawn(async move {
            while let Ok((inside, _)) = listener.accept().await {
                tokio::spawn(pass(inside, server, is_open.clone()));
            }
        });
        Self { address, open }
    }

    /// Cuts off whoever is in it, and lets nobody in.
    pub(crate) fn shut(&self) {
        self.open.send_replace(false);
    }

    /// Opens it again.
    pub(crate) fn open(&self) {
        self.open.send_replace(true);
    }
}

async fn pass(mut inside: TcpStream, server: SocketAddr, mut is_open: watch::Receiver<bool>) {
    if !*is_open.borrow_and_update() {
        return;
    }
    let Ok(mut outside) = TcpStream::connect(server).await else { return };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut inside, &mut outside) => {}
        _ = is_open.wait_for(|open| !open) => {}
    }
}
