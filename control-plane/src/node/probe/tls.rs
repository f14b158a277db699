//! TLS for probes by HTTPS. As the API has it, whose certificate it is does not matter: the probe
//! asks whether somebody answers, over a path that only the node is on.

use std::sync::Arc;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::shown;

/// TLS with whoever is at the other end.
pub(super) async fn connect(stream: TcpStream, host: &str) -> Result<TlsStream<TcpStream>, String> {
    let config = shown::client(None).map_err(|error| error.to_string())?.with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    connector.connect(name, stream).await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use rustls::crypto::ring;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_certificate_that_nobody_knows_is_good_enough() {
        let certified = rcgen::generate_simple_self_signed(vec!["elsewhere".to_owned()]).unwrap();
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certified.cert.der().clone()], key.into())
                .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            acceptor.accept(stream).await.unwrap().write_all(b"x").await.unwrap();
        };
        let ask = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let mut stream = connect(stream, &address.ip().to_string()).await.unwrap();
            let mut octet = [0];
            stream.read_exact(&mut octet).await.unwrap();
            octet
        };
        let ((), octet) = tokio::join!(serve, ask);
        assert_eq!(&octet, b"x");
    }
}
