//! Bodies of requests, and the forms in which clients want answers.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::status::{Failure, Result};
use super::{Body, Call, table};
use crate::registry::{Kind, Object};
use crate::schema::protobuf;

/// Largest body of a request, in bytes (Kubernetes' limit).
pub(super) const MAX_BODY: usize = 3 << 20;

/// Reads a body to its end.
pub(super) async fn read<B>(body: B) -> Result<Bytes>
where
    B: hyper::body::Body<Data = Bytes> + Send,
    B::Error: std::fmt::Display,
{
    let mut collected = BytesMut::new();
    let mut body = std::pin::pin!(body);
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Failure::bad_request(format!("cannot read the body: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if collected.len() + data.len() > MAX_BODY {
            let message = format!("Request entity too large: limit is {MAX_BODY}");
            return Err(Failure::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLarge",
                message,
            ));
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.freeze())
}

/// The media type of a body, without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> &str {
    let value =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// Decodes a body in JSON, YAML or Kubernetes' protobuf.
pub(super) fn decode(headers: &HeaderMap, body: &[u8]) -> Result<Value> {
    match media_type(headers) {
        "" | "application/json" => serde_json::from_slice(body).map_err(|error| unreadable(&error)),
        "application/yaml" | "text/yaml" | "application/x-yaml" => {
            serde_yaml_ng::from_slice(body).map_err(|error| unreadable(&error))
        }
        protobuf::MEDIA_TYPE => {
            protobuf::decode(body).map_err(|error| Failure::bad_request(error.to_string()))
        }
        other => Err(unsupported(
            other,
            "application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )),
    }
}

/// The body is nothing that the server understands.
pub(super) fn unreadable(error: &dyn std::fmt::Display) -> Failure {
    Failure::bad_request(format!(
        "the object provided is unrecognized (must be of type Object): {error}"
    ))
}

/// The body's media type is none that is understood here.
pub(super) fn unsupported(media_type: &str, accepted: &str) -> Failure {
    let message = format!(
        "the body of the request was in an unknown format ({media_type}) - accepted media types include: {accepted}"
    );
    Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
}

/// How a client wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As they are.
    Json,
    /// As rows of a `Table`.
    Table,
    /// Only their metadata.
    Metadata,
}

impl Form {
    /// The first form of the Accept header that can be had.
    pub(super) fn accepted(headers: &HeaderMap) -> Result<Self> {
        Self::among(headers, &[Self::Json, Self::Table, Self::Metadata])
    }

    /// The first form of the Accept header that is one of these.
    pub(super) fn among(headers: &HeaderMap, known: &[Self]) -> Result<Self> {
        let accept =
            headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
        for item in accept.split(',') {
            let mut parts = item.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default();
            if !matches!(media_type, "" | "*/*" | "application/*" | "application/json") {
                continue;
            }
            let parameter = |name: &str| {
                let mut again = item.split(';').skip(1).map(str::trim);
                again.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
            };
            let form = match (parameter("as"), parameter("v"), parameter("g")) {
                (None, ..) => Self::Json,
                (Some("Table"), Some("v1"), Some("meta.k8s.io")) => Self::Table,
                (
                    Some("PartialObjectMetadata" | "PartialObjectMetadataList"),
                    Some("v1"),
                    Some("meta.k8s.io"),
                ) => Self::Metadata,
                _ => continue,
            };
            if known.contains(&form) {
                return Ok(form);
            }
        }
        let message = "only the following media types are accepted: application/json, application/json;as=Table;v=v1;g=meta.k8s.io, application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
        Err(Failure::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message))
    }

    /// The object in this form.
    pub(super) fn value(self, kind: &Kind, object: &Object, call: &Call) -> Value {
        match self {
            Self::Json => kind.shown(object.clone()).into_value(),
            Self::Table => table::of_one(kind, object, table::Include::asked(call)),
            Self::Metadata => table::partial(object),
        }
    }

    /// A response that holds the object in this form.
    pub(super) fn respond(
        self,
        kind: &Kind,
        object: &Object,
        call: &Call,
        code: StatusCode,
    ) -> Response<Body> {
        super::json(code, &self.value(kind, object, call))
    }
}
