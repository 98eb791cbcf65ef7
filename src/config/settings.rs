//! The table of settings: every one of gunicorn 27, and Ringhorn's own.
//!
//! The command line, the checks, `--print-config` and docs/settings.md are all made from it, so a
//! setting is described in one place. A setting that cannot be honoured stays in the table and
//! says so by name when somebody sets it.

use std::fmt::Write as _;

use super::value::Value;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Name in a config file; gunicorn's where gunicorn has the setting.
    pub name: &'static str,
    /// Options on the command line: at most one short one, and long ones with the usual one first.
    pub flags: &'static [&'static str],
    /// What values it takes.
    pub kind: Kind,
    /// The value when nobody sets it.
    pub default: Default,
    /// The default in words, where it is computed.
    pub default_text: Option<&'static str>,
    /// Environment variable behind the default.
    pub env: Option<&'static str>,
    /// Heading under which help and documentation show it.
    pub group: Group,
    /// What it does, on one line.
    pub doc: &'static str,
    /// When a new value takes effect.
    pub applies: Applies,
    /// What Ringhorn does with it.
    pub support: Support,
    /// Left out of `--help`, because few need it.
    pub rare: bool,
    /// It is about Python applications, or about the threads that run them: nothing to a native service.
    pub python: bool,
}

/// What values a setting takes, and how text becomes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A path; it need not exist.
    Path,
    /// A directory that exists.
    Directory,
    /// A whole number from the given one on.
    Count(i64),
    /// Seconds, 0 or more; a fraction is allowed.
    Seconds,
    /// A size in bytes; text may end in `k`, `m` or `g` (powers of 1024).
    Bytes,
    /// File mode bits; text with a leading 0 is octal, as in a shell.
    Mode,
    /// True or false.
    Switch,
    /// A list of texts; the option may be repeated.
    List,
    /// A list of texts, or one text with commas.
    Commas,
    /// IP addresses and networks, or `*`; a list, or one text with commas.
    Networks,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `proxy_protocol`: a word, or a truth value; the option's value may be left out.
    ProxyMode,
    /// A mapping from text to text.
    Dict,
    /// A number of a user or group, or its name.
    Account,
    /// A function that takes one of these numbers of positional arguments.
    Hook(&'static [usize]),
    /// A class, or text that names one.
    Class,
    /// Anything: the value is not looked at.
    Any,
}

/// A default that can stand in a constant.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// Not set.
    None,
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Text.
    Text(&'static str),
    /// A list of texts.
    List(&'static [&'static str]),
    /// A mapping.
    Dict(&'static [(&'static str, &'static str)]),
}

impl Default {
    /// The default as a value.
    #[must_use]
    pub fn value(self) -> Value {
        match self {
            Self::None => Value::None,
            Self::Bool(on) => Value::Bool(on),
            Self::Int(number) => Value::Int(number),
            Self::Text(text) => Value::text(text),
            Self::List(items) => Value::List(items.iter().map(|item| Value::text(*item)).collect()),
            Self::Dict(items) => {
                Value::Dict(items.iter().map(|(key, item)| ((*key).to_owned(), Value::text(*item))).collect())
            }
        }
    }
}

/// When a new value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// Only when the server starts.
    Start,
    /// For the next generation of workers, after a reload.
    Reload,
}

/// What Ringhorn does with a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// It does what it says.
    Honoured,
    /// Accepted, and has nothing to do; why. A debug line tells when it is set.
    NoOp(&'static str),
    /// Serving without it would be wrong, so the server does not start; what to do instead.
    Refused(&'static str),
}

/// Headings of help and documentation, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// What is served and how the settings are found.
    Application,
    /// Sockets.
    Sockets,
    /// Worker processes.
    Workers,
    /// What requests may look like.
    Requests,
    /// Logs.
    Logging,
    /// The process and its rights.
    Process,
    /// Settings that gunicorn does not have.
    Ringhorn,
    /// Functions in the config file.
    Hooks,
    /// Metrics.
    Metrics,
    /// TLS.
    Tls,
    /// HTTP/2.
    Http2,
    /// ASGI and WebSocket.
    Asgi,
    /// gunicorn's dirty arbiters and other parts that stand alone.
    Other,
}

impl Group {
    /// Every group, in the order of help and documentation.
    pub const ALL: [Self; 13] = [
        Self::Application,
        Self::Sockets,
        Self::Workers,
        Self::Requests,
        Self::Logging,
        Self::Process,
        Self::Ringhorn,
        Self::Hooks,
        Self::Metrics,
        Self::Tls,
        Self::Http2,
        Self::Asgi,
        Self::Other,
    ];

    /// The heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Application => "Application",
            Self::Sockets => "Sockets",
            Self::Workers => "Workers",
            Self::Requests => "Requests",
            Self::Logging => "Logging",
            Self::Process => "Process",
            Self::Ringhorn => "Ringhorn",
            Self::Hooks => "Server hooks",
            Self::Metrics => "Metrics",
            Self::Tls => "TLS",
            Self::Http2 => "HTTP/2",
            Self::Asgi => "ASGI",
            Self::Other => "Other",
        }
    }
}

use Applies::{Reload, Start};
use Group::{
    Application, Asgi, Hooks, Http2, Logging, Metrics, Other, Process, Requests, Ringhorn, Sockets, Tls,
    Workers,
};
use Kind::{
    Account, Any, Bytes, Choice, Class, Commas, Count, Dict, Directory, Hook, List, Mode, Networks, Path,
    ProxyMode, Seconds, Switch, Text,
};
use Support::{NoOp, Refused};

/// A setting that is honoured and applies on reload, which most do.
const fn setting(
    group: Group,
    name: &'static str,
    flags: &'static [&'static str],
    kind: Kind,
    default: Default,
    doc: &'static str,
) -> Setting {
    Setting {
        name,
        flags,
        kind,
        default,
        default_text: None,
        env: None,
        group,
        doc,
        applies: Reload,
        support: Support::Honoured,
        rare: false,
        python: matches!(kind, Hook(_)),
    }
}

