//! CPython as the master's host: forks with Python's fork hooks, loads the application, and becomes its
//! first runner.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use pyo3::ffi;
use pyo3::prelude::*;
use tracing::{debug, error};

use super::confpy::Script;
use super::hooks::{Hooks, UNCAUGHT};
use super::loader;
use super::object::detached;
use super::signals::Handlers;
use super::stacks::Stacks;
use super::watch;
use super::wsgi::{Wsgi, traceback};
use crate::config::cpus::Available;
use crate::config::{self, Loaded, Program, Settings, Sources};
use crate::error::{Exit, StartError};
use crate::master::{Host, Launch, WorkerContext};
use crate::observe::LogTarget;
use crate::sys::process::{self, Fork, Pid};
use crate::sys::shared::WorkerRecord;
use crate::worker;

/// How the server calls itself.
pub(super) const SERVER_SOFTWARE: &str = concat!("ringhorn/", env!("CARGO_PKG_VERSION"));

/// The interpreter that `_native.main` was called in.
pub(super) struct PythonHost<'py> {
    py: Python<'py>,
    start: Start,
    source: Source,
    /// The application, when it was loaded before the fork.
    application: Option<Py<PyAny>>,
    hooks: Option<Hooks>,
    settings: Settings,
}

/// How the server was started, and what with: read again at a reload.
pub(super) struct Start {
    pub(super) launch: Launch,
    /// The command line without the program's name.
    pub(super) argv: Vec<OsString>,
    /// Settings of a program, when one started the server.
    pub(super) program: Option<Program>,
}

impl Start {
    /// Reads the settings.
    ///
    /// # Errors
    /// As [`config::load`].
    pub(super) fn load(&self, py: Python<'_>) -> Result<Loaded, StartError> {
        let sources = Sources {
            args: &self.argv,
            env: &|name| self.launch.variable(name).map(OsStr::to_owned),
            directory: Path::new("."),
            cpus: &Available::of_this_process,
            program: self.program.as_ref(),
        };
        config::load(&sources, Some(&mut Script(py)))
    }
}

/// Where the application comes from.
pub(super) struct Source {
    /// A program's function that loads it, such as `BaseApplication.wsgi`. Without one, what the settings name is
    /// imported.
    pub(super) load: Option<Py<PyAny>>,
    /// The program's own object, `server.app` of hooks.
    pub(super) owner: Option<Py<PyAny>>,
}

impl Source {
    /// Loads the application.
    ///
    /// # Errors
    /// It cannot be loaded: the exit code of the worker.
    pub(super) fn load(&self, py: Python<'_>, settings: &Settings) -> Result<Py<PyAny>, StartError> {
        match &self.load {
            None => loader::load(py, &settings.app),
            Some(load) => loader::load_from(py, load.bind(py), &settings.app),
        }
    }
}

impl<'py> PythonHost<'py> {
    pub(super) fn new(
        py: Python<'py>,
        start: Start,
        source: Source,
        hooks: Option<Hooks>,
        settings: Settings,
    ) -> Self {
        Self { py, start, source, application: None, hooks, settings }
    }

