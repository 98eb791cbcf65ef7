//! Settings: their table, their sources, their checks.
//!
//! [`load`] is called once when the server starts (and again on a reload) and gives one immutable
//! [`Settings`], which is handed down; nobody else reads arguments or the environment. This module
//! opens no socket and no log, and changes nothing about the process.
//!
//! Sources from the weakest to the strongest: defaults and the environment variables behind them,
//! the config file, `GUNICORN_CMD_ARGS`, `RINGHORN_CMD_ARGS`, the command line. A source replaces
//! the whole value of the weaker ones. Every value remembers its source, because every error names
//! it.

mod check;
mod cli;
pub mod cpus;
mod network;
pub mod settings;
mod value;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use network::{Bind, Trusted};

pub use crate::http::{HeaderMap, ProxyMode};
pub use crate::ring::Io;
pub use value::{Foreign, Source, Value, Variable};

use crate::error::{Exit, StartError};
use crate::limits;
use crate::observe::{AccessFormat, Level, LogTarget};
use crate::sys::account;
use crate::sys::errno::describe;
use settings::{Kind, SETTINGS, Setting, Support};

/// An error in the configuration: exit code 1, or 2 when arguments cannot be understood.
pub type ConfigError = StartError;

/// What the arguments ask for.
#[derive(Debug)]
pub enum Loaded {
    /// Serve, or check, with these settings.
    Run(Box<Settings>),
    /// Print `text` to standard output and exit with `code`: help, version.
    Print {
        /// The text with its last line end.
        text: String,
        /// The exit code.
        code: i32,
    },
}

/// Everything [`load`] reads from.
pub struct Sources<'a> {
    /// The command line without the program's name.
    pub args: &'a [OsString],
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// The directory where the server was started: the config file is looked for in it.
    pub directory: &'a Path,
    /// The CPUs that the number of workers follows.
    pub cpus: &'a dyn Fn() -> cpus::Available,
    /// What a program that starts the server from its own code gives.
    pub program: Option<&'a Program>,
}

/// Settings of a program that serves an application of its own: gunicorn's `BaseApplication`, or
/// `ringhorn.serve`.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// The settings, by name. They are weaker than the config file.
    pub values: Vec<(String, Value)>,
    /// The application, when the other sources name none.
    pub app: Option<String>,
    /// Whether to read neither a config file nor the variables with arguments, as
    /// `BaseApplication` has it.
    pub alone: bool,
    /// Whether it serves a native service: what concerns Python has no meaning, and arguments name no application.
    pub native: bool,
}

/// Runs a config file and reads its names. `app::python` implements it.
pub trait ConfigFile {
    /// Runs the file and gives its module-level names with their values, in any order. Names that
    /// are no settings may be among them.
    ///
    /// # Errors
    /// The file does not exist or cannot be run; with the traceback as the error's detail.
    fn run(&mut self, location: &Location) -> Result<Vec<(String, Value)>, StartError>;
}

/// Which config file: the value of `--config`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file: `PATH` or `file:PATH`.
    Path(PathBuf),
    /// A module that can be imported: `python:MODULE`.
    Module(String),
}

/// Something to be logged once the log is open: settings without effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Warning, or debug where nothing is missing.
    pub level: Level,
    /// One line.
    pub text: String,
}

impl Notice {
    /// Logs it.
    pub fn log(&self) {
        match self.level {
            Level::Debug => tracing::debug!("{}", self.text),
            _ => tracing::warn!("{}", self.text),
        }
    }
}

/// The kind of worker that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerClass {
    /// One request at a time in each worker, unless `threads` says otherwise.
    Sync,
    /// Several requests at a time, on threads.
    Gthread,
}

/// The socket for operators' commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlSettings {
    /// Its name; `None` for a name in the runtime directory, if there is one.
    pub path: Option<PathBuf>,
    /// The mode bits of its file.
    pub mode: u32,
}

