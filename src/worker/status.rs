//! What the I/O thread answers by itself, whatever the runners do: whether the server lives (`health_path`),
//! whether it is ready for clients (`ready_path`), and the metrics.

use std::sync::Arc;

use crate::app::Request;
use crate::config::Settings;
use crate::http::Framing;
use crate::observe::prometheus;
use crate::sys::shared::{SharedPage, WorkerState};

/// Where the metrics are, on their own address.
const METRICS_PATH: &[u8] = b"/metrics";

/// An answer that needs no application.
pub(super) struct Answer {
    pub(super) status: &'static [u8],
    pub(super) content_type: &'static str,
    pub(super) body: Vec<u8>,
    /// The rest of the request was not read: the connection ends.
    pub(super) last: bool,
}

/// Which requests are answered here, and with what.
pub(super) struct Status {
    health_path: Option<Vec<u8>>,
    ready_path: Option<Vec<u8>>,
    application: String,
    shared: Arc<SharedPage>,
}

impl Status {
    /// `None` when the settings ask for nothing of it.
    pub(super) fn new(settings: &Settings, shared: &Arc<SharedPage>) -> Option<Self> {
        let path = |path: &Option<String>| path.as_ref().map(|path| path.clone().into_bytes());
        let Settings { health_path, ready_path, metrics_bind, .. } = settings;
        let wanted = health_path.is_some() || ready_path.is_some() || metrics_bind.is_some();
        wanted.then(|| Self {
            health_path: path(health_path),
            ready_path: path(ready_path),
            application: settings.app.clone(),
            shared: Arc::clone(shared),
        })
    }

    /// Whether a request with this path may be answered here.
    pub(super) fn concerns(&self, path: &[u8], observer: bool) -> bool {
        let is = |own: &Option<Vec<u8>>| own.as_deref() == Some(path);
        observer || is(&self.health_path) || is(&self.ready_path)
    }

    /// The answer to `request`; `None` when it is the application's. On the metrics address (`observer`)
    /// nothing is.
    pub(super) fn answer(&self, request: &Request, observer: bool) -> Option<Answer> {
        let plain = request.head().framing == Framing::None;
        let asks = plain && matches!(request.method(), b"GET" | b"HEAD");
        if !asks {
            return observer.then(|| Answer {
                last: !plain,
                ..text(b"405 Method Not Allowed", "Only GET and HEAD without a body are answered here.\n")
            });
        }
        let path = request.path();
        if self.health_path.as_deref() == Some(path) {
            // That this thread answers is what was asked.
            return Some(text(b"200 OK", "ok\n"));
        }
        if self.ready_path.as_deref() == Some(path) {
            return Some(if self.is_ready() {
                text(b"200 OK", "ready\n")
            } else {
                text(b"503 Service Unavailable", "not ready\n")
            });
        }
        if observer && path == METRICS_PATH {
            let body = prometheus::page(&self.shared, &self.application);
            return Some(Answer {
                status: b"200 OK",
                content_type: prometheus::CONTENT_TYPE,
                body,
                last: false,
            });
        }
        observer.then(|| text(b"404 Not Found", "The metrics are at /metrics.\n"))
    }

    /// Somebody serves, and will go on doing so.
    fn is_ready(&self) -> bool {
        let serves = || self.shared.used().any(|(record, _)| record.state() == WorkerState::Ready);
        !self.shared.server().is_stopping() && serves()
    }
}

fn text(status: &'static [u8], body: &str) -> Answer {
    Answer { status, content_type: "text/plain; charset=utf-8", body: body.into(), last: false }
}
