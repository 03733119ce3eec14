//! How the controller says no: `application/problem+json` (RFC 9457).
//!
//! In: what was expected, what came. Out: a response. Called by: every handler.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::ControllerError;
use crate::directory::{DirectoryError, Problem};

/// A refused request.
#[derive(Debug)]
pub(crate) struct Refusal {
    problem: Problem,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// A refusal of a kind; the URN ends with `kind`.
    pub(crate) fn new(
        status: StatusCode,
        kind: &str,
        title: &str,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            problem: Problem {
                kind: format!("urn:cepa:problem:{kind}"),
                title: title.to_owned(),
                status: status.as_u16(),
                detail: detail.into(),
                field: None,
            },
            retry_after: None,
        }
    }

    /// Whether the caller lacks the right, rather than the form.
    pub(crate) const fn is_about_rights(&self) -> bool {
        matches!(self.problem.status, 401 | 403)
    }

    /// Names the field that is wrong.
    pub(crate) fn field(mut self, field: &str) -> Self {
        self.problem.field = Some(field.to_owned());
        self
    }

    /// Says when to come again.
    pub(crate) fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Something in the request does not parse or breaks a rule.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", "The request is malformed", detail)
    }

    /// JSON that does not parse.
    pub(crate) fn bad_json(error: &serde_json::Error) -> Self {
        let text = error.to_string();
        let refusal = Self::bad_request(format!("expected a registration as JSON, got: {text}"));
        match named_field(&text) {
            Some(field) => refusal.field(field),
            None => refusal,
        }
    }

    /// A descriptor that is refused.
    pub(crate) fn bad_descriptor(error: &DirectoryError) -> Self {
        match error {
            DirectoryError::Signature { .. } => Self::new(
                StatusCode::UNAUTHORIZED,
                "bad-signature",
                "The descriptor's signature does not verify",
                error.to_string(),
            )
            .field("signature"),
            DirectoryError::Malformed { got, .. } => {
                let refusal = Self::new(
                    StatusCode::BAD_REQUEST,
                    "bad-descriptor",
                    "The descriptor is malformed",
                    error.to_string(),
                );
                refusal.field(named_field(got).unwrap_or("descriptor"))
            }
            other => Self::new(
                StatusCode::BAD_REQUEST,
                "bad-descriptor",
                "The descriptor breaks a rule",
                other.to_string(),
            )
            .field(other.field().unwrap_or("descriptor")),
        }
    }

    /// No such thing.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", "There is no such thing", detail)
    }

    /// Too much from one source.
    pub(crate) fn too_many(wait: Duration) -> Self {
        let seconds = wait.as_secs() + 1;
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too-many-requests",
            "Too many requests from this address",
            format!("expected fewer requests, got too many; come again in {seconds} s"),
        )
        .retry_after(Duration::from_secs(seconds))
    }

    /// Not the caller's fault.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "The controller cannot answer right now",
            detail,
        )
        .retry_after(Duration::from_secs(2))
    }
}

/// The field that serde's message names.
fn named_field(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("missing field `").or(text.strip_prefix("duplicate field `"))?;
    rest.split('`').next()
}

impl From<ControllerError> for Refusal {
    fn from(error: ControllerError) -> Self {
        // The details may name paths of this machine.
        log::error!(event = "request"; "a request failed: {error}");
        Self::unavailable("the controller's own state failed; its log says more")
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.problem).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        response
    }
}
