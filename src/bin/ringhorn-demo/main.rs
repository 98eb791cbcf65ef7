//! A native service that shows and measures the engine: plain text, JSON, an echo, files, and a small
//! key-value API.
//!
//! It takes the command line of `ringhorn`: `ringhorn-demo -b 127.0.0.1:8000 -w 2`.

mod files;
mod kv;

use std::process::ExitCode;
use std::rc::Rc;

use ringhorn::{Request, Responder, Response, Sent, Server, Service, Worker};

use self::files::Files;
use self::kv::Store;

const INDEX: &str = "\
/plaintext        13 bytes
/json             a small object
/echo             the request's body
/static/PATH      a file below ./static, or below $RINGHORN_DEMO_STATIC
/kv/KEY?ttl=60    GET, PUT, DELETE; each worker has a store of its own
";

fn main() -> ExitCode {
    Server::builder().name("ringhorn-demo").command_line().serve(Demo::new)
}

struct Demo {
    worker: Worker,
    files: Files,
    store: Rc<Store>,
}

impl Demo {
    fn new(worker: &Worker) -> Self {
        Self { worker: worker.clone(), files: Files::new(worker), store: Store::new(worker) }
    }

    fn echo(&self, request: &Request<'_>, response: &mut Response<'_>) {
        if let Some(kind) = request.header("content-type") {
            response.header("Content-Type", kind);
        }
        if request.is_streamed() {
            self.worker.spawn(echo_pieces(response.defer()));
        } else {
            response.body(request.body());
        }
    }
}

impl Service for Demo {
    fn call(&mut self, request: &Request<'_>, response: &mut Response<'_>) {
        match request.path() {
            b"/plaintext" => {
                response.header("Content-Type", "text/plain").body("Hello, World!");
            }
            b"/json" => {
                response.header("Content-Type", "application/json").body(r#"{"message":"Hello, World!"}"#);
            }
            b"/echo" => self.echo(request, response),
            b"/" => {
                response.header("Content-Type", "text/plain").body(INDEX);
            }
            path if path.starts_with(b"/static/") => self.files.serve(request, response),
            path if path.starts_with(b"/kv/") => self.store.serve(request, response),
            _ => kv::error(response, ringhorn::StatusCode::NOT_FOUND, "there is nothing here"),
        }
    }
}

/// Sends back what comes, as it comes: no more is taken from the client than it takes itself.
async fn echo_pieces(mut responder: Responder) {
    let Some(mut body) = responder.body() else { return };
    while let Some(piece) = body.next().await {
        let Ok(piece) = piece else {
            // The client left, or sent something damaged: the answer is cut.
            return;
        };
        match responder.write_owned(piece) {
            Ok(Sent::Room) => {}
            Ok(Sent::Full) => responder.room().await,
            Err(_) => return,
        }
    }
    responder.finish();
}
