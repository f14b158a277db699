//! The gate before everything: who asks, as whom, and whether they may.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, StatusCode, header};

use super::admission::How;
use super::asked::Asked;
use super::query::{self, Target};
use super::status::{Failure, Result};
use super::{Api, Call};
use crate::authn::service_account::GROUP as SERVICE_ACCOUNTS;
use crate::authn::{Authenticator, TokenError};
use crate::authz::{
    ANONYMOUS, AUTHENTICATED, Attributes, Authorizer, Decision, SERVICE_ACCOUNT_PREFIX,
    UNAUTHENTICATED, User, refusal,
};

/// What users and their rights are known by.
pub struct Access {
    /// Who may do what.
    pub authorizer: Arc<Authorizer>,
    /// Whose a token is.
    pub authenticator: Authenticator,
}

/// The other end of a connection.
#[derive(Debug)]
pub struct Peer {
    /// Who showed a certificate of the cluster's CA.
    certificate: Option<Arc<User>>,
    address: Option<IpAddr>,
    known: AtomicBool,
}

impl Peer {
    /// A peer at an address, whose certificate names a user.
    pub fn new(certificate: Option<User>, address: Option<IpAddr>) -> Self {
        let known = AtomicBool::new(certificate.is_some());
        Self { certificate: certificate.map(Arc::new), address, known }
    }

    /// Whether it has shown credentials that were accepted.
    pub fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// Where it is.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }
}

/// The bearer token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

impl Api {
    /// Lets a request in, or says why not. Writes down in it who asks.
    pub(super) async fn admit(&self, call: &mut Call, peer: &Peer) -> Result<Decision> {
        let access = self.access.as_ref().ok_or_else(Failure::unauthorized)?;
        call.user = self.authenticate(access, &call.headers, peer).await?;
        if let Some(user) = impersonated(access, call)? {
            call.impersonator = Some(std::mem::replace(&mut call.user, Arc::new(user)));
        }
        let asked = call.asked.attributes();
        let decision = authorize(access, &call.user, &asked)?;
        // A WebSocket begins with GET; what it leads to is as good as a write (Kubernetes 1.35).
        let streams = matches!(asked.subresource, "exec" | "attach" | "portforward");
        if asked.resource == "pods" && streams && asked.verb == "get" {
            authorize(access, &call.user, &Attributes { verb: "create", ..asked })?;
        }
        Ok(decision)
    }

    async fn authenticate(
        &self,
        access: &Access,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Result<Arc<User>> {
        if let Some(user) = &peer.certificate {
            return Ok(Arc::clone(user));
        }
        let Some(token) = bearer(headers) else { return Ok(Arc::new(User::anonymous())) };
        match access.authenticator.token(&*self.store, token, &[]).await {
            Ok(authenticated) => {
                peer.known.store(true, Ordering::Relaxed);
                Ok(authenticated.user)
            }
            Err(TokenError::Store(error)) => Err(error.into()),
            Err(error) => {
                tracing::debug!(%error, "token not accepted");
                Err(Failure::unauthorized())
            }
        }
    }

    /// Who changes what does not exist creates it, and has to be allowed that too.
    pub(super) fn authorize_creation(&self, target: &Target, how: &How) -> Result<()> {
        let Some(user) = &how.by else { return Ok(()) };
        let asked = Attributes {
            verb: "create",
            group: target.kind.group,
            version: target.kind.version,
            resource: target.kind.plural,
            namespace: &target.namespace,
            name: &target.name,
            ..Attributes::default()
        };
        authorize(self.access()?, user, &asked).map(drop)
    }

    /// How users and rights are known; a server without knows nobody.
    pub(super) fn access(&self) -> Result<&Access> {
        self.access.as_ref().ok_or_else(Failure::unauthorized)
    }

    /// Takes rules into force that this request has written, before its answer says so.
    pub(super) fn enforce(&self, asked: &Asked) {
        let reads = matches!(asked.verb.as_str(), "get" | "list" | "watch");
        if reads || asked.group != crate::authz::rbac::GROUP {
            return;
        }
        if let Some(access) = &self.access
            && let Err(error) = access.authorizer.catch_up()
        {
            tracing::warn!(%error, "new rules are not in force yet");
        }
    }
}

/// Decides, and refuses with Kubernetes' words.
fn authorize(access: &Access, user: &User, asked: &Attributes<'_>) -> Result<Decision> {
    let decision = access.authorizer.decide(user, asked);
    if decision.is_allowed() {
        return Ok(decision);
    }
    let mut why = refusal(user, asked);
    let reason = decision.why().to_string();
    if !reason.is_empty() {
        why = format!("{why}: {reason}");
    }
    Err(Failure::not_allowed(asked, &why))
}

/// Whom a request wants to be taken for, if the user may do that.
fn impersonated(access: &Access, call: &Call) -> Result<Option<User>> {
    let Some(wanted) = wanted(&call.headers)? else { return Ok(None) };
    let ask = |asked: Attributes<'_>| {
        authorize(access, &call.user, &Attributes { verb: "impersonate", ..asked }).map(drop)
    };
    let account = wanted.name.strip_prefix(SERVICE_ACCOUNT_PREFIX);
    if let Some((namespace, name)) = account.and_then(|rest| rest.split_once(':')) {
        let resource = "serviceaccounts";
        ask(Attributes { resource, namespace, name, ..Attributes::default() })?;
    } else {
        let name = &wanted.name;
        ask(Attributes { resource: "users", name, ..Attributes::default() })?;
    }
    for name in &wanted.groups {
        ask(Attributes { resource: "groups", name, ..Attributes::default() })?;
    }
    let group = "authentication.k8s.io";
    for (subresource, values) in &wanted.extra {
        for name in values {
            let resource = "userextras";
            ask(Attributes { group, resource, subresource, name, ..Attributes::default() })?;
        }
    }
    if !wanted.uid.is_empty() {
        let name = &wanted.uid;
        ask(Attributes { group, resource: "uids", name, ..Attributes::default() })?;
    }
    Ok(Some(completed(wanted)))
}

