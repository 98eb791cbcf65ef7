//! WSGI (PEP 3333): an environ from a request, a reply from what the application does.
//!
//! This is the hot path. What it saves, and why: the environ is a copy of a template whose table has room
//! for a usual request, so nothing is rehashed; keys are interned and ready-made; `start_response` is one
//! object that is used again as long as no application kept it; head and body of a short answer leave in
//! one `send(2)`; the interpreter lock is held from one request to the next.

#[cfg(feature = "simulation")]
pub(super) mod environs;

use std::fmt::Display;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pyo3::exceptions::{PyAssertionError, PyRuntimeError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple, PyType};
use tracing::{debug, error, warn};

use super::hooks::{Changes, RequestHooks};
use super::input::Input;
use super::log::request_failed;
use super::names::Names;
use super::object::{call2, detached, intern_latin1, latin1, latin1_bytes, references, set_default};
use super::signals;
use super::stacks::Stacks;
use crate::app::{
    Application, Body, Exchange, Gone, Held, Listener, Peer, Reply, ReplyError, Request, Runner, Scheme, Sent,
};
use crate::http::{EARLY_HINTS, Version, hint, percent_decode};
use crate::sync::lock;
use crate::sys::{atfork, process};

/// An application behind `wsgi.application(environ, start_response)`.
pub(super) struct Wsgi {
    pub(super) application: Py<PyAny>,
    /// Whether other threads of this process run requests too.
    pub(super) multithread: bool,
    /// Whether the main thread runs none of them, and waits for signals.
    pub(super) attended: bool,
    /// Whether other processes serve the same application.
    pub(super) multiprocess: bool,
    /// The mount point from the environment variable `SCRIPT_NAME`.
    pub(super) script_name: Vec<u8>,
    /// `wsgi.errors`.
    pub(super) errors: Py<PyAny>,
    /// `pre_request` and `post_request`, when one of them is set.
    pub(super) hooks: Option<RequestHooks>,
    pub(super) stacks: Stacks,
    /// Whether files go to clients by sendfile(2).
    pub(super) sendfile: bool,
}

impl Wsgi {
    /// The part of the environ that is the same for every request on a listener.
    fn template<'py>(&self, py: Python<'py>, listener: &Listener) -> PyResult<Bound<'py, PyDict>> {
        let environ = PyDict::new(py);
        environ.set_item(intern!(py, "wsgi.version"), (1, 0))?;
        environ.set_item(intern!(py, "wsgi.url_scheme"), intern!(py, "http"))?;
        environ.set_item(intern!(py, "wsgi.input"), py.None())?;
        environ.set_item(intern!(py, "wsgi.errors"), &self.errors)?;
        environ.set_item(intern!(py, "wsgi.multithread"), self.multithread)?;
        environ.set_item(intern!(py, "wsgi.multiprocess"), self.multiprocess)?;
        environ.set_item(intern!(py, "wsgi.run_once"), false)?;
        environ.set_item(intern!(py, "wsgi.file_wrapper"), py.get_type::<FileWrapper>())?;
        environ.set_item(intern!(py, "wsgi.input_terminated"), true)?;
        environ.set_item(intern!(py, "wsgi.early_hints"), py.None())?;
        environ.set_item(intern!(py, "SERVER_SOFTWARE"), concat!("ringhorn/", env!("CARGO_PKG_VERSION")))?;
        environ.set_item(intern!(py, "SERVER_NAME"), &listener.name)?;
        environ.set_item(intern!(py, "SERVER_PORT"), &listener.port)?;
        environ.set_item(intern!(py, "SCRIPT_NAME"), latin1(py, &self.script_name))?;
        // Places that every request fills: the copy's table has them, in this order.
        for key in [
            intern!(py, "REQUEST_METHOD"),
            intern!(py, "PATH_INFO"),
            intern!(py, "QUERY_STRING"),
            intern!(py, "RAW_URI"),
            intern!(py, "SERVER_PROTOCOL"),
            intern!(py, "REMOTE_ADDR"),
            intern!(py, "REMOTE_PORT"),
        ] {
            environ.set_item(key, intern!(py, ""))?;
        }
        // A table of 32 places is full with 21 keys; the fields of the request would make it grow, key by key anew.
        // A few keys more make it one of 64 places, which takes 42, and a dict keeps its table when keys are
        // deleted. Only a few: the copy takes over the table as it is, instead of inserting key by key, as long
        // as no more than a third of its entries are deleted ones.
        let filler: Vec<String> = (0..4).map(|n| format!("ringhorn.{n}")).collect();
        for key in &filler {
            environ.set_item(key, py.None())?;
        }
        for key in &filler {
            environ.del_item(key)?;
        }
        Ok(environ)
    }
}

impl Application for Wsgi {
    fn with_runner(&self, body: &mut dyn FnMut(&mut dyn Runner)) {
        Python::attach(|py| match WsgiRunner::new(py, self) {
            Ok(mut runner) => body(&mut runner),
            Err(error) => error!("cannot start a runner: {error}"),
        });
    }

