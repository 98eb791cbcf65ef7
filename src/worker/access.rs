//! The access log's view of an exchange.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use tracing::error;

use crate::app::{Exchange, Peer, native};
use crate::config::Settings;
use crate::error::{Exit, StartError};
use crate::http::{Encoder, percent_decode};
use crate::limits::LOG_FLUSH_MS;
use crate::observe::statsd::metrics;
use crate::observe::{AccessFormat, AccessRecord, LogWriter};
use crate::sys::clock;
use crate::sys::errno::describe;

/// The access log of one worker.
pub(super) struct AccessLog {
    format: AccessFormat,
    writer: LogWriter,
    /// The mount point from the environment variable `SCRIPT_NAME`, which is no part of `PATH_INFO`.
    mount: Vec<u8>,
}

impl AccessLog {
    /// Opens the log that the settings ask for; `None` when they ask for none.
    ///
    /// # Errors
    /// It cannot be opened: by another user than the master's, who has tried. It would fail again, so the start ends.
    pub(super) fn open(settings: &Settings) -> Result<Option<Self>, StartError> {
        if settings.python_log {
            // Python's logger writes it.
            return Ok(None);
        }
        let writer = LogWriter::open("access log", &settings.accesslog).map_err(|error| {
            let what = format!("cannot open the access log {}: {}", settings.accesslog, describe(&error));
            StartError::new(Exit::WorkerBoot, what).from(settings.source("accesslog"))
        })?;
        let mount = std::env::var_os("SCRIPT_NAME").unwrap_or_default().into_encoded_bytes();
        Ok(writer.map(|writer| Self { format: settings.access_log_format.clone(), writer, mount }))
    }

    /// Writes the line of an exchange that ended at `now_ns` of the monotonic clock.
    pub(super) fn record(&self, exchange: &Exchange, now_ns: u64) {
        let received = exchange.request.received_ns;
        let duration = Duration::from_nanos(now_ns.saturating_sub(received));
        self.write(&View { exchange, now_ns, duration, mount: &self.mount });
    }

    /// Writes the line of a request that was answered while a runner has it.
    pub(super) fn record_expired(&self, expired: &Expired<'_>) {
        // These are few: one more copy of the code that makes lines is worth less than a call.
        self.write::<dyn AccessRecord>(expired);
    }

    fn write<R: AccessRecord + ?Sized>(&self, view: &R) {
        // It is made where it waits to be written, and not copied there.
        self.writer.append(|lines| self.format.format(view, lines));
    }

    /// Writes the line of an answer that a native service gave on the spot. Called on the I/O thread.
    pub(super) fn record_inline(&self, request: &native::Request<'_>, encoder: &Encoder, received_ns: u64) {
        let now_ns = clock::monotonic_ns();
        let duration = Duration::from_nanos(now_ns.saturating_sub(received_ns));
        self.write(&InlineView { request, encoder, now_ns, duration });
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

/// Who is told of each exchange when it is done.
#[derive(Default)]
pub(super) struct Recorder {
    access: Option<Arc<AccessLog>>,
    /// Python's logger writes the access log, through a runner.
    by_runner: bool,
}

impl Recorder {
    pub(super) fn new(access: Option<Arc<AccessLog>>, by_runner: bool) -> Self {
        Self { access, by_runner }
    }

    /// Tells those that need no runner of an exchange that ended at `now_ns` of the monotonic clock. For any thread;
    /// never waits.
    pub(super) fn record(&self, exchange: &Exchange, now_ns: u64) {
        if exchange.reply.is_expired() {
            // The I/O thread did so when it answered.
            return;
        }
        if let Some(access) = &self.access {
            access.record(exchange, now_ns);
        }
        if let Some(statsd) = metrics() {
            let taken = now_ns.saturating_sub(exchange.request.received_ns);
            statsd.request(exchange.reply.status_code(), Duration::from_nanos(taken));
        }
    }

    /// Tells of a request that the I/O thread has answered while a runner has it.
    pub(super) fn record_expired(&self, expired: &Expired<'_>) {
        if let Some(access) = &self.access {
            access.record_expired(expired);
        }
        if let Some(statsd) = metrics() {
            statsd.request(expired.status, expired.duration);
        }
    }

    /// Whether a runner has to tell somebody, too.
    pub(super) fn needs_runner(&self) -> bool {
        self.by_runner
    }
}

/// Looks for several headers in one go over all fields. Of those that are repeated the last one counts.
fn find<'a>(
    fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    names: &[&[u8]],
    values: &mut [Option<&'a [u8]>],
) {
    for (field, text) in fields {
        for (name, value) in names.iter().zip(values.iter_mut()) {
            if field.eq_ignore_ascii_case(name) {
                *value = Some(text);
            }
        }
    }
}

fn decoded(path: &[u8]) -> Cow<'_, [u8]> {
    if path.contains(&b'%') { Cow::Owned(percent_decode(path)) } else { Cow::Borrowed(path) }
}

struct View<'a> {
    exchange: &'a Exchange,
    now_ns: u64,
    mount: &'a [u8],
    duration: Duration,
}

