//! `serviceaccounts/token`: a token of a service account (KEP-1205), bound to a pod, a secret or a
//! node if that is asked for.

use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::query::Target;
use super::status::{Failure, Result};
use super::{Api, Body, Call, clock, encode, fields};
use crate::authn::service_account::{About, Bound};
use crate::authz::{Attributes, node};
use crate::registry::invalid::Errors;
use crate::registry::{Kind, Object};
use crate::schema;

/// For how long a token holds that asks for nothing, in seconds.
const SECONDS: i64 = 3600;
/// Least time.
const SECONDS_MIN: i64 = 600;
/// Most time.
const SECONDS_MAX: i64 = 1 << 32;
/// Most audiences of a token.
const AUDIENCES_MAX: usize = 64;

impl Api {
    /// Issues a token of the target.
    pub(super) async fn token(
        &self,
        call: &Call,
        target: &Target,
        body: &[u8],
    ) -> Result<Response<Body>> {
        if call.method != Method::POST {
            return Err(Failure::method_not_allowed());
        }
        let of = schema::named("authentication.v1.TokenRequest");
        let name = ("v1", "authentication.k8s.io", "TokenRequest");
        let (request, _) = fields::of_type(call, of, name, body)?;
        let account = self.existing(target).await?;
        let seconds = seconds(target.kind, &request)?;
        let about = self.about(call, target, &account, &request).await?;
        let issuer = self.access()?.authenticator.issuer();
        let asked: Vec<String> = request
            .list("/spec/audiences")
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        let audiences = if asked.is_empty() { issuer.audiences().to_vec() } else { asked };
        let now = clock::now();
        let token = issuer.issue(about, &audiences, seconds, now).map_err(|_| {
            let message = "Internal error occurred: failed to generate token";
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
        })?;
        let mut spec = json!({"audiences": audiences, "expirationSeconds": seconds});
        spec["boundObjectRef"] = request.at("/spec/boundObjectRef").cloned().unwrap_or_default();
        let answer = json!({
            "kind": "TokenRequest",
            "apiVersion": "authentication.k8s.io/v1",
            "metadata": {
                "name": target.name,
                "namespace": target.namespace,
                "creationTimestamp": clock::format(now),
            },
            "spec": spec,
            "status": {"token": token, "expirationTimestamp": clock::format(now + seconds)},
        });
        Ok(super::json(StatusCode::CREATED, &answer))
    }

    /// What the token says, once what it shall be bound to was found.
    async fn about(
        &self,
        call: &Call,
        target: &Target,
        account: &Object,
        request: &Object,
    ) -> Result<About> {
        let bound = |object: &Object| Bound {
            name: object.name().to_owned(),
            uid: object.uid().to_owned(),
        };
        let mut about = About {
            namespace: target.namespace.clone(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: bound(account),
        };
        let wanted = |field: &str| request.text(&format!("/spec/boundObjectRef/{field}"));
        restrict(call, target, request)?;
        if request.at("/spec/boundObjectRef").is_none() {
            return Ok(about);
        }
        let (kind, namespace) = match (wanted("apiVersion"), wanted("kind")) {
            ("v1", "Pod") => ("pods", target.namespace.as_str()),
            ("v1", "Secret") => ("secrets", target.namespace.as_str()),
            ("v1", "Node") => ("nodes", ""),
            (version, kind) => {
                let message = format!("cannot bind token to object of type {version}, Kind={kind}");
                return Err(Failure::bad_request(message));
            }
        };
        let kind = self.registry.resource("", "v1", kind).ok_or_else(Failure::no_such_path)?;
        let found = self.store.get(&kind.key(namespace, wanted("name"))).await?;
        let found = found.ok_or_else(|| Failure::not_found(kind, wanted("name")))?;
        let found = encode::object(&found)?;
        if !wanted("uid").is_empty() && wanted("uid") != found.uid() {
            let why = format!(
                "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
                wanted("uid")
            );
            return Err(Failure::conflict(kind, wanted("name"), &why));
        }
        match kind.kind {
            "Secret" => about.secret = Some(bound(&found)),
            "Node" => about.node = Some(bound(&found)),
            _ => {
                self.bind_to_pod(call, target, request, &found, &mut about).await?;
                about.pod = Some(bound(&found));
            }
        }
        Ok(about)
    }

    async fn bind_to_pod(
        &self,
        call: &Call,
        target: &Target,
        request: &Object,
        pod: &Object,
        about: &mut About,
    ) -> Result<()> {
        let on = pod.text("/spec/nodeName");
        if let Some(node) = node::identity(&call.user) {
            if node != on {
                let why = "node requested token bound to a pod scheduled on a different node";
                return Err(Failure::forbidden(target.kind, &target.name, why));
            }
            self.restrict_audience(call, target, request, pod).await?;
        }
        if pod.text("/spec/serviceAccountName") != target.name {
            let message = format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                target.name
            );
            return Err(Failure::bad_request(message));
        }
        if on.is_empty() {
            return Ok(());
        }
        // Information only: a node may have gone.
        if let Some(node) = self.read(&format!("core/nodes/{on}")).await? {
            about.node = Some(Bound { name: on.to_owned(), uid: node.uid().to_owned() });
        }
        Ok(())
    }

