//! The same axum application on Ringhorn: `peer-ringhorn-axum --bind 127.0.0.1:8000 --workers 1`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringhorn::Server::builder().command_line().serve_tower(|_worker| native_peers::router())
}
