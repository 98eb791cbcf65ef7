//! What comes between the settings and the master: the way to the background, and the logs.

use std::io;

use tracing::warn;

use super::Launch;
use crate::config::{Settings, Value};
use crate::error::{Exit, StartError};
use crate::observe;
use crate::observe::statsd::{self, Statsd};
use crate::sys::errno::describe;
use crate::sys::process::{self, Fork};

/// The umask of a daemon; gunicorn's.
const DAEMON_UMASK: u32 = 0o022;

/// Goes to the background, if the settings say so, and opens the logs. Comes before [`super::run`], in a process of
/// one thread; `fork` is fork(2) with what the process does around it.
///
/// # Errors
/// What fork(2), setsid(2) or dup2(2) refuse, or the error log cannot be opened.
pub fn begin(
    settings: &Settings,
    launch: &Launch,
    fork: impl FnMut() -> io::Result<Fork>,
) -> Result<(), StartError> {
    let failed = |what: &str, error: &io::Error, setting: &str| {
        StartError::new(Exit::Start, format!("{what}: {}", describe(error))).from(settings.source(setting))
    };
    // An upgrade's new master is in the background already.
    if settings.daemon && !launch.is_upgrade() {
        daemonize(settings, fork).map_err(|error| failed("cannot go to the background", &error, "daemon"))?;
    }
    observe::create_files(&[&settings.errorlog], settings.user, settings.group);
    observe::install(&settings.errorlog, settings.loglevel, settings.capture_output).map_err(|error| {
        failed(&format!("cannot open the error log {}", settings.errorlog), &error, "errorlog")
    })?;
    if let Some(to) = &settings.statsd {
        match Statsd::open(&to.host, &to.prefix, &to.tags) {
            Ok(statsd) => statsd::install(statsd),
            // As in gunicorn: what collects metrics may be away, the service need not be.
            Err(error) => warn!("no metrics are sent to statsd_host {}: {}", to.host, describe(&error)),
        }
    }
    for notice in &settings.notices {
        notice.log();
    }
    Ok(())
}

/// As gunicorn does it: a session of its own, without a terminal, and standard streams that lead nowhere unless
/// `enable_stdio_inheritance` keeps output and error.
fn daemonize(settings: &Settings, mut fork: impl FnMut() -> io::Result<Fork>) -> io::Result<()> {
    let keep =
        settings.value("enable_stdio_inheritance").is_some_and(|(value, _)| *value == Value::Bool(true));
    let mut leave_parent = || -> io::Result<()> {
        match fork()? {
            Fork::Child => Ok(()),
            Fork::Parent(_) => process::exit_now(0),
        }
    };
    leave_parent()?;
    process::lead_session()?;
    // The leader of a session can get a terminal again; its child cannot.
    leave_parent()?;
    process::set_umask(DAEMON_UMASK);
    process::detach_streams(keep)
}