impl Setting {
    const fn computed(mut self, text: &'static str) -> Self {
        self.default_text = Some(text);
        self
    }

    const fn env(mut self, name: &'static str) -> Self {
        self.env = Some(name);
        self
    }

    const fn start(mut self) -> Self {
        self.applies = Start;
        self
    }

    const fn rare(mut self) -> Self {
        self.rare = true;
        self
    }

    const fn python(mut self) -> Self {
        self.python = true;
        self
    }

    const fn but(mut self, support: Support) -> Self {
        self.support = support;
        self
    }

    /// The usual long option, `--workers`; `None` for settings of the config file only.
    #[must_use]
    pub fn option(&self) -> Option<&'static str> {
        self.flags.iter().copied().find(|flag| flag.starts_with("--"))
    }

    /// The default as people read it.
    #[must_use]
    pub fn default_shown(&self) -> String {
        if let Some(text) = self.default_text {
            return text.to_owned();
        }
        match self.default {
            Default::None => String::new(),
            Default::Bool(on) => if on { "on" } else { "off" }.to_owned(),
            Default::Int(bits) if self.kind == Mode && bits != 0 => format!("0{bits:o}"),
            Default::Int(number) => number.to_string(),
            Default::Text(text) => text.to_owned(),
            Default::List(items) => items.join(","),
            Default::Dict(_) => self.default.value().to_string(),
        }
    }

    /// What a switch becomes when its option stands on the command line.
    #[must_use]
    pub const fn switched(&self) -> bool {
        !matches!(self.default, Default::Bool(true)) && !matches!(self.default, Default::None)
    }
}

const NO: Default = Default::Bool(false);
const YES: Default = Default::Bool(true);
const UNSET: Default = Default::None;

const fn int(number: i64) -> Default {
    Default::Int(number)
}

const fn text(text: &'static str) -> Default {
    Default::Text(text)
}

const NO_TLS: Support = Refused("let a proxy such as nginx or Caddy end TLS in front of ringhorn");
const NO_TLS_DETAIL: Support = NoOp("it shapes TLS, which ringhorn does not serve");
const NO_HTTP2: Support = NoOp("it shapes HTTP/2, which ringhorn does not serve");
const NO_ASGI: Support = NoOp("it shapes ASGI, which ringhorn does not serve");
const NO_DIRTY: Support = Refused("run such work in a queue's own workers, for example Celery or RQ");
const NO_DIRTY_DETAIL: Support = NoOp("it shapes dirty arbiters, which ringhorn does not have");
const NO_PASTE: Support =
    Refused("give the application as module:attr, with paste.deploy.loadapp in that module");

