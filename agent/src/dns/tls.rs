//! DNS over TLS (RFC 7858): who we are and whom we trust, as texts of files, and what rustls makes
//! of them. Names of cluster and outside travel as in the clear; only the wire differs.

use std::{fmt, net::IpAddr, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use rustls_pki_types::pem::PemObject as _;

/// The port of DNS over TLS.
pub const PORT: u16 = 853;
/// The name of the protocol (RFC 7858 as registered for ALPN).
const PROTOCOL: &[u8] = b"dot";

/// A certificate with its chain, and its private key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificates, the own one first.
    pub certificates: String,
    /// The key.
    pub key: String,
}

impl fmt::Debug for Identity {
    /// Without the key, which is nobody's to see.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

/// An upstream that is asked over TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The name that its certificate has to have; without one, its address.
    pub server_name: Option<String>,
    /// Who has to have signed it, as PEM; without any, those whom the system trusts.
    pub authorities: Option<String>,
    /// Who we are, where it wants to know.
    pub identity: Option<Identity>,
}

/// Where clients are answered over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The port, at the addresses of [`served_addresses`](super::served_addresses).
    pub port: u16,
    /// Who we are.
    pub identity: Identity,
    /// Who has to have signed clients' certificates, as PEM; without any they need none.
    pub authorities: Option<String>,
}

impl Peer {
    /// Whether all of it can be used; or what can't.
    pub fn check(&self, address: IpAddr) -> Result<(), String> {
        self.name(address)?;
        if let Some(authorities) = &self.authorities {
            roots(authorities)?;
        }
        if let Some(identity) = &self.identity {
            identity.parts()?;
        }
        Ok(())
    }

    /// The name that is looked for in the certificate of the upstream at `address`.
    pub fn name(&self, address: IpAddr) -> Result<ServerName<'static>, String> {
        match &self.server_name {
            None => Ok(ServerName::IpAddress(address.into())),
            Some(name) => ServerName::try_from(name.clone())
                .map_err(|_| format!("{name:?} is no name that a certificate could have")),
        }
    }

    /// What connections to it are made by.
    pub fn client(&self) -> Result<Arc<ClientConfig>, String> {
        let roots = match &self.authorities {
            Some(authorities) => roots(authorities)?,
            None => system_roots()?,
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| format!("TLS can't be used: {error}"))?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (certificates, key) = identity.parts()?;
                builder
                    .with_client_auth_cert(certificates, key)
                    .map_err(|error| mismatch(&error))?
            }
        };
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Arc::new(config))
    }
}

impl Listener {
    /// What connections from clients are accepted by.
    pub fn server(&self) -> Result<Arc<ServerConfig>, String> {
        let (certificates, key) = self.identity.parts()?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error| format!("TLS can't be used: {error}"))?;
        let builder = match &self.authorities {
            None => builder.with_no_client_auth(),
            Some(authorities) => {
                let roots = Arc::new(roots(authorities)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier = verifier.build();
                let why = |error| format!("clients' certificates can't be checked: {error}");
                builder.with_client_cert_verifier(verifier.map_err(why)?)
            }
        };
        let config = builder.with_single_cert(certificates, key);
        let mut config = config.map_err(|error| mismatch(&error))?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Arc::new(config))
    }
}

impl Identity {
    fn parts(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
        let certificates = certificates(&self.certificates)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|error| format!("the key is no private key in PEM: {error}"))?;
        Ok((certificates, key))
    }
}

fn mismatch(error: &rustls::Error) -> String {
    format!("certificate and key can't be used together: {error}")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let all = all.map_err(|error| format!("the certificates are not PEM: {error}"))?;
    if all.is_empty() { Err("there is no certificate".to_owned()) } else { Ok(all) }
}

fn roots(pem: &str) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(pem)? {
        store.add(certificate).map_err(|error| format!("a certificate can't be used: {error}"))?;
    }
    Ok(store)
}

/// Those whom the system trusts.
fn system_roots() -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    let (added, _) =
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added == 0 {
        return Err(
            "the system trusts no certificate authority; install ca-certificates, or name \
                    a file of authorities"
                .to_owned(),
        );
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        let made = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
        Identity { certificates: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    #[test]
    fn what_can_be_used_and_what_cannot() {
        let address = "192.0.2.1".parse().unwrap();
        let good = Peer {
            server_name: Some("dns.example".into()),
            authorities: Some(identity().certificates),
            identity: Some(identity()),
        };
        assert_eq!(good.check(address), Ok(()));
        assert!(good.client().is_ok());
        let refused = |peer: Peer, why: &str| {
            let error = peer.check(address).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        refused(Peer { server_name: Some("a b".into()), ..good.clone() }, "no name");
        refused(Peer { authorities: Some("nothing".into()), ..good.clone() }, "no certificate");
        let keyless = Identity { key: "nothing".into(), ..identity() };
        refused(Peer { identity: Some(keyless), ..good }, "no private key");
        let name = Peer::default().name(address).unwrap();
        assert_eq!(name, ServerName::IpAddress(address.into()), "without a name the address");
        let listener = |identity| Listener { port: PORT, identity, authorities: None };
        assert!(listener(identity()).server().is_ok());
        let mixed = Identity { key: identity().key, ..identity() };
        assert!(listener(mixed).server().unwrap_err().contains("together"));
    }

    #[test]
    fn keys_are_not_shown() {
        let identity = identity();
        let shown = format!("{:?}", Peer { identity: Some(identity.clone()), ..Peer::default() });
        assert!(shown.contains("BEGIN CERTIFICATE") && !shown.contains("PRIVATE KEY"), "{shown}");
    }
}