    /// Calls a step of the hooks, if there are any.
    fn step<'a>(
        &self,
        name: &str,
        arguments: impl pyo3::call::PyCallArgs<'a>,
        exit: Exit,
    ) -> Result<(), StartError>
    where
        'py: 'a,
    {
        match &self.hooks {
            Some(hooks) => hooks.call(self.py, name, arguments, exit),
            None => Ok(()),
        }
    }

    /// Prepares for `new` what was prepared for `old`.
    fn prepare_again(&mut self, old: &Settings, new: &Settings) -> Result<(), StartError> {
        let launch = &self.start.launch;
        forget_environment(self.py, old, launch)
            .map_err(|error| StartError::new(Exit::Start, format!("cannot prepare Python: {error}")))?;
        if let (Some(_), None, Some(start)) = (&old.chdir, &new.chdir, &launch.directory) {
            // Where that is gone, the server stays where it is.
            let _ = std::env::set_current_dir(start);
        }
        prepare(self.py, new, launch)?;
        if self.hooks.is_none() {
            self.hooks = Hooks::of(self.py, new, &self.source).map_err(|error| unusable(&error))?;
        }
        Ok(())
    }

    /// Lets the master's messages go where a config file, a hook or the application wants them.
    fn divert_messages(&self) -> Result<(), StartError> {
        super::log::divert_messages(self.py, &self.settings).map_err(|error| unusable(&error))
    }

    /// Loads the application, or takes the one that a hook has asked for already.
    fn load(&self, settings: &Settings) -> Result<Py<PyAny>, StartError> {
        let loaded = match &self.hooks {
            // A program's own function knows itself what it has loaded.
            Some(hooks) if self.source.load.is_none() || self.source.owner.is_none() => {
                hooks.application(self.py).map_err(|error| unusable(&error))?
            }
            _ => None,
        };
        match loaded {
            Some(application) => Ok(application),
            None => self.source.load(self.py, settings),
        }
    }

    fn boot(&mut self, context: &mut WorkerContext) -> Result<Wsgi, StartError> {
        let py = self.py;
        let settings = Arc::clone(&context.settings);
        let mut settings = &*settings;
        let begun = SystemTime::now();
        // Once more, as in gunicorn: `post_fork` may have changed it.
        set_environment(py, settings).map_err(|error| unusable(&error))?;
        let handlers = Handlers::show(py).map_err(|error| unusable(&error))?;
        self.step("init_signals", (), Exit::WorkerBoot)?;
        let application = match &self.application {
            Some(application) => application.clone_ref(py),
            None => self.load(settings)?,
        };
        if settings.reload {
            watch::start(py, context, begun).map_err(|error| unusable(&error))?;
        }
        self.step("post_worker_init", (&application,), Exit::WorkerBoot)?;
        if super::log::decide(py, settings).map_err(|error| unusable(&error))? && !settings.python_log {
            Arc::make_mut(&mut context.settings).python_log = true;
            settings = &context.settings;
            if self.hooks.is_none() {
                self.hooks = Hooks::of(py, settings, &self.source).map_err(|error| unusable(&error))?;
                self.step("begin_late", (&application,), Exit::WorkerBoot)?;
            }
        }
        let replaced = handlers.reclaim(py).map_err(|error| unusable(&error))?;
        let hooks = match &self.hooks {
            Some(hooks) => hooks.around_requests(py, settings).map_err(|error| unusable(&error))?,
            None => None,
        };
        // gunicorn's rule: the error log, wherever that is.
        let errors = match settings.errorlog {
            LogTarget::File(_) => py.import("ringhorn._log").and_then(|log| log.call_method0("Errors")),
            _ => py.import("sys").and_then(|sys| sys.getattr("stderr")),
        };
        let errors = errors.map_err(|error| unusable(&error))?;
        Ok(Wsgi {
            application,
            multithread: settings.threads > 1,
            attended: settings.threads > 1 && replaced,
            multiprocess: settings.workers > 1,
            script_name: std::env::var_os("SCRIPT_NAME").unwrap_or_default().into_encoded_bytes(),
            errors: errors.unbind(),
            hooks,
            stacks: Stacks::new(py),
            sendfile: settings.sendfile,
        })
    }
}

fn unusable(error: &PyErr) -> StartError {
    StartError::new(Exit::WorkerBoot, format!("cannot prepare Python: {error}"))
}

