//! `--reload`: what `ringhorn._reload`, which looks for changed files, needs of the system.

use std::ffi::{CStr, OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use tracing::warn;

use super::confpy::to_python;
use crate::config::Value;
use crate::master::WorkerContext;

/// Bytes of one read from inotify(7): some hundred events. More are read the next time.
const EVENTS_BYTES: usize = 16 * 1024;

/// Starts the thread that looks for changed files. What was changed since `begun` may have been loaded in its
/// old form.
///
/// # Errors
/// What Python raises.
pub(super) fn start(py: Python<'_>, context: &WorkerContext, begun: SystemTime) -> PyResult<()> {
    let settings = &context.settings;
    if settings.preload_app {
        if context.age == 1 {
            warn!("reload does not watch a preloaded application: its code is loaded once, before the fork");
        }
        return Ok(());
    }
    let value = |name| to_python(py, settings.value(name).map_or(&Value::None, |(value, _)| value));
    let teller = context.change_teller();
    let tell = PyCFunction::new_closure(
        py,
        Some(c"tell"),
        None,
        move |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| -> PyResult<()> {
            teller(arguments.get_item(0)?.extract()?);
            Ok(())
        },
    )?;
    let since = begun.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    py.import("ringhorn._reload")?
        .call_method1("watch", (tell, value("reload_engine")?, value("reload_extra_files")?, since))
        .map(drop)
}

/// An instance of inotify(7): tells of files that come, that were written, and of changed attributes.
#[pyclass(frozen, module = "ringhorn._native")]
pub(super) struct Inotify {
    fd: OwnedFd,
}

#[pymethods]
impl Inotify {
    #[new]
    fn new() -> PyResult<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).map_err(std::io::Error::from)?;
        Ok(Self { fd })
    }

    /// Watches a directory. `OSError` when that cannot be done.
    fn watch(&self, directory: PathBuf) -> PyResult<()> {
        let flags = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::ATTRIB;
        inotify::add_watch(&self.fd, directory, flags).map_err(std::io::Error::from)?;
        Ok(())
    }

    /// Waits at most so many milliseconds for something to happen, and gives the names of the files it
    /// happened to, without their directories. The name is empty where events were lost.
    fn wait(&self, py: Python<'_>, timeout_ms: u64) -> PyResult<Vec<OsString>> {
        let timeout = Duration::from_millis(timeout_ms).try_into().ok();
        let waited = py.detach(|| poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], timeout.as_ref()));
        match waited {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(std::io::Error::from(error).into()),
        }
        let mut buffer = [MaybeUninit::uninit(); EVENTS_BYTES];
        let mut events = inotify::Reader::new(&self.fd, &mut buffer);
        let mut names = Vec::new();
        loop {
            match events.next() {
                Ok(event) => {
                    let name = event.file_name().map(CStr::to_bytes).unwrap_or_default();
                    names.push(OsStr::from_bytes(name).to_owned());
                }
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(error) => return Err(std::io::Error::from(error).into()),
            }
            if events.is_buffer_empty() {
                break;
            }
        }
        Ok(names)
    }
}
