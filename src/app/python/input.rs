//! `wsgi.input`: the request body as a file that is read from front to back.

use std::sync::Mutex;

use memchr::memchr;
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::object::detached;
use crate::app::{Body, BodyError, Progress};

/// What is left to read.
struct Rest {
    bytes: Vec<u8>,
    at: usize,
    /// So many bytes from `at` on hold no newline: a long line that arrives in pieces is searched once.
    searched: usize,
    body: Body,
    failed: Option<BodyError>,
}

/// The body of one request. `read`, `readline`, `readlines` and iteration as PEP 3333 asks, with the sizes
/// that Python's files understand; reading at the end gives `b""`.
#[pyclass(frozen, module = "ringhorn", name = "Input")]
pub(super) struct Input {
    rest: Mutex<Rest>,
}

impl Input {
    pub(super) fn new(body: Body) -> Self {
        let (bytes, body) = match body {
            Body::Whole(bytes) => (bytes, Body::Empty),
            other => (Vec::new(), other),
        };
        Self { rest: Mutex::new(Rest { bytes, at: 0, searched: 0, body, failed: None }) }
    }

    /// Why the body could not be read, if it could not.
    pub(super) fn failure(&self) -> Option<BodyError> {
        self.rest.lock().ok()?.failed
    }

    /// Runs `take` on what has arrived until it is content. `take` gets the bytes and whether these are the
    /// last, and how many of them hold no newline; it says how many it takes, or that it wants more.
    ///
    /// The lock is never held while waiting: two threads of the application may share an input, as they may a
    /// file, and each gets whole reads in some order.
    fn consume<'py>(
        &self,
        py: Python<'py>,
        mut take: impl FnMut(&[u8], bool, &mut usize) -> Option<usize>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        loop {
            let mut rest = self.rest.lock().map_err(|_| PyOSError::new_err("the request body is lost"))?;
            let Rest { bytes, at, searched, body, failed } = &mut *rest;
            if let Some(error) = failed {
                return Err(PyOSError::new_err(error.to_string()));
            }
            let ended = !matches!(body, Body::Stream(_));
            if let Some(count) = take(&bytes[*at..], ended, searched) {
                let piece = PyBytes::new(py, &bytes[*at..*at + count]);
                *at += count;
                *searched = 0;
                if *at == bytes.len() {
                    bytes.clear();
                    *at = 0;
                }
                return Ok(piece);
            }
            let Body::Stream(stream) = body else {
                // `take` is always content with the last bytes; this keeps a mistake from looping.
                return Ok(PyBytes::new(py, b""));
            };
            if *at > 0 {
                bytes.drain(..*at);
                *at = 0;
            }
            match stream.poll(bytes) {
                Ok(Progress::Ready) => {}
                Ok(Progress::End) => *body = Body::Empty,
                Ok(Progress::Pending) => {
                    let waiter = stream.waiter();
                    drop(rest);
                    detached(py, &mut || waiter.wait());
                }
                Err(error) => {
                    *failed = Some(error);
                    return Err(PyOSError::new_err(error.to_string()));
                }
            }
        }
    }

    fn line<'py>(&self, py: Python<'py>, limit: Option<usize>) -> PyResult<Bound<'py, PyBytes>> {
        self.consume(py, |bytes, ended, searched| {
            let bounded = &bytes[..limit.unwrap_or(bytes.len()).min(bytes.len())];
            let from = bounded.len().min(*searched);
            if let Some(at) = memchr(b'\n', &bounded[from..]) {
                return Some(from + at + 1);
            }
            *searched = bounded.len().max(*searched);
            (ended || limit == Some(bounded.len())).then_some(bounded.len())
        })
    }
}

/// `None` and negative sizes mean "all of it", as with Python's files.
fn bound(size: Option<isize>) -> Option<usize> {
    size.and_then(|size| usize::try_from(size).ok())
}

#[pymethods]
impl Input {
    /// At most `size` bytes; all of them without a size or with a negative one. Fewer only at the end.
    #[pyo3(signature = (size = None, /))]
    fn read<'py>(&self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        let limit = bound(size);
        self.consume(py, |bytes, ended, _| match limit {
            Some(limit) if bytes.len() >= limit => Some(limit),
            _ => ended.then_some(bytes.len()),
        })
    }

    /// One line with its newline, or at most `size` bytes of it.
    #[pyo3(signature = (size = None, /))]
    fn readline<'py>(&self, py: Python<'py>, size: Option<isize>) -> PyResult<Bound<'py, PyBytes>> {
        self.line(py, bound(size))
    }

    /// The lines; with `hint`, as many as are needed to reach that many bytes.
    #[pyo3(signature = (hint = None, /))]
    fn readlines<'py>(&self, py: Python<'py>, hint: Option<isize>) -> PyResult<Bound<'py, PyList>> {
        let lines = PyList::empty(py);
        let hint = bound(hint).filter(|hint| *hint > 0);
        let mut total = 0;
        loop {
            let line = self.line(py, None)?;
            let length = line.as_bytes().len();
            if length == 0 {
                return Ok(lines);
            }
            lines.append(line)?;
            total += length;
            if hint.is_some_and(|hint| total >= hint) {
                return Ok(lines);
            }
        }
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let line = self.line(py, None)?;
        Ok((!line.as_bytes().is_empty()).then_some(line))
    }

    /// Does nothing: the server owns the body.
    fn close(&self) {}
}