impl Host for PythonHost<'_> {
    fn launch(&self) -> Launch {
        self.start.launch.clone()
    }

    fn reload(&mut self, old: &Settings) -> Result<Settings, StartError> {
        // Names of files in the arguments count from where the server was started.
        let here = std::env::current_dir();
        if let Some(start) = &self.start.launch.directory {
            // A directory that is gone has no files that could be missed there.
            let _ = std::env::set_current_dir(start);
        }
        let loaded = self.start.load(self.py);
        if let Ok(here) = here {
            let _ = std::env::set_current_dir(here);
        }
        let new = match loaded? {
            Loaded::Run(settings) => *settings,
            Loaded::Print { .. } => return Ok(old.clone()),
        };
        if let Err(error) = self.prepare_again(old, &new) {
            self.resume(&new, old);
            return Err(error);
        }
        Ok(new)
    }

    fn resume(&mut self, tried: &Settings, old: &Settings) {
        // The next worker has the directory, the path and the environment of this process.
        if let Err(error) = self.prepare_again(tried, old) {
            error!("cannot go back to the old settings: {}", error.in_log());
        }
        self.settings = old.clone();
        if let Err(error) = super::log::configure(self.py, old) {
            error!("cannot give the old settings to the loggers: {error}");
        }
        if let Some(hooks) = &self.hooks
            && let Err(error) = hooks.resume(self.py, old)
        {
            error!("cannot give the old settings to hooks: {error}");
        }
    }

    fn preload(&mut self, settings: &Settings) -> Result<(), StartError> {
        // In the master this is a failed start, whatever failed (as in gunicorn).
        let application = self.load(settings).map_err(|error| error.exiting(Exit::Start))?;
        if let Some(hooks) = &self.hooks {
            hooks.call(self.py, "preloaded", (&application,), Exit::Start)?;
        }
        self.application = Some(application);
        // What is loaded now is shared by all workers: kept out of collections, its pages stay shared.
        if let Err(error) = self.py.import("gc").and_then(|gc| gc.call_method0("freeze")) {
            debug!("cannot freeze the heap: {error}");
        }
        self.divert_messages()
    }

    fn before_fork(&mut self) {
        before_fork(self.py);
    }

    fn after_fork_parent(&mut self) {
        after_fork_parent(self.py);
    }

    fn after_fork_child(&mut self) {
        after_fork_child(self.py);
    }

    fn serve(&mut self, mut context: WorkerContext) -> i32 {
        match self.boot(&mut context) {
            Ok(wsgi) => {
                super::log::start_writer();
                worker::run(context, Arc::new(wsgi))
            }
            // A handler of the application may have ended its import. Nobody waits for this worker any more.
            Err(error) if context.shared.record(context.record).and_then(WorkerRecord::order).is_some() => {
                debug!("told to leave while it was loading: {}", error.in_log());
                Exit::Done.code()
            }
            Err(error) => {
                error!("{}", error.in_log());
                error.exit().code()
            }
        }
    }

    fn nworkers_changed(&mut self, new: usize, old: Option<usize>) -> Result<(), StartError> {
        // The first time it is part of the start.
        let exit = if old.is_none() { Exit::Start } else { UNCAUGHT };
        self.step("nworkers_changed", (new, old), exit)
    }

    fn on_starting(&mut self) -> Result<(), StartError> {
        self.step("on_starting", (), Exit::Start)?;
        self.divert_messages()
    }

    fn when_ready(&mut self, addresses: &[String]) -> Result<(), StartError> {
        self.step("when_ready", (addresses,), Exit::Start)?;
        self.divert_messages()
    }

    fn pre_fork(&mut self, age: u64) -> Result<(), StartError> {
        self.step("pre_fork", (age,), UNCAUGHT)
    }

    fn forked(&mut self, pid: Pid) {
        if let Some(hooks) = &self.hooks {
            hooks.call_logged(self.py, "forked", (pid.as_raw_nonzero().get(),), "cannot note a worker");
        }
    }

    fn child_exit(&mut self, pid: Pid) -> Result<(), StartError> {
        self.step("child_exit", (pid.as_raw_nonzero().get(),), UNCAUGHT)
    }

    fn on_reload(&mut self, settings: &Settings) -> Result<(), StartError> {
        self.settings = settings.clone();
        super::log::configure(self.py, settings).map_err(|error| unusable(&error))?;
        if let Some(hooks) = &self.hooks {
            hooks.configure(self.py, settings).map_err(|error| unusable(&error))?;
            hooks.call(self.py, "on_reload", (settings.workers,), UNCAUGHT)?;
        }
        self.divert_messages()
    }

    fn pre_exec(&mut self) -> Result<(), StartError> {
        self.step("pre_exec", (), UNCAUGHT)
    }

    fn on_exit(&mut self) -> Result<(), StartError> {
        self.step("on_exit", (), Exit::Start)
    }

    fn post_fork(&mut self) -> Result<(), StartError> {
        self.step("post_fork", (), Exit::WorkerBoot)
    }

    fn worker_exit(&mut self) {
        if let Some(hooks) = &self.hooks {
            hooks.call_logged(self.py, "worker_exit", (), "Exception during worker exit");
        }
        finish(self.py);
    }

    fn wait(&mut self, wait: &mut dyn FnMut()) {
        detached(self.py, wait);
    }
}

/// Sets up what the application's import depends on: the directory, sys.path, the environment.
///
/// # Errors
/// The directory cannot be entered, or Python refuses.
pub(super) fn prepare(py: Python<'_>, settings: &Settings, launch: &Launch) -> Result<(), StartError> {
    let refuse = |what: String| StartError::new(Exit::Start, what);
    let python = |error: PyErr| refuse(format!("cannot prepare Python: {error}"));
    if let Some(directory) = &settings.chdir {
        // From where the server was started, also when it has changed the directory since.
        let start = launch.directory.as_deref().unwrap_or(Path::new("."));
        // gunicorn adds that one first, config file or not. One that is gone has no modules.
        if let Ok(start) = start.canonicalize() {
            loader::prepend_path(py, &start).map_err(python)?;
        }
        std::env::set_current_dir(start.join(directory)).map_err(|error| {
            let why = crate::sys::errno::describe(&error);
            refuse(format!("cannot change to the directory {}: {why}", directory.display()))
                .from(settings.source("chdir"))
        })?;
    }
    let here = std::env::current_dir().map_err(|error| {
        refuse(format!("the current directory is gone: {}", crate::sys::errno::describe(&error)))
    })?;
    loader::prepend_path(py, &here).map_err(python)?;
    // In order, each at the front, as gunicorn does.
    for directory in &settings.pythonpath {
        loader::prepend_path(py, directory).map_err(python)?;
    }
    // Applications look there for the server that runs them, before the first request.
    py.import("os")
        .and_then(|os| os.getattr("environ"))
        .and_then(|environ| environ.set_item("SERVER_SOFTWARE", SERVER_SOFTWARE))
        .map_err(python)?;
    set_environment(py, settings).map_err(python)
}

