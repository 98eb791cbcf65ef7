//! ntex, one worker: `peer-ntex 127.0.0.1:8000`.

use ntex::web::{self, App, HttpResponse, HttpServer};

#[ntex::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8000".into());
    let server = HttpServer::new(|| {
        App::new()
            .service(web::resource("/plaintext").to(async || {
                HttpResponse::Ok().content_type("text/plain").body("Hello, World!")
            }))
            .service(web::resource("/json").to(async || {
                HttpResponse::Ok().content_type("application/json").body(native_peers::JSON)
            }))
    });
    server.workers(1).bind(address)?.run().await
}
