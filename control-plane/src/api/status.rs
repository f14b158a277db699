//! Failures as `Status` objects, with Kubernetes' reasons, codes and wording.

use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use super::Body;
use crate::authz::Attributes;
use crate::registry::Kind;
use crate::registry::invalid::{Errors, FieldError};
use crate::registry::selector::SelectorError;
use crate::store::StoreError;

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failure(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
    retry_after: Option<u32>,
    next: Option<String>,
}

/// Outcome of a request.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure without details.
    pub fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            code,
            reason,
            message: message.into(),
            details: None,
            retry_after: None,
            next: None,
        }))
    }

    fn about(mut self, kind: &Kind, name: &str) -> Self {
        let mut details = json!({"kind": kind.plural});
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !kind.group.is_empty() {
            details["group"] = kind.group.into();
        }
        self.0.details = Some(details);
        self
    }

    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// Nobody's credentials.
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// The object does not exist.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", kind.qualified_plural());
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(kind, name)
    }

    /// The path means nothing.
    pub fn no_such_path() -> Self {
        let mut failure = Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        );
        failure.0.details = Some(json!({}));
        failure
    }

    /// The path means something, but not with this method.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        let mut failure = Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message);
        failure.0.details = Some(json!({}));
        failure
    }

    /// An object of that name exists.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", kind.qualified_plural());
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(kind, name)
    }

    /// The object changed under the writer.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.qualified_plural());
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(kind, name)
    }

    /// The `resourceVersion` sent is not the object's.
    pub fn stale(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Not allowed in the present state.
    pub fn forbidden(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("{} {name:?} is forbidden: {why}", kind.qualified_plural());
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(kind, name)
    }

    /// The user may not do that.
    pub fn not_allowed(asked: &Attributes<'_>, why: &str) -> Self {
        let resource = match (asked.resource, asked.group) {
            ("", _) => String::new(),
            (resource, "") => format!("{resource} "),
            (resource, group) => format!("{resource}.{group} "),
        };
        let message = match asked.name {
            "" if resource.is_empty() => format!("forbidden: {why}"),
            "" => format!("{resource}is forbidden: {why}"),
            name => format!("{resource}{name:?} is forbidden: {why}"),
        };
        let mut failure = Self::new(StatusCode::FORBIDDEN, "Forbidden", message);
        let mut details = json!({});
        for (field, value) in
            [("name", asked.name), ("group", asked.group), ("kind", asked.resource)]
        {
            if !value.is_empty() {
                details[field] = value.into();
            }
        }
        failure.0.details = Some(details);
        failure
    }

    /// Fields of the object are wrong.
    pub fn invalid(kind: &Kind, name: &str, errors: &Errors) -> Self {
        let message = format!("{} {name:?} is invalid: {errors}", kind.qualified_kind());
        let mut failure =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message).about(kind, name);
        if let Some(details) = &mut failure.0.details {
            // Kubernetes names the kind here, not the resource.
            details["kind"] = kind.kind.into();
            details["causes"] = errors.0.iter().map(FieldError::cause).collect();
        }
        failure
    }

    /// The options of a request are wrong.
    pub fn invalid_options(kind: &str, errors: &Errors) -> Self {
        let message = format!("{kind}.meta.k8s.io \"\" is invalid: {errors}");
        let mut failure = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        let causes: Vec<Value> = errors.0.iter().map(FieldError::cause).collect();
        failure.0.details = Some(json!({"group": "meta.k8s.io", "kind": kind, "causes": causes}));
        failure
    }

    /// A cause besides the message.
    pub fn because(mut self, reason: &str, message: &str, field: &str) -> Self {
        let details = self.0.details.get_or_insert_with(|| json!({}));
        let mut cause = json!({"reason": reason, "message": message});
        if !field.is_empty() {
            cause["field"] = field.into();
        }
        details["causes"] = json!([cause]);
        self
    }

    /// The revision asked for is gone.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    /// The token by which a list goes on all the same.
    pub fn continued_by(mut self, token: String) -> Self {
        self.0.next = Some(token);
        self
    }

    /// Come back later.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.0.retry_after = Some(seconds);
        self.0.details.get_or_insert_with(|| json!({}))["retryAfterSeconds"] = seconds.into();
        self
    }

    /// The HTTP status.
    pub fn code(&self) -> StatusCode {
        self.0.code
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.0.message,
            "reason": self.0.reason,
            "code": self.0.code.as_u16(),
        });
        if let Some(details) = &self.0.details {
            status["details"] = details.clone();
        }
        if let Some(token) = &self.0.next {
            status["metadata"]["continue"] = token.as_str().into();
        }
        status
    }

    /// The response.
    pub fn into_response(self) -> Response<Body> {
        let mut response = super::json(self.0.code, &self.status());
        if self.0.code == StatusCode::FORBIDDEN {
            let plain = header::HeaderValue::from_static("nosniff");
            response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, plain);
        }
        if let Some(seconds) = self.0.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Compacted { asked, oldest } => {
                Self::expired(format!("too old resource version: {asked} ({oldest})"))
            }
            // Kubernetes waits for it and says "too large"; clients then ask again and again. Here
            // it means a store that was lost, and only 410 makes every client list anew.
            StoreError::Ahead { asked, newest } => Self::expired(format!(
                "resource version {asked} is not of this store, whose newest is {newest}; list again"
            )),
            StoreError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", error.to_string())
            }
            StoreError::Write { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "InternalError", error.to_string())
            }
            StoreError::Away { .. } => {
                let message = format!("the store can not be reached: {error}");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
            }
            StoreError::Closed => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", error.to_string())
                    .retry_after(1)
            }
            other => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                format!("Internal error occurred: {other}"),
            ),
        }
    }
}

impl From<SelectorError> for Failure {
    fn from(error: SelectorError) -> Self {
        Self::bad_request(error.to_string())
    }
}
