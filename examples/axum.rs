//! An axum application on Ringhorn's workers:
//! `cargo run --release --features tower --example axum`, then `curl http://127.0.0.1:8000/hello/Ada`
//!
//! Each worker has a router of its own, and a tokio runtime of one thread. What workers share is shared as between
//! processes: not at all.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::Extensions;
use axum::routing::{get, post};
use axum::{Json, Router};
use ringhorn::Server;
use ringhorn::native::Connection;

fn main() -> ExitCode {
    Server::builder().bind("127.0.0.1:8000").command_line().serve_tower(|_worker| {
        Router::new()
            .route("/", get(async || "Hello, World!"))
            .route("/hello/{name}", get(async |Path(name): Path<String>| format!("Hello, {name}!")))
            .route("/visits", get(visits))
            .route("/sleep", get(sleep))
            .route("/elsewhere", get(elsewhere))
            .route("/count", post(async |body: Bytes| format!("{}", body.len())))
            .route("/echo", post(async |body: Body| body))
            .route("/ticks", get(async || Body::new(Ticks::default())))
            .route("/peer", get(peer))
            .with_state(Arc::new(AtomicU64::new(0)))
    })
}

/// How many visits this worker has had.
async fn visits(State(count): State<Arc<AtomicU64>>) -> Json<u64> {
    Json(count.fetch_add(1, Ordering::Relaxed) + 1)
}

/// tokio's timers work.
async fn sleep() -> &'static str {
    tokio::time::sleep(Duration::from_millis(20)).await;
    "slept"
}

/// tokio's tasks and sockets work: a request to a server that lives in a task of this worker.
async fn elsewhere() -> Result<String, String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    let failed = |error: std::io::Error| error.to_string();
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    tokio::spawn(async move {
        if let Ok((mut stream, _)) = listener.accept().await {
            // A client that left asks for nothing.
            let _ = stream.write_all(b"from elsewhere").await;
        }
    });
    let mut text = String::new();
    TcpStream::connect(address).await.map_err(failed)?.read_to_string(&mut text).await.map_err(failed)?;
    Ok(text)
}

async fn peer(extensions: Extensions) -> String {
    extensions.get::<Connection>().map_or_else(String::new, |connection| connection.peer().to_string())
}

/// A body that comes in three pieces, some time apart.
struct Ticks {
    left: u32,
    pause: Pin<Box<tokio::time::Sleep>>,
}

/// Between two ticks.
const TICK: Duration = Duration::from_millis(10);

impl Default for Ticks {
    fn default() -> Self {
        Self { left: 3, pause: Box::pin(tokio::time::sleep(TICK)) }
    }
}

impl http_body::Body for Ticks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        std::task::ready!(self.pause.as_mut().poll(context));
        self.left -= 1;
        self.pause.as_mut().reset(tokio::time::Instant::now() + TICK);
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"tick\n")))))
    }
}