    fn stacks(&self, thread: Option<u64>) -> Option<String> {
        self.stacks.show(thread)
    }
}

/// The application's bytes, kept alive until the I/O thread has sent them.
struct HeldBytes {
    data: *const u8,
    length: usize,
    object: Option<Py<PyBytes>>,
}

// SAFETY: the data of a bytes object never changes, and `object` keeps it alive; the reference itself is
// only handed on to `GRAVES`, and dropped by a thread that is attached.
unsafe impl Send for HeldBytes {}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `data` and `length` are those of the bytes object that `object` keeps alive and unchanged.
        unsafe { std::slice::from_raw_parts(self.data, self.length) }
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            lock(&GRAVES).push(object);
            DUG.store(true, Ordering::Relaxed);
        }
    }
}

/// Objects whose last bytes the I/O thread has sent. A runner lets go of them when it is attached.
static GRAVES: Mutex<Vec<Py<PyBytes>>> = Mutex::new(Vec::new());
/// Whether there are any, so that a request need not take the lock to see none.
static DUG: AtomicBool = AtomicBool::new(false);

fn hold(bytes: &Bound<'_, PyBytes>) -> Held {
    let slice = bytes.as_bytes();
    Box::new(HeldBytes { data: slice.as_ptr(), length: slice.len(), object: Some(bytes.clone().unbind()) })
}

/// `start_response` and `write` of the request that a runner has in hand.
#[pyclass(frozen, module = "ringhorn")]
struct Call {
    /// The reply; null while no request is in hand or the runner uses the reply itself.
    reply: AtomicPtr<Reply>,
}

impl Call {
    /// Runs `act` on the reply in hand.
    fn with<R>(&self, act: impl FnOnce(&mut Reply) -> PyResult<R>) -> PyResult<R> {
        self.with_any(act).unwrap_or_else(|| {
            Err(PyRuntimeError::new_err(
                "start_response or write was called outside of its request (or from two threads at once)",
            ))
        })
    }

    /// Runs `act` on the reply in hand, if there is one.
    fn with_any<R>(&self, act: impl FnOnce(&mut Reply) -> PyResult<R>) -> Option<PyResult<R>> {
        // Taken out for the time of use: a second thread of the application finds nothing, instead of the same
        // reply twice.
        let reply = self.reply.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if reply.is_null() {
            return None;
        }
        if atfork::is_child() {
            return Some(Err(PyRuntimeError::new_err(
                "this process was forked by the application: it has no client",
            )));
        }
        // Put back also when `act` panics: the runner waits for it.
        let _lent = Lent { place: &self.reply, reply };
        // SAFETY: the runner put this pointer here in `lend`, and neither touches the reply nor returns before
        // `take_back` has it again; whoever swaps it out is the only one to have it.
        Some(act(unsafe { &mut *reply }))
    }

    /// Lets the application use the reply, until [`Call::take_back`].
    fn lend(&self, reply: &mut Reply) {
        self.reply.store(reply, Ordering::Release);
    }

    /// Ends the lending. A second thread of the application may still be inside `write`, waiting for the client:
    /// the reply is not the runner's before that has returned.
    fn take_back(&self, py: Python<'_>) {
        while self.reply.swap(std::ptr::null_mut(), Ordering::AcqRel).is_null() {
            detached(py, &mut || thread::sleep(TAKE_BACK_AGAIN));
        }
    }
}

/// How often a runner asks for its reply while another thread of the application has it. PEP 3333 has no such
/// threads, so nothing better than asking is worth its price.
const TAKE_BACK_AGAIN: Duration = Duration::from_millis(1);

/// A reply in use; dropping this puts it back.
struct Lent<'a> {
    place: &'a AtomicPtr<Reply>,
    reply: *mut Reply,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.place.store(self.reply, Ordering::Release);
    }
}

#[pymethods]
impl Call {
    /// PEP 3333 `start_response(status, headers, exc_info=None)`.
    #[pyo3(signature = (status, headers, exc_info = None, /))]
    fn start_response(
        slf: &Bound<'_, Self>,
        status: &Bound<'_, PyAny>,
        headers: &Bound<'_, PyAny>,
        exc_info: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        slf.get().with(|reply| begin(reply, status, headers, exc_info))?;
        Ok(slf.getattr(intern!(slf.py(), "write"))?.unbind())
    }