/// Every setting with its type. Names are gunicorn's. A [`Duration`] of zero means "no limit",
/// except where it says otherwise.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The application as given: `module`, `module:attribute` or `module:factory(arguments)`.
    pub app: String,
    /// Where to listen; never empty.
    pub bind: Vec<Bind>,
    /// Requests after which a worker is replaced; 0 means never.
    pub max_requests: u64,
    /// Random addition to `max_requests`, at most.
    pub max_requests_jitter: u64,
    /// Go to the background.
    pub daemon: bool,
    /// Length of each listener's accept queue, in connections. The kernel caps it at somaxconn.
    pub backlog: u32,
    /// Number of workers, 1 or more.
    pub workers: usize,
    /// What the number of workers follows, in words: "affinity mask of 2 CPUs", or the source.
    pub workers_from: String,
    /// Runner threads of each worker at most, 1 or more.
    pub threads: usize,
    /// The kind of worker.
    pub worker_class: WorkerClass,
    /// Connections of one worker at most; `None` follows the limit on open files.
    pub worker_connections: Option<usize>,
    /// Silence after which a worker is killed.
    pub timeout: Duration,
    /// Time that open requests have on a stop. Zero means at once.
    pub graceful_timeout: Duration,
    /// Time an idle connection is kept for its next request. Zero means no keep-alive.
    pub keepalive: Duration,
    /// Bytes of a request line without its CRLF; 0 means 1 MiB.
    pub limit_request_line: usize,
    /// Fields of a request head, 1 to 32768.
    pub limit_request_fields: usize,
    /// Bytes of one header field with its CRLF, 1 or more.
    pub limit_request_field_size: usize,
    /// Bytes of a request body; 0 means any number.
    pub limit_request_body: u64,
    /// Bytes of a request body that are received before a runner is taken.
    pub body_buffer: usize,
    /// Time from accepting a connection to its first byte.
    pub first_byte_timeout: Duration,
    /// Time from a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// Time between two arrivals of a request body's bytes.
    pub body_timeout: Duration,
    /// Time in which a client must take some of the response.
    pub response_timeout: Duration,
    /// Time for a client to take the last bytes before the connection is closed. Zero means at once.
    pub linger_timeout: Duration,
    /// Time from a request's last byte to the end of the application's work.
    pub request_timeout: Duration,
    /// Time that a request may wait for a runner.
    pub queue_timeout: Duration,
    /// Requests that may wait for runners in one worker; 0 means any number.
    pub queue_max: usize,
    /// Age of a request at which the log tells of it, with its stack.
    pub slow_request: Duration,
    /// Time that the server goes on serving after TERM, while it says that it is not ready. Zero means none.
    pub drain_delay: Duration,
    /// Bytes of resident memory at which a worker is replaced; 0 means never.
    pub max_worker_memory: u64,
    /// Time after which a worker is replaced.
    pub max_worker_age: Duration,
    /// Random addition to `max_worker_age`, at most.
    pub max_worker_age_jitter: Duration,
    /// Which PROXY headers connections may begin with.
    pub proxy_protocol: ProxyMode,
    /// Peers that may send one.
    pub proxy_allow_ips: Trusted,
    /// Proxies whose forwarded headers are believed.
    pub forwarded_allow_ips: Trusted,
    /// Header names and the value by which each says "https".
    pub secure_scheme_headers: Vec<(String, String)>,
    /// Names with an underscore that trusted proxies may send, in upper case; `*` means any.
    pub forwarder_headers: Vec<String>,
    /// What happens to other names with an underscore.
    pub header_map: HeaderMap,
    /// Accept header fields that go on in a second line.
    pub permit_obsolete_folding: bool,
    /// Accept blanks between a field's name and its colon.
    pub strip_header_spaces: bool,
    /// Accept methods outside 3 to 20 upper-case letters.
    pub permit_unconventional_http_method: bool,
    /// Accept HTTP versions other than 1.0 and 1.1.
    pub permit_unconventional_http_version: bool,
    /// Turn methods to upper case.
    pub casefold_http_method: bool,
    /// Send files of `wsgi.file_wrapper` with sendfile(2) where that is possible.
    pub sendfile: bool,
    /// Where the access log goes; standard output for `-`.
    pub accesslog: LogTarget,
    /// The access log's format, compiled.
    pub access_log_format: AccessFormat,
    /// Where the server's own messages go; standard error for `-`. Never off.
    pub errorlog: LogTarget,
    /// The least level that is logged.
    pub loglevel: Level,
    /// Send standard output and error to the error log's file.
    pub capture_output: bool,
    /// The header that every request and its answer have, with an id of the request: `X-Request-ID`.
    pub request_id_header: Option<String>,
    /// Where Prometheus finds the metrics.
    pub metrics_bind: Option<Bind>,
    /// The path that tells whether a worker lives; it begins with a slash.
    pub health_path: Option<String>,
    /// The path that tells whether the server is ready for clients; it begins with a slash.
    pub ready_path: Option<String>,
    /// Where metrics go.
    pub statsd: Option<StatsdSettings>,
    /// Both logs go through Python's `logging`, because a setting configures it.
    pub python_log: bool,
    /// Directory to change to before the application is loaded; it exists.
    pub chdir: Option<PathBuf>,
    /// Directories for the front of `sys.path`, in order.
    pub pythonpath: Vec<PathBuf>,
    /// Environment variables to set for the application.
    pub raw_env: Vec<(String, String)>,
    /// Load the application in the master.
    pub preload_app: bool,
    /// Tell statsd how many connections wait to be accepted.
    pub enable_backlog_metric: bool,
    /// Reload when a file of the application changes.
    pub reload: bool,
    /// File for the master's process id.
    pub pidfile: Option<PathBuf>,
    /// Where operators' commands are taken; `None` for nowhere.
    pub control: Option<ControlSettings>,
    /// User id of the workers; `None` keeps the master's.
    pub user: Option<u32>,
    /// Group id of the workers; `None` keeps the master's.
    pub group: Option<u32>,
    /// Mode bits that Unix sockets are created without.
    pub umask: u32,
    /// Give the workers all groups of their user.
    pub initgroups: bool,
    /// Name for process titles.
    pub proc_name: Option<String>,
    /// Tie each worker to a CPU where there is one for each.
    pub pin: bool,
    /// How workers wait for the network.
    pub io: Io,
    /// Only load settings and application.
    pub check_config: bool,
    /// Print [`Settings::listing`] first, then do as `check_config`.
    pub print_config: bool,
    /// To be logged once the log is open.
    pub notices: Vec<Notice>,
    values: Values,
}

