//! The access log's view of an exchange.

use std::cell::RefCell;
use std::time::Duration;

use tracing::error;

use crate::app::{Exchange, Peer};
use crate::config::Settings;
use crate::http::Version;
use crate::limits::LOG_FLUSH_MS;
use crate::observe::{AccessFormat, AccessRecord, LogWriter};

/// The access log of one worker.
pub(super) struct AccessLog {
    format: AccessFormat,
    writer: LogWriter,
}

impl AccessLog {
    /// Opens the log that the settings ask for; `None` when they ask for none.
    pub(super) fn open(settings: &Settings) -> std::io::Result<Option<Self>> {
        if settings.python_log {
            // Python's logger writes it.
            return Ok(None);
        }
        let writer = LogWriter::open("access log", &settings.accesslog)?;
        Ok(writer.map(|writer| Self { format: settings.access_log_format.clone(), writer }))
    }

    /// Writes the line of an exchange that ended at `now_ns` of the monotonic clock. Called on the runner's thread.
    pub(super) fn record(&self, exchange: &Exchange, now_ns: u64) {
        thread_local! {
            static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let received = exchange.request.received_ns;
        let view = View { exchange, duration: Duration::from_nanos(now_ns.saturating_sub(received)) };
        LINE.with_borrow_mut(|line| {
            line.clear();
            self.format.format(&view, line);
            self.writer.write(line);
        });
    }

    pub(super) fn reopen(&self) {
        if let Err(error) = self.writer.reopen() {
            error!("cannot open the access log again: {error}");
        }
    }

    pub(super) fn flush(&self) {
        self.writer.flush(Duration::from_millis(LOG_FLUSH_MS));
    }
}

struct View<'a> {
    exchange: &'a Exchange,
    duration: Duration,
}

impl AccessRecord for View<'_> {
    fn remote_addr(&self) -> &[u8] {
        match self.exchange.request.link().peer() {
            Peer::Inet { host, .. } => host.as_bytes(),
            Peer::Unix => b"",
        }
    }

    fn method(&self) -> &[u8] {
        self.exchange.request.method()
    }

    fn target(&self) -> &[u8] {
        self.exchange.request.target()
    }

    fn path(&self) -> &[u8] {
        self.exchange.request.path()
    }

    fn query(&self) -> &[u8] {
        self.exchange.request.query()
    }

    fn protocol(&self) -> &[u8] {
        match self.exchange.request.version() {
            Version::Http11 => b"HTTP/1.1",
            Version::Http10 => b"HTTP/1.0",
        }
    }

    fn status(&self) -> u16 {
        self.exchange.reply.status_code()
    }

    fn body_bytes(&self) -> Option<u64> {
        Some(self.exchange.reply.body_bytes())
    }

    fn duration(&self) -> Duration {
        self.duration
    }

    fn request_header(&self, name: &[u8]) -> Option<&[u8]> {
        self.exchange
            .request
            .fields()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .last()
            .map(|(_, value)| value)
    }

    fn response_header(&self, name: &[u8]) -> Option<&[u8]> {
        self.exchange.reply.encoder().field(name)
    }
}