    /// PEP 3333 `write(body_data)`.
    #[pyo3(signature = (data, /))]
    fn write(&self, py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<()> {
        self.with(|reply| {
            let data = data.cast::<PyBytes>().map_err(|_| not_bytes(data))?;
            send_piece(py, reply, data, None, false)
        })
    }

    /// `wsgi.early_hints(headers)`: sends a 103 with these (name, value) pairs at once (RFC 8297). As gunicorn's it
    /// may be called several times, and does nothing for a client of HTTP/1.0 or once the answer has begun.
    #[pyo3(signature = (headers, /))]
    fn early_hints(&self, py: Python<'_>, headers: &Bound<'_, PyAny>) -> PyResult<()> {
        if !self.with_any(|reply| Ok(reply.takes_interim())).transpose()?.unwrap_or(false) {
            return Ok(());
        }
        // Before the reply is taken again: an iterable may run any Python.
        let mut bytes = EARLY_HINTS.to_vec();
        for pair in headers.try_iter()? {
            let (name, value) = listed_pair(&pair?, "early hints")?;
            hint(text_or_bytes(&name)?, text_or_bytes(&value)?, &mut bytes)
                .map_err(|error| PyValueError::new_err(error.to_string()))?;
        }
        bytes.extend_from_slice(b"\r\n");
        let sent = self.with_any(|reply| {
            if reply.interim(&bytes) == Sent::Full {
                detached(py, &mut || reply.wait());
            }
            Ok(())
        });
        sent.unwrap_or(Ok(()))
    }
}

/// The bytes of a name or value of an early hint, which gunicorn takes as text and as bytes.
fn text_or_bytes<'a>(object: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    if let Ok(bytes) = object.cast::<PyBytes>() {
        return Ok(bytes.as_bytes());
    }
    let text = object.cast::<PyString>().map_err(|_| {
        PyTypeError::new_err(format!("an early hint must be str or bytes, not {}", type_name(object)))
    })?;
    latin1_bytes(text).ok_or_else(|| invalid("an early hint is not latin-1 text"))
}

fn begin(
    reply: &mut Reply,
    status: &Bound<'_, PyAny>,
    headers: &Bound<'_, PyAny>,
    exc_info: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    match exc_info.filter(|info| !info.is_none()) {
        Some(info) if reply.head_sent() => {
            // Too late for another head: the application's own error goes on up.
            let raised = info.get_item(1)?;
            return Err(PyErr::from_value(raised));
        }
        None if reply.is_started() => {
            return Err(PyAssertionError::new_err(
                "start_response was called a second time without exc_info",
            ));
        }
        _ => {}
    }
    let status = status
        .cast::<PyString>()
        .map_err(|_| PyTypeError::new_err(format!("the status must be a str, not {}", type_name(status))))?;
    let line = latin1_bytes(status).ok_or_else(|| invalid("the status is not latin-1 text"))?;
    reply.start(line).map_err(|error| refused(&error))?;
    // An application that swallows the error must not have its answer sent without what it asked for.
    fields(reply, headers).inspect_err(|_| reply.unstart())
}

fn fields(reply: &mut Reply, headers: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Ok(list) = headers.cast_exact::<PyList>() {
        for pair in list.iter() {
            header(reply, &pair)?;
        }
    } else {
        for pair in headers.try_iter()? {
            header(reply, &pair?)?;
        }
    }
    Ok(())
}

fn header(reply: &mut Reply, pair: &Bound<'_, PyAny>) -> PyResult<()> {
    if let Ok(pair) = pair.cast::<PyTuple>()
        && pair.len() == 2
    {
        let (name, value) = (pair.get_borrowed_item(0)?, pair.get_borrowed_item(1)?);
        return field(reply, &name, &value);
    }
    let (name, value) = listed_pair(pair, "response headers")?;
    field(reply, &name, &value)
}

/// The two of a pair that may be a list, which PEP 3333 does not have and gunicorn unpacks all the same.
fn listed_pair<'py>(
    pair: &Bound<'py, PyAny>,
    what: &str,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    if let Ok(pair) = pair.cast::<PyTuple>()
        && pair.len() == 2
    {
        return Ok((pair.get_item(0)?, pair.get_item(1)?));
    }
    match pair.cast::<PyList>() {
        Ok(pair) if pair.len() == 2 => Ok((pair.get_item(0)?, pair.get_item(1)?)),
        Err(_) if !pair.is_instance_of::<PyTuple>() => {
            Err(PyTypeError::new_err(format!("{what} must be (name, value) tuples, not {}", type_name(pair))))
        }
        _ => Err(PyValueError::new_err(format!("{what} must be (name, value) tuples"))),
    }
}

fn field(reply: &mut Reply, name: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
    let name = name.cast::<PyString>().map_err(|_| {
        PyTypeError::new_err(format!("a response header's name must be a str, not {}", type_name(name)))
    })?;
    let value = value.cast::<PyString>().map_err(|_| {
        PyTypeError::new_err(format!(
            "the value of response header {} must be a str, not {}",
            shown(name),
            type_name(value)
        ))
    })?;
    // By their name, and not by their value: that may be a secret, and the log is not the place for it.
    let refused = |why: &dyn Display| {
        PyValueError::new_err(format!("response header {} cannot be sent: {why}", shown(name)))
    };
    let (Some(plain), Some(value)) = (latin1_bytes(name), latin1_bytes(value)) else {
        return Err(refused(&"it is not latin-1 text"));
    };
    reply.header(plain, value).map_err(|error| refused(&error))
}