fn set_environment(py: Python<'_>, settings: &Settings) -> PyResult<()> {
    let environ = py.import("os")?.getattr("environ")?;
    for (name, value) in &settings.raw_env {
        // Through Python, which keeps a copy of the environment of its own.
        environ.set_item(name, value)?;
    }
    Ok(())
}

/// Takes back what [`prepare`] did to the environment.
fn forget_environment(py: Python<'_>, settings: &Settings, launch: &Launch) -> PyResult<()> {
    let environ = py.import("os")?.getattr("environ")?;
    for (name, _) in &settings.raw_env {
        match launch.variable(name) {
            Some(value) => environ.set_item(name, value)?,
            None => {
                environ.call_method1("pop", (name, py.None()))?;
            }
        }
    }
    Ok(())
}

/// How the command was started, before anything of it is changed.
///
/// The program is `sys.executable` with its own arguments (`-m ringhorn`, or the script), so that an upgrade
/// starts what was started: a new version that was installed meanwhile, in the same environment.
///
/// # Errors
/// What Python raises.
pub(super) fn launch(py: Python<'_>) -> PyResult<Launch> {
    let mut launch = Launch::of_process();
    let sys = py.import("sys")?;
    let executable: Option<OsString> = sys.getattr("executable")?.extract()?;
    let command: Vec<OsString> = sys.getattr("orig_argv")?.extract()?;
    if let Some(executable) = executable.filter(|path| !path.is_empty()) {
        launch.program = executable;
        launch.arguments = command.into_iter().skip(1).collect();
    }
    // They were for this process, not for those that the application starts.
    let environ = py.import("os")?.getattr("environ")?;
    for name in Launch::private_variables() {
        environ.call_method1("pop", (name, py.None()))?;
    }
    Ok(launch)
}

/// fork(2), as `os.fork` does it.
///
/// # Errors
/// As [`process::fork`].
pub(super) fn fork(py: Python<'_>) -> io::Result<Fork> {
    before_fork(py);
    let forked = process::fork();
    if matches!(forked, Ok(Fork::Child)) {
        after_fork_child(py)
    } else {
        after_fork_parent(py)
    }
    forked
}

/// A fork follows, on this thread, and then one of the two calls below.
fn before_fork(py: Python<'_>) {
    // What waits in Python's buffers would be written by both.
    flush(py);
    // SAFETY: attached (`py`), on the thread that forks, and followed by one of the calls below.
    unsafe { ffi::PyOS_BeforeFork() };
}

fn after_fork_parent(_py: Python<'_>) {
    // SAFETY: attached (`_py`), after `PyOS_BeforeFork` on the same thread.
    unsafe { ffi::PyOS_AfterFork_Parent() };
}

fn after_fork_child(_py: Python<'_>) {
    // SAFETY: attached (`_py`), after `PyOS_BeforeFork` on the thread that forked, the child's only one.
    unsafe { ffi::PyOS_AfterFork_Child() };
}

/// The end of a worker's interpreter: what Python does at exit, without taking it apart. Threads that are
/// still parked in it would not survive that.
fn finish(py: Python<'_>) {
    let run = |module: &str, function: &str| {
        if let Err(error) = py.import(module).and_then(|module| module.call_method0(function)) {
            error!("{module}.{function} failed\n{}", traceback(py, &error));
        }
    };
    // Waits for the application's own threads, as the end of any Python program does.
    run("threading", "_shutdown");
    run("atexit", "_run_exitfuncs");
    flush(py);
}

fn flush(py: Python<'_>) {
    let Ok(sys) = py.import("sys") else { return };
    for stream in ["stdout", "stderr"] {
        // A closed or missing stream has nothing to lose.
        if let Ok(stream) = sys.getattr(stream)
            && !stream.is_none()
        {
            let _ = stream.call_method0("flush");
        }
    }
}