impl AccessRecord for View<'_> {
    fn remote_addr(&self) -> &[u8] {
        self.exchange.request.link().peer().host().as_bytes()
    }

    fn method(&self) -> &[u8] {
        self.exchange.request.method()
    }

    fn target(&self) -> &[u8] {
        self.exchange.request.target()
    }

    fn path(&self) -> Cow<'_, [u8]> {
        let request = &self.exchange.request;
        let mount = request.head().script_name.map_or(self.mount, |name| name.of(&request.bytes));
        decoded(request.path().strip_prefix(mount).unwrap_or(request.path()))
    }

    fn query(&self) -> &[u8] {
        self.exchange.request.query()
    }

    fn protocol(&self) -> &[u8] {
        self.exchange.request.version().name().as_bytes()
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

    fn ended_ns(&self) -> u64 {
        self.now_ns
    }

    fn parts(&self) -> Option<(Duration, Duration)> {
        let request = &self.exchange.request;
        // A request that was refused was taken by nobody.
        (request.taken_ns > 0).then(|| {
            let queue = request.taken_ns.saturating_sub(request.received_ns);
            let application = self.now_ns.saturating_sub(request.taken_ns);
            (Duration::from_nanos(queue), Duration::from_nanos(application))
        })
    }

    fn request_header(&self, name: &[u8]) -> Option<&[u8]> {
        self.exchange
            .request
            .fields()
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .last()
            .map(|(_, value)| value)
    }

    fn request_headers<'a>(&'a self, names: &[&[u8]], values: &mut [Option<&'a [u8]>]) {
        find(self.exchange.request.fields(), names, values);
    }

    fn response_header(&self, name: &[u8]) -> Option<&[u8]> {
        self.exchange.reply.encoder().field(name)
    }
}

struct InlineView<'a> {
    request: &'a native::Request<'a>,
    encoder: &'a Encoder,
    now_ns: u64,
    duration: Duration,
}

impl AccessRecord for InlineView<'_> {
    fn remote_addr(&self) -> &[u8] {
        self.request.peer().host().as_bytes()
    }

    fn method(&self) -> &[u8] {
        self.request.method_bytes()
    }

    fn target(&self) -> &[u8] {
        self.request.target()
    }

    fn path(&self) -> Cow<'_, [u8]> {
        decoded(self.request.path())
    }

    fn query(&self) -> &[u8] {
        self.request.query()
    }

    fn protocol(&self) -> &[u8] {
        self.request.head.version.name().as_bytes()
    }

    fn status(&self) -> u16 {
        self.encoder.status_code()
    }

    fn body_bytes(&self) -> Option<u64> {
        Some(self.encoder.body_bytes())
    }

    fn duration(&self) -> Duration {
        self.duration
    }

    fn ended_ns(&self) -> u64 {
        self.now_ns
    }

    fn request_header(&self, name: &[u8]) -> Option<&[u8]> {
        let fields = self.request.headers().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        fields.last().map(|(_, value)| value)
    }

    fn request_headers<'b>(&'b self, names: &[&[u8]], values: &mut [Option<&'b [u8]>]) {
        find(self.request.headers(), names, values);
    }

    fn response_header(&self, name: &[u8]) -> Option<&[u8]> {
        self.encoder.field(name)
    }
}

/// A request that a runner has, as far as the I/O thread knows it: by the copy of its head.
pub(super) struct Expired<'a> {
    pub(super) peer: &'a Peer,
    pub(super) head: &'a [u8],
    pub(super) status: u16,
    pub(super) body_bytes: u64,
    pub(super) duration: Duration,
}

impl Expired<'_> {
    /// A word of the request line: method, target or version.
    fn word(&self, index: usize) -> &[u8] {
        let line = self.head.trim_ascii_start().split(|byte| matches!(byte, b'\r' | b'\n')).next();
        line.and_then(|line| line.split(|byte| *byte == b' ').nth(index)).unwrap_or_default()
    }
}

impl AccessRecord for Expired<'_> {
    fn remote_addr(&self) -> &[u8] {
        self.peer.host().as_bytes()
    }

    fn method(&self) -> &[u8] {
        self.word(0)
    }

    fn target(&self) -> &[u8] {
        self.word(1)
    }

    fn path(&self) -> Cow<'_, [u8]> {
        decoded(self.target().split(|byte| *byte == b'?').next().unwrap_or_default())
    }

    fn query(&self) -> &[u8] {
        self.target().splitn(2, |byte| *byte == b'?').nth(1).unwrap_or_default()
    }

    fn protocol(&self) -> &[u8] {
        self.word(2)
    }

    fn status(&self) -> u16 {
        self.status
    }

    fn body_bytes(&self) -> Option<u64> {
        Some(self.body_bytes)
    }

    fn duration(&self) -> Duration {
        self.duration
    }

    fn request_header(&self, name: &[u8]) -> Option<&[u8]> {
        let fields = self.head.split(|byte| *byte == b'\n').skip(1).filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        });
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).last().map(|(_, value)| value)
    }

    fn response_header(&self, _name: &[u8]) -> Option<&[u8]> {
        None
    }
}
