//! The few things that PyO3's safe interface does not offer at the price the request path wants.

use std::cell::Cell;

use pyo3::exceptions::PyMemoryError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

/// Text of bytes, each byte one character (PEP 3333: "bytes as unicode").
pub(super) fn latin1<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyString> {
    let length = ffi::Py_ssize_t::try_from(bytes.len()).unwrap_or(ffi::Py_ssize_t::MAX);
    // SAFETY: the pointer and length are those of `bytes`, which outlives the call; it copies.
    let text = unsafe { ffi::PyUnicode_DecodeLatin1(bytes.as_ptr().cast(), length, std::ptr::null()) };
    // SAFETY: a new reference to a str, or null with an exception set (out of memory), on which
    // `from_owned_ptr` panics as PyO3 does everywhere for that case.
    let text = unsafe { Bound::from_owned_ptr(py, text) };
    // SAFETY: PyUnicode_DecodeLatin1 returns exactly a str.
    unsafe { text.cast_into_unchecked() }
}

/// As [`latin1`], interned: equal to every other such string by identity, its hash computed.
pub(super) fn intern_latin1<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyString> {
    let mut text = latin1(py, bytes).into_ptr();
    // SAFETY: `text` is an owned reference to a str; the call may replace it by another owned one.
    unsafe { ffi::PyUnicode_InternInPlace(&raw mut text) };
    // SAFETY: see above: an owned reference, never null.
    let text = unsafe { Bound::from_owned_ptr(py, text) };
    // SAFETY: still exactly a str.
    unsafe { text.cast_into_unchecked() }
}

/// The characters of a str as bytes, when all are latin-1.
pub(super) fn latin1_bytes<'a>(text: &'a Bound<'_, PyString>) -> Option<&'a [u8]> {
    let object = text.as_ptr();
    // SAFETY: `object` is a str. Before Python 3.12 a str made by an old C interface may not have its
    // final form yet; this gives it that, and later versions answer at once.
    if unsafe { ffi::PyUnicode_READY(object) } != 0 {
        return None;
    }
    // SAFETY: `object` is a ready str.
    if unsafe { ffi::PyUnicode_KIND(object) } != ffi::PyUnicode_1BYTE_KIND {
        return None;
    }
    // SAFETY: `object` is a ready str.
    let length = unsafe { ffi::PyUnicode_GET_LENGTH(object) };
    // SAFETY: `object` is a ready str of one byte per character.
    let data = unsafe { ffi::PyUnicode_1BYTE_DATA(object) };
    // SAFETY: a str of that kind holds `length` bytes at `data`, never changes them, and lives as long as
    // `text`, which the returned slice borrows.
    Some(unsafe { std::slice::from_raw_parts(data, usize::try_from(length).unwrap_or(0)) })
}

/// Sets `dict[key]` unless it is there already; returns what is there now.
///
/// # Errors
/// Out of memory.
pub(super) fn set_default<'py>(
    dict: &Bound<'py, PyDict>,
    key: &Bound<'py, PyString>,
    value: &Bound<'py, PyString>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: three live objects; `key` is a str and so hashable. The result is borrowed from the dict.
    let present = unsafe { ffi::PyDict_SetDefault(dict.as_ptr(), key.as_ptr(), value.as_ptr()) };
    if present.is_null() {
        return Err(PyErr::take(dict.py()).unwrap_or_else(|| PyMemoryError::new_err(())));
    }
    // SAFETY: a live object that the dict owns; this takes a reference of our own.
    Ok(unsafe { Bound::from_borrowed_ptr(dict.py(), present) })
}

/// Calls `callable(first, second)` without building a tuple.
///
/// # Errors
/// What the call raises.
pub(super) fn call2<'py>(
    callable: &Bound<'py, PyAny>,
    first: &Bound<'py, PyAny>,
    second: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    // The free place in front lets a bound method put its `self` there instead of copying the arguments.
    let mut arguments = [std::ptr::null_mut(), first.as_ptr(), second.as_ptr()];
    let start = &raw mut arguments[1];
    // SAFETY: `start` points at two live objects with one writable place before them, as the flag says.
    let result = unsafe {
        ffi::PyObject_Vectorcall(
            callable.as_ptr(),
            start.cast_const(),
            2 | ffi::PY_VECTORCALL_ARGUMENTS_OFFSET,
            std::ptr::null_mut(),
        )
    };
    // SAFETY: a new reference, or null with the exception set.
    unsafe { Bound::from_owned_ptr_or_err(callable.py(), result) }
}

/// The number of references to an object.
pub(super) fn references(object: &Bound<'_, PyAny>) -> isize {
    // SAFETY: a live object, and the interpreter is attached.
    unsafe { ffi::Py_REFCNT(object.as_ptr()) }
}

thread_local! {
    /// Whether this thread is in [`detached`].
    static DETACHED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is attached to the interpreter: it runs Python and is not in [`detached`].
pub(super) fn is_attached() -> bool {
    // SAFETY: no condition; the answer is null for a thread that Python has never seen.
    !unsafe { ffi::PyGILState_GetThisThreadState() }.is_null() && !DETACHED.get()
}

/// Calls `wait`, which blocks, with the interpreter released.
///
/// `Python::detach` asks for a closure that can be sent to another thread, to keep Python objects out of
/// it; this one is given by the pool and holds none, but borrows from this thread.
pub(super) fn detached(_py: Python<'_>, wait: &mut dyn FnMut()) {
    struct Attach(*mut ffi::PyThreadState);
    impl Drop for Attach {
        fn drop(&mut self) {
            // SAFETY: the state that this thread saved below, on the same thread.
            unsafe { ffi::PyEval_RestoreThread(self.0) };
            DETACHED.set(false);
        }
    }
    DETACHED.set(true);
    // SAFETY: this thread is attached: `_py` proves it.
    let _attach = Attach(unsafe { ffi::PyEval_SaveThread() });
    wait();
}