    /// A node gets tokens only for those whom a volume of the pod names, or a rule lets it ask for:
    /// who has the node shall not be a pod's account towards others (`NodeRestriction`).
    async fn restrict_audience(
        &self,
        call: &Call,
        target: &Target,
        request: &Object,
        pod: &Object,
    ) -> Result<()> {
        let audience = match request.list("/spec/audiences") {
            [] => "",
            [one] => one.as_str().unwrap_or_default(),
            _ => {
                let why = "node may only request 0 or 1 audiences";
                return Err(Failure::forbidden(target.kind, &target.name, why));
            }
        };
        let volumes = pod.list("/spec/volumes").iter();
        let sources = volumes.filter_map(|volume| volume["projected"]["sources"].as_array());
        let in_pod = sources.flatten().any(|source| {
            let token = &source["serviceAccountToken"];
            !token.is_null() && token["audience"].as_str().unwrap_or_default() == audience
        });
        let asked = Attributes {
            verb: "request-serviceaccounts-token-audience",
            version: "v1",
            resource: audience,
            namespace: &target.namespace,
            name: &target.name,
            ..Attributes::default()
        };
        let authorizer = &self.access()?.authorizer;
        if in_pod || (!audience.is_empty() && authorizer.decide(&call.user, &asked).is_allowed()) {
            return Ok(());
        }
        for volume in pod.list("/spec/volumes") {
            if self.driver_asks(volume, &target.namespace, audience).await? {
                return Ok(());
            }
        }
        let why = format!("audience {audience:?} not found in pod spec volume");
        Err(Failure::forbidden(target.kind, &target.name, &why))
    }
}

impl Api {
    /// Whether the CSI driver of a pod's volume asks for tokens for `audience`
    /// (`CSIDriver.spec.tokenRequests`).
    async fn driver_asks(&self, volume: &Value, namespace: &str, audience: &str) -> Result<bool> {
        let mut driver = volume["csi"]["driver"].as_str().unwrap_or_default().to_owned();
        if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
            let claim =
                self.read(&format!("core/persistentvolumeclaims/{namespace}/{claim}")).await?;
            let volume = claim.as_ref().map(|claim| claim.text("/spec/volumeName"));
            if let Some(volume) = volume.filter(|volume| !volume.is_empty()) {
                let volume = self.read(&format!("core/persistentvolumes/{volume}")).await?;
                driver =
                    volume.map(|it| it.text("/spec/csi/driver").to_owned()).unwrap_or_default();
            }
        }
        if driver.is_empty() {
            return Ok(false);
        }
        let driver = self.read(&format!("storage.k8s.io/csidrivers/{driver}")).await?;
        let asks = |request: &Value| request["audience"].as_str().unwrap_or_default() == audience;
        Ok(driver.is_some_and(|driver| driver.list("/spec/tokenRequests").iter().any(asks)))
    }

    async fn read(&self, key: &str) -> Result<Option<Object>> {
        self.store.get(key).await?.map(|entry| encode::object(&entry)).transpose()
    }
}

/// A node gets tokens only for pods that it names (`NodeRestriction`).
fn restrict(call: &Call, target: &Target, request: &Object) -> Result<()> {
    if node::identity(&call.user).is_none() {
        return Ok(());
    }
    let wanted = |field: &str| request.text(&format!("/spec/boundObjectRef/{field}"));
    let why =
        if (wanted("apiVersion"), wanted("kind")) != ("v1", "Pod") || wanted("name").is_empty() {
            "node requested token not bound to a pod"
        } else if wanted("uid").is_empty() {
            "node requested token with a pod binding without a uid"
        } else {
            return Ok(());
        };
    Err(Failure::forbidden(target.kind, &target.name, why))
}

/// For how long the token shall hold.
fn seconds(kind: &Kind, request: &Object) -> Result<i64> {
    let seconds = request.integer("/spec/expirationSeconds").unwrap_or(SECONDS);
    let mut errors = Errors::default();
    let field = "spec.expirationSeconds";
    if seconds < SECONDS_MIN {
        errors.invalid(field, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > SECONDS_MAX {
        errors.invalid(field, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    if request.list("/spec/audiences").len() > AUDIENCES_MAX {
        errors.too_long("spec.audiences", AUDIENCES_MAX);
    }
    if errors.is_empty() {
        return Ok(seconds);
    }
    let kind = Kind { group: "authentication.k8s.io", kind: "TokenRequest", ..reviewed(kind) };
    Err(Failure::invalid(&kind, "", &errors))
}

/// A copy of the row to name another kind in an error.
fn reviewed(kind: &Kind) -> Kind {
    Kind { ..*kind }
}
