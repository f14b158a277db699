//! JSON Web Tokens (RFC 7519) signed with ECDSA on P-256 and SHA-256 (`ES256`, RFC 7518), and the
//! key as a JSON Web Key (RFC 7517). One algorithm and one key: what a token's header says is
//! compared with them and chooses nothing.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData as _};
use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::pki::{self, PkiError};

/// The algorithm.
const ALGORITHM: &str = "ES256";
/// Longest token that is looked at, in bytes.
const TOKEN_MAX: usize = 16 << 10;

/// The header of a token.
#[derive(Deserialize, Serialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// A key that signs tokens and knows its own.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    id: String,
}

impl SigningKey {
    /// Reads the key from a file, making it if there is none.
    pub fn open(path: &Path) -> Result<Self, PkiError> {
        let text = if path.exists() {
            let failed = |reason| PkiError::File { path: path.to_owned(), reason };
            std::fs::read_to_string(path).map_err(failed)?
        } else {
            let text = make()?;
            pki::write_private(path, &text)?;
            text
        };
        Self::parse(&text).map_err(|reason| PkiError::Parse { path: path.to_owned(), reason })
    }

    /// A key that nobody else has, nor anybody after this process.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn generate() -> Result<Self, PkiError> {
        let failed = |reason| PkiError::Parse { path: "a key just made".into(), reason };
        Self::parse(&make()?).map_err(failed)
    }

    fn parse(pem: &str) -> Result<Self, String> {
        let key = KeyPair::from_pem(pem).map_err(|error| error.to_string())?;
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, key.serialized_der(), &random)
            .map_err(|error| error.to_string())?;
        let digest = digest::digest(&digest::SHA256, &key.subject_public_key_info());
        Ok(Self { pair, random, id: URL_SAFE_NO_PAD.encode(digest) })
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, ring::error::Unspecified> {
        let header = Header { alg: ALGORITHM.to_owned(), kid: self.id.clone() };
        let encode = |part: serde_json::Result<Vec<u8>>| {
            part.map(|part| URL_SAFE_NO_PAD.encode(part)).map_err(|_| ring::error::Unspecified)
        };
        let header = encode(serde_json::to_vec(&header))?;
        let claims = encode(serde_json::to_vec(claims))?;
        let signed = format!("{header}.{claims}");
        let signature = self.pair.sign(&self.random, signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The claims of a token that this key signed, as JSON; `None` for any other.
    pub fn verify(&self, token: &str) -> Option<Vec<u8>> {
        if token.len() > TOKEN_MAX {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
        if header.alg != ALGORITHM || header.kid != self.id {
            return None;
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key());
        key.verify(signed.as_bytes(), &decode(signature)?).ok()?;
        decode(claims)
    }

    /// The public key as a set of JSON Web Keys.
    pub fn public_keys(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let point = self.pair.public_key().as_ref();
        let coordinate =
            |from: usize| point.get(from..from + 32).map(|part| URL_SAFE_NO_PAD.encode(part));
        json!({"keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.id,
            "crv": "P-256",
            "alg": ALGORITHM,
            "x": coordinate(1),
            "y": coordinate(33),
        }]})
    }
}

/// A new key, PEM.
fn make() -> Result<String, PkiError> {
    let made = KeyPair::generate()
        .map_err(|reason| PkiError::Make { what: "service account key", reason })?;
    Ok(made.serialize_pem())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::parse(&KeyPair::generate().unwrap().serialize_pem()).unwrap()
    }

    #[test]
    fn only_what_the_key_signed_is_known() {
        let (own, other) = (key(), key());
        let token = own.sign(&json!({"sub": "x"})).unwrap();
        let claims: Value = serde_json::from_slice(&own.verify(&token).unwrap()).unwrap();
        assert_eq!(claims, json!({"sub": "x"}));
        assert!(other.verify(&token).is_none());
        let parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(json!({"sub": "root"}).to_string());
        let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none", "kid": own.id}).to_string());
        for broken in [
            format!("{}.{forged}.{}", parts[0], parts[2]),
            format!("{none}.{}.", parts[1]),
            format!("{none}.{}.{}", parts[1], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}.{}", parts[0], parts[1]),
            format!("{token}A"),
            String::new(),
            "a.b.c".to_owned(),
        ] {
            assert!(own.verify(&broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn a_key_is_kept_and_its_public_half_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sa.key");
        let token = SigningKey::open(&path).unwrap().sign(&json!({})).unwrap();
        let again = SigningKey::open(&path).unwrap();
        assert!(again.verify(&token).is_some());
        let shown = &again.public_keys()["keys"][0];
        assert_eq!((&shown["kty"], &shown["crv"]), (&json!("EC"), &json!("P-256")));
        assert_eq!(shown["x"].as_str().unwrap().len(), 43);
        assert_eq!(shown["y"].as_str().unwrap().len(), 43);
    }
}