/// Characters of a header's name that an error shows.
const SHOWN_NAME_MAX: usize = 64;

/// A header's name for an error: whatever the application made of it, one line of bounded length.
fn shown(name: &Bound<'_, PyString>) -> String {
    let name = name.to_string_lossy();
    let mut shown: String = name.chars().take(SHOWN_NAME_MAX).flat_map(char::escape_debug).collect();
    if name.chars().nth(SHOWN_NAME_MAX).is_some() {
        shown.push_str("...");
    }
    format!("'{shown}'")
}

fn type_name(object: &Bound<'_, PyAny>) -> String {
    object.get_type().name().map_or_else(|_| "?".into(), |name| name.to_string())
}

fn not_bytes(object: &Bound<'_, PyAny>) -> PyErr {
    PyTypeError::new_err(format!("the response body must be bytes, not {}", type_name(object)))
}

fn invalid(what: &'static str) -> PyErr {
    PyValueError::new_err(what)
}

fn refused(error: &ReplyError) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// Sends one piece, and waits, with the interpreter released, while the client reads slower.
fn send_piece(
    py: Python<'_>,
    reply: &mut Reply,
    piece: &Bound<'_, PyBytes>,
    total: Option<u64>,
    more: bool,
) -> PyResult<()> {
    let bytes = piece.as_bytes();
    if bytes.is_empty() {
        // PEP 3333: an empty piece does not send the head.
        return Ok(());
    }
    if !reply.is_started() {
        return Err(never_started());
    }
    // Not only behind an answer: one that is made for hours would keep every piece that the client was too slow for.
    bury(py);
    match reply.send(bytes, total, more, || hold(piece)) {
        Ok(Sent::Full) => {
            detached(py, &mut || reply.wait());
            Ok(())
        }
        Ok(Sent::Room) => Ok(()),
        Err(Gone) => Err(ClientGone::new_err("the client closed the connection")),
    }
}

pyo3::create_exception!(
    ringhorn,
    ClientGone,
    pyo3::exceptions::PyConnectionError,
    "The client left before the answer was complete."
);

fn never_started() -> PyErr {
    PyAssertionError::new_err("the application did not call start_response")
}

/// `wsgi.file_wrapper`: an iterable over a file, which the server sends with sendfile(2) when it can.
#[pyclass(module = "ringhorn", name = "FileWrapper")]
pub(super) struct FileWrapper {
    #[pyo3(get)]
    filelike: Py<PyAny>,
    #[pyo3(get)]
    blksize: usize,
}

#[pymethods]
impl FileWrapper {
    #[new]
    #[pyo3(signature = (filelike, blksize = 8192))]
    fn new(filelike: Py<PyAny>, blksize: usize) -> Self {
        Self { filelike, blksize: blksize.max(1) }
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let piece = self.filelike.bind(py).call_method1(intern!(py, "read"), (self.blksize,))?;
        Ok(if piece.is_truthy()? { Some(piece) } else { None })
    }

    /// Closes the file, when it can be closed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        match self.filelike.bind(py).getattr_opt(intern!(py, "close"))? {
            Some(close) => close.call0().map(drop),
            None => Ok(()),
        }
    }
}

/// Whether this is what `open(..., "rb")` gives: Python's file on a descriptor, bare or with a buffer around it.
fn is_plain_file(filelike: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = filelike.py();
    let is = |object: &Bound<'_, PyAny>, names: &[&str]| -> PyResult<bool> {
        let kind = object.get_type();
        Ok(kind.module()? == "_io" && names.iter().any(|name| kind.name().is_ok_and(|kind| kind == *name)))
    };
    if is(filelike, &["FileIO"])? {
        return Ok(true);
    }
    // The buffer may be around anything.
    Ok(is(filelike, &["BufferedReader", "BufferedRandom"])?
        && is(&filelike.getattr(intern!(py, "raw"))?, &["FileIO"])?)
}

/// The regular file behind a file-like object: a descriptor of its own, the offset to start at, and the
/// bytes from there to the end. `None` when it must be read through the object.
fn regular_file(filelike: &Bound<'_, PyAny>) -> Option<(OwnedFd, u64, u64)> {
    let py = filelike.py();
    // Only of files whose bytes are those of the descriptor: gzip's, for one, has the descriptor of what it unpacks.
    if !is_plain_file(filelike).unwrap_or(false) {
        return None;
    }
    let fileno = filelike.getattr_opt(intern!(py, "fileno")).ok()??;
    // A text or buffered object may have read ahead: its own position is the right one.
    let offset: u64 = filelike.call_method0(intern!(py, "tell")).ok()?.extract().ok()?;
    // Last of all: whatever Python runs after it may close the descriptor, and its number become another file's.
    let fd: RawFd = fileno.call0().ok()?.extract().ok()?;
    if fd < 0 {
        return None;
    }
    // SAFETY: the object had the descriptor open when it returned the number, and no code of Python's has run
    // since; the copy is made at once.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let file = borrowed.try_clone_to_owned().ok()?;
    let stat = rustix::fs::fstat(&file).ok()?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return None;
    }
    let size = u64::try_from(stat.st_size).ok()?;
    Some((file, offset, size.saturating_sub(offset)))
}