/// Every setting, by group.
pub static SETTINGS: &[Setting] = &[
    // Application
    setting(Application, "config", &["-c", "--config"], Text, UNSET, "Config file or python:MODULE")
        .python()
        .computed("ringhorn.conf.py, gunicorn.conf.py")
        .start(),
    setting(Application, "wsgi_app", &[], Text, UNSET, "Application, when the command line names none")
        .python(),
    setting(
        Application,
        "chdir",
        &["--chdir"],
        Directory,
        UNSET,
        "Directory to change to before the application loads",
    )
    .computed("."),
    setting(
        Application,
        "pythonpath",
        &["--pythonpath"],
        Commas,
        UNSET,
        "Directories to put in front of sys.path, with commas",
    )
    .python(),
    setting(
        Application,
        "raw_env",
        &["-e", "--env"],
        List,
        Default::List(&[]),
        "Environment variable NAME=VALUE for the application; repeatable",
    ),
    setting(
        Application,
        "preload_app",
        &["--preload"],
        Switch,
        NO,
        "Load the application once, before the workers are forked",
    )
    .python()
    .start(),
    setting(
        Application,
        "check_config",
        &["--check-config"],
        Switch,
        NO,
        "Load settings and application, then exit: 0 good, 1 bad",
    )
    .start(),
    setting(
        Application,
        "print_config",
        &["--print-config"],
        Switch,
        NO,
        "Print every setting with its source, then do as --check-config",
    )
    .start(),
    setting(
        Application,
        "reload",
        &["--reload"],
        Switch,
        NO,
        "Reload when a file of the application changes",
    )
    .python(),
    setting(
        Application,
        "reload_engine",
        &["--reload-engine"],
        Choice(&["auto", "poll", "inotify"]),
        text("auto"),
        "How changed files are noticed",
    )
    .python(),
    setting(
        Application,
        "reload_extra_files",
        &["--reload-extra-file"],
        List,
        Default::List(&[]),
        "More files or patterns to watch; repeatable",
    )
    .python(),
    setting(Application, "spew", &["--spew"], Switch, NO, "Print every line of Python that runs")
        .but(Refused("use `python -m trace --trace` on the application instead")),
    setting(Application, "paste", &["--paste", "--paster"], Text, UNSET, "PasteDeploy file to serve")
        .but(NO_PASTE),
    setting(
        Application,
        "raw_paste_global_conf",
        &["--paste-global"],
        List,
        Default::List(&[]),
        "PasteDeploy variable NAME=VALUE",
    )
    .but(NO_PASTE),
    // Sockets
    setting(
        Sockets,
        "bind",
        &["-b", "--bind"],
        List,
        Default::List(&["127.0.0.1:8000"]),
        "HOST:PORT, unix:PATH, fd://N",
    )
    .computed("127.0.0.1:8000 or 0.0.0.0:$PORT")
    .env("PORT"),
    setting(
        Sockets,
        "backlog",
        &["--backlog"],
        Count(1),
        int(2048),
        "Connections that may wait to be accepted, per listener",
    ),
    setting(
        Sockets,
        "reuse_port",
        &["--reuse-port"],
        Switch,
        NO,
        "One SO_REUSEPORT listener for each worker",
    )
    .but(NoOp("every TCP bind has one such listener for each worker anyway")),
    setting(
        Sockets,
        "proxy_protocol",
        &["--proxy-protocol"],
        ProxyMode,
        text("off"),
        "PROXY protocol in front of connections: off, v1, v2 or auto",
    ),
    setting(
        Sockets,
        "proxy_allow_ips",
        &["--proxy-allow-from"],
        Networks,
        Default::List(&["127.0.0.1", "::1"]),
        "Peers that may send a PROXY header",
    ),
    setting(
        Sockets,
        "protocol",
        &["--protocol"],
        Choice(&["http", "uwsgi"]),
        text("http"),
        "What clients speak",
    )
    .but(Refused("use the proxy's HTTP upstream (nginx: proxy_pass in place of uwsgi_pass)")),
    setting(
        Sockets,
        "uwsgi_allow_ips",
        &["--uwsgi-allow-from"],
        Networks,
        Default::List(&["127.0.0.1", "::1"]),
        "Peers that may speak the uwsgi protocol",
    )
    .but(NoOp("it shapes the uwsgi protocol, which ringhorn does not serve")),
    // Workers
    setting(Workers, "workers", &["-w", "--workers"], Count(1), UNSET, "Worker processes")
        .computed("one per usable CPU, or $WEB_CONCURRENCY")
        .env("WEB_CONCURRENCY"),
    setting(Workers, "threads", &["--threads"], Count(1), UNSET, "Requests a worker runs at once, at most")
        .computed("64 / workers, at least 4"),
    setting(
        Workers,
        "worker_class",
        &["-k", "--worker-class"],
        Class,
        UNSET,
        "gthread, or sync: one request at a time per worker",
    )
    .python()
    .computed("gthread"),
    setting(
        Workers,
        "worker_connections",
        &["--worker-connections"],
        Count(1),
        UNSET,
        "Connections a worker holds, at most",
    )
    .computed("as open files allow"),
    setting(
        Workers,
        "timeout",
        &["-t", "--timeout"],
        Seconds,
        int(30),
        "Seconds of silence after which a worker is killed; 0 = never",
    ),
    setting(
        Workers,
        "graceful_timeout",
        &["--graceful-timeout"],
        Seconds,
        int(30),
        "Seconds a worker may take to finish its requests on a stop",
    ),
    setting(
        Workers,
        "keepalive",
        &["--keep-alive"],
        Seconds,
        int(75),
        "Seconds an idle connection is kept open; 0 = not at all",
    ),
    setting(
        Workers,
        "max_requests",
        &["--max-requests"],
        Count(0),
        int(0),
        "Requests after which a worker is replaced; 0 = never",
    ),
    setting(
        Workers,
        "max_requests_jitter",
        &["--max-requests-jitter"],
        Count(0),
        int(0),
        "Random addition to max_requests, at most",
    ),
    setting(Workers, "worker_tmp_dir", &["--worker-tmp-dir"], Path, UNSET, "Directory of the heartbeat file")
        .but(NoOp("the heartbeat lives in shared memory, not in a file")),
    // Requests
    setting(
        Requests,
        "limit_request_line",
        &["--limit-request-line"],
        Count(0),
        int(8190),
        "Bytes of a request line, at most; 0 = 1 MiB",
    ),
    setting(
        Requests,
        "limit_request_fields",
        &["--limit-request-fields"],
        Count(0),
        int(100),
        "Header fields of a request, at most; 0 = 32768",
    ),
    setting(
        Requests,
        "limit_request_field_size",
        &["--limit-request-field_size", "--limit-request-field-size"],
        Count(0),
        int(8190),
        "Bytes of one header field, at most; 0 = 8190",
    ),
    setting(
        Requests,
        "forwarded_allow_ips",
        &["--forwarded-allow-ips"],
        Networks,
        Default::List(&["127.0.0.1", "::1"]),
        "Proxies whose word is taken; * = all",
    )
    .env("FORWARDED_ALLOW_IPS"),
    setting(
        Requests,
        "secure_scheme_headers",
        &[],
        Dict,
        Default::Dict(&[
            ("X-FORWARDED-PROTOCOL", "ssl"),
            ("X-FORWARDED-PROTO", "https"),
            ("X-FORWARDED-SSL", "on"),
        ]),
        "Headers by which a trusted proxy says that its client used https",
    ),
    setting(
        Requests,
        "forwarder_headers",
        &["--forwarder-headers"],
        Commas,
        Default::List(&["SCRIPT_NAME", "PATH_INFO"]),
        "Names with _ from such proxies",
    ),
    setting(
        Requests,
        "header_map",
        &["--header-map"],
        Choice(&["drop", "refuse", "dangerous"]),
        text("drop"),
        "Other names with _: drop, refuse or dangerous",
    ),
    setting(
        Requests,
        "permit_obsolete_folding",
        &["--permit-obsolete-folding"],
        Switch,
        NO,
        "Accept header fields that go on in a second line",
    )
    .rare(),
    setting(
        Requests,
        "strip_header_spaces",
        &["--strip-header-spaces"],
        Switch,
        NO,
        "Accept blanks between a field's name and its colon",
    )
    .rare(),
    setting(
        Requests,
        "permit_unconventional_http_method",
        &["--permit-unconventional-http-method"],
        Switch,
        NO,
        "Accept methods in lower case, or very short or long ones",
    )
    .rare(),
    setting(
        Requests,
        "permit_unconventional_http_version",
        &["--permit-unconventional-http-version"],
        Switch,
        NO,
        "Accept HTTP versions other than 1.0 and 1.1",
    )
    .rare(),
    setting(
        Requests,
        "casefold_http_method",
        &["--casefold-http-method"],
        Switch,
        NO,
        "Turn methods to upper case",
    )
    .rare(),
    setting(
        Requests,
        "http_parser",
        &["--http-parser"],
        Choice(&["auto", "fast", "python"]),
        text("auto"),
        "Which of gunicorn's parsers to use",
    )
    .but(NoOp("ringhorn has one parser")),
    setting(
        Requests,
        "sendfile",
        &["--no-sendfile"],
        Switch,
        UNSET,
        "Send files with sendfile(2); --no-sendfile: do not",
    )
    .python()
    .computed("on")
    .env("SENDFILE"),
    setting(Requests, "tmp_upload_dir", &[], Any, UNSET, "Unused, in gunicorn too")
        .but(NoOp("gunicorn does not use it either")),
    // Logging
    setting(
        Logging,
        "accesslog",
        &["--access-logfile"],
        Path,
        UNSET,
        "File for a line per request; - = standard output",
    )
    .computed("none"),
    setting(
        Logging,
        "access_log_format",
        &["--access-logformat"],
        Text,
        text(r#"%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s""#),
        "Format of access lines, with gunicorn's atoms; or json",
    )
    .computed("combined"),
    setting(
        Logging,
        "errorlog",
        &["--error-logfile", "--log-file"],
        Path,
        text("-"),
        "File for the server's own messages; - = standard error",
    )
    .start(),
    setting(
        Logging,
        "loglevel",
        &["--log-level"],
        Text,
        text("info"),
        "debug, info, warning, error or critical",
    ),
    setting(
        Logging,
        "capture_output",
        &["--capture-output"],
        Switch,
        NO,
        "Send standard output and error to errorlog",
    )
    .start(),
    setting(Logging, "logger_class", &["--logger-class"], Class, UNSET, "Python class that writes the logs")
        .python()
        .start(),
    setting(
        Logging,
        "logconfig",
        &["--log-config"],
        Path,
        UNSET,
        "Python logging configuration, as INI file",
    )
    .python()
    .start(),
    setting(Logging, "logconfig_dict", &[], Dict, Default::Dict(&[]), "Python logging configuration")
        .python()
        .start(),
    setting(
        Logging,
        "logconfig_json",
        &["--log-config-json"],
        Path,
        UNSET,
        "Python logging configuration, as JSON file",
    )
    .python()
    .start(),
    setting(Logging, "syslog", &["--log-syslog"], Switch, NO, "Send the logs to syslog, too")
        .python()
        .start(),
    setting(
        Logging,
        "syslog_addr",
        &["--log-syslog-to"],
        Text,
        text("udp://localhost:514"),
        "Address of syslog",
    )
    .python()
    .start()
    .rare(),
    setting(Logging, "syslog_prefix", &["--log-syslog-prefix"], Text, UNSET, "Program name in syslog")
        .python()
        .start()
        .rare(),
    setting(Logging, "syslog_facility", &["--log-syslog-facility"], Text, text("user"), "Facility in syslog")
        .python()
        .start()
        .rare(),
    setting(
        Logging,
        "disable_redirect_access_to_syslog",
        &["--disable-redirect-access-to-syslog"],
        Switch,
        NO,
        "Keep the access log out of syslog",
    )
    .python()
    .start()
    .rare(),
    // Process
    setting(
        Process,
        "control_socket",
        &["--control-socket"],
        Path,
        UNSET,
        "Unix socket for `ringhorn ctl` and `ringhorn top`",
    )
    .computed("`ringhorn.ctl` in `$RUNTIME_DIRECTORY`, `$XDG_RUNTIME_DIR` or, for root, `/run`")
    .rare(),
    setting(
        Process,
        "control_socket_mode",
        &["--control-socket-mode"],
        Mode,
        int(0o600),
        "Mode of the control socket's file",
    )
    .rare(),
    setting(
        Process,
        "control_socket_disable",
        &["--no-control-socket"],
        Switch,
        NO,
        "Open no control socket",
    )
    .rare(),
    setting(Process, "pidfile", &["-p", "--pid"], Path, UNSET, "File that holds the master's process id"),
    setting(Process, "user", &["-u", "--user"], Account, UNSET, "User the workers run as").start(),
    setting(Process, "group", &["-g", "--group"], Account, UNSET, "Group the workers run as").start(),
    setting(
        Process,
        "umask",
        &["-m", "--umask"],
        Mode,
        int(0),
        "Mode bits that Unix sockets are created without",
    ),
    setting(Process, "initgroups", &["--initgroups"], Switch, NO, "Give workers all groups of their user")
        .start(),
    setting(Process, "proc_name", &["-n", "--name"], Text, UNSET, "Name in process titles")
        .computed("the application"),
    setting(Process, "default_proc_name", &[], Text, text("gunicorn"), "Name when proc_name is not set")
        .but(NoOp("the application's name is what stands in for proc_name")),
    setting(Process, "daemon", &["-D", "--daemon"], Switch, NO, "Go to the background").start(),
    setting(
        Process,
        "enable_stdio_inheritance",
        &["-R", "--enable-stdio-inheritance"],
        Switch,
        NO,
        "Keep standard output and error as a daemon",
    )
    .start(),
    // Ringhorn
    setting(
        Ringhorn,
        "io",
        &["--io"],
        Choice(&["auto", "uring", "epoll"]),
        text("auto"),
        "Network backend: auto, uring or epoll",
    )
    .start(),
    setting(
        Ringhorn,
        "pin",
        &["--no-pin"],
        Switch,
        YES,
        "Tie workers to CPUs if each can have its own; --no-pin: never",
    ),
    setting(
        Ringhorn,
        "body_buffer",
        &["--body-buffer"],
        Bytes,
        int(1024 * 1024),
        "Body bytes received before the application is called",
    )
    .computed("1m"),
    setting(
        Ringhorn,
        "limit_request_body",
        &["--limit-request-body"],
        Bytes,
        int(0),
        "Bytes of a request body, at most; 0 = any number",
    ),
    setting(
        Ringhorn,
        "first_byte_timeout",
        &["--first-byte-timeout"],
        Seconds,
        int(30),
        "Seconds from connecting to a request's first byte; 0 = any",
    ),
    setting(
        Ringhorn,
        "header_timeout",
        &["--header-timeout"],
        Seconds,
        int(10),
        "Seconds from the first byte to the end of the head; 0 = any",
    ),
    setting(
        Ringhorn,
        "body_timeout",
        &["--body-timeout"],
        Seconds,
        int(30),
        "Seconds between two arrivals of a body; 0 = any",
    ),
    setting(
        Ringhorn,
        "response_timeout",
        &["--response-timeout"],
        Seconds,
        int(30),
        "Seconds without a client taking any response; 0 = any",
    ),
    setting(
        Ringhorn,
        "linger_timeout",
        &["--linger-timeout"],
        Seconds,
        int(2),
        "Seconds for a client to take the last bytes at a close",
    ),
    setting(
        Ringhorn,
        "request_timeout",
        &["--request-timeout"],
        Seconds,
        int(0),
        "Seconds after which a request is answered 503; 0 = never",
    )
    .python(),
    setting(
        Ringhorn,
        "queue_timeout",
        &["--queue-timeout"],
        Seconds,
        int(0),
        "Seconds a request may wait for a thread, else 503; 0 = any",
    )
    .python(),
    setting(
        Ringhorn,
        "queue_max",
        &["--queue-max"],
        Count(0),
        int(0),
        "Requests that wait in a worker, others get 503; 0 = any",
    )
    .python(),
    setting(
        Ringhorn,
        "request_id_header",
        &["--request-id-header"],
        Text,
        UNSET,
        "Header with each request's id, made if missing",
    )
    .python()
    .computed("none"),
    setting(
        Ringhorn,
        "metrics_bind",
        &["--metrics-bind"],
        Text,
        UNSET,
        "Metrics for Prometheus on HOST:PORT or unix:PATH",
    )
    .computed("none")
    .start(),
    setting(
        Ringhorn,
        "health_path",
        &["--health-path"],
        Text,
        UNSET,
        "Path answered 200 while the server lives",
    )
    .computed("none"),
    setting(
        Ringhorn,
        "ready_path",
        &["--ready-path"],
        Text,
        UNSET,
        "Path answered 200 when ready, 503 when stopping",
    )
    .computed("none"),
    setting(
        Ringhorn,
        "slow_request",
        &["--slow-request"],
        Seconds,
        int(0),
        "Age of a request that is logged with its stack; 0 = off",
    )
    .python(),
    setting(
        Ringhorn,
        "drain_delay",
        &["--drain-delay"],
        Seconds,
        int(0),
        "Seconds the server still serves after TERM, not ready",
    ),
    setting(
        Ringhorn,
        "max_worker_memory",
        &["--max-worker-memory"],
        Bytes,
        int(0),
        "Resident bytes at which a worker is replaced; 0 = never",
    ),
    setting(
        Ringhorn,
        "max_worker_age",
        &["--max-worker-age"],
        Seconds,
        int(0),
        "Seconds after which a worker is replaced; 0 = never",
    ),
    setting(
        Ringhorn,
        "max_worker_age_jitter",
        &["--max-worker-age-jitter"],
        Seconds,
        int(0),
        "Random addition to max_worker_age, at most",
    )
    .rare(),
    // Hooks
    setting(Hooks, "on_starting", &[], Hook(&[1]), UNSET, "Before the master opens its sockets"),
    setting(Hooks, "on_reload", &[], Hook(&[1]), UNSET, "While a reload is going on"),
    setting(Hooks, "when_ready", &[], Hook(&[1]), UNSET, "When the master has opened its sockets"),
    setting(Hooks, "pre_fork", &[], Hook(&[2]), UNSET, "In the master, before a worker is forked"),
    setting(Hooks, "post_fork", &[], Hook(&[2]), UNSET, "In a worker, after its fork"),
    setting(Hooks, "post_worker_init", &[], Hook(&[1]), UNSET, "In a worker that has loaded the application"),
    setting(Hooks, "worker_int", &[], Hook(&[1]), UNSET, "In a worker that got INT or QUIT"),
    setting(Hooks, "worker_abort", &[], Hook(&[1]), UNSET, "In a worker that got ABRT, as after a timeout"),
    setting(Hooks, "pre_exec", &[], Hook(&[1]), UNSET, "Before the master is started anew by USR2"),
    setting(Hooks, "pre_request", &[], Hook(&[2]), UNSET, "Before each request"),
    setting(Hooks, "post_request", &[], Hook(&[2, 3, 4]), UNSET, "After each request"),
    setting(Hooks, "child_exit", &[], Hook(&[2]), UNSET, "In the master, after a worker has ended"),
    setting(Hooks, "worker_exit", &[], Hook(&[2]), UNSET, "In a worker that ends"),
    setting(Hooks, "nworkers_changed", &[], Hook(&[3]), UNSET, "When the number of workers changes"),
    setting(Hooks, "on_exit", &[], Hook(&[1]), UNSET, "Last, before the master ends"),
    // Metrics
    setting(Metrics, "statsd_host", &["--statsd-host"], Text, UNSET, "statsd server: HOST:PORT or unix:PATH")
        .start(),
    setting(Metrics, "statsd_prefix", &["--statsd-prefix"], Text, text(""), "Prefix of metric names").start(),
    setting(Metrics, "dogstatsd_tags", &["--dogstatsd-tags"], Text, text(""), "Tags of metrics").start(),
    setting(
        Metrics,
        "enable_backlog_metric",
        &["--enable-backlog-metric"],
        Switch,
        NO,
        "Measure how many connections wait to be accepted",
    ),
    // TLS
    setting(Tls, "certfile", &["--certfile"], Path, UNSET, "Certificate").but(NO_TLS),
    setting(Tls, "keyfile", &["--keyfile"], Path, UNSET, "Private key").but(NO_TLS),
    setting(Tls, "ca_certs", &["--ca-certs"], Path, UNSET, "Authorities for client certificates").but(NO_TLS),
    setting(
        Tls,
        "cert_reqs",
        &["--cert-reqs"],
        Count(0),
        int(0),
        "Client certificates: 0 no, 1 optional, 2 required",
    )
    .but(NO_TLS),
    setting(Tls, "ssl_context", &[], Hook(&[2]), UNSET, "Makes the TLS context").but(NO_TLS),
    setting(Tls, "ciphers", &["--ciphers"], Text, UNSET, "Cipher list").but(NO_TLS_DETAIL),
    setting(Tls, "ssl_version", &["--ssl-version"], Any, UNSET, "Unused, in gunicorn too")
        .but(NoOp("gunicorn does not use it either")),
    setting(
        Tls,
        "suppress_ragged_eofs",
        &["--suppress-ragged-eofs"],
        Switch,
        YES,
        "Detail of Python's ssl module",
    )
    .but(NO_TLS_DETAIL),
    setting(
        Tls,
        "do_handshake_on_connect",
        &["--do-handshake-on-connect"],
        Switch,
        NO,
        "Detail of Python's ssl module",
    )
    .but(NO_TLS_DETAIL),
    // HTTP/2
    setting(
        Http2,
        "http_protocols",
        &["--http-protocols"],
        Commas,
        Default::List(&["h1"]),
        "Protocols offered over TLS: h1, h2",
    )
    .but(Refused("offer HTTP/2 in a proxy in front, and leave this at h1")),
    setting(
        Http2,
        "http2_cleartext",
        &["--http2-cleartext"],
        Choice(&["off", "prior-knowledge", "upgrade", "both"]),
        text("off"),
        "HTTP/2 without TLS",
    )
    .but(Refused("let the proxy speak HTTP/1.1 to ringhorn")),
    setting(
        Http2,
        "http2_max_concurrent_streams",
        &["--http2-max-concurrent-streams"],
        Count(1),
        int(100),
        "Streams of a connection",
    )
    .but(NO_HTTP2),
    setting(
        Http2,
        "http2_initial_window_size",
        &["--http2-initial-window-size"],
        Count(0),
        int(65535),
        "Flow control window",
    )
    .but(NO_HTTP2),
    setting(
        Http2,
        "http2_max_frame_size",
        &["--http2-max-frame-size"],
        Count(16384),
        int(16384),
        "Bytes of a frame",
    )
    .but(NO_HTTP2),
    setting(
        Http2,
        "http2_max_header_list_size",
        &["--http2-max-header-list-size"],
        Count(0),
        int(65536),
        "Bytes of a head",
    )
    .but(NO_HTTP2),
    // ASGI
    setting(
        Asgi,
        "asgi_loop",
        &["--asgi-loop"],
        Choice(&["auto", "asyncio", "uvloop"]),
        text("auto"),
        "Event loop",
    )
    .but(NO_ASGI),
    setting(
        Asgi,
        "asgi_lifespan",
        &["--asgi-lifespan"],
        Choice(&["auto", "on", "off"]),
        text("auto"),
        "Lifespan protocol",
    )
    .but(NO_ASGI),
    setting(
        Asgi,
        "asgi_disconnect_grace_period",
        &["--asgi-disconnect-grace-period"],
        Seconds,
        int(3),
        "Seconds a task may go on without its client",
    )
    .but(NO_ASGI),
    setting(
        Asgi,
        "websocket_max_message_size",
        &["--websocket-max-message-size"],
        Bytes,
        int(16 * 1024 * 1024),
        "Bytes of a message",
    )
    .but(NO_ASGI),
    setting(Asgi, "root_path", &["--root-path"], Text, text(""), "Path the application is mounted at")
        .but(NO_ASGI),
    // Other
    setting(
        Other,
        "dirty_apps",
        &["--dirty-app"],
        List,
        Default::List(&[]),
        "Application of the dirty arbiter; repeatable",
    )
    .but(NO_DIRTY),
    setting(Other, "dirty_workers", &["--dirty-workers"], Count(0), int(0), "Workers of the dirty arbiter")
        .but(NO_DIRTY),
    setting(Other, "dirty_timeout", &["--dirty-timeout"], Seconds, int(300), "Seconds a dirty task may take")
        .but(NO_DIRTY_DETAIL),
    setting(Other, "dirty_threads", &["--dirty-threads"], Count(1), int(1), "Threads of a dirty worker")
        .but(NO_DIRTY_DETAIL),
    setting(
        Other,
        "dirty_graceful_timeout",
        &["--dirty-graceful-timeout"],
        Seconds,
        int(30),
        "Seconds a dirty worker may take to stop",
    )
    .but(NO_DIRTY_DETAIL),
    setting(Other, "on_dirty_starting", &[], Hook(&[1]), UNSET, "Before the dirty arbiter starts")
        .but(NO_DIRTY_DETAIL),
    setting(Other, "dirty_post_fork", &[], Hook(&[2]), UNSET, "In a dirty worker, after its fork")
        .but(NO_DIRTY_DETAIL),
    setting(Other, "dirty_worker_init", &[], Hook(&[1]), UNSET, "In a dirty worker that is loaded")
        .but(NO_DIRTY_DETAIL),
    setting(Other, "dirty_worker_exit", &[], Hook(&[2]), UNSET, "In a dirty worker that ends")
        .but(NO_DIRTY_DETAIL),
];

/// The place of the setting `name` in [`SETTINGS`].
#[must_use]
pub fn index_of(name: &str) -> Option<usize> {
    SETTINGS.iter().position(|setting| setting.name == name)
}

/// The setting's name that `name`, in a config file or a program, was probably meant to be.
#[must_use]
pub fn similar_to(name: &str) -> Option<&'static str> {
    // Names in a config file are mostly the file's own variables; only a near miss is worth a word. Shorter words
    // have too many neighbours: `kind` is no slip of `bind`.
    let misspelt = |setting: &&Setting| {
        let most = match name.chars().count().max(setting.name.len()) {
            ..=4 => usize::from(name.len() != setting.name.len() || same_letters(name, setting.name)),
            5..=8 => 1,
            _ => 2,
        };
        (1..=most).contains(&strsim::damerau_levenshtein(name, setting.name))
    };
    // The option's name in the setting's place: `preload` for `preload_app`. `env` and `pid` may well be variables.
    let by_option = || {
        let meant = |setting: &&Setting| {
            name.len() > 4
                && setting
                    .flags
                    .iter()
                    .any(|flag| flag.strip_prefix("--").is_some_and(|flag| flag.replace('-', "_") == name))
        };
        SETTINGS.iter().find(meant)
    };
    by_option().or_else(|| nearest(name, misspelt)).map(|setting| setting.name)
}

