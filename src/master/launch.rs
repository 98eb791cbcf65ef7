//! How this process was started: to start another one like it (USR2), and what it was given.
//!
//! Taken once, before anything changes the directory or the environment.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::sys::process::{self, Pid};

/// The listeners of an earlier master, by number, with commas (gunicorn's).
const GUNICORN_FD: &str = "GUNICORN_FD";
/// The same, and what each is: a bare number is the listener of the next slot; `s` behind it is shared by
/// all workers, `u` shared and a unix socket whose file is the server's.
const RINGHORN_FD: &str = "RINGHORN_FD";
/// The earlier master's listener of the metrics address, in the same form.
const RINGHORN_METRICS_FD: &str = "RINGHORN_METRICS_FD";
/// The process id of the earlier master (gunicorn's).
const GUNICORN_PID: &str = "GUNICORN_PID";
/// Socket activation, sd_listen_fds(3).
const LISTEN_PID: &str = "LISTEN_PID";
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_NAMES: &str = "LISTEN_FDNAMES";
/// The first descriptor that a service manager passes.
const LISTEN_FIRST: i32 = 3;

/// What a start was made of.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program.
    pub program: OsString,
    /// Its arguments, without its name.
    pub arguments: Vec<OsString>,
    /// The directory it was started in; `None` when it is gone.
    pub directory: Option<PathBuf>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Launch {
    /// This process as it is now.
    #[must_use]
    pub fn of_process() -> Self {
        let mut arguments = std::env::args_os();
        Self {
            program: arguments.next().unwrap_or_default(),
            arguments: arguments.collect(),
            directory: std::env::current_dir().ok(),
            environment: std::env::vars_os().collect(),
        }
    }

    /// A variable of the environment at the start.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_os_str())
    }

    /// The variables that were meant for this process only: an embedding interpreter removes them from
    /// its environment, or the application's children would take them for theirs.
    #[must_use]
    pub fn private_variables() -> [&'static str; 7] {
        [GUNICORN_FD, RINGHORN_FD, RINGHORN_METRICS_FD, GUNICORN_PID, LISTEN_PID, LISTEN_FDS, LISTEN_NAMES]
    }

    /// Whether an earlier master started this process.
    #[must_use]
    pub fn is_upgrade(&self) -> bool {
        self.earlier_master().is_some()
    }

    /// The earlier master that started this process by USR2.
    pub(super) fn earlier_master(&self) -> Option<Pid> {
        Pid::from_raw(self.number(GUNICORN_PID)?)
    }

    /// What was passed to this process to listen on.
    pub(super) fn inherited(&self) -> Option<Inherited> {
        if self.is_upgrade() {
            let text = |name| Some(self.variable(name)?.to_string_lossy().into_owned());
            let (variable, list) = match (text(RINGHORN_FD), text(GUNICORN_FD)) {
                (Some(list), _) => (RINGHORN_FD, list),
                (None, Some(list)) => (GUNICORN_FD, list),
                (None, None) => return None,
            };
            return Some(Inherited {
                variable,
                sockets: list.split(',').map(InheritedSocket::parse).collect(),
            });
        }
        let ours = self.number(LISTEN_PID)? == process::id().as_raw_nonzero().get();
        let count = self.number(LISTEN_FDS).filter(|count| ours && *count > 0)?;
        let sockets = (LISTEN_FIRST..LISTEN_FIRST.saturating_add(count))
            .map(|fd| InheritedSocket { fd, shared: true, owned: false })
            .collect();
        Some(Inherited { variable: LISTEN_FDS, sockets })
    }

    /// The earlier master's listener of the metrics address.
    pub(super) fn inherited_metrics(&self) -> Option<Inherited> {
        let name = self.variable(RINGHORN_METRICS_FD).filter(|_| self.is_upgrade())?;
        let socket = InheritedSocket::parse(&name.to_string_lossy());
        Some(Inherited { variable: RINGHORN_METRICS_FD, sockets: vec![socket] })
    }

    fn number(&self, name: &str) -> Option<i32> {
        self.variable(name)?.to_str()?.trim().parse().ok()
    }

    /// Becomes a new start of the same program, which takes over `listeners` and that of the `metrics` address
    /// (as [`Inherited`] reads them). For a forked child; returns only when that fails.
    pub(super) fn become_again(&self, listeners: &str, metrics: Option<&str>, master: Pid) -> io::Error {
        let numbers: Vec<&str> =
            listeners.split(',').map(|name| name.trim_end_matches(char::is_alphabetic)).collect();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear();
        let private = Self::private_variables();
        let kept = self.environment.iter().filter(|(name, _)| private.iter().all(|other| name != other));
        command.envs(kept.map(|(name, value)| (name, value)));
        command.env(GUNICORN_PID, master.to_string());
        command.env(GUNICORN_FD, numbers.join(",")).env(RINGHORN_FD, listeners);
        if let Some(metrics) = metrics {
            command.env(RINGHORN_METRICS_FD, metrics);
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.exec()
    }
}

