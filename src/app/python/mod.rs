//! The Python side: the extension module `ringhorn._native`, the host that CPython is to the master, and
//! WSGI on top of [`crate::app`]. The only PyO3 code.

mod confpy;
mod hooks;
mod host;
mod input;
mod loader;
mod log;
mod names;
mod object;
mod signals;
mod stacks;
mod watch;
mod wsgi;

use std::ffi::OsString;
use std::io::Write;

use pyo3::IntoPyObjectExt;
use pyo3::exceptions::{PyImportError, PySystemExit, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use self::hooks::Hooks;
use self::host::{PythonHost, Source, Start};
#[cfg(feature = "simulation")]
pub use self::wsgi::environs::Environs;
use crate::config::settings::{self, SETTINGS};
use crate::config::{self, Loaded, Program, Settings, Value};
use crate::error::{Exit, StartError};
use crate::sys::signal::Signal;
use crate::{master, observe, worker};

/// Runs the server until it is told to stop, and returns the exit code of the process.
///
/// `argv` holds the arguments without the program's name. Workers are forked from the calling process, so
/// it must be the main thread of one without other threads.
#[pyfunction]
fn main(py: Python<'_>, argv: Vec<OsString>) -> i32 {
    run(py, argv, None, Source { load: None, owner: None })
}

/// Runs one of the operator's commands and returns its exit code. `argv` begins with its name.
#[pyfunction]
fn operate(py: Python<'_>, argv: Vec<OsString>) -> i32 {
    py.detach(|| crate::ctl::main(&argv))
}

/// Serves what the function `load` returns, or the application `name`, with the settings of a program and,
/// unless it wants to be `alone`, those of the other sources, `argv` among them. Hooks find `owner` as `server.app`.
/// Returns the exit code.
#[pyfunction]
#[pyo3(signature = (load, name, values, argv, alone, owner = None))]
fn serve(
    py: Python<'_>,
    load: Option<Py<PyAny>>,
    name: Option<String>,
    values: &Bound<'_, PyDict>,
    argv: Vec<OsString>,
    alone: bool,
    owner: Option<Py<PyAny>>,
) -> PyResult<i32> {
    let mut program = Program { app: name, alone, ..Program::default() };
    for (name, value) in values {
        let name: String = name.extract()?;
        let kind = settings::index_of(&name).map_or(settings::Kind::Any, |index| SETTINGS[index].kind);
        let value = confpy::setting(kind, &value)?;
        program.values.push((name, value));
    }
    Ok(run(py, argv, Some(program), Source { load, owner }))
}

fn run(py: Python<'_>, argv: Vec<OsString>, program: Option<Program>, source: Source) -> i32 {
    let launch = match host::launch(py) {
        Ok(launch) => launch,
        Err(error) => return report(&StartError::new(Exit::Start, format!("cannot ask Python: {error}"))),
    };
    let start = Start { launch, argv, program };
    let mut settings = match start.load(py) {
        Ok(Loaded::Run(settings)) => *settings,
        Ok(Loaded::Print { text, code }) => {
            // A reader that has gone away wants no more.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return code;
        }
        Err(error) => return report(&error),
    };
    // What an application left in its environ only Python knows.
    settings.python_log |=
        settings.accesslog != observe::LogTarget::Off && settings.access_log_format.names_environ();
    if let Err(error) = host::prepare(py, &settings, &start.launch) {
        return report(&error);
    }
    if settings.check_config || settings.print_config {
        return check(py, &settings, &source);
    }
    if let Err(error) = master::begin(&settings, &start.launch, || host::fork(py)) {
        return report(&error);
    }
    if let Err(error) = connect_log(py, &settings) {
        return report(&unusable_log(py, &settings, &error));
    }
    if let Err(error) = signals::prepare(py) {
        return report(&StartError::new(Exit::Start, format!("cannot prepare Python: {error}")));
    }
    match Hooks::of(py, &settings, &source) {
        Ok(hooks) => {
            let mut host = PythonHost::new(py, start, source, hooks, settings.clone());
            master::run(settings, &mut host)
        }
        Err(error) => report(
            &StartError::new(Exit::Start, format!("cannot prepare Python: {error}"))
                .detail(wsgi::traceback(py, &error)),
        ),
    }
}

/// Lets Python's logger `gunicorn.error`, which applications borrow from gunicorn, write to the error log;
/// or the other way round, when the settings configure that logger.
fn connect_log(py: Python<'_>, settings: &Settings) -> PyResult<()> {
    if settings.python_log {
        return log::divert(py, settings);
    }
    let install = py.import("ringhorn._log")?.getattr("install")?;
    install.call1((settings.loglevel.name(), log::access_target(settings)))?;
    // A config file may have changed one of them already.
    log::divert_messages(py, settings)
}

/// Why Python's logging cannot be used, with the settings that ask for it.
fn unusable_log(py: Python<'_>, settings: &Settings, error: &PyErr) -> StartError {
    let is_set = |name: &&str| {
        settings.value(name).is_some_and(|(value, _)| match value {
            Value::None => false,
            Value::Dict(items) => !items.is_empty(),
            Value::Bool(on) => *on,
            _ => true,
        })
    };
    let class = error.value(py).hasattr("is_about_logger_class").unwrap_or(false);
    // As they are used: a dictionary before a file.
    let names = ["logconfig_dict", "logconfig_json", "logconfig", "syslog", "logger_class"];
    let name = if class { Some("logger_class") } else { names.into_iter().find(is_set) };
    let Some(name) = name else {
        return StartError::new(Exit::Start, format!("cannot prepare Python: {}", error.value(py)))
            .detail(wsgi::traceback(py, error));
    };
    let kind = error.get_type(py).name().map(|name| name.to_string()).unwrap_or_default();
    let what = format!("{name} cannot be used: {kind}: {}", error.value(py));
    StartError::new(Exit::Start, what).from(settings.source(name)).detail(wsgi::traceback(py, error))
}

/// `--check-config`, `--print-config`: loads the application in this process and says whether that works.
fn check(py: Python<'_>, settings: &Settings, source: &Source) -> i32 {
    if settings.print_config {
        let _ = std::io::stdout().write_all(settings.listing().as_bytes());
    }
    for notice in &settings.notices {
        eprintln!("{}", notice.text);
    }
    match source.load(py, settings) {
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

/// Writes a line to the error log, at a level of Python's `logging`.
#[pyfunction(name = "log")]
fn log_message(level: i32, message: &str) {
    match level {
        50.. => crate::critical!("{message}"),
        40.. => tracing::error!("{message}"),
        30.. => tracing::warn!("{message}"),
        20.. => tracing::info!("{message}"),
        _ => tracing::debug!("{message}"),
    }
}

/// Gives text to the error log as it is.
#[pyfunction]
fn write_log(text: &str) {
    observe::write(text);
}

/// Gives this process, a worker, a signal as if it had come from outside.
#[pyfunction]
fn signal_worker(number: i32) -> PyResult<()> {
    let signal = Signal::from_named_raw(number).ok_or_else(|| PyValueError::new_err("no such signal"))?;
    crate::sys::signal::inject(signal);
    Ok(())
}

/// Waits, for a bounded time, until the log is written: this process is about to end.
#[pyfunction]
fn flush_log() {
    observe::flush();
}

/// Whether this process is a worker that was told to leave.
#[pyfunction]
fn is_leaving() -> bool {
    worker::is_leaving()
}

/// Connections that this process, a worker, has open.
#[pyfunction]
fn connections() -> usize {
    worker::connections()
}

/// Requests that this process has begun to answer.
#[pyfunction]
fn requests() -> u64 {
    wsgi::requests()
}

/// The default of every setting, by name.
#[pyfunction]
fn default_settings(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let defaults = Settings::default();
    let values = PyDict::new(py);
    for setting in SETTINGS {
        values.set_item(setting.name, confpy::to_python(py, &setting.default.value())?)?;
    }
    values.set_item("workers", defaults.workers)?;
    values.set_item("threads", defaults.threads)?;
    Ok(values)
}

/// A value in the form in which setting `name` keeps it; `ValueError` when it is not valid, `TypeError` when
/// there is no such setting.
#[pyfunction]
fn check_setting<'py>(py: Python<'py>, name: &str, value: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let Some(index) = settings::index_of(name) else {
        let similar = settings::similar_to(name).map(|name| format!("; did you mean {name}?"));
        let what = format!("there is no setting {name}{}", similar.unwrap_or_default());
        return Err(PyTypeError::new_err(what));
    };
    let kind = SETTINGS[index].kind;
    let checked = config::check_value(name, confpy::setting(kind, value)?)
        .map_err(|error| PyValueError::new_err(error.what().to_owned()))?;
    confpy::to_python(py, &checked)?.into_bound_py_any(py)
}

/// Imports the application that `spec` names; `ImportError` when its code fails, `ValueError` when it has no
/// such application.
#[pyfunction]
fn load_application(py: Python<'_>, spec: &str) -> PyResult<Py<PyAny>> {
    loader::load(py, spec).map_err(|error| match error.exit() {
        Exit::AppLoad => PyValueError::new_err(error.to_string()),
        _ => PyImportError::new_err(error.to_string()),
    })
}

/// The arguments that are no options.
#[pyfunction]
fn positional(argv: Vec<OsString>) -> PyResult<Vec<String>> {
    config::positional(&argv).map_err(|error| PySystemExit::new_err(report(&error)))
}

/// The settings that arguments have options for, by name.
#[pyfunction]
fn options(py: Python<'_>, argv: Vec<OsString>) -> PyResult<Bound<'_, PyDict>> {
    let given = config::options(&argv).map_err(|error| PySystemExit::new_err(report(&error)))?;
    let options = PyDict::new(py);
    for (name, value) in &given {
        options.set_item(*name, confpy::to_python(py, value)?)?;
    }
    Ok(options)
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("SERVER_SOFTWARE", host::SERVER_SOFTWARE)?;
    module.add_class::<watch::Inotify>()?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add("COMMANDS", crate::ctl::COMMANDS)?;
    module.add_function(wrap_pyfunction!(operate, module)?)?;
    module.add_function(wrap_pyfunction!(serve, module)?)?;
    module.add_function(wrap_pyfunction!(positional, module)?)?;
    module.add_function(wrap_pyfunction!(options, module)?)?;
    module.add_function(wrap_pyfunction!(log_message, module)?)?;
    module.add_function(wrap_pyfunction!(write_log, module)?)?;
    module.add_function(wrap_pyfunction!(signal_worker, module)?)?;
    module.add_function(wrap_pyfunction!(flush_log, module)?)?;
    module.add_function(wrap_pyfunction!(connections, module)?)?;
    module.add_function(wrap_pyfunction!(is_leaving, module)?)?;
    module.add_function(wrap_pyfunction!(requests, module)?)?;
    module.add_function(wrap_pyfunction!(default_settings, module)?)?;
    module.add_function(wrap_pyfunction!(check_setting, module)?)?;
    module.add_function(wrap_pyfunction!(load_application, module)?)
}