/// The option that the option `name` was probably meant to be; both with their dashes.
#[must_use]
pub fn similar_option(name: &str) -> Option<&'static str> {
    let word = name.strip_prefix("--")?;
    // The setting's name in the option's place: `--loglevel` for `--log-level`.
    if let Some(option) = index_of(&word.replace('-', "_")).and_then(|index| SETTINGS[index].option()) {
        return Some(option);
    }
    let distance = |flag: &str| flag.strip_prefix("--").map(|flag| strsim::damerau_levenshtein(word, flag));
    // Options that have an effect first, where two are equally near.
    let most = |flag: &str| (word.chars().count().max(flag.len() - 2) / 4).max(1);
    let flags = SETTINGS.iter().flat_map(|setting| setting.flags.iter().map(move |flag| (setting, *flag)));
    flags
        .filter_map(|(setting, flag)| Some((distance(flag)?, setting.support != Support::Honoured, flag)))
        .filter(|(distance, _, flag)| *distance <= most(flag))
        .min_by_key(|(distance, idle, _)| (*distance, *idle))
        .map(|(_, _, flag)| flag)
}

/// The setting among those that `fits` which needs the fewest changes of letters.
fn nearest(name: &str, fits: impl Fn(&&Setting) -> bool) -> Option<&'static Setting> {
    SETTINGS.iter().filter(|setting| fits(setting)).min_by_key(|setting| {
        (strsim::damerau_levenshtein(name, setting.name), setting.support != Support::Honoured)
    })
}

