//! Serving Rust: a master and workers as on the Python side, with a [`Service`] in each worker.
//!
//! [`Server::builder`] collects settings and [`Builder::serve`] does what the `ringhorn` command does: it opens
//! listeners and logs, handles signals, forks workers, and replaces them. There is no interpreter anywhere.

#[cfg(feature = "tower")]
mod tower;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;

use crate::app::native::{Service, Worker};
use crate::config::cpus::Available;
use crate::config::{self, Loaded, Program, Settings, Sources, Value};
use crate::error::{Exit, StartError};
use crate::master::{self, Host, Launch, WorkerContext};
use crate::sys::errno::describe;
use crate::sys::process;
use crate::worker::{self, Make, Served};

#[cfg(feature = "tower")]
pub use self::tower::{Body, Connection};

/// A server of native services: see [`Server::builder`].
#[derive(Debug)]
pub struct Server;

impl Server {
    /// A server with the defaults of docs/settings.md: one worker for each CPU that this process may use, on
    /// `127.0.0.1:8000`.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            program: Program { alone: true, native: true, ..Program::default() },
            arguments: Vec::new(),
            binds: Vec::new(),
        }
    }
}

/// Settings of a server, and its start.
#[derive(Clone, Debug)]
pub struct Builder {
    program: Program,
    arguments: Vec<OsString>,
    binds: Vec<Value>,
}

impl Builder {
    /// Listens on `address` too: `HOST:PORT`, `[HOST]:PORT`, `:PORT`, `unix:PATH` or `fd://NUMBER`.
    #[must_use]
    pub fn bind(mut self, address: impl Into<String>) -> Self {
        self.binds.push(Value::text(address));
        self
    }

    /// The number of worker processes, 1 or more.
    #[must_use]
    pub fn workers(self, count: usize) -> Self {
        self.setting("workers", Value::Int(i64::try_from(count).unwrap_or(i64::MAX)))
    }

    /// How the server is called in its log and in process titles.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.program.app = Some(name.into());
        self
    }

    /// Any setting of docs/settings.md, by its name. Whether the value is valid is seen when the server starts.
    #[must_use]
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.program.values.push((name.into(), value.into()));
        self
    }

    /// Takes the command line of this process, and the variables `RINGHORN_CMD_ARGS` and `GUNICORN_CMD_ARGS`: what
    /// they say is stronger than the builder's settings. The options are those of the `ringhorn` command.
    #[must_use]
    pub fn command_line(self) -> Self {
        self.arguments(std::env::args_os().skip(1))
    }

    /// As [`Builder::command_line`], with these arguments (without the program's name).
    #[must_use]
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = OsString>) -> Self {
        self.arguments = arguments.into_iter().collect();
        self.program.alone = false;
        self
    }

    /// Serves until it is told to stop, and returns the exit code of the process. What is wrong with the settings
    /// is printed to standard error.
    ///
    /// `factory` makes the service of each worker, in the worker's own process and on the thread that calls it.
    /// When it panics, the worker cannot boot; the first one's failure ends the server.
    ///
    /// Call it on the main thread, before the process starts others: workers are forked.
    #[must_use = "the exit code is the process's to return"]
    pub fn serve<S: Service + 'static>(self, mut factory: impl FnMut(&Worker) -> S) -> ExitCode {
        self.run(&mut |worker, _| {
            let service = make(|| factory(worker))?;
            Ok(Served { service: Box::new(service), beside: None })
        })
    }

    pub(crate) fn run(mut self, make: &mut Make<'_>) -> ExitCode {
        if !self.binds.is_empty() {
            self.program.values.push(("bind".to_owned(), Value::List(std::mem::take(&mut self.binds))));
        }
        if self.program.app.is_none() {
            self.program.app = Some(program_name());
        }
        let start = Start { launch: Launch::of_process(), arguments: self.arguments, program: self.program };
        let code = start.run(make);
        u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)
    }
}

/// Calls the service's factory.
pub(crate) fn make<S>(factory: impl FnOnce() -> S) -> Result<S, StartError> {
    catch_unwind(AssertUnwindSafe(factory)).map_err(|panic| {
        let said = panic.downcast_ref::<&str>().copied();
        let said =
            said.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("it panicked");
        StartError::new(Exit::AppLoad, format!("the service cannot be made: {said}"))
    })
}

fn program_name() -> String {
    let program = std::env::args_os().next().unwrap_or_default();
    Path::new(&program)
        .file_name()
        .map_or_else(|| "service".into(), |name| name.to_string_lossy().into_owned())
}

/// How the server was started, and what with: read again at a reload.
struct Start {
    launch: Launch,
    arguments: Vec<OsString>,
    program: Program,
}

impl Start {
    fn load(&self) -> Result<Loaded, StartError> {
        let sources = Sources {
            args: &self.arguments,
            env: &|name| self.launch.variable(name).map(OsStr::to_owned),
            directory: Path::new("."),
            cpus: &Available::of_this_process,
            program: Some(&self.program),
        };
        config::load(&sources, None)
    }

    fn run(self, make: &mut Make<'_>) -> i32 {
        let settings = match self.load() {
            Ok(Loaded::Run(settings)) => *settings,
            Ok(Loaded::Print { text, code }) => {
                // A reader that has gone away wants no more.
                let _ = io::stdout().write_all(text.as_bytes());
                return code;
            }
            Err(error) => return report(&error),
        };
        if settings.check_config || settings.print_config {
            if settings.print_config {
                let _ = io::stdout().write_all(settings.listing().as_bytes());
            }
            settings.notices.iter().for_each(|notice| eprintln!("{}", notice.text));
            return Exit::Done.code();
        }
        if let Some(directory) = &settings.chdir
            && let Err(error) = std::env::set_current_dir(directory)
        {
            let what = format!("cannot change to {}: {}", directory.display(), describe(&error));
            return report(&StartError::new(Exit::Start, what).from(settings.source("chdir")));
        }
        if let Err(error) = master::begin(&settings, &self.launch, process::fork) {
            return report(&error);
        }
        master::run(settings, &mut ServiceHost { start: self, make })
    }
}

fn report(error: &StartError) -> i32 {
    eprintln!("{error}");
    error.exit().code()
}

/// The master's host: every worker makes a service of its own.
struct ServiceHost<'m, 'a> {
    start: Start,
    make: &'m mut Make<'a>,
}

impl Host for ServiceHost<'_, '_> {
    fn launch(&self) -> Launch {
        self.start.launch.clone()
    }

    fn reload(&mut self, old: &Settings) -> Result<Settings, StartError> {
        match self.start.load()? {
            Loaded::Run(settings) => Ok(*settings),
            Loaded::Print { .. } => Ok(old.clone()),
        }
    }

    fn serve(&mut self, worker: WorkerContext) -> i32 {
        for (name, value) in &worker.settings.raw_env {
            if !process::set_variable(name, value) {
                tracing::error!("cannot set {name} in the environment of the worker");
            }
        }
        worker::run_native(worker, self.make)
    }
}