impl Settings {
    /// The value of any setting by its name, and where it came from. Computed defaults (`workers`,
    /// `threads`) are `None` here and in their fields as they came out.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<(&Value, &Source)> {
        settings::index_of(name).map(|index| {
            let entry = &self.values.entries[index];
            (&entry.value, &entry.source)
        })
    }

    /// Where the value of setting `name` came from, in words, for messages.
    #[must_use]
    pub fn source(&self, name: &str) -> String {
        self.value(name).map_or_else(String::new, |(_, source)| described(name, source))
    }

    /// Every setting by its name, with its value as a config file would have it and its source in words.
    #[must_use]
    pub fn rows(&self) -> Vec<(&'static str, String, String)> {
        let mut rows = Vec::with_capacity(SETTINGS.len());
        for (setting, entry) in SETTINGS.iter().zip(&self.values.entries) {
            let value = match setting.name {
                "workers" => self.workers.to_string(),
                "threads" => self.threads.to_string(),
                "worker_class" if entry.value == Value::None => "'gthread'".to_owned(),
                _ if setting.kind == Kind::Mode => match entry.value {
                    Value::Int(bits) => format!("0o{bits:o}"),
                    ref other => other.to_string(),
                },
                _ => entry.value.to_string(),
            };
            let source = match setting.name {
                "workers" if entry.source == Source::Default => format!("default: {}", self.workers_from),
                "threads" if entry.source == Source::Default => {
                    format!("default: {}", setting.default_shown())
                }
                _ => entry.source.to_string(),
            };
            rows.push((setting.name, value, source));
        }
        rows.sort_unstable();
        rows
    }

    /// Every setting with its value and its source, sorted by name: `--print-config`.
    #[must_use]
    pub fn listing(&self) -> String {
        let rows = self.rows();
        let names = rows.iter().map(|row| row.0.len()).max().unwrap_or_default();
        // One long value must not push every source off the screen.
        let values = rows.iter().map(|row| row.1.len()).filter(|len| *len <= 40).max().unwrap_or_default();
        let mut out = String::new();
        for (name, value, source) in rows {
            let _ = writeln!(out, "{name:names$} = {value:values$}  # {source}");
        }
        out
    }
}

/// The defaults, as an empty command line on this machine gives them, without an application.
/// For native services and tests.
impl std::default::Default for Settings {
    #[expect(clippy::expect_used, reason = "a test builds this value, and it depends on nothing")]
    fn default() -> Self {
        let values = Values::defaults();
        build(values, String::new(), &cpus::Available::of_this_process(), Vec::new())
            .expect("the table's defaults are valid")
    }
}

/// The arguments of a command line that are no options.
///
/// # Errors
/// It cannot be understood.
pub fn positional(args: &[OsString]) -> Result<Vec<String>, ConfigError> {
    Ok(match cli::parse(args, cli::Place::CommandLine, cli::Serving::Python)? {
        cli::Outcome::Parsed(parsed) => parsed.positional,
        cli::Outcome::Print(_) => Vec::new(),
    })
}

/// The settings that a command line gives, checked, by name.
///
/// # Errors
/// It cannot be understood, or a value is not valid.
pub fn options(args: &[OsString]) -> Result<Vec<(&'static str, Value)>, ConfigError> {
    let parsed = match cli::parse(args, cli::Place::CommandLine, cli::Serving::Python)? {
        cli::Outcome::Parsed(parsed) => parsed.values,
        cli::Outcome::Print(_) => Vec::new(),
    };
    let mut values = Values::defaults();
    let mut given = Vec::with_capacity(parsed.len());
    for (index, value) in parsed {
        let option = SETTINGS[index].option().unwrap_or_default().to_owned();
        values.apply(index, value, Source::CommandLine(option))?;
        given.push((SETTINGS[index].name, values.entries[index].value.clone()));
    }
    Ok(given)
}

/// Checks one value of setting `name`, and gives it in the form that the setting keeps.
///
/// # Errors
/// There is no such setting, or the value is not valid for it.
pub fn check_value(name: &str, value: Value) -> Result<Value, ConfigError> {
    let mut values = Values::defaults();
    values.apply_named(name, value)?;
    Ok(values.entry(name).value.clone())
}

/// Reads every source and checks every value. `file` runs config files, which are Python; it is
/// `None` in a server without Python.
///
/// # Errors
/// The first thing that is wrong, with its source and what to do about it.
pub fn load(sources: &Sources<'_>, file: Option<&mut dyn ConfigFile>) -> Result<Loaded, ConfigError> {
    let &Sources { args, env, directory, cpus, program } = sources;
    let alone = program.is_some_and(|program| program.alone);
    let native = program.is_some_and(|program| program.native);
    let serving = match program.and_then(|program| program.app.as_deref()) {
        Some(name) if native => cli::Serving::Native(name),
        _ => cli::Serving::Python,
    };
    let parsed = match cli::parse(args, cli::Place::CommandLine, serving)? {
        cli::Outcome::Print(text) => return Ok(Loaded::Print { text, code: Exit::Done.code() }),
        cli::Outcome::Parsed(parsed) => parsed,
    };
    let mut notices = Vec::new();
    let mut layers = Vec::new();
    for variable in [Variable::Gunicorn, Variable::Ringhorn].into_iter().filter(|_| !alone) {
        layers.push((Some(variable), variable_arguments(variable, env, serving)?));
    }
    layers.push((None, parsed.values));

    let mut values = Values::defaults();
    values.apply_environment(env)?;
    for (name, value) in program.map_or(&[][..], |program| &program.values) {
        values.apply_named(name, value.clone())?;
    }
    // The config file is named by the strongest source of arguments, and read before all of them.
    let named = layers.iter().rev().find_map(|(variable, layer)| {
        let value = layer.iter().find(|(index, _)| SETTINGS[*index].name == "config")?;
        Some((*variable, value.1.clone()))
    });
    if !alone {
        values.apply_file(named, directory, file, &mut notices)?;
    }
    for (variable, layer) in layers {
        for (index, value) in layer {
            let option = SETTINGS[index].option().unwrap_or_default().to_owned();
            let source = match variable {
                Some(variable) => Source::Arguments(variable, option),
                None => Source::CommandLine(option),
            };
            values.apply(index, value, source)?;
        }
    }

    // Before the application is looked for: a refused setting may be what names it (paste).
    values.refuse_or_notice(native, &mut notices)?;
    let mut positional = parsed.positional.into_iter();
    let own = program.and_then(|program| program.app.clone());
    let named = positional.next().map(|app| (app, Source::CommandLine("APP".to_owned())));
    let app = match (named, values.text("wsgi_app"), own) {
        (Some((app, source)), ..) => values.name_app(app, source),
        (None, Some(app), _) => app,
        (None, None, Some(app)) => values.name_app(app, Source::Program),
        (None, None, None) => {
            return Err(StartError::new(Exit::Start, "no application is given")
                .from("the command line, and wsgi_app in the config file")
                .hint("name its module, as in `ringhorn mysite.wsgi` or `ringhorn app:app`"));
        }
    };
    let ignored: Vec<_> = positional.collect();
    if !ignored.is_empty() {
        let text = format!("arguments after the application are ignored: {}", ignored.join(" "));
        notices.push(Notice { level: Level::Warning, text });
    }
    values.check_directory(directory)?;
    let mut settings = build(values, app, &cpus(), notices)?;
    // There is no Python to write it.
    settings.python_log &= !native;
    Ok(Loaded::Run(Box::new(settings)))
}