fn same_letters(one: &str, other: &str) -> bool {
    let sorted = |text: &str| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort_unstable();
        letters
    };
    sorted(one) == sorted(other)
}

/// docs/settings.md, from the table.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# Settings\n\n\
         <!-- Printed from src/config/settings.rs; `RINGHORN_BLESS=1 cargo test --test tidy` writes it anew. -->\n\n\
         Names, options and meanings are gunicorn's, except for the group \"Ringhorn\". A later source replaces\n\
         the whole value of an earlier one: defaults and the environment variables behind them, the config\n\
         file (the one that `--config` names, else `./ringhorn.conf.py`, else `./gunicorn.conf.py`),\n\
         `GUNICORN_CMD_ARGS`, `RINGHORN_CMD_ARGS`, the command line. `ringhorn --print-config` shows every\n\
         value and where it came from.\n\n\
         The last column says what Ringhorn does with a setting:\n\n\
         - **yes**: it does what it says.\n\
         - **nothing to do**: accepted, without effect, for the reason given.\n\
         - **refused**: the server does not start with it, because serving without it would be wrong.\n",
    );
    for group in Group::ALL {
        let _ = write!(
            out,
            "\n## {}\n\n| setting | options | value | default | what it does | honoured |\n\
             | --- | --- | --- | --- | --- | --- |\n",
            group.title()
        );
        for setting in SETTINGS.iter().filter(|setting| setting.group == group) {
            let options: Vec<_> = setting.flags.iter().map(|flag| format!("`{flag}`")).collect();
            let default = match setting.default_shown() {
                shown if shown.is_empty() && setting.env.is_none() => "-".to_owned(),
                shown if setting.default_text.is_some() => shown,
                shown => format!("`{shown}`"),
            };
            let default = match setting.env {
                Some(name) if !default.contains(name) => format!("{default} or `${name}`"),
                _ => default,
            };
            let support = match setting.support {
                Support::Honoured => "yes".to_owned(),
                Support::NoOp(why) => format!("nothing to do: {why}"),
                Support::Refused(instead) => format!("refused: {instead}"),
            };
            let cells = [
                format!("`{}`", setting.name),
                options.join(" "),
                setting.kind.noun().to_owned(),
                default,
                match setting.applies {
                    Applies::Start => format!("{} (read at start only)", setting.doc),
                    Applies::Reload => setting.doc.to_owned(),
                },
                support,
            ];
            let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            let _ = writeln!(out, "| {} |", cells.join(" | "));
        }
    }
    out
}

