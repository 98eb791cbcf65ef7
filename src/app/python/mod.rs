//! The Python side: the extension module `ringhorn._native`, the host that CPython is to the master, and
//! WSGI on top of [`crate::app`]. The only PyO3 code.

mod host;
mod input;
mod loader;
mod names;
mod object;
mod wsgi;

use std::ffi::OsString;
use std::io::Write;

use pyo3::prelude::*;

use self::host::PythonHost;
use crate::config::{Loaded, Settings};
use crate::error::{Exit, StartError};
use crate::{master, observe};

/// Runs the server until it is told to stop, and returns the exit code of the process.
///
/// `argv` holds the arguments without the program's name. Workers are forked from the calling process, so
/// it must be the main thread of one without other threads.
#[pyfunction]
fn main(py: Python<'_>, argv: Vec<OsString>) -> i32 {
    let launch = match host::launch(py) {
        Ok(launch) => launch,
        Err(error) => return report(&StartError::new(Exit::Start, format!("cannot ask Python: {error}"))),
    };
    let settings = match host::load(&launch, &argv) {
        Ok(Loaded::Run(settings)) => *settings,
        Ok(Loaded::Print { text, code }) => {
            // A reader that has gone away wants no more.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return code;
        }
        Err(error) => return report(&error),
    };
    if let Err(error) = host::prepare(py, &settings, &launch) {
        return report(&error);
    }
    if settings.check_config || settings.print_config {
        return check(py, &settings);
    }
    // An upgrade's new master is in the background already.
    if settings.daemon
        && !launch.is_upgrade()
        && let Err(error) = host::daemonize(py, &settings)
    {
        let what = format!("cannot go to the background: {}", crate::sys::errno::describe(&error));
        return report(&StartError::new(Exit::Start, what).from(settings.source("daemon")));
    }
    if let Err(error) = observe::install(&settings.errorlog, settings.loglevel) {
        let what = format!("cannot open the error log: {}", crate::sys::errno::describe(&error));
        return report(&StartError::new(Exit::Start, what).from(settings.source("errorlog")));
    }
    for notice in &settings.notices {
        notice.log();
    }
    master::run(settings, &mut PythonHost::new(py, launch, argv))
}

/// `--check-config`, `--print-config`: loads the application in this process and says whether that works.
fn check(py: Python<'_>, settings: &Settings) -> i32 {
    if settings.print_config {
        let _ = std::io::stdout().write_all(settings.listing().as_bytes());
    }
    for notice in &settings.notices {
        eprintln!("{}", notice.text);
    }
    match loader::load(py, &settings.app) {
        Ok(_) => Exit::Done.code(),
        Err(error) => {
            report(&error);
            Exit::Start.code()
        }
    }
}

fn report(error: &StartError) -> i32 {
    eprintln!("{error}");
    error.exit().code()
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(main, module)?)
}