/// Sockets that were passed to this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Inherited {
    variable: &'static str,
    sockets: Vec<InheritedSocket>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InheritedSocket {
    pub(super) fd: i32,
    /// All workers accept from it; otherwise the worker of one slot.
    pub(super) shared: bool,
    /// The file of a unix socket is ours to remove.
    pub(super) owned: bool,
}

impl Inherited {
    /// Whether somebody else accepts from them at the same time.
    pub(super) fn in_use(&self) -> bool {
        self.variable != LISTEN_FDS
    }

    /// The variable that named them.
    pub(super) const fn variable(&self) -> &'static str {
        self.variable
    }

    pub(super) fn sockets(&self) -> &[InheritedSocket] {
        &self.sockets
    }
}

impl InheritedSocket {
    /// A number that is none becomes -1, which opening it refuses.
    fn parse(text: &str) -> Self {
        let digits = text.trim().trim_end_matches(['s', 'u']);
        let fd = digits.parse().unwrap_or(-1);
        Self { fd, shared: text.trim() != digits, owned: text.trim().ends_with('u') }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn launch(environment: &[(&str, &str)]) -> Launch {
        let pair = |(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
        Launch {
            program: "python".into(),
            arguments: Vec::new(),
            directory: None,
            environment: environment.iter().map(pair).collect(),
        }
    }

    fn numbers(launch: &Launch) -> Vec<(i32, bool, bool)> {
        let inherited = launch.inherited().unwrap();
        inherited.sockets().iter().map(|socket| (socket.fd, socket.shared, socket.owned)).collect()
    }

    #[test]
    fn an_earlier_master_passes_its_listeners_and_says_what_they_are() {
        let plain = launch(&[("GUNICORN_PID", "1234"), ("GUNICORN_FD", "5,6")]);
        assert_eq!(numbers(&plain), [(5, false, false), (6, false, false)]);
        let ours = launch(&[("GUNICORN_PID", "1234"), ("GUNICORN_FD", "5,6,7"), ("RINGHORN_FD", "5,6s,7u")]);
        assert_eq!(numbers(&ours), [(5, false, false), (6, true, false), (7, true, true)]);
        assert_eq!(ours.earlier_master(), Pid::from_raw(1234));
        let odd = launch(&[("GUNICORN_PID", "1234"), ("GUNICORN_FD", "five")]);
        assert_eq!(numbers(&odd), [(-1, false, false)], "refused when it is opened");
    }

    #[test]
    fn the_listener_of_the_metrics_address_is_passed_apart() {
        let ours = launch(&[("GUNICORN_PID", "1234"), ("GUNICORN_FD", "5"), ("RINGHORN_METRICS_FD", "7u")]);
        assert_eq!(numbers(&ours), [(5, false, false)]);
        let metrics = ours.inherited_metrics().unwrap();
        assert_eq!(metrics.sockets(), [InheritedSocket { fd: 7, shared: true, owned: true }]);
        assert_eq!(launch(&[("RINGHORN_METRICS_FD", "7u")]).inherited_metrics(), None, "whose is it?");
    }

    /// A leftover of another start must not make this one listen on who knows what.
    #[test]
    fn variables_that_are_not_for_this_process_are_not_believed() {
        assert_eq!(launch(&[("GUNICORN_FD", "5")]).inherited(), None);
        assert_eq!(launch(&[("LISTEN_FDS", "1")]).inherited(), None);
        assert_eq!(launch(&[("LISTEN_FDS", "1"), ("LISTEN_PID", "1")]).inherited(), None);
        let pid = process::id().to_string();
        assert_eq!(launch(&[("LISTEN_FDS", "0"), ("LISTEN_PID", &pid)]).inherited(), None);
        let ours = launch(&[("LISTEN_FDS", "2"), ("LISTEN_PID", &pid)]);
        assert_eq!(numbers(&ours), [(3, true, false), (4, true, false)]);
    }
}
