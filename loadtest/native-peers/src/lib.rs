//! What the peers answer: `/plaintext` and `/json`, as `ringhorn-demo` does.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;

/// The body of `/json`.
pub const JSON: &str = r#"{"message":"Hello, World!"}"#;

/// The application of both axum peers.
pub fn router() -> Router {
    Router::new()
        .route("/plaintext", get(async || ([(CONTENT_TYPE, "text/plain")], "Hello, World!")))
        .route("/json", get(async || ([(CONTENT_TYPE, "application/json")], JSON)))
}
