//! The key-value API of `ringhorn-demo` alone, with one worker, so that all clients see one store:
//! `cargo run --release --example kv`, then `curl -T file http://127.0.0.1:8000/kv/name?ttl=60`

#[path = "../src/bin/ringhorn-demo/kv.rs"]
mod kv;

use std::process::ExitCode;

use ringhorn::{Request, Response, Server, StatusCode};

fn main() -> ExitCode {
    Server::builder().bind("127.0.0.1:8000").workers(1).command_line().serve(|worker| {
        let store = kv::Store::new(worker);
        move |request: &Request<'_>, response: &mut Response<'_>| {
            if request.path().starts_with(b"/kv/") {
                store.serve(request, response);
            } else {
                kv::error(response, StatusCode::NOT_FOUND, "there is nothing here");
            }
        }
    })
}