/// The callables of one request: taken again for the next when nobody kept them.
struct Callables<'py> {
    call: Bound<'py, Call>,
    start_response: Bound<'py, PyAny>,
    /// In the templates, so that it costs a request nothing.
    early_hints: Bound<'py, PyAny>,
}

impl<'py> Callables<'py> {
    fn new(py: Python<'py>) -> PyResult<Self> {
        let call = Bound::new(py, Call { reply: AtomicPtr::new(std::ptr::null_mut()) })?;
        let start_response = call.getattr(intern!(py, "start_response"))?;
        let early_hints = call.getattr(intern!(py, "early_hints"))?;
        Ok(Self { call, start_response, early_hints })
    }

    /// Whether the application let go of everything: the bound methods are ours and those of so many templates
    /// alone, and the object is ours and the methods'. A `write` that was kept holds the object, an environ that
    /// was kept a method.
    fn is_unshared(&self, templates: usize) -> bool {
        references(&self.start_response) == 1
            && references(&self.early_hints).unsigned_abs() == 1 + templates
            && references(self.call.as_any()) == 3
    }
}

/// Requests that this process has begun to answer. Only threads that are attached write it.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

/// Requests that this process has begun to answer.
pub(super) fn requests() -> u64 {
    REQUESTS.load(Ordering::Relaxed)
}

