//! The cluster's certificates: a CA, the server's certificate, the administrator's, and the
//! kubeconfig made from them. Made once, kept in the data directory.

use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use time::{Duration, OffsetDateTime};

/// How long the CA is valid.
const CA_DAYS: i64 = 3650;
/// For how long certificates have been valid when they are made.
const SINCE_DAYS: i64 = 365;
/// How long other certificates are valid.
const LEAF_DAYS: i64 = 3650;

/// The user that the API server is to nodes.
const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";

/// Why certificates could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot access {path}: {reason}; check the data directory's permissions and space")]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        reason: std::io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make the {what} certificate: {reason}")]
    Make {
        /// Which certificate.
        what: &'static str,
        /// The reason.
        reason: rcgen::Error,
    },
    /// A file does not hold what it should.
    #[error(
        "{path} does not hold a usable certificate or key: {reason}; remove it to have it made anew"
    )]
    Parse {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
}

/// The cluster's CA: signs certificates of users.
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads the CA below `directory`.
    pub fn read(directory: &Path) -> Result<Self, PkiError> {
        let text = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path).map_err(|reason| PkiError::File { path, reason })
        };
        Self::of(directory, Pair { certificate: text("ca.crt")?, key: text("ca.key")? })
    }

    fn of(directory: &Path, ca: Pair) -> Result<Self, PkiError> {
        let issuer = issuer(directory, &ca)?;
        Ok(Self { certificate: ca.certificate, issuer })
    }

    /// A kubeconfig of a user, of a group if one is named, for a server URL.
    pub fn kubeconfig(
        &self,
        server: &str,
        name: &str,
        group: Option<&str>,
    ) -> Result<String, PkiError> {
        let made = make_leaf("client", client(name, group), &self.issuer)?;
        kubeconfig(server, &self.certificate, name, &made.certificate, &made.key)
    }
}

/// The cluster's certificates, ready for use.
pub struct Pki {
    /// The CA.
    pub authority: Authority,
    /// The server's certificate.
    pub server: CertificateDer<'static>,
    /// The server's key.
    pub server_key: PrivateKeyDer<'static>,
    /// The certificate by which nodes are asked.
    pub kubelet: CertificateDer<'static>,
    /// The key that goes with it.
    pub kubelet_key: PrivateKeyDer<'static>,
    admin_pem: String,
    admin_key_pem: String,
}

/// One certificate with its key, as PEM.
struct Pair {
    certificate: String,
    key: String,
}

impl Pki {
    /// Reads the certificates below `directory`, making what is missing. The server's certificate
    /// is made for `names` and `addresses` each time, since these may have changed.
    pub fn open(
        directory: &Path,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<Self, PkiError> {
        fs::create_dir_all(directory)
            .map_err(|reason| PkiError::File { path: directory.to_owned(), reason })?;
        if !directory.join("ca.crt").exists() || !directory.join("ca.key").exists() {
            // What an earlier CA signed is worth nothing under the one that is made now.
            let _ = fs::remove_file(directory.join("admin.crt"));
        }
        let ca = stored(directory, "ca", make_ca)?;
        let authority = Authority::of(directory, ca)?;
        let admin = stored(directory, "admin", || {
            let params = client("kubernetes-admin", Some("system:masters"));
            make_leaf("admin", params, &authority.issuer)
        })?;
        let server = make_leaf("server", server(names, addresses), &authority.issuer)?;
        let kubelet =
            make_leaf("client", client(KUBELET_CLIENT, Some("system:masters")), &authority.issuer)?;
        let parse = |reason: rustls_pki_types::pem::Error| PkiError::Parse {
            path: directory.to_owned(),
            reason: reason.to_string(),
        };
        Ok(Self {
            server: CertificateDer::from_pem_slice(server.certificate.as_bytes()).map_err(parse)?,
            server_key: PrivateKeyDer::from_pem_slice(server.key.as_bytes()).map_err(parse)?,
            kubelet: CertificateDer::from_pem_slice(kubelet.certificate.as_bytes())
                .map_err(parse)?,
            kubelet_key: PrivateKeyDer::from_pem_slice(kubelet.key.as_bytes()).map_err(parse)?,
            authority,
            admin_pem: admin.certificate,
            admin_key_pem: admin.key,
        })
    }

    /// Writes the administrator's kubeconfig for a server URL.
    pub fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), PkiError> {
        let ca = &self.authority.certificate;
        let text = kubeconfig(server, ca, "admin", &self.admin_pem, &self.admin_key_pem)?;
        // A restart needs no space for what is there already: the disk may be full.
        if fs::read_to_string(path).is_ok_and(|found| found == text) {
            return Ok(());
        }
        write_private(path, &text)
    }
}

