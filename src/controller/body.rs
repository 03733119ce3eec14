//! Reads the body of a request, bounded in length and time.
//!
//! In: a request. Out: its bytes, or why not. Called by: registration.

use std::time::Duration;

use axum::{
    body::{Bytes, to_bytes},
    extract::Request,
    http::{StatusCode, header},
};

use super::problem::Refusal;

/// Reads a body of at most `most` bytes within `patience`.
pub(crate) async fn read_body(
    request: Request,
    most: usize,
    patience: Duration,
) -> Result<Bytes, Refusal> {
    let too_large = || {
        Refusal::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too-large",
            "The body is too large",
            format!("expected at most {most} bytes, got more"),
        )
    };
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|len| len > most as u64) {
        return Err(too_large());
    }
    let read = tokio::time::timeout(patience, to_bytes(request.into_body(), most)).await;
    match read {
        Ok(Ok(bytes)) => Ok(bytes),
        // Too long, or the sender went away; it then does not read this either.
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err(Refusal::new(
            StatusCode::REQUEST_TIMEOUT,
            "too-slow",
            "The body came too slowly",
            format!("expected the whole body within {} s", patience.as_secs_f32()),
        )),
    }
}
