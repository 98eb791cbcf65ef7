//! The pidfile: whose it is decides a lock, not the number in it.
//!
//! gunicorn refuses to start when the number names any live process, also one that has nothing to
//! do with it. Here the master holds a lock (flock(2)) on its file: while it lives nobody else gets
//! it, and when it dies in whatever way the kernel lets it go.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use crate::error::{Exit, StartError};
use crate::sys::errno::describe;
use crate::sys::process::Pid;

/// How often a start is tried again because another one was quicker.
const ATTEMPTS_MAX: usize = 5;

/// A pidfile of ours. Dropping it only lets the lock go, as far as this process holds it: a worker
/// drops its inherited copy, and only the master removes the file ([`Pidfile::remove`]).
#[derive(Debug)]
pub(super) struct Pidfile {
    path: PathBuf,
    file: File,
}

impl Pidfile {
    /// Writes `pid` to `path` and locks the file. A file that nobody holds is replaced.
    ///
    /// # Errors
    /// A live server holds the file, or it cannot be written.
    pub(super) fn create(path: &Path, pid: Pid) -> Result<Self, StartError> {
        // An application that changes the directory while it is preloaded must not move it.
        let path = std::path::absolute(path).map_err(|error| cannot(path, &error))?;
        for _ in 0..ATTEMPTS_MAX {
            let Some(old) = lock_old(&path)? else { continue };
            // Written aside and moved, so that no reader ever finds half a number.
            let aside = aside(&path, pid);
            let made = write_locked(&aside, pid).and_then(|file| {
                match &old {
                    Old::Locked(_) => std::fs::rename(&aside, &path)?,
                    Old::Missing => rename_new(&aside, &path)?,
                }
                Ok(file)
            });
            match made {
                Ok(file) => return Ok(Self { path, file }),
                Err(error) => {
                    // Gone already when it was the move that succeeded: then this does nothing.
                    let _ = std::fs::remove_file(&aside);
                    if error.kind() != io::ErrorKind::AlreadyExists {
                        return Err(cannot(&path, &error));
                    }
                }
            }
        }
        Err(held(&path))
    }

    /// Moves the file to `path`, whose owner has gone; what it left there is replaced.
    ///
    /// # Errors
    /// The file cannot be moved; it stays where it is.
    pub(super) fn rename(&mut self, path: &Path) -> io::Result<()> {
        let path = std::path::absolute(path)?;
        if is_at(&self.file, &self.path)? {
            std::fs::rename(&self.path, &path)?;
        }
        self.path = path;
        Ok(())
    }

    /// Removes the file, unless it is no longer the one written by [`Pidfile::create`].
    pub(super) fn remove(self) {
        if is_at(&self.file, &self.path).unwrap_or(false)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove pidfile {}: {}", self.path.display(), describe(&error));
        }
    }
}

enum Old {
    Missing,
    /// Nobody holds it. The lock keeps other starters away until it is replaced.
    Locked(#[expect(dead_code, reason = "held, not read")] File),
}

/// Looks for an old file. `None`: it changed meanwhile, look again.
fn lock_old(path: &Path) -> Result<Option<Old>, StartError> {
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(Old::Missing)),
        Err(error) => return Err(cannot(path, &error)),
    };
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => {}
        Ok(_) => {
            let error = StartError::new(Exit::Start, format!("pidfile {}: not a file", path.display()));
            return Err(error.hint("take a path that is not in use for something else"));
        }
        Err(error) => return Err(cannot(path, &error)),
    }
    lock(&file).map_err(|error| match error {
        Errno::AGAIN => held(path),
        other => cannot(path, &other.into()),
    })?;
    let still_there = is_at(&file, path).map_err(|error| cannot(path, &error))?;
    Ok(still_there.then_some(Old::Locked(file)))
}