impl Kind {
    /// What the value is, in words.
    #[must_use]
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Path => "path",
            Self::Directory => "directory",
            Self::Count(_) => "number",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes (k, m, g)",
            Self::Mode => "mode bits",
            Self::Switch => "switch",
            Self::List => "list",
            Self::Commas => "list (commas)",
            Self::Networks => "networks (commas)",
            Self::Choice(_) => "word",
            Self::ProxyMode => "word or nothing",
            Self::Dict => "mapping",
            Self::Account => "name or number",
            Self::Hook(_) => "function",
            Self::Class => "class",
            Self::Any => "anything",
        }
    }

    /// The placeholder of the value in help.
    #[must_use]
    pub const fn placeholder(self) -> &'static str {
        match self {
            Self::Text | Self::Any => "TEXT",
            Self::Path => "FILE",
            Self::Directory => "DIR",
            Self::Count(_) => "N",
            Self::Seconds => "SECS",
            Self::Bytes => "SIZE",
            Self::Mode => "MODE",
            Self::Networks => "IPS",
            Self::Choice(_) => "WORD",
            Self::ProxyMode => "MODE",
            Self::Account => "NAME",
            Self::Class => "CLASS",
            Self::List | Self::Commas | Self::Switch | Self::Dict | Self::Hook(_) => "VALUE",
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::HashSet;

    use super::*;
    use crate::config::check::check;

    /// A name or an option that stood twice would make the first one unreachable.
    #[test]
    fn names_and_options_are_unique() {
        let mut seen = HashSet::new();
        for setting in SETTINGS {
            assert!(seen.insert(setting.name), "{} is there twice", setting.name);
            for flag in setting.flags {
                assert!(seen.insert(*flag), "{flag} is there twice");
                assert!(flag.starts_with("--") || flag.len() == 2, "{flag}");
            }
        }
        for taken in ["-h", "--help", "-v", "--version"] {
            assert!(!seen.contains(taken));
        }
    }

    #[test]
    fn defaults_pass_their_own_checks() {
        for setting in SETTINGS {
            let default = setting.default.value();
            assert_eq!(check(setting, default.clone()), Ok(default), "{}", setting.name);
        }
    }

    /// gunicorn 27.0.1 has 120 settings plus the four dirty hooks, and none may be missing.
    #[test]
    fn every_gunicorn_setting_is_there() {
        let gunicorn = SETTINGS.iter().filter(|setting| setting.group != Group::Ringhorn).count();
        assert_eq!(gunicorn, GUNICORN.split_whitespace().count());
        for name in GUNICORN.split_whitespace() {
            assert!(index_of(name).is_some(), "{name} is missing");
        }
    }

    #[test]
    fn descriptions_fit_a_line_of_help() {
        for setting in SETTINGS {
            assert!(
                !setting.doc.ends_with('.') && setting.doc.len() <= 68,
                "{}: {}",
                setting.name,
                setting.doc
            );
        }
    }

    #[test]
    fn a_near_miss_is_recognised_and_a_variable_is_not() {
        assert_eq!(similar_to("worker"), Some("workers"));
        assert_eq!(similar_to("graceful_timout"), Some("graceful_timeout"));
        assert_eq!(similar_to("multiprocessing"), None);
        assert_eq!(similar_to("cores"), None);
        for (slip, meant) in [
            ("bnid", "bind"),
            ("binds", "bind"),
            ("log_level", "loglevel"),
            ("keep_alive", "keepalive"),
            ("thread", "threads"),
            ("wokrers", "workers"),
            ("acces_log_fromat", "access_log_format"),
            ("preload", "preload_app"),
            ("log_file", "errorlog"),
        ] {
            assert_eq!(similar_to(slip), Some(meant), "{slip}");
        }
        for own in
            ["kind", "spec", "name", "env", "pid", "markers", "os", "host", "port", "timers", "x", "paths"]
        {
            assert_eq!(similar_to(own), None, "{own}");
        }
    }

    #[test]
    fn a_slip_in_an_option_is_recognised_and_nothing_is_made_up() {
        for (slip, meant) in [
            ("--bnd", "--bind"),
            ("--pdi", "--pid"),
            ("--evn", "--env"),
            ("--nmae", "--name"),
            ("--wrokers", "--workers"),
            ("--loglevel", "--log-level"),
            ("--pidfile", "--pid"),
            ("--accesslog", "--access-logfile"),
            ("--access_logfile", "--access-logfile"),
            ("--access-log-format", "--access-logformat"),
            ("--graceful-timout", "--graceful-timeout"),
            ("--reuseport", "--reuse-port"),
        ] {
            assert_eq!(similar_option(slip), Some(meant), "{slip}");
        }
        for other in ["--zzz", "--prt", "--ssl", "--cpu", "-Q", "--verbose", ""] {
            assert_eq!(similar_option(other), None, "{other}");
        }
    }

    const GUNICORN: &str = "config wsgi_app bind backlog workers worker_class threads worker_connections \
        max_requests max_requests_jitter timeout graceful_timeout keepalive limit_request_line \
        limit_request_fields limit_request_field_size reload reload_engine reload_extra_files spew \
        check_config print_config preload_app sendfile reuse_port chdir daemon raw_env pidfile \
        worker_tmp_dir user group umask initgroups tmp_upload_dir secure_scheme_headers \
        forwarded_allow_ips accesslog disable_redirect_access_to_syslog access_log_format errorlog \
        loglevel capture_output logger_class logconfig logconfig_dict logconfig_json syslog_addr syslog \
        syslog_prefix syslog_facility enable_stdio_inheritance statsd_host dogstatsd_tags statsd_prefix \
        enable_backlog_metric proc_name default_proc_name pythonpath paste on_starting on_reload \
        when_ready pre_fork post_fork post_worker_init worker_int worker_abort pre_exec pre_request \
        post_request child_exit worker_exit nworkers_changed on_exit ssl_context proxy_protocol \
        proxy_allow_ips protocol uwsgi_allow_ips keyfile certfile ssl_version cert_reqs ca_certs \
        suppress_ragged_eofs do_handshake_on_connect ciphers http_protocols http2_cleartext \
        http2_max_concurrent_streams http2_initial_window_size http2_max_frame_size \
        http2_max_header_list_size raw_paste_global_conf permit_obsolete_folding strip_header_spaces \
        permit_unconventional_http_method permit_unconventional_http_version casefold_http_method \
        forwarder_headers header_map asgi_loop asgi_lifespan asgi_disconnect_grace_period \
        websocket_max_message_size http_parser root_path dirty_apps dirty_workers dirty_timeout \
        dirty_threads dirty_graceful_timeout on_dirty_starting dirty_post_fork dirty_worker_init \
        dirty_worker_exit control_socket control_socket_mode control_socket_disable";
}