/// The arguments in an environment variable. The application among them is ignored, as in gunicorn.
fn variable_arguments(
    variable: Variable,
    env: &dyn Fn(&str) -> Option<OsString>,
    serving: cli::Serving<'_>,
) -> Result<Vec<(usize, Value)>, StartError> {
    let Some(text) = env(variable.name()) else { return Ok(Vec::new()) };
    let place = format!("{} in the environment", variable.name());
    let words = text.to_str().and_then(shlex::split).ok_or_else(|| {
        StartError::new(Exit::Usage, format!("{} cannot be split into words", variable.name()))
            .from(&place)
            .hint("quotes must be closed, as in a shell, and the text must be UTF-8")
    })?;
    let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    match cli::parse(&words, cli::Place::Variable(variable), serving)? {
        cli::Outcome::Parsed(parsed) => Ok(parsed.values),
        cli::Outcome::Print(_) => {
            Err(StartError::new(Exit::Usage, "help and version cannot be asked for in a variable")
                .from(&place)
                .hint("give --help or --version on the command line"))
        }
    }
}

/// A value and where it came from.
#[derive(Clone, Debug)]
struct Entry {
    value: Value,
    source: Source,
}

/// A value for each setting, in the order of [`SETTINGS`]; each has passed its check.
#[derive(Clone, Debug)]
struct Values {
    entries: Vec<Entry>,
}

impl Values {
    fn defaults() -> Self {
        let entry = |setting: &Setting| Entry { value: setting.default.value(), source: Source::Default };
        Self { entries: SETTINGS.iter().map(entry).collect() }
    }

    fn apply(&mut self, index: usize, value: Value, source: Source) -> Result<(), StartError> {
        let setting = &SETTINGS[index];
        let shown = value.to_string();
        match check::check(setting, value) {
            Ok(Value::None) => self.entries[index] = Entry { value: setting.default.value(), source },
            Ok(value) => self.entries[index] = Entry { value, source },
            Err(reason) => {
                let error = invalid(setting, &source, &shown, &reason);
                // Text in a number's place on the command line is a wrong command line, as argparse has it; a
                // number out of bounds is a wrong setting.
                let mistyped = matches!(source, Source::CommandLine(_) | Source::Arguments(..))
                    && ["it must be a whole number", "it must be a number of seconds"]
                        .contains(&reason.as_str());
                return Err(if mistyped { error.exiting(Exit::Usage) } else { error });
            }
        }
        Ok(())
    }

    /// A setting that a program gave by its name.
    fn apply_named(&mut self, name: &str, value: Value) -> Result<(), StartError> {
        let Some(index) = settings::index_of(name) else {
            let error = StartError::new(Exit::Start, format!("there is no setting {name}"));
            return Err(match settings::similar_to(name) {
                Some(similar) => error.hint(format!("did you mean {similar}?")),
                None => error.hint("docs/settings.md lists all of them"),
            });
        };
        self.apply(index, value, Source::Program)
    }

    /// Keeps the application that no setting named, so that it is shown with its source like all others.
    fn name_app(&mut self, app: String, source: Source) -> String {
        for (setting, entry) in SETTINGS.iter().zip(&mut self.entries) {
            if setting.name == "wsgi_app" {
                *entry = Entry { value: Value::text(&*app), source };
                break;
            }
        }
        app
    }

    /// The environment variables behind the defaults. An empty one counts as not set.
    fn apply_environment(&mut self, env: &dyn Fn(&str) -> Option<OsString>) -> Result<(), StartError> {
        for (index, setting) in SETTINGS.iter().enumerate() {
            let Some(name) = setting.env else { continue };
            let Some(text) = env(name).filter(|text| !text.is_empty()) else { continue };
            let source = Source::Environment(name);
            let Some(text) = text.to_str() else {
                return Err(invalid(setting, &source, &text.to_string_lossy(), "it must be UTF-8 text"));
            };
            let value = match name {
                "PORT" => Value::text(format!("0.0.0.0:{text}")),
                "SENDFILE" => Value::Bool(["y", "1", "yes", "true"].contains(&text.to_lowercase().as_str())),
                _ => Value::text(text),
            };
            self.apply(index, value, source)?;
        }
        Ok(())
    }

