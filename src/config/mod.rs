//! Settings: typed and immutable, read once at the top and handed down.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where to listen, in gunicorn's `bind` grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// `HOST:PORT`; port 0 lets the kernel choose.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// `unix:PATH`; a path that begins with NUL is an abstract name.
    Unix(PathBuf),
    /// `fd://N`: a descriptor that was inherited.
    Fd(i32),
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Fd(fd) => write!(f, "fd://{fd}"),
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

/// Everything the server is told, after all sources were read and checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The application, `module:attribute`.
    pub app: String,
    /// Where to listen.
    pub bind: Vec<Bind>,
    /// `listen(2)` backlog of each listener, in connections.
    pub backlog: u32,
    /// Number of workers; at least 1.
    pub workers: usize,
    /// The kind of worker that was asked for.
    pub worker_class: WorkerClass,
    /// Runner threads of each worker, at most.
    pub threads: usize,
    /// Silence of a worker after which it is killed; 0 = never.
    pub timeout: Duration,
    /// Time workers get to finish after TERM.
    pub graceful_timeout: Duration,
    /// Whether workers are pinned to CPUs when there is one for each.
    pub pin: bool,
    /// Whether the application is imported before the fork.
    pub preload_app: bool,
    /// umask while a unix socket is created.
    pub umask: u32,
    /// User id of the workers and owner of unix sockets.
    pub user: Option<u32>,
    /// Group id of the workers and group of unix sockets.
    pub group: Option<u32>,
    /// Whether workers take the supplementary groups of `user`.
    pub initgroups: bool,
    /// Where the master's process id is written.
    pub pidfile: Option<PathBuf>,
}

impl Settings {
    /// Where the value of setting `name` came from, in words, for messages.
    #[must_use]
    pub fn source(&self, name: &str) -> String {
        name.to_owned()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            app: String::new(),
            bind: vec![Bind::Tcp { host: "127.0.0.1".to_owned(), port: 8000 }],
            backlog: 2048,
            workers: 1,
            worker_class: WorkerClass::Gthread,
            threads: 64,
            timeout: Duration::from_secs(30),
            graceful_timeout: Duration::from_secs(30),
            pin: true,
            preload_app: false,
            umask: 0,
            user: None,
            group: None,
            initgroups: false,
            pidfile: None,
        }
    }
}