/// The user that the `Impersonate-` headers describe.
fn wanted(headers: &HeaderMap) -> Result<Option<User>> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let first = |name: &str| headers.get(name).map(text).unwrap_or_default();
    let mut user = User {
        name: first("impersonate-user"),
        uid: first("impersonate-uid"),
        groups: headers.get_all("impersonate-group").iter().map(text).collect(),
        ..User::default()
    };
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
            let key = query::decode(key, false).to_lowercase();
            user.extra.entry(key).or_default().push(text(value));
        }
    }
    if user == User::default() {
        return Ok(None);
    }
    if user.name.is_empty() {
        let message = "Internal error occurred: requested groups, a uid or extras without impersonating a user";
        return Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message));
    }
    Ok(Some(user))
}

/// The user with the groups that it has by itself.
fn completed(mut user: User) -> User {
    let account = user.name.strip_prefix(SERVICE_ACCOUNT_PREFIX);
    if let Some((namespace, _)) = account.and_then(|rest| rest.split_once(':'))
        && user.groups.is_empty()
    {
        user.groups = vec![SERVICE_ACCOUNTS.to_owned(), format!("{SERVICE_ACCOUNTS}:{namespace}")];
    }
    let given = user.is_in(AUTHENTICATED) || user.is_in(UNAUTHENTICATED);
    if user.name == ANONYMOUS && !user.is_in(UNAUTHENTICATED) {
        user.groups.push(UNAUTHENTICATED.to_owned());
    } else if user.name != ANONYMOUS && !given {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, http::HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn impersonation_is_read_from_headers() {
        assert_eq!(wanted(&headers(&[("accept", "x")])).unwrap(), None);
        let given = headers(&[
            ("impersonate-user", "jane"),
            ("impersonate-group", "a"),
            ("impersonate-group", "b"),
            ("impersonate-extra-scopes", "view"),
            ("impersonate-extra-acme.com%2fProject", "p"),
            ("impersonate-uid", "7"),
        ]);
        let user = completed(wanted(&given).unwrap().unwrap());
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "7"));
        assert_eq!(user.groups, ["a", "b", AUTHENTICATED]);
        assert_eq!(user.extra["scopes"], ["view"]);
        assert_eq!(user.extra["acme.com/project"], ["p"]);
        assert!(wanted(&headers(&[("impersonate-group", "a")])).is_err());
    }

    #[test]
    fn who_is_impersonated_has_its_own_groups() {
        let groups =
            |name: &str, given: &[&str]| completed(User::new(name, given)).groups.join(" ");
        assert_eq!(
            groups("system:serviceaccount:a:robot", &[]),
            "system:serviceaccounts system:serviceaccounts:a system:authenticated"
        );
        assert_eq!(groups("system:serviceaccount:a:robot", &["x"]), "x system:authenticated");
        assert_eq!(groups(ANONYMOUS, &[]), UNAUTHENTICATED);
        assert_eq!(groups("jane", &[UNAUTHENTICATED]), UNAUTHENTICATED);
    }

    #[test]
    fn bearer_tokens() {
        let token =
            |value: &'static str| bearer(&headers(&[("authorization", value)])).map(str::to_owned);
        assert_eq!(token("Bearer abc").as_deref(), Some("abc"));
        assert_eq!(token("bearer  abc ").as_deref(), Some("abc"));
        assert_eq!(token("Basic abc"), None);
        assert_eq!(token("Bearer"), None);
    }
}
