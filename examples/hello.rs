//! The smallest native service: `cargo run --release --example hello -- --bind 127.0.0.1:8000`

use std::process::ExitCode;

use ringhorn::{Request, Response, Server};

fn main() -> ExitCode {
    Server::builder().bind("127.0.0.1:8000").command_line().serve(|_worker| {
        |_request: &Request<'_>, response: &mut Response<'_>| {
            response.header("Content-Type", "text/plain").body("Hello, World!");
        }
    })
}