fn write_locked(path: &Path, pid: Pid) -> io::Result<File> {
    // One of a process that had our id and died in between; ids are not shared by the living.
    let _ = std::fs::remove_file(path);
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    lock(&file)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    writeln!(file, "{pid}")?;
    Ok(file)
}

/// A file system without locks leaves us with gunicorn's promise without them: the port is taken.
fn lock(file: &File) -> Result<(), Errno> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Moves a file to a name that must be free: two that start at once must not both have it.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot promise it.
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(from, to),
        result => Ok(result?),
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn aside(path: &Path, pid: Pid) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{pid}.tmp"));
    name.into()
}

fn held(path: &Path) -> StartError {
    let who = std::fs::read_to_string(path).unwrap_or_default();
    // Somebody else's bytes: only a number is repeated.
    let who = match who.trim().parse::<u32>() {
        Ok(pid) => format!("process {pid}"),
        Err(_) => "another process".to_owned(),
    };
    StartError::new(Exit::Start, format!("pidfile {} is held by {who}, which is running", path.display()))
        .hint("stop that server first, or give this one another pidfile")
}

fn cannot(path: &Path, error: &io::Error) -> StartError {
    StartError::new(Exit::Start, format!("cannot write pidfile {}: {}", path.display(), describe(error)))
        .hint("take a path in a directory that exists and that this user may write to")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::sys::process;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.pid");
        (directory, path)
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn it_holds_our_number_for_everybody_to_read_and_goes_with_us() {
        let (directory, path) = place();
        let pidfile = Pidfile::create(&path, process::id()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
        assert_eq!(names(directory.path()), ["server.pid"]);
        pidfile.remove();
        assert!(names(directory.path()).is_empty());
    }

    /// reliability.md promise 20: what a dead server left behind is no obstacle. Promise 21: nor is
    /// a number that now belongs to somebody else.
    #[test]
    fn stale_garbled_and_reused_numbers_are_replaced() {
        for old in ["", "2147483647\n", "not a number", "1\n", &format!("{}\n", std::process::id())] {
            let (_directory, path) = place();
            std::fs::write(&path, old).unwrap();
            let pidfile = Pidfile::create(&path, process::id()).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text, format!("{}\n", std::process::id()), "over {old:?}");
            pidfile.remove();
        }
    }

    #[test]
    fn a_live_servers_file_is_refused_and_left_alone() {
        let (directory, path) = place();
        let first = Pidfile::create(&path, process::id()).unwrap();
        let error = Pidfile::create(&path, Pid::from_raw(1).unwrap()).unwrap_err();
        assert!(error.what().contains(&format!("process {}", std::process::id())), "{error}");
        assert_eq!(error.exit(), Exit::Start);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert_eq!(names(directory.path()), ["server.pid"]);
        drop(first);
        Pidfile::create(&path, process::id()).expect("the lock went with its holder");
    }

    #[test]
    fn a_file_that_somebody_put_in_our_place_is_kept() {
        let (_directory, path) = place();
        let pidfile = Pidfile::create(&path, process::id()).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "other").unwrap();
        pidfile.remove();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "other");
    }

    /// A new master's file takes the old one's name once the old master is gone.
    #[test]
    fn a_file_that_moved_is_still_ours() {
        let (directory, path) = place();
        let mut pidfile = Pidfile::create(&directory.path().join("server.pid.2"), process::id()).unwrap();
        pidfile.rename(&path).unwrap();
        assert_eq!(names(directory.path()), ["server.pid"]);
        assert!(Pidfile::create(&path, process::id()).is_err(), "the lock moved along");
        pidfile.remove();
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn a_missing_directory_and_a_directory_are_plain_errors() {
        let (directory, _) = place();
        for path in [directory.path().join("no/such/server.pid"), directory.path().to_owned()] {
            let error = Pidfile::create(&path, process::id()).unwrap_err();
            assert_eq!(error.exit(), Exit::Start);
            assert!(error.what().contains(path.to_str().unwrap()), "{error}");
        }
    }
}
