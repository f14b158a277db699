//! Our certificate, made for one run, and whom we let ask: holders of certificates of the cluster's
//! CA, which is that of the kubeconfig.

use std::{net::IpAddr, sync::Arc};

use anyhow::Context;
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// What we show, and whom we trust.
#[derive(Clone, Debug)]
pub(in super::super) struct Identity {
    /// For the server.
    pub config: Arc<ServerConfig>,
    /// Our certificate, in DER.
    pub certificate: Vec<u8>,
}

impl Identity {
    /// Makes a certificate for the node's names; `authorities` sign those of our clients.
    pub(in super::super) fn new(
        name: &str,
        addresses: &[IpAddr],
        authorities: &[Vec<u8>],
    ) -> anyhow::Result<Self> {
        let addresses = addresses.iter().map(ToString::to_string);
        let names: Vec<String> = std::iter::once(name.to_owned()).chain(addresses).collect();
        let made = rcgen::generate_simple_self_signed(names).context("making a certificate")?;
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            let authority = CertificateDer::from(authority.clone());
            roots.add(authority).context("the kubeconfig's certificate authority")?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        if roots.is_empty() {
            // Nobody's certificate is signed by ourselves: nobody is let in.
            roots.add(made.cert.der().clone()).context("our own certificate")?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .context("knowing clients by the kubeconfig's certificate authority")?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let certificate = made.cert.der().clone();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate.clone()], key.into())?;
        Ok(Self { config: Arc::new(config), certificate: certificate.to_vec() })
    }
}
