//! Tokens of service accounts: who they are of, whom they are for, and what they are bound to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::jwt::SigningKey;
use super::{CREDENTIAL_ID, TokenError, accepted};
use crate::authz::{User, service_account_name};

/// The issuer where nothing else is said.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// The group of all service accounts, and what the group of those of a namespace begins with.
pub const GROUP: &str = "system:serviceaccounts";
/// Most tokens whose signatures are remembered.
const REMEMBERED: usize = 4096;

/// An object by name and uid.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Bound {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What a token says beyond what every token says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct About {
    /// The service account's namespace.
    pub namespace: String,
    /// The node of the pod, or the node that it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Bound>,
    /// The pod that it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    /// The secret that it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Bound>,
    /// The service account.
    pub serviceaccount: Bound,
}

/// The claims of a token. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    /// Of which account in which place.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: About,
    nbf: i64,
    sub: String,
}

impl Claims {
    /// The user that the token makes its bearer.
    pub fn user(&self) -> User {
        let about = &self.kubernetes;
        let mut user = User {
            name: self.sub.clone(),
            uid: about.serviceaccount.uid.clone(),
            groups: vec![GROUP.to_owned(), format!("{GROUP}:{}", about.namespace)],
            ..User::default()
        };
        let mut extra = |key: &str, value: String| {
            user.extra.insert(key.to_owned(), vec![value]);
        };
        extra(CREDENTIAL_ID, format!("JTI={}", self.jti));
        for (bound, what) in [(&about.pod, "pod"), (&about.node, "node")] {
            if let Some(Bound { name, uid }) = bound {
                extra(&format!("authentication.kubernetes.io/{what}-name"), name.clone());
                extra(&format!("authentication.kubernetes.io/{what}-uid"), uid.clone());
            }
        }
        accepted(user)
    }
}

/// Issues tokens and knows them again.
pub struct Issuer {
    key: SigningKey,
    name: String,
    audiences: Vec<String>,
    /// Claims of tokens whose signature was found good: checking one costs more than all else
    /// that a request does.
    verified: Mutex<HashMap<Box<str>, Arc<Claims>>>,
}

impl Issuer {
    /// An issuer by name. The API server answers to the audiences given.
    pub fn new(key: SigningKey, name: String, audiences: Vec<String>) -> Self {
        Self { key, name, audiences, verified: Mutex::default() }
    }

    /// The audiences of tokens that say none.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// A token that holds for some seconds from `now`.
    pub fn issue(
        &self,
        about: About,
        audiences: &[String],
        seconds: i64,
        now: i64,
    ) -> Result<String, ring::error::Unspecified> {
        self.key.sign(&Claims {
            aud: audiences.to_vec(),
            exp: now + seconds,
            iat: now,
            iss: self.name.clone(),
            jti: Uuid::new_v4().to_string(),
            sub: service_account_name(&about.namespace, &about.serviceaccount.name),
            kubernetes: about,
            nbf: now,
        })
    }

    /// The claims of a token of ours that holds now. What it is bound to has to be looked at yet.
    pub fn check(&self, token: &str, now: i64) -> Result<Arc<Claims>, TokenError> {
        let claims = self.verified(token).ok_or(TokenError::Unknown)?;
        let invalid = |why: &str| Err(TokenError::Invalid(why.to_owned()));
        if claims.iss != self.name {
            return invalid("the token is of another issuer");
        }
        if now >= claims.exp {
            return invalid("service account token has expired");
        }
        // Clocks of one server may go back a little.
        if now + super::LEEWAY < claims.nbf {
            return invalid("service account token is not valid yet");
        }
        let about = &claims.kubernetes;
        if claims.sub != service_account_name(&about.namespace, &about.serviceaccount.name) {
            return invalid("sub claim was invalid");
        }
        Ok(claims)
    }

    fn verified(&self, token: &str) -> Option<Arc<Claims>> {
        let known = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(claims) = known().get(token) {
            return Some(Arc::clone(claims));
        }
        let claims = self.key.verify(token)?;
        let claims: Arc<Claims> = Arc::new(serde_json::from_slice(&claims).ok()?);
        let mut known = known();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(token.into(), Arc::clone(&claims));
        Some(claims)
    }

    /// Those of the audiences asked for that are the API server's; of none all of its own.
    pub fn own_of(&self, asked: &[String]) -> Vec<String> {
        if asked.is_empty() {
            return self.audiences.clone();
        }
        asked.iter().filter(|one| self.audiences.contains(one)).cloned().collect()
    }

    /// The audiences asked for (the API server's, where there are none) that the token is for.
    pub fn meant_for(&self, claims: &Claims, asked: &[String]) -> Result<Vec<String>, TokenError> {
        let asked = if asked.is_empty() { &self.audiences } else { asked };
        let shared: Vec<String> =
            asked.iter().filter(|one| claims.aud.contains(one)).cloned().collect();
        if shared.is_empty() {
            return Err(TokenError::Invalid(format!(
                "token audiences {:?} is invalid for the target audiences {asked:?}",
                claims.aud
            )));
        }
        Ok(shared)
    }

    /// The keys by which others know our tokens.
    pub fn public_keys(&self) -> Value {
        self.key.public_keys()
    }

    /// The OpenID provider configuration (OpenID Connect Discovery 1.0).
    pub fn discovery(&self) -> Value {
        json!({
            "issuer": self.name,
            "jwks_uri": format!("{}/openid/v1/jwks", self.name),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer(name: &str) -> Issuer {
        let directory = tempfile::tempdir().unwrap();
        let key = SigningKey::open(&directory.path().join("sa.key")).unwrap();
        Issuer::new(key, name.to_owned(), vec![name.to_owned()])
    }

    fn about() -> About {
        let bound = |name: &str| Bound { name: name.to_owned(), uid: format!("uid-{name}") };
        About {
            namespace: "a".to_owned(),
            node: Some(bound("n1")),
            pod: Some(bound("p")),
            secret: None,
            serviceaccount: bound("robot"),
        }
    }

    #[test]
    fn a_token_says_whose_it_is_for_as_long_as_it_holds() {
        let issuer = issuer("https://here");
        let token = issuer.issue(about(), issuer.audiences(), 600, 1000).unwrap();
        let claims = issuer.check(&token, 1599).unwrap();
        let user = claims.user();
        assert_eq!(user.name, "system:serviceaccount:a:robot");
        assert_eq!(user.uid, "uid-robot");
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:a", "system:authenticated"]
        );
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["p"]);
        assert_eq!(user.extra["authentication.kubernetes.io/node-uid"], ["uid-n1"]);
        assert!(issuer.check(&token, 1600).is_err());
        assert!(issuer.check(&token, 900).is_err());
        assert!(issuer.check("x", 1000).is_err());
        assert!(self::issuer("https://here").check(&token, 1000).is_err());
    }

    #[test]
    fn a_token_is_for_its_audiences_only() {
        let issuer = issuer("https://here");
        let audiences = |list: &[&str]| list.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
        let vault = issuer.issue(about(), &audiences(&["vault", "db"]), 600, 0).unwrap();
        let claims = issuer.check(&vault, 1).unwrap();
        assert!(issuer.meant_for(&claims, &[]).is_err());
        let meant = issuer.meant_for(&claims, &audiences(&["other", "vault"])).unwrap();
        assert_eq!(meant, ["vault"]);
    }
}
