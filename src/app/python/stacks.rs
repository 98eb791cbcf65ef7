//! The Python stacks of threads that hang, from inside their process.
//!
//! Two ways. With the interpreter: `sys._current_frames()`, on a thread that does nothing else, because somebody may
//! hold the interpreter for ever and one cannot ask for it with a time limit. Without it, when that thread is not
//! let in for a moment: CPython's own `faulthandler`, whose handler walks the threads without a lock. What makes that
//! unsafe in general is that stacks change meanwhile, and they do not: whoever holds the interpreter for so long is
//! in C code, and everybody else waits. The handler is reached as any other, through a signal that this thread
//! sends itself.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tracing::{debug, error};

use super::wsgi::traceback;
use crate::limits::STACK_PATIENCE_MS;
use crate::sync::lock;
use crate::sys::signal;

/// Asks for a stack, and where to.
type Question = (Option<u64>, Sender<String>);

/// What it takes to see the stacks of this process.
pub(super) struct Stacks {
    /// Where faulthandler writes to, and by which signal it is asked; `None` when Python refused.
    fault: Option<(Mutex<File>, i32)>,
    /// The thread that enters the interpreter, once it was needed.
    inside: Mutex<Option<SyncSender<Question>>>,
}

impl Stacks {
    /// Prepares for the case that the interpreter is not to be had.
    pub(super) fn new(py: Python<'_>) -> Self {
        let fault =
            register(py).inspect_err(|error| debug!("no stacks without the interpreter: {error}")).ok();
        Self { fault: fault.map(|(file, signal)| (Mutex::new(file), signal)), inside: Mutex::new(None) }
    }

    /// The stack of a thread, or those of all. Waits for a moment; called on a thread that may.
    pub(super) fn show(&self, thread: Option<u64>) -> Option<String> {
        self.ask(thread).or_else(|| self.dump())
    }

    fn ask(&self, thread: Option<u64>) -> Option<String> {
        let (sender, answer) = mpsc::channel();
        let mut inside = lock(&self.inside);
        if inside.is_none() {
            *inside = start();
        }
        // Full: it still waits to be let in for an earlier question.
        inside.as_ref()?.try_send((thread, sender)).ok()?;
        drop(inside);
        let answer = answer.recv_timeout(Duration::from_millis(STACK_PATIENCE_MS)).ok()?;
        (!answer.is_empty()).then_some(answer)
    }

    /// As faulthandler writes it, for all threads.
    fn dump(&self) -> Option<String> {
        let (file, number) = self.fault.as_ref()?;
        let mut file = lock(file);
        let written = signal::raise_in_this_thread(*number).and_then(|()| {
            let mut text = Vec::new();
            file.seek(SeekFrom::Start(0))?;
            file.read_to_end(&mut text)?;
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            Ok(String::from_utf8_lossy(&text).into_owned())
        });
        match written {
            Ok(text) => Some(format!("(Somebody holds the interpreter. All threads:)\n{text}")),
            Err(error) => {
                debug!("no stacks without the interpreter: {error}");
                None
            }
        }
    }
}

/// A file in memory and a signal, tied together by `faulthandler.register`.
fn register(py: Python<'_>) -> PyResult<(File, i32)> {
    let file = rustix::fs::memfd_create("ringhorn-stacks", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(std::io::Error::from)?;
    let file = File::from(file);
    let number = signal::spare();
    let options = PyDict::new(py);
    options.set_item("file", file.as_raw_fd())?;
    options.set_item("all_threads", true)?;
    py.import("faulthandler")?.call_method("register", (number,), Some(&options))?;
    Ok((file, number))
}

fn start() -> Option<SyncSender<Question>> {
    let (sender, questions): (_, Receiver<Question>) = mpsc::sync_channel(1);
    let started = thread::Builder::new().name("ringhorn-stacks".into()).spawn(move || {
        // Signals are the main thread's.
        if let Err(error) = signal::block_all_in_this_thread() {
            error!("cannot block signals: {error}");
            return;
        }
        for (thread, answer) in questions {
            let text = Python::attach(|py| {
                let shown = py.import("ringhorn._stacks").and_then(|module| {
                    let own = py.import("threading")?.call_method0("get_ident")?;
                    module.call_method1("of", (thread, own))?.extract::<String>()
                });
                shown.unwrap_or_else(|error| traceback(py, &error))
            });
            // Whoever asked may have gone: it took too long.
            let _ = answer.send(text);
        }
    });
    match started {
        Ok(_) => Some(sender),
        Err(error) => {
            error!("cannot start the thread that shows stacks: {error}");
            None
        }
    }
}