    /// Runs the config file that `named` asks for, or the one that lies in `directory`.
    fn apply_file(
        &mut self,
        named: Option<(Option<Variable>, Value)>,
        directory: &Path,
        file: Option<&mut dyn ConfigFile>,
        notices: &mut Vec<Notice>,
    ) -> Result<(), StartError> {
        let found = ["ringhorn.conf.py", "gunicorn.conf.py"].map(|name| directory.join(name));
        let found = found.into_iter().find(|path| path.is_file());
        let (location, shown) = match (&named, found) {
            (Some((_, Value::Str(text))), _) => {
                let location = match text.strip_prefix("python:") {
                    Some(module) => Location::Module(module.to_owned()),
                    None => Location::Path(text.strip_prefix("file:").unwrap_or(text).into()),
                };
                (location, text.clone())
            }
            (_, Some(path)) => {
                let shown = path.display().to_string();
                // As gunicorn: the file's `__file__` has no `.` in it, which `dirname` would take for a directory.
                (Location::Path(std::path::absolute(&path).unwrap_or(path)), shown)
            }
            (_, None) => return Ok(()),
        };
        let Some(file) = file else {
            // A file that somebody named must not be passed over; one that just lies there may be.
            if let Some((variable, _)) = named {
                let option = "--config".to_owned();
                let source = match variable {
                    Some(variable) => Source::Arguments(variable, option),
                    None => Source::CommandLine(option),
                };
                return Err(StartError::new(
                    Exit::Start,
                    format!("cannot read config file {shown}: it is Python, and this server has none"),
                )
                .from(source)
                .hint("give its settings on the command line or in RINGHORN_CMD_ARGS"));
            }
            let text =
                format!("{shown} is not read: it is Python, and this server has none; use RINGHORN_CMD_ARGS");
            notices.push(Notice { level: Level::Warning, text });
            return Ok(());
        };
        for (name, value) in file.run(&location)? {
            match settings::index_of(&name) {
                // gunicorn, too, reads `config` from arguments only.
                Some(index) if SETTINGS[index].name == "config" => {}
                Some(index) => self.apply(index, value, Source::File(shown.clone()))?,
                None => notices.extend(settings::similar_to(&name).map(|similar| Notice {
                    level: Level::Warning,
                    text: format!("{name} in {shown} is no setting; did you mean {similar}?"),
                })),
            }
        }
        Ok(())
    }

    /// Names every setting that somebody set and that is not honoured.
    fn refuse_or_notice(&self, native: bool, notices: &mut Vec<Notice>) -> Result<(), StartError> {
        for (setting, entry) in SETTINGS.iter().zip(&self.entries) {
            // Config files made from gunicorn's template set many names to their defaults.
            if entry.source == Source::Default || entry.value == setting.default.value() {
                continue;
            }
            let from = described(setting.name, &entry.source);
            let (level, text) = match setting.support {
                Support::Honoured if native && setting.python => {
                    let why = "it is about Python applications, and this server has none";
                    (Level::Warning, format!("{} has no effect ({from}): {why}", setting.name))
                }
                Support::Honoured => continue,
                Support::Refused(instead) => {
                    let what = format!("{} = {} cannot be honoured", setting.name, entry.value);
                    return Err(StartError::new(Exit::Start, what).from(from).hint(instead));
                }
                Support::NoOp(why) => {
                    (Level::Debug, format!("{} has no effect ({from}): {why}", setting.name))
                }
            };
            notices.push(Notice { level, text });
        }
        Ok(())
    }

    fn check_directory(&self, start: &Path) -> Result<(), StartError> {
        let Some(chdir) = self.text("chdir") else { return Ok(()) };
        // The directory is entered and listed by Python's import.
        let problem = match std::fs::read_dir(start.join(&chdir)) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        Err(self
            .error("chdir", format!("cannot change to {chdir}: {}", describe(&problem)))
            .hint("give a directory that exists and that this user may read"))
    }

    fn entry(&self, name: &str) -> &Entry {
        match settings::index_of(name) {
            Some(index) => &self.entries[index],
            None => unreachable!("{name} is not in the table of settings"),
        }
    }

    /// An error about the value of `name`, with its source.
    fn error(&self, name: &str, what: String) -> StartError {
        StartError::new(Exit::Start, what).from(described(name, &self.entry(name).source))
    }

