//! JSON in and out, and a counter that each worker has for itself:
//! `cargo run --release --example json`, then `curl -d '{"name":"Ada"}' http://127.0.0.1:8000/greet`

use std::process::ExitCode;

use ringhorn::{Request, Response, Server, Service, StatusCode};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
struct Guest {
    name: String,
}

#[derive(Serialize)]
struct Greeting {
    greeting: String,
    /// How many guests this worker has greeted.
    guests: u64,
}

/// One per worker, so a plain number counts.
#[derive(Default)]
struct Greeter {
    guests: u64,
}

impl Service for Greeter {
    fn call(&mut self, request: &Request<'_>, response: &mut Response<'_>) {
        let guest: Guest = match serde_json::from_slice(request.body()) {
            Ok(guest) => guest,
            Err(error) => {
                response.status(StatusCode::BAD_REQUEST).body(format!("{error}\n"));
                return;
            }
        };
        self.guests += 1;
        let greeting = Greeting { greeting: format!("Hello, {}!", guest.name), guests: self.guests };
        response.header("Content-Type", "application/json");
        if serde_json::to_writer(&mut *response, &greeting).is_err() {
            response.status(StatusCode::INTERNAL_SERVER_ERROR);
        }
    }
}

fn main() -> ExitCode {
    Server::builder().bind("127.0.0.1:8000").command_line().serve(|_worker| Greeter::default())
}
