//! Error families, and the exit codes that scripts and service managers read.
//!
//! | family | who can act | what happens | where |
//! | --- | --- | --- | --- |
//! | peer | the client | a status and a close | `http::Refusal` |
//! | application | the developer | status 500 and a traceback in the log | `app` |
//! | operator | whoever starts the server | a message of three lines and an exit code | [`StartError`] |
//! | bug | us | an assertion | everywhere |

use std::fmt;

/// How the process ends. The numbers are gunicorn's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A stop that was asked for, or a check that passed: 0.
    Done,
    /// Configuration or start failed (bind, pidfile, preload, no application): 1.
    Start,
    /// The command line cannot be understood: 2, as argparse has it.
    Usage,
    /// The first worker failed to boot: 3.
    WorkerBoot,
    /// The application failed to load: 4.
    AppLoad,
    /// A hook of the config file ended the server: with the code that it chose, or with 255 by an exception.
    Code(i32),
}

impl Exit {
    /// The process's exit code.
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::Start => 1,
            Self::Usage => 2,
            Self::WorkerBoot => 3,
            Self::AppLoad => 4,
            Self::Code(code) => code,
        }
    }
}

/// An error that the operator can act on: what failed, where the value came from, what to do.
///
/// Its `Display` is the message as printed, without a final line end:
///
/// ```text
/// error: cannot bind 0.0.0.0:80: permission denied (EACCES)
///   from: bind, in ./gunicorn.conf.py
///   hint: take a port above 1023, or grant CAP_NET_BIND_SERVICE
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartError {
    exit: Exit,
    what: String,
    from: Option<String>,
    hint: Option<String>,
    detail: Option<String>,
}

impl StartError {
    /// An error that says `what` failed: lower case, no final dot, errno by name.
    #[must_use]
    pub fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), from: None, hint: None, detail: None }
    }

    /// Adds where the value came from.
    #[must_use]
    pub fn from(mut self, from: impl fmt::Display) -> Self {
        self.from = Some(from.to_string());
        self
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds text that is printed as it is below the message, such as a Python traceback.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// The same error, ending the process in another way.
    #[must_use]
    pub fn exiting(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// How the process is to end.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// What failed: the first line without its `error: `.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The whole message without its `error: `, for the log, whose lines have a level.
    #[must_use]
    pub fn in_log(&self) -> impl fmt::Display {
        InLog(self)
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.in_log())
    }
}

struct InLog<'a>(&'a StartError);

impl fmt::Display for InLog<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StartError { what, from, hint, detail, .. } = self.0;
        f.write_str(what)?;
        if let Some(from) = from {
            write!(f, "\n  from: {from}")?;
        }
        if let Some(hint) = hint {
            write!(f, "\n  hint: {hint}")?;
        }
        if let Some(detail) = detail {
            write!(f, "\n{}", detail.trim_end())?;
        }
        Ok(())
    }
}

impl std::error::Error for StartError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_what_where_from_and_what_to_do() {
        let error = StartError::new(Exit::Start, "cannot bind 0.0.0.0:80: permission denied (EACCES)")
            .from("--bind on the command line")
            .hint("take a port above 1023");
        assert_eq!(
            error.to_string(),
            "error: cannot bind 0.0.0.0:80: permission denied (EACCES)\n  \
             from: --bind on the command line\n  hint: take a port above 1023"
        );
        assert_eq!(error.exit().code(), 1);
    }

    #[test]
    fn exit_codes_are_gunicorns() {
        let codes = [Exit::Done, Exit::Start, Exit::Usage, Exit::WorkerBoot, Exit::AppLoad].map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 3, 4]);
    }
}
