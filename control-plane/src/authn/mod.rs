//! Who sends a request: by client certificate, by static token, by a service account's token.
//!
//! There are no user objects: a user is what a credential says.

pub mod certificate;
pub mod jwt;
pub mod service_account;
pub mod token_file;

use std::sync::Arc;

use serde::Deserialize;

use crate::authz::{AUTHENTICATED, User};
use crate::store::{Store, StoreError};
use service_account::{Bound, Claims, Issuer};
use token_file::TokenFile;

/// The key of a user's extra by which a credential can be told from others.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It is no token of this cluster.
    #[error("invalid bearer token")]
    Unknown,
    /// It is a token, and does not hold.
    #[error("[invalid bearer token, {0}]")]
    Invalid(String),
    /// The store could not be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Knows users by their tokens.
pub struct Authenticator {
    tokens: TokenFile,
    issuer: Arc<Issuer>,
}

/// A user by a token, and which audiences asked for it is good for.
#[derive(Clone, Debug)]
pub struct Authenticated {
    /// Who.
    pub user: Arc<User>,
    /// For whom.
    pub audiences: Vec<String>,
}

impl Authenticator {
    /// With static tokens and those of an issuer.
    pub fn new(tokens: TokenFile, issuer: Arc<Issuer>) -> Self {
        Self { tokens, issuer }
    }

    /// Who issues tokens of service accounts.
    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// Whose a token is. `audiences` are those that it may be for; empty for the API server's.
    pub async fn token(
        &self,
        store: &dyn Store,
        token: &str,
        audiences: &[String],
    ) -> Result<Authenticated, TokenError> {
        if let Some(user) = self.tokens.user(token) {
            let audiences = self.issuer.own_of(audiences);
            return Ok(Authenticated { user, audiences });
        }
        let claims = self.issuer.check(token, crate::api::clock::now())?;
        let audiences = self.issuer.meant_for(&claims, audiences)?;
        check_bound(store, &claims).await?;
        Ok(Authenticated { user: Arc::new(claims.user()), audiences })
    }
}

/// A user whose credentials were accepted.
pub(crate) fn accepted(mut user: User) -> User {
    if !user.is_in(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

/// What of a stored object says whether it is still the same.
#[derive(Deserialize)]
struct Stored {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    uid: String,
    deletion_timestamp: Option<String>,
}

/// For how long a token outlives the marking of what it is bound to, in seconds: a pod that ends
/// may still have to say so.
const LEEWAY: i64 = 60;

/// The service account and what the token is bound to have to be there still.
async fn check_bound(store: &dyn Store, claims: &Claims) -> Result<(), TokenError> {
    let about = &claims.kubernetes;
    let namespace = &about.namespace;
    let account = format!("core/serviceaccounts/{namespace}/{}", about.serviceaccount.name);
    check_one(store, &account, &about.serviceaccount, "service account").await?;
    for (bound, key, what) in [
        (&about.pod, format!("core/pods/{namespace}/"), "pod"),
        (&about.secret, format!("core/secrets/{namespace}/"), "secret"),
    ] {
        if let Some(bound) = bound {
            check_one(store, &format!("{key}{}", bound.name), bound, what).await?;
        }
    }
    // A pod's token names its node for information only.
    if let (Some(node), None) = (&about.node, &about.pod) {
        check_one(store, &format!("core/nodes/{}", node.name), node, "node").await?;
    }
    Ok(())
}

async fn check_one(
    store: &dyn Store,
    key: &str,
    bound: &Bound,
    what: &str,
) -> Result<(), TokenError> {
    let invalid = |why: String| Err(TokenError::Invalid(why));
    let entry = store.get(key).await?;
    let stored = entry.and_then(|entry| serde_json::from_slice::<Stored>(&entry.value).ok());
    let Some(Stored { metadata }) = stored else {
        return invalid(format!("{what} {} has been deleted", bound.name));
    };
    if metadata.uid != bound.uid {
        return invalid(format!(
            "{what} UID ({}) does not match claim ({})",
            metadata.uid, bound.uid
        ));
    }
    let marked = metadata.deletion_timestamp.as_deref().and_then(crate::api::clock::parse);
    if marked.is_some_and(|marked| marked + LEEWAY < crate::api::clock::now()) {
        return invalid(format!("{what} {} has been deleted", bound.name));
    }
    Ok(())
}
