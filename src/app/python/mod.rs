//! The Python side: the extension module, and WSGI on top of [`crate::app`]. The only PyO3 code.

mod input;
mod loader;
mod names;
mod object;
mod wsgi;

use pyo3::prelude::*;

#[pyfunction]
fn serve_bench(py: Python<'_>, app: Py<PyAny>, port: u16, io: &str, threads: usize) -> PyResult<()> {
    let errors = py.import("sys")?.getattr("stderr")?.unbind();
    let wsgi = wsgi::Wsgi::new(app, threads > 1, false, Vec::new(), errors);
    crate::worker::bench(std::sync::Arc::new(wsgi), port, if io == "epoll" { crate::ring::Io::Epoll } else { crate::ring::Io::Uring }, threads);
    Ok(())
}

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(serve_bench, m)?)
}