/// Runs WSGI requests on one thread.
struct WsgiRunner<'a, 'py> {
    py: Python<'py>,
    wsgi: &'a Wsgi,
    application: Bound<'py, PyAny>,
    templates: Vec<(*const Listener, Bound<'py, PyDict>)>,
    names: Names,
    methods: Methods<'py>,
    callables: Callables<'py>,
    no_input: Bound<'py, PyAny>,
    file_wrapper: Bound<'py, PyType>,
    /// The address of the last client: behind a proxy it is always the same.
    remote: (Box<str>, Bound<'py, PyString>),
    http10: Bound<'py, PyString>,
    http11: Bound<'py, PyString>,
    /// The environ of the request in hand, for `post_request`.
    environ: Option<Bound<'py, PyDict>>,
    /// What `pre_request` changed about the request in hand.
    changes: Option<Changes<'py>>,
}

/// The usual methods, ready-made.
struct Methods<'py>([(&'static [u8], Bound<'py, PyString>); 7]);

impl<'py> Methods<'py> {
    fn new(py: Python<'py>) -> Self {
        Self(
            [&b"GET"[..], b"POST", b"HEAD", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"]
                .map(|method| (method, intern_latin1(py, method))),
        )
    }

    fn get(&self, py: Python<'py>, method: &[u8]) -> Bound<'py, PyString> {
        self.0
            .iter()
            .find(|(name, _)| *name == method)
            .map_or_else(|| latin1(py, method), |(_, text)| text.clone())
    }
}

impl<'a, 'py> WsgiRunner<'a, 'py> {
    fn new(py: Python<'py>, wsgi: &'a Wsgi) -> PyResult<Self> {
        Ok(Self {
            py,
            wsgi,
            application: wsgi.application.bind(py).clone(),
            templates: Vec::new(),
            names: Names::new(),
            methods: Methods::new(py),
            callables: Callables::new(py)?,
            no_input: Bound::new(py, Input::new(Body::Empty))?.into_any(),
            file_wrapper: py.get_type::<FileWrapper>(),
            remote: ("".into(), latin1(py, b"")),
            http10: intern_latin1(py, b"HTTP/1.0"),
            http11: intern_latin1(py, b"HTTP/1.1"),
            environ: None,
            changes: None,
        })
    }

    fn template(&mut self, listener: &Listener) -> PyResult<Bound<'py, PyDict>> {
        // Listeners live as long as the worker, so their address names them.
        let at = std::ptr::from_ref(listener);
        if let Some((_, template)) = self.templates.iter().find(|(of, _)| std::ptr::eq(*of, at)) {
            return Ok(template.clone());
        }
        let template = self.wsgi.template(self.py, listener)?;
        template.set_item(intern!(self.py, "wsgi.input"), &self.no_input)?;
        template.set_item(intern!(self.py, "wsgi.early_hints"), &self.callables.early_hints)?;
        self.templates.push((at, template.clone()));
        Ok(template)
    }

    /// The environ of a request. `length` is that of a chunked body which was read whole.
    fn environ(
        &mut self,
        request: &Request,
        input: &Bound<'py, PyAny>,
        length: Option<usize>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let py = self.py;
        let link = request.link();
        let environ = self.template(link.listener())?.copy()?;
        if !input.is(&self.no_input) {
            environ.set_item(intern!(py, "wsgi.input"), input)?;
        }
        environ.set_item(intern!(py, "REQUEST_METHOD"), self.methods.get(py, request.method()))?;
        let target = latin1(py, request.target());
        let path = request.path();
        let mount = match request.head().script_name {
            Some(name) => name.of(&request.bytes),
            None => &self.wsgi.script_name,
        };
        if !mount.is_empty() && !path.starts_with(mount) {
            return Err(invalid("the path is not below SCRIPT_NAME"));
        }
        if mount.is_empty() && path == request.target() && !path.contains(&b'%') {
            environ.set_item(intern!(py, "PATH_INFO"), &target)?;
        } else {
            // The mount point is as the client sent it, and is not decoded (as in gunicorn).
            environ.set_item(intern!(py, "PATH_INFO"), latin1(py, &percent_decode(&path[mount.len()..])))?;
            if !mount.is_empty() {
                environ.set_item(intern!(py, "SCRIPT_NAME"), latin1(py, mount))?;
            }
        }
        if !request.query().is_empty() {
            environ.set_item(intern!(py, "QUERY_STRING"), latin1(py, request.query()))?;
        }
        environ.set_item(intern!(py, "RAW_URI"), target)?;
        let protocol = if request.version() == Version::Http11 { &self.http11 } else { &self.http10 };
        environ.set_item(intern!(py, "SERVER_PROTOCOL"), protocol)?;
        match link.peer() {
            Peer::Inet { host, port, .. } => {
                if self.remote.0 != *host {
                    self.remote = (host.clone(), latin1(py, host.as_bytes()));
                }
                environ.set_item(intern!(py, "REMOTE_ADDR"), &self.remote.1)?;
                environ.set_item(intern!(py, "REMOTE_PORT"), latin1(py, port.as_bytes()))?;
            }
            // gunicorn gives no port for a unix socket's peer.
            Peer::Unix => environ.del_item(intern!(py, "REMOTE_PORT"))?,
        }
        if let Some(destination) = link.proxied_to() {
            proxy_variables(&environ, destination)?;
        }
        if request.head().scheme_override == Some(Scheme::Https) {
            environ.set_item(intern!(py, "wsgi.url_scheme"), intern!(py, "https"))?;
        }
        for (name, value) in request.fields() {
            let key = self.names.key(py, name);
            let value = latin1(py, value);
            // Told by the count: equal values of one character are the same object.
            let before = environ.len();
            let present = set_default(&environ, &key, &value)?;
            if environ.len() == before {
                join_values(&environ, &key, &present, &value)?;
            }
        }
        if link.listener().unix.is_some() {
            server_from_host(&environ, request)?;
        }
        // Without a length Django and others take a chunked body for none.
        if let Some(length) = length {
            environ.set_item(intern!(py, "CONTENT_LENGTH"), length.to_string())?;
        }
        Ok(environ)
    }

    /// Calls the application and sends its answer. The error is what the application raised, or what it did
    /// wrong.
    fn answer(
        &mut self,
        exchange: &mut Exchange,
        input: &Bound<'py, PyAny>,
        length: Option<usize>,
    ) -> PyResult<()> {
        let environ = self.environ(&exchange.request, input, length)?;
        REQUESTS.store(REQUESTS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if self.wsgi.hooks.is_some() {
            if let Some(changes) = self.changes.take() {
                changes.apply(&exchange.request, &environ)?;
            }
            self.environ = Some(environ.clone());
        }
        let call = self.callables.call.get();
        call.lend(&mut exchange.reply);
        let answered =
            call2(&self.application, environ.as_any(), &self.callables.start_response).and_then(|iterable| {
                let sent = self.send(&iterable);
                // close() is called once whatever happened, and what it raises does not hide an earlier error.
                if let Err(error) = close(&iterable) {
                    error!("Error in close() of a response\n{}", traceback(self.py, &error));
                    signals::raised_in_request(self.py, &error);
                }
                sent
            });
        if atfork::is_child() {
            // The application forked, and its child came back. The connection, the I/O thread and the other runners are
            // the parent's; the child's descriptors may be anybody's by now.
            error!(
                "the application forked and the child returned from its request; it ends here (use os._exit)"
            );
            process::exit_now(1);
        }
        // From here on the reply is the runner's alone again.
        call.take_back(self.py);
        answered
    }

    fn send(&self, iterable: &Bound<'py, PyAny>) -> PyResult<()> {
        let py = self.py;
        let call = self.callables.call.get();
        if let Ok(list) = iterable.cast_exact::<PyList>() {
            if list.len() == 1
                && let Ok(item) = list.get_item(0)
            {
                return call.with(|reply| send_whole(py, reply, &item));
            }
            let pieces: Vec<Bound<'_, PyAny>> = list.iter().collect();
            return call.with(|reply| send_all(py, reply, &pieces));
        }
        if let Ok(tuple) = iterable.cast_exact::<PyTuple>() {
            let pieces: Vec<Bound<'_, PyAny>> = tuple.iter().collect();
            return call.with(|reply| send_all(py, reply, &pieces));
        }
        if self.wsgi.sendfile
            && iterable.is_exact_instance(&self.file_wrapper)
            && let Ok(wrapper) = iterable.cast::<FileWrapper>()
            && let Some((file, offset, count)) = regular_file(wrapper.borrow().filelike.bind(py))
            && count > 0
        {
            return call.with(|reply| {
                if !reply.is_started() {
                    return Err(never_started());
                }
                reply
                    .send_file(file, offset, count)
                    .map(drop)
                    .map_err(|Gone| ClientGone::new_err("the client closed the connection"))
            });
        }
        if iterable.is_none() {
            return Err(PyTypeError::new_err(
                "the application returned None in place of an iterable of bytes",
            ));
        }
        for piece in iterable.try_iter()? {
            let piece = piece?;
            let piece = piece.cast::<PyBytes>().map_err(|_| not_bytes(&piece))?;
            call.with(|reply| send_piece(py, reply, piece, None, false))?;
        }
        call.with(|reply| if reply.is_started() { Ok(()) } else { Err(never_started()) })
    }

    fn serve(&mut self, exchange: &mut Exchange, input: &Bound<'py, PyAny>, length: Option<usize>) {
        match self.answer(exchange, input, length) {
            Ok(()) => exchange.reply.finish(),
            Err(error) => self.fail(exchange, input, &error),
        }
    }

    /// Answers between `pre_request` and `post_request`. A `pre_request` that fails fails the request, and
    /// `post_request` is called whatever happened (as in gunicorn).
    fn serve_between(
        &mut self,
        hooks: &RequestHooks,
        exchange: &mut Exchange,
        input: &Bound<'py, PyAny>,
        length: Option<usize>,
    ) {
        let (req, called) = match hooks.before(self.py, exchange, input) {
            Ok(called) => called,
            Err(error) => return self.fail(exchange, input, &error),
        };
        match called {
            Ok(changes) => {
                self.changes = changes;
                self.serve(exchange, input, length);
            }
            Err(error) => self.fail(exchange, input, &error),
        }
        hooks.after(self.py, &req, self.environ.take(), exchange);
    }

    /// What remains to be said to the client, and to the log, when the application failed.
    fn fail(&self, exchange: &mut Exchange, input: &Bound<'py, PyAny>, error: &PyErr) {
        let py = self.py;
        signals::raised_in_request(py, error);
        if error.is_instance_of::<ClientGone>(py) {
            debug!("{} left before its answer was complete", exchange.request.link().peer());
            exchange.reply.fail(500, "");
            return;
        }
        // The application could not read the body, and did not deal with it: the client is told why.
        if let Some(failure) = input.cast::<Input>().ok().and_then(|input| input.get().failure()) {
            warn!("Invalid request from ip={}: {failure}", exchange.request.link().peer().host());
            exchange.reply.fail(failure.status(), &failure.to_string());
            return;
        }
        let method = exchange.request.method().escape_ascii().to_string();
        let target = exchange.request.target().escape_ascii().to_string();
        if !request_failed(py, &method, &target, error) {
            error!("Error handling request {method} {target}\n{}", traceback(py, error));
        }
        exchange.reply.fail(500, "");
    }
}

impl Runner for WsgiRunner<'_, '_> {
    fn run(&mut self, exchange: &mut Exchange) {
        let (py, wsgi) = (self.py, self.wsgi);
        // Two threads guarantee what PEP 3333 asks for: what the application has given goes on its way while it makes more.
        exchange.reply.hold_pieces();
        let mut length = None;
        let input = match std::mem::take(&mut exchange.request.body) {
            Body::Empty => Ok(self.no_input.clone()),
            body => {
                if let Body::Whole(bytes) = &body
                    && exchange.request.head().content_length.is_none()
                {
                    length = Some(bytes.len());
                }
                Bound::new(py, Input::new(body)).map(Bound::into_any)
            }
        };
        match input {
            Ok(input) => match &wsgi.hooks {
                None => self.serve(exchange, &input, length),
                Some(hooks) => self.serve_between(hooks, exchange, &input, length),
            },
            Err(error) => {
                error!("cannot make wsgi.input\n{}", traceback(py, &error));
                exchange.reply.fail(500, "");
            }
        }
        if !self.callables.is_unshared(self.templates.len())
            && let Ok(fresh) = Callables::new(py)
        {
            // Listeners are few. One whose entry cannot be replaced, for lack of memory, makes its template anew.
            let hints = &fresh.early_hints;
            self.templates
                .retain(|(_, template)| template.set_item(intern!(py, "wsgi.early_hints"), hints).is_ok());
            self.callables = fresh;
        }
        bury(py);
    }

    fn refused(&mut self, exchange: &Exchange) {
        if let Some(hooks) = &self.wsgi.hooks {
            hooks.refused(self.py, exchange, &self.no_input);
        }
    }

    fn park(&mut self, wait: &mut dyn FnMut()) {
        detached(self.py, wait);
    }

    fn attends(&self) -> bool {
        self.wsgi.attended
    }

    fn interrupted(&mut self) {
        if let Err(error) = self.py.check_signals() {
            signals::raised_when_idle(self.py, &error);
        }
    }
}

/// Lets go of the bytes that the I/O thread has sent.
fn bury(_py: Python<'_>) {
    if DUG.load(Ordering::Relaxed) {
        DUG.store(false, Ordering::Relaxed);
        let graves = std::mem::take(&mut *lock(&GRAVES));
        drop(graves);
    }
}

/// A list of one piece, the usual answer: its length is the body's.
fn send_whole(py: Python<'_>, reply: &mut Reply, item: &Bound<'_, PyAny>) -> PyResult<()> {
    let bytes = item.cast::<PyBytes>().map_err(|_| not_bytes(item))?;
    if !reply.is_started() {
        return Err(never_started());
    }
    send_piece(py, reply, bytes, Some(bytes.as_bytes().len() as u64), false)
}

/// A list or tuple: all of it is there, so its length is known and small pieces leave together.
fn send_all(py: Python<'_>, reply: &mut Reply, pieces: &[Bound<'_, PyAny>]) -> PyResult<()> {
    if !reply.is_started() {
        return Err(never_started());
    }
    let mut total = 0;
    for piece in pieces {
        total += piece.cast::<PyBytes>().map_err(|_| not_bytes(piece))?.as_bytes().len() as u64;
    }
    for (index, piece) in pieces.iter().enumerate() {
        let bytes = piece.cast::<PyBytes>().map_err(|_| not_bytes(piece))?;
        send_piece(py, reply, bytes, Some(total), index + 1 < pieces.len())?;
    }
    Ok(())
}

/// Calls `close()` of an iterable that has one.
fn close(iterable: &Bound<'_, PyAny>) -> PyResult<()> {
    // The usual answers have none; asking them costs a lookup each.
    if iterable.is_exact_instance_of::<PyList>() || iterable.is_exact_instance_of::<PyTuple>() {
        return Ok(());
    }
    match iterable.getattr_opt(intern!(iterable.py(), "close"))? {
        Some(close) => close.call0().map(drop),
        None => Ok(()),
    }
}

/// A second field of the same name joins the first: cookies with `; ` (RFC 9113 section 8.2.3), others with
/// a comma (RFC 9110 section 5.3).
fn join_values(
    environ: &Bound<'_, PyDict>,
    key: &Bound<'_, PyString>,
    first: &Bound<'_, PyAny>,
    second: &Bound<'_, PyString>,
) -> PyResult<()> {
    let (Ok(first), Some(second)) = (first.cast::<PyString>(), latin1_bytes(second)) else { return Ok(()) };
    let Some(first) = latin1_bytes(first) else { return Ok(()) };
    let separator: &[u8] = if latin1_bytes(key) == Some(b"HTTP_COOKIE") { b"; " } else { b"," };
    environ.set_item(key, latin1(environ.py(), &[first, separator, second].concat()))
}

/// What gunicorn tells of a PROXY header; the client itself is REMOTE_ADDR.
fn proxy_variables(environ: &Bound<'_, PyDict>, destination: SocketAddr) -> PyResult<()> {
    let py = environ.py();
    let protocol = if destination.is_ipv4() { intern!(py, "TCP4") } else { intern!(py, "TCP6") };
    environ.set_item(intern!(py, "PROXY_PROTOCOL"), protocol)?;
    environ.set_item(intern!(py, "PROXY_ADDR"), destination.ip().to_string())?;
    environ.set_item(intern!(py, "PROXY_PORT"), destination.port().to_string())
}

/// On a unix socket the client's idea of the server is all there is (as in gunicorn).
fn server_from_host(environ: &Bound<'_, PyDict>, request: &Request) -> PyResult<()> {
    let Some((_, host)) = request.fields().find(|(name, _)| name.eq_ignore_ascii_case(b"host")) else {
        return Ok(());
    };
    let py = environ.py();
    let default: &[u8] = if request.head().scheme_override == Some(Scheme::Https) { b"443" } else { b"80" };
    let (name, port) = match memchr::memrchr(b':', host) {
        Some(colon) if !host[colon..].contains(&b']') => (&host[..colon], &host[colon + 1..]),
        _ => (host, default),
    };
    environ.set_item(intern!(py, "SERVER_NAME"), latin1(py, name))?;
    environ.set_item(intern!(py, "SERVER_PORT"), latin1(py, port))
}

/// The traceback of an exception, as Python prints it.
pub(super) fn traceback(py: Python<'_>, error: &PyErr) -> String {
    let formatted = py
        .import(intern!(py, "traceback"))
        .and_then(|module| {
            module.call_method1(
                intern!(py, "format_exception"),
                (error.get_type(py), error.value(py), error.traceback(py)),
            )
        })
        .and_then(|lines| lines.extract::<Vec<String>>());
    match formatted {
        Ok(lines) => lines.concat().trim_end().to_owned(),
        Err(_) => error.to_string(),
    }
}