    fn text(&self, name: &str) -> Option<String> {
        match &self.entry(name).value {
            Value::Str(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let Value::List(items) = &self.entry(name).value else { return Vec::new() };
        items
            .iter()
            .filter_map(|item| if let Value::Str(text) = item { Some(text.clone()) } else { None })
            .collect()
    }

    fn on(&self, name: &str) -> bool {
        self.entry(name).value == Value::Bool(true)
    }

    fn number(&self, name: &str) -> u64 {
        self.optional_number(name).unwrap_or_default()
    }

    fn optional_number(&self, name: &str) -> Option<u64> {
        match self.entry(name).value {
            Value::Int(number) => u64::try_from(number).ok(),
            _ => None,
        }
    }

    /// A number that may not be larger than `most`.
    fn bounded(&self, name: &str, most: usize) -> Result<Option<usize>, StartError> {
        let Some(number) = self.optional_number(name) else { return Ok(None) };
        match usize::try_from(number) {
            Ok(number) if number <= most => Ok(Some(number)),
            _ => Err(self
                .error(name, format!("invalid {name} {number}: it must be at most {most}"))
                .hint("a larger number is a slip of the pen, or would take the machine down")),
        }
    }

    fn duration(&self, name: &str) -> Duration {
        match self.entry(name).value {
            Value::Float(seconds) => Duration::try_from_secs_f64(seconds).unwrap_or_default(),
            _ => Duration::from_secs(self.number(name)),
        }
    }

    fn trusted(&self, name: &str) -> Trusted {
        Trusted::from_value(&self.entry(name).value).unwrap_or_default()
    }

    fn log_target(&self, name: &str) -> LogTarget {
        match self.text(name) {
            None => LogTarget::Off,
            Some(text) if text == "-" => LogTarget::Standard,
            Some(text) => LogTarget::File(text.into()),
        }
    }

    fn account(
        &self,
        name: &str,
        resolve: fn(&str) -> std::io::Result<Option<u32>>,
    ) -> Result<Option<u32>, StartError> {
        let Some(text) = self.text(name) else {
            return Ok(self.optional_number(name).and_then(|id| id.try_into().ok()));
        };
        match resolve(&text) {
            Ok(Some(id)) => Ok(Some(id)),
            Ok(None) => Err(self
                .error(name, format!("there is no {name} {text:?} on this machine"))
                .hint("create it, or give a number")),
            Err(error) => Err(self
                .error(name, format!("cannot look up {name} {text:?}: {}", describe(&error)))
                .hint("give a number")),
        }
    }
}

/// The source in words, with the setting's name where the source alone does not show it.
fn described(name: &str, source: &Source) -> String {
    match source {
        Source::File(path) => format!("{name}, in {path}"),
        Source::Program => format!("{name}, {source}"),
        other => other.to_string(),
    }
}

fn invalid(setting: &Setting, source: &Source, shown: &str, reason: &str) -> StartError {
    let hint = match setting.name {
        "proxy_protocol" => "write --proxy-protocol=auto, or put the application first".to_owned(),
        "workers" => "leave it out for one worker per usable CPU".to_owned(),
        _ => match setting.default_shown() {
            default if default.is_empty() => setting.doc.to_owned(),
            default => format!("{}; the default is {default}", setting.doc),
        },
    };
    StartError::new(Exit::Start, format!("invalid {} {shown}: {reason}", setting.name))
        .from(described(setting.name, source))
        .hint(hint)
}

/// Makes the typed settings. Checks what concerns more than one setting, or takes more than its kind.
fn build(
    values: Values,
    app: String,
    cpus: &cpus::Available,
    mut notices: Vec<Notice>,
) -> Result<Settings, StartError> {
    let workers = values.bounded("workers", limits::WORKERS_MAX)?;
    let workers_from = match workers {
        Some(_) => values.entry("workers").source.to_string(),
        None => cpus.to_string(),
    };
    let workers = workers.unwrap_or_else(|| cpus.count().min(limits::WORKERS_MAX));
    let worker_class = worker_class(&values)?;
    let threads = match (values.bounded("threads", limits::THREADS_MAX)?, worker_class) {
        (Some(threads), _) => threads,
        (None, Some(WorkerClass::Sync)) => 1,
        // 64 database connections for the whole server stay below PostgreSQL's default of 100.
        (None, _) => (64 / workers).max(4),
    };
    Ok(Settings {
        max_requests: values.number("max_requests"),
        max_requests_jitter: values.number("max_requests_jitter"),
        daemon: values.on("daemon"),
        bind: binds(&values)?,
        backlog: values.bounded("backlog", i32::MAX as usize)?.map_or(1, |backlog| backlog as u32),
        workers,
        workers_from,
        threads,
        worker_class: worker_class.unwrap_or(WorkerClass::Gthread),
        worker_connections: values.bounded("worker_connections", limits::CONNECTIONS_MAX)?,
        timeout: values.duration("timeout"),
        graceful_timeout: values.duration("graceful_timeout"),
        keepalive: values.duration("keepalive"),
        limit_request_line: values.bounded("limit_request_line", limits::HEAD_LIMIT_MAX)?.unwrap_or_default(),
        limit_request_fields: match values.number("limit_request_fields") {
            // gunicorn's own ceiling.
            0 | 32_769.. => 32_768,
            #[expect(clippy::cast_possible_truncation, reason = "at most 32768")]
            fields => fields as usize,
        },
        limit_request_field_size: match values.bounded("limit_request_field_size", limits::HEAD_LIMIT_MAX)? {
            None | Some(0) => 8190,
            Some(size) => size,
        },
        limit_request_body: values.number("limit_request_body"),
        body_buffer: values.bounded("body_buffer", limits::BODY_BUFFER_MAX)?.unwrap_or_default(),
        first_byte_timeout: values.duration("first_byte_timeout"),
        header_timeout: values.duration("header_timeout"),
        body_timeout: values.duration("body_timeout"),
        response_timeout: values.duration("response_timeout"),
        linger_timeout: values.duration("linger_timeout"),
        request_timeout: values.duration("request_timeout"),
        queue_timeout: values.duration("queue_timeout"),
        queue_max: values.bounded("queue_max", limits::CONNECTIONS_MAX)?.unwrap_or_default(),
        slow_request: values.duration("slow_request"),
        drain_delay: values.duration("drain_delay"),
        max_worker_memory: values.number("max_worker_memory"),
        max_worker_age: values.duration("max_worker_age"),
        max_worker_age_jitter: values.duration("max_worker_age_jitter"),
        proxy_protocol: match values.text("proxy_protocol").as_deref() {
            Some("v1") => ProxyMode::V1,
            Some("v2") => ProxyMode::V2,
            Some("auto") => ProxyMode::Auto,
            _ => ProxyMode::Off,
        },
        proxy_allow_ips: values.trusted("proxy_allow_ips"),
        forwarded_allow_ips: values.trusted("forwarded_allow_ips"),
        secure_scheme_headers: scheme_headers(&values)?,
        forwarder_headers: values.texts("forwarder_headers").iter().map(|name| name.to_uppercase()).collect(),
        header_map: match values.text("header_map").as_deref() {
            Some("refuse") => HeaderMap::Refuse,
            Some("dangerous") => HeaderMap::Dangerous,
            _ => HeaderMap::Drop,
        },
        permit_obsolete_folding: values.on("permit_obsolete_folding"),
        strip_header_spaces: values.on("strip_header_spaces"),
        permit_unconventional_http_method: values.on("permit_unconventional_http_method"),
        permit_unconventional_http_version: values.on("permit_unconventional_http_version"),
        casefold_http_method: values.on("casefold_http_method"),
        sendfile: values.entry("sendfile").value != Value::Bool(false),
        accesslog: values.log_target("accesslog"),
        access_log_format: access_log_format(&values)?,
        errorlog: match values.log_target("errorlog") {
            LogTarget::Off => LogTarget::Standard,
            target => target,
        },
        loglevel: loglevel(&values, &mut notices),
        capture_output: values.on("capture_output"),
        python_log: python_log(&values),
        request_id_header: request_id_header(&values)?,
        metrics_bind: metrics_bind(&values)?,
        health_path: own_path(&values, "health_path")?,
        ready_path: ready_path(&values)?,
        statsd: statsd(&values),
        chdir: values.text("chdir").map(PathBuf::from),
        pythonpath: values.texts("pythonpath").into_iter().map(PathBuf::from).collect(),
        raw_env: raw_env(&values)?,
        preload_app: values.on("preload_app"),
        enable_backlog_metric: values.on("enable_backlog_metric"),
        reload: values.on("reload"),
        pidfile: values.text("pidfile").map(PathBuf::from),
        control: (!values.on("control_socket_disable")).then(|| ControlSettings {
            path: values.text("control_socket").map(PathBuf::from),
            mode: u32::try_from(values.number("control_socket_mode")).unwrap_or_default(),
        }),
        user: values.account("user", account::user_id)?,
        group: values.account("group", account::group_id)?,
        umask: u32::try_from(values.number("umask")).unwrap_or_default(),
        initgroups: values.on("initgroups"),
        proc_name: values.text("proc_name"),
        pin: values.on("pin"),
        io: match values.text("io").as_deref() {
            Some("uring") => Io::Uring,
            Some("epoll") => Io::Epoll,
            _ => Io::Auto,
        },
        check_config: values.on("check_config"),
        print_config: values.on("print_config"),
        app,
        notices,
        values,
    })
}

fn binds(values: &Values) -> Result<Vec<Bind>, StartError> {
    let texts = values.texts("bind");
    if texts.is_empty() {
        return Err(values
            .error("bind", "no address to listen on is given".to_owned())
            .hint("give one, as in --bind 127.0.0.1:8000"));
    }
    texts
        .iter()
        .map(|text| {
            Bind::parse(text)
                .map_err(|hint| values.error("bind", format!("invalid bind {text:?}")).hint(hint))
        })
        .collect()
}

fn request_id_header(values: &Values) -> Result<Option<String>, StartError> {
    let Some(name) = values.text("request_id_header").filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    // Without an underscore, which `header_map` is about.
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let taken = ["host", "content-length", "transfer-encoding", "connection"];
    if !plain || name.len() > 64 || taken.contains(&&*name.to_ascii_lowercase()) {
        return Err(values
            .error("request_id_header", format!("invalid request_id_header {name:?}"))
            .hint("write the name of a header, as X-Request-ID"));
    }
    Ok(Some(name))
}

fn metrics_bind(values: &Values) -> Result<Option<Bind>, StartError> {
    let Some(text) = values.text("metrics_bind").filter(|text| !text.is_empty()) else { return Ok(None) };
    Bind::parse(&text)
        .map(Some)
        .map_err(|hint| values.error("metrics_bind", format!("invalid metrics_bind {text:?}")).hint(hint))
}

/// A path that the server answers itself. Requests are compared with it byte by byte.
fn own_path(values: &Values, name: &str) -> Result<Option<String>, StartError> {
    let Some(path) = values.text(name).filter(|path| !path.is_empty()) else { return Ok(None) };
    let odd = |byte: u8| !(b'!'..=b'~').contains(&byte) || matches!(byte, b'?' | b'#');
    if !path.starts_with('/') || path.bytes().any(odd) {
        return Err(values
            .error(name, format!("invalid {name} {path:?}"))
            .hint("write a path as clients send it: /healthz, without a query, blanks as %20"));
    }
    Ok(Some(path))
}

fn ready_path(values: &Values) -> Result<Option<String>, StartError> {
    let path = own_path(values, "ready_path")?;
    if path.is_some() && path == own_path(values, "health_path")? {
        return Err(values
            .error("ready_path", "ready_path is the same as health_path".to_owned())
            .hint("they answer different questions; leave out the one that nobody asks"));
    }
    Ok(path)
}

/// The worker class; `None` when nobody chose one.
fn worker_class(values: &Values) -> Result<Option<WorkerClass>, StartError> {
    let entry = values.entry("worker_class");
    let name = match &entry.value {
        Value::None => return Ok(None),
        Value::Str(name) => name.clone(),
        other => other.to_string(),
    };
    let hint = match name.trim_start_matches("egg:gunicorn#") {
        "sync" | "gunicorn.workers.sync.SyncWorker" => return Ok(Some(WorkerClass::Sync)),
        "gthread" | "gunicorn.workers.gthread.ThreadWorker" => return Ok(Some(WorkerClass::Gthread)),
        "gevent" | "gevent_wsgi" | "gevent_pywsgi" | "eventlet" | "tornado" => {
            "leave it out: requests that wait get threads of their own, up to --threads"
        }
        "asgi" => "ASGI is not served yet; use uvicorn or granian for this application",
        name if name.contains("uvicorn") || name.contains("Uvicorn") => {
            "ASGI is not served yet; use uvicorn or granian for this application"
        }
        _ => "workers are ringhorn's own; leave it out, or choose gthread or sync",
    };
    Err(values.error("worker_class", format!("worker class {name:?} cannot run here")).hint(hint))
}

fn loglevel(values: &Values, notices: &mut Vec<Notice>) -> Level {
    let name = values.text("loglevel").unwrap_or_default();
    Level::from_name(&name).unwrap_or_else(|| {
        // As in gunicorn, a wrong level does not keep the server from starting.
        let from = described("loglevel", &values.entry("loglevel").source);
        let text =
            format!("unknown loglevel {name:?} ({from}): using info; debug, info, warning, error, critical");
        notices.push(Notice { level: Level::Warning, text });
        Level::Info
    })
}

/// A statsd server and how metrics are named for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsdSettings {
    /// `HOST:PORT`, `HOST` or `unix:PATH`.
    pub host: String,
    /// What stands before each name.
    pub prefix: String,
    /// Tags of every metric, separated by commas.
    pub tags: String,
}

fn statsd(values: &Values) -> Option<StatsdSettings> {
    if !is_default_logger(&values.entry("logger_class").value) {
        // As in gunicorn: a logger of one's own sends its own metrics.
        return None;
    }
    let text = |name: &str| values.text(name).unwrap_or_default();
    let host = values.text("statsd_host").filter(|host| !host.is_empty())?;
    Some(StatsdSettings { host, prefix: text("statsd_prefix"), tags: text("dogstatsd_tags") })
}

/// Whether a `logger_class` is gunicorn's own, with or without metrics.
fn is_default_logger(class: &Value) -> bool {
    let own = |name: &str| {
        matches!(name, "" | "simple" | "gunicorn.glogging.Logger" | "gunicorn.instrument.statsd.Statsd")
    };
    match class {
        Value::None => true,
        Value::Str(name) => own(name),
        Value::Object(object) => own(&object.describe()),
        _ => false,
    }
}

/// Whether a setting wants the logs to go through Python's `logging`.
fn python_log(values: &Values) -> bool {
    let set = |name: &str| match &values.entry(name).value {
        Value::None => false,
        Value::Dict(items) => !items.is_empty(),
        Value::Bool(on) => *on,
        _ => true,
    };
    !is_default_logger(&values.entry("logger_class").value)
        || ["logconfig", "logconfig_dict", "logconfig_json", "syslog"].into_iter().any(set)
}

fn access_log_format(values: &Values) -> Result<AccessFormat, StartError> {
    let text = values.text("access_log_format").unwrap_or_default();
    if text == "json" && python_log(values) {
        return Err(values
            .error(
                "access_log_format",
                "access_log_format json is written by the server's own log only".to_owned(),
            )
            .hint(
                "leave out logger_class, logconfig and syslog, or give Python's logging a JSON formatter",
            ));
    }
    let format = AccessFormat::parse(&text).map(|mut format| {
        if let Some(name) = values.text("request_id_header") {
            format.set_request_id_header(&name);
        }
        format
    });
    format.map_err(|error| {
        values
            .error("access_log_format", format!("invalid access_log_format: {error}"))
            .hint("atoms are written %(h)s, a percent sign is written %%")
    })
}

fn raw_env(values: &Values) -> Result<Vec<(String, String)>, StartError> {
    let pair = |text: String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err(values
            .error("raw_env", format!("invalid environment variable {text:?}"))
            .hint("write NAME=VALUE, as in --env DJANGO_SETTINGS_MODULE=mysite.settings")),
    };
    values.texts("raw_env").into_iter().map(pair).collect()
}

fn scheme_headers(values: &Values) -> Result<Vec<(String, String)>, StartError> {
    let Value::Dict(items) = &values.entry("secure_scheme_headers").value else { return Ok(Vec::new()) };
    let pair = |(name, value): &(String, Value)| match value {
        Value::Str(text) => Ok((name.clone(), text.clone())),
        other => Err(values
            .error("secure_scheme_headers", format!("invalid value {other} of {name}"))
            .hint("write {'X-FORWARDED-PROTO': 'https'}")),
    };
    items.iter().map(pair).collect()
}

#[cfg(test)]
mod tests;