/// A kubeconfig of one user by a certificate, all in PEM.
fn kubeconfig(
    server: &str,
    ca: &str,
    user: &str,
    certificate: &str,
    key: &str,
) -> Result<String, PkiError> {
    let data = |pem: &str| STANDARD.encode(pem);
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "mizzen", "cluster": {"server": server, "certificate-authority-data": data(ca)}}],
        "users": [{"name": user, "user": {
            "client-certificate-data": data(certificate),
            "client-key-data": data(key),
        }}],
        "contexts": [{"name": "mizzen", "context": {"cluster": "mizzen", "user": user}}],
        "current-context": "mizzen",
    });
    serde_yaml_ng::to_string(&config).map_err(|error| PkiError::Parse {
        path: PathBuf::from("kubeconfig"),
        reason: error.to_string(),
    })
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), PkiError> {
    let failed = |reason| PkiError::File { path: path.to_owned(), reason };
    let temporary = path.with_extension("new");
    // A leftover of a crash may have other permissions.
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)
}

/// The pair stored as `NAME.crt` and `NAME.key`, made if there is none.
fn stored(
    directory: &Path,
    name: &str,
    make: impl FnOnce() -> Result<Pair, PkiError>,
) -> Result<Pair, PkiError> {
    let (certificate, key) =
        (directory.join(format!("{name}.crt")), directory.join(format!("{name}.key")));
    if certificate.exists() && key.exists() {
        let read = |path: &Path| {
            fs::read_to_string(path)
                .map_err(|reason| PkiError::File { path: path.to_owned(), reason })
        };
        return Ok(Pair { certificate: read(&certificate)?, key: read(&key)? });
    }
    let pair = make()?;
    // The certificate comes last: its presence says that both are there.
    write_private(&key, &pair.key)?;
    write_private(&certificate, &pair.certificate)?;
    Ok(pair)
}

fn issuer(directory: &Path, ca: &Pair) -> Result<Issuer<'static, KeyPair>, PkiError> {
    let parse = |reason: rcgen::Error| PkiError::Parse {
        path: directory.join("ca.crt"),
        reason: reason.to_string(),
    };
    let key = KeyPair::from_pem(&ca.key).map_err(parse)?;
    Issuer::from_ca_cert_pem(&ca.certificate, key).map_err(parse)
}

fn subject(name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    if let Some(organization) = organization {
        subject.push(DnType::OrganizationName, organization);
    }
    subject.push(DnType::CommonName, name);
    subject
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    // Clocks differ, and one that stood ahead when they were made is set back.
    params.not_before = now - Duration::days(SINCE_DAYS);
    params.not_after = now + Duration::days(days);
}

fn make_ca() -> Result<Pair, PkiError> {
    let failed = |reason| PkiError::Make { what: "ca", reason };
    let key = KeyPair::generate().map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("mizzen-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    valid_for(&mut params, CA_DAYS);
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn client(name: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(name, group);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn server(names: &[String], addresses: &[IpAddr]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("kube-apiserver", None);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let names = names.iter().filter_map(|name| name.as_str().try_into().ok()).map(SanType::DnsName);
    let addresses = addresses.iter().copied().map(SanType::IpAddress);
    params.subject_alt_names = names.chain(addresses).collect();
    params
}

fn make_leaf(
    what: &'static str,
    mut params: CertificateParams,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<Pair, PkiError> {
    let failed = |reason| PkiError::Make { what, reason };
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, LEAF_DAYS);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.signed_by(&key, issuer).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn admin_of(directory: &Path) -> String {
        Pki::open(directory, &["localhost".to_owned()], &[]).unwrap().admin_pem
    }

    #[test]
    fn certificates_are_kept_and_keys_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let admin = admin_of(directory.path());
        assert_eq!(admin_of(directory.path()), admin);
        for name in ["ca.key", "admin.key"] {
            let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_new_ca_signs_a_new_administrator() {
        for lost in ["ca.crt", "ca.key"] {
            let directory = tempfile::tempdir().unwrap();
            let admin = admin_of(directory.path());
            fs::remove_file(directory.path().join(lost)).unwrap();
            assert_ne!(admin_of(directory.path()), admin, "{lost}");
        }
    }
}
