//! Users by client certificates: the common name is the user, the organizations are the groups.

use std::fmt::Write as _;

use ring::digest;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{CREDENTIAL_ID, accepted};
use crate::authz::User;

/// The user that a certificate in DER names. That the cluster's CA signed it has to be known.
/// `None` if it can't be read or names nobody.
pub fn user(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let names = subject.iter_common_name().filter_map(|name| name.as_str().ok());
    let name = names.last().filter(|name| !name.is_empty())?.to_owned();
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok());
    let mut user = User { name, groups: groups.map(str::to_owned).collect(), ..User::default() };
    let fingerprint = digest::digest(&digest::SHA256, der);
    let mut hex = String::with_capacity(64);
    for byte in fingerprint.as_ref() {
        // Writing to a text can't fail.
        let _ = write!(hex, "{byte:02x}");
    }
    user.extra.insert(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={hex}")]);
    Some(accepted(user))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn inv_126_a_certificate_names_user_and_groups() {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        let made = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let user = user(made.der()).unwrap();
        assert_eq!(user.name, "system:node:n1");
        assert_eq!(user.groups, ["system:nodes", "system:authenticated"]);
        assert!(user.extra[CREDENTIAL_ID][0].starts_with("X509SHA256="));
        assert_eq!(super::user(b"no certificate"), None);
    }
}
