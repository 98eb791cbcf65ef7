//! The command line: a clap command made from the table of settings.
//!
//! The spelling is gunicorn's and the manners are argparse's: unique prefixes of long options
//! work, a repeated option takes its last value, and exit code 2 means that the arguments cannot
//! be understood. The variables with arguments in them are read by the same parser.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::settings::{self, Group, Kind, SETTINGS, Setting, Support};
use super::value::{Value, Variable};
use crate::error::{Exit, StartError};

/// What arguments ask for.
pub(crate) enum Outcome {
    /// Values for settings.
    Parsed(Parsed),
    /// Help or version: print it and exit with 0.
    Print(String),
}

/// The values that one list of arguments sets.
pub(crate) struct Parsed {
    /// Places in [`SETTINGS`] and their unchecked values, in the table's order.
    pub(crate) values: Vec<(usize, Value)>,
    /// Positional arguments: the application first.
    pub(crate) positional: Vec<String>,
}

/// Where arguments stand.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    CommandLine,
    Variable(Variable),
}

impl Place {
    fn name(self) -> String {
        match self {
            Self::CommandLine => "the command line".to_owned(),
            Self::Variable(variable) => format!("{} in the environment", variable.name()),
        }
    }
}

/// What the server that reads the arguments serves.
#[derive(Clone, Copy)]
pub(crate) enum Serving<'a> {
    /// Python applications, which an argument may name.
    Python,
    /// A native service, in a program of this name.
    Native(&'a str),
}

/// The name of the positional argument; no setting is called so.
const APP: &str = "APP";

/// Columns that help takes at most: it is printed, pasted and read in narrow windows.
const HELP_COLUMNS: usize = 100;

/// Reads arguments; the program's name is not among them.
///
/// # Errors
/// Exit code 2 and what is wrong, where the arguments cannot be understood.
pub(crate) fn parse(args: &[OsString], place: Place, serving: Serving<'_>) -> Result<Outcome, StartError> {
    match command(serving).no_binary_name(true).try_get_matches_from(args) {
        Ok(matches) => Ok(Outcome::Parsed(collect(&matches, serving))),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => Ok(Outcome::Print(error.to_string())),
        Err(error) if error.kind() == ErrorKind::DisplayVersion => Ok(Outcome::Print(version())),
        Err(error) => Err(explain(&error, place, serving)),
    }
}

/// As gunicorn prints it, so that scripts which take the second word go on working.
fn version() -> String {
    format!("ringhorn (version {})\n", env!("CARGO_PKG_VERSION"))
}

/// The clap command for every setting that has an option.
fn command(serving: Serving<'_>) -> Command {
    let command = Command::new("ringhorn")
        .help_template("{about}\n\n{usage-heading} {usage}\n\n{all-args}{after-help}")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_version_flag(true)
        .disable_help_flag(true)
        .infer_long_args(true)
        .args_override_self(true)
        .max_term_width(HELP_COLUMNS);
    let mut command = match serving {
        Serving::Python => command
            .about("Application server for WSGI, with gunicorn's command line")
            .override_usage("ringhorn [OPTIONS] [APP]")
            .after_help(
                "`ringhorn ctl` asks a running server and tells it what to do; `ringhorn top` watches it. Each has\n\
                 a --help of its own. (An application called so: `ringhorn -- top`.)\n\n\
                 Other options of gunicorn are known too; one that has no effect says so when it is used.\n\
                 Every setting, also those for the config file only, is in docs/settings.md.",
            )
            .arg(
                Arg::new(APP)
                    .num_args(0..)
                    .action(ArgAction::Append)
                    .help("Application: MODULE, MODULE:ATTRIBUTE or MODULE:FACTORY(ARGUMENTS)"),
            ),
        Serving::Native(name) => command
            .about(format!("{name}: a native service on Ringhorn, the application server"))
            .override_usage(format!("{name} [OPTIONS]"))
            .after_help(
                "Options of Ringhorn that are about Python applications are known too, and have no effect here.\n\
                 Every setting is in docs/settings.md.",
            ),
    };
    for group in Group::ALL {
        for setting in SETTINGS.iter().filter(|setting| setting.group == group) {
            if setting.option().is_some() {
                command = command.arg(option(setting, serving));
            }
        }
    }
    command.args([
        Arg::new("help").short('h').long("help").action(ArgAction::Help).help("Print this help"),
        Arg::new("version").short('v').long("version").action(ArgAction::Version).help("Print the version"),
    ])
}

/// Help is for what works here and is used; the rest is understood, and docs/settings.md has it.
fn is_shown(setting: &Setting, serving: Serving<'_>) -> bool {
    let concerns = matches!(serving, Serving::Python) || !setting.python;
    concerns && !setting.rare && setting.support == Support::Honoured
}

fn option(setting: &'static Setting, serving: Serving<'_>) -> Arg {
    let mut arg = Arg::new(setting.name).help_heading(setting.group.title()).help(help(setting, serving));
    for flag in setting.flags {
        arg = match flag.strip_prefix("--") {
            Some(long) if arg.get_long().is_none() => arg.long(long),
            Some(long) => arg.alias(long),
            None => arg.short(flag.chars().nth(1)),
        };
    }
    arg = arg.hide(!is_shown(setting, serving));
    match setting.kind {
        Kind::Switch => arg.action(ArgAction::SetTrue),
        Kind::ProxyMode => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .default_missing_value("auto")
            .value_name(setting.kind.placeholder()),
        Kind::List => {
            arg.action(ArgAction::Append).allow_hyphen_values(false).value_name(setting.kind.placeholder())
        }
        // "-1" is a value, as in argparse, so that the message can be about the number.
        _ => arg.action(ArgAction::Set).allow_negative_numbers(true).value_name(setting.kind.placeholder()),
    }
}

fn help(setting: &Setting, serving: Serving<'_>) -> String {
    let doc = match (setting.name, serving) {
        // The service itself has the thread of its ring.
        ("threads", Serving::Native(_)) => "Threads for work that blocks, at most",
        ("check_config", Serving::Native(_)) => "Read the settings, then exit: 0 good, 1 bad",
        _ => setting.doc,
    };
    let default = setting.default_shown();
    if setting.kind == Kind::Switch || default.is_empty() {
        return doc.to_owned();
    }
    format!("{doc} [{default}]")
}

fn collect(matches: &ArgMatches, serving: Serving<'_>) -> Parsed {
    let mut values = Vec::new();
    for (index, setting) in SETTINGS.iter().enumerate() {
        if setting.option().is_none() {
            continue;
        }
        let value = match setting.kind {
            Kind::Switch => matches.get_flag(setting.name).then(|| Value::Bool(setting.switched())),
            Kind::List => matches
                .get_many::<String>(setting.name)
                .map(|items| Value::List(items.map(Value::text).collect())),
            _ => matches.get_one::<String>(setting.name).map(Value::text),
        };
        values.extend(value.map(|value| (index, value)));
    }
    let positional = match serving {
        Serving::Python => matches.get_many::<String>(APP).into_iter().flatten().cloned().collect(),
        Serving::Native(_) => Vec::new(),
    };
    Parsed { values, positional }
}

/// Turns clap's error into our three lines.
fn explain(error: &clap::Error, place: Place, serving: Serving<'_>) -> StartError {
    let options = match serving {
        Serving::Python => "`ringhorn --help` lists the options",
        Serving::Native(_) => "--help lists the options",
    };
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let arg = context(ContextKind::InvalidArg).unwrap_or_default();
    // "--bind <VALUE>" or "--bind <VALUE>..." names the placeholder, too.
    let name = arg.split([' ', '=']).next().unwrap_or_default().to_owned();
    let (what, hint) = match error.kind() {
        // A native service has no use for an argument that is no option.
        ErrorKind::UnknownArgument if !name.starts_with('-') => {
            (format!("argument {arg:?} has no meaning"), options.to_owned())
        }
        ErrorKind::UnknownArgument => {
            let similar = prefixed(&name);
            if similar.len() > 1 {
                (format!("option {name} is ambiguous"), format!("it could be {}", similar.join(" or ")))
            } else {
                let hint = match settings::similar_option(&name) {
                    // What other servers have.
                    _ if ["--host", "--port"].contains(&&*name) => "write --bind HOST:PORT".to_owned(),
                    Some(similar) => format!("did you mean {similar}?"),
                    None => options.to_owned(),
                };
                (format!("unknown option {name}"), hint)
            }
        }
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues | ErrorKind::TooFewValues => {
            (format!("option {name} needs a value"), format!("write {name}=VALUE"))
        }
        ErrorKind::TooManyValues => {
            let value = context(ContextKind::InvalidValue).unwrap_or_default();
            (format!("option {name} takes no value, and has {value:?}"), format!("write {name} alone"))
        }
        ErrorKind::InvalidUtf8 => {
            ("an argument is not UTF-8 text".to_owned(), "use a name without such bytes".to_owned())
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            (line.strip_prefix("error: ").unwrap_or(line).to_owned(), options.to_owned())
        }
    };
    StartError::new(Exit::Usage, what).from(place.name()).hint(hint)
}

/// The options that begin with `name`.
fn prefixed(name: &str) -> Vec<&'static str> {
    if name.len() < 3 {
        return Vec::new();
    }
    SETTINGS.iter().flat_map(|setting| setting.flags).copied().filter(|flag| flag.starts_with(name)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn parsed(line: &str) -> Parsed {
        let args: Vec<OsString> = shlex::split(line).unwrap().into_iter().map(OsString::from).collect();
        match parse(&args, Place::CommandLine, Serving::Python) {
            Ok(Outcome::Parsed(parsed)) => parsed,
            Ok(Outcome::Print(text)) => panic!("printed {text}"),
            Err(error) => panic!("{line}: {error}"),
        }
    }

    fn value(line: &str, name: &str) -> Option<Value> {
        parsed(line)
            .values
            .into_iter()
            .find(|(index, _)| SETTINGS[*index].name == name)
            .map(|(_, value)| value)
    }

    fn refused(line: &str) -> StartError {
        let args: Vec<OsString> = shlex::split(line).unwrap().into_iter().map(OsString::from).collect();
        match parse(&args, Place::CommandLine, Serving::Python) {
            Err(error) => error,
            Ok(_) => panic!("{line} was accepted"),
        }
    }

    #[test]
    fn the_command_is_well_formed() {
        command(Serving::Python).debug_assert();
        command(Serving::Native("shop")).debug_assert();
    }

    /// The command lines that people have in Procfiles, Dockerfiles and units.
    #[test]
    fn gunicorns_spellings_are_understood() {
        for (line, name, expected) in [
            ("-w 4 app:app", "workers", Value::text("4")),
            ("-w4 app:app", "workers", Value::text("4")),
            ("--workers=4 app:app", "workers", Value::text("4")),
            ("--worker-con 5 app:app", "worker_connections", Value::text("5")),
            ("--access-logform x app:app", "access_log_format", Value::text("x")),
            ("--limit-request-field_size 1 app:app", "limit_request_field_size", Value::text("1")),
            ("--limit-request-field-size 1 app:app", "limit_request_field_size", Value::text("1")),
            ("--keep-alive 75 app:app", "keepalive", Value::text("75")),
            ("--log-file - app:app", "errorlog", Value::text("-")),
            ("--log-file=- app:app", "errorlog", Value::text("-")),
            ("--access-logfile - app:app", "accesslog", Value::text("-")),
            ("-w 1 -w 2 app:app", "workers", Value::text("2")),
            ("-w -1 app:app", "workers", Value::text("-1")),
            ("--preload app:app", "preload_app", Value::Bool(true)),
            ("--preload --preload app:app", "preload_app", Value::Bool(true)),
            ("--no-sendfile app:app", "sendfile", Value::Bool(false)),
            ("--no-pin app:app", "pin", Value::Bool(false)),
            ("--no-control-socket app:app", "control_socket_disable", Value::Bool(true)),
            ("-D app:app", "daemon", Value::Bool(true)),
            ("app:app --proxy-protocol", "proxy_protocol", Value::text("auto")),
            ("--proxy-protocol --preload app:app", "proxy_protocol", Value::text("auto")),
            ("--proxy-protocol v2 app:app", "proxy_protocol", Value::text("v2")),
            // gunicorn's trap since 24.1, kept: the check of the value tells what happened.
            ("--proxy-protocol app:app", "proxy_protocol", Value::text("app:app")),
        ] {
            assert_eq!(value(line, name), Some(expected), "{line}");
        }
    }

    #[test]
    fn lists_grow_within_one_command_line() {
        let list = |items: &[&str]| Some(Value::List(items.iter().map(|item| Value::text(*item)).collect()));
        assert_eq!(value("-b a:1 --bind b:2 app:app", "bind"), list(&["a:1", "b:2"]));
        assert_eq!(value("-e A=1 -e B=2 app:app", "raw_env"), list(&["A=1", "B=2"]));
    }

    #[test]
    fn the_application_may_stand_anywhere() {
        for line in ["app:app -w 2", "-w 2 app:app", "-w 2 -- app:app", "--preload app:app -w 2"] {
            assert_eq!(parsed(line).positional, ["app:app"], "{line}");
        }
        assert_eq!(parsed("app:app -w 2 other").positional, ["app:app", "other"]);
        assert!(parsed("").positional.is_empty());
    }

    #[test]
    fn a_typo_gets_a_suggestion_and_exit_code_2() {
        let error = refused("--wrokers 4 app:app");
        assert_eq!(error.exit(), Exit::Usage);
        assert_eq!(
            error.to_string(),
            "error: unknown option --wrokers\n  from: the command line\n  hint: did you mean --workers?"
        );
        assert!(refused("--graceful-timout 4").to_string().contains("did you mean --graceful-timeout?"));
        assert!(refused("--evn A=1").to_string().contains("did you mean --env?"));
        assert!(refused("--port 80").to_string().contains("write --bind HOST:PORT"));
        assert!(refused("--zzz").to_string().contains("ringhorn --help"));
        assert!(refused("-Z").to_string().contains("unknown option -Z"));
    }

    #[test]
    fn an_ambiguous_prefix_lists_what_it_could_be() {
        let error = refused("--worker 4 app:app").to_string();
        assert!(error.contains("option --worker is ambiguous"), "{error}");
        assert!(error.contains("--workers") && error.contains("--worker-class"), "{error}");
    }

    #[test]
    fn a_missing_value_is_named() {
        assert!(refused("app:app --bind").to_string().contains("option --bind needs a value"));
        assert!(refused("--preload=yes app:app").to_string().contains("option --preload takes no value"));
    }

    #[test]
    fn help_fits_a_person() {
        let text = command(Serving::Python).term_width(HELP_COLUMNS).render_help().to_string();
        for wanted in ["Usage: ringhorn [OPTIONS] [APP]", "Workers:", "Sockets:", "-w, --workers <N>", "[30]"]
        {
            assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        }
        assert!(!text.contains("--dirty-app"), "what is not honoured is not offered");
        has_each_shown_option_on_a_line(&text, Serving::Python);
        assert!(matches!(parse(&["-h".into()], Place::CommandLine, Serving::Python), Ok(Outcome::Print(_))));
    }

    #[test]
    fn help_of_a_native_service_is_about_that_program() {
        let native = Serving::Native("shop");
        let text = command(native).term_width(HELP_COLUMNS).render_help().to_string();
        assert!(
            text.starts_with("shop: a native service") && text.contains("Usage: shop [OPTIONS]\n"),
            "{text}"
        );
        for other in ["WSGI", "APP", "ringhorn ctl", "--reload", "--preload", "--logger-class", "sys.path"] {
            assert!(!text.contains(other), "{other} is in\n{text}");
        }
        assert!(text.contains("Threads for work that blocks"), "{text}");
        has_each_shown_option_on_a_line(&text, native);
    }

    fn has_each_shown_option_on_a_line(text: &str, serving: Serving<'_>) {
        for setting in SETTINGS.iter().filter(|setting| is_shown(setting, serving)) {
            let Some(option) = setting.option() else { continue };
            let whole = |line: &&str| line.contains(option) && line.contains(&*help(setting, serving));
            let line = text.lines().find(whole);
            assert!(
                line.is_some_and(|line| line.len() <= HELP_COLUMNS),
                "{option} takes two lines in\n{text}"
            );
        }
    }

    #[test]
    fn a_native_service_takes_options_and_no_application() {
        let parse = |word: &str| parse(&[word.into()], Place::CommandLine, Serving::Native("shop"));
        assert!(matches!(parse("--daemon"), Ok(Outcome::Parsed(parsed)) if parsed.positional.is_empty()));
        let Err(error) = parse("app:app") else { panic!("app:app was accepted") };
        assert_eq!(error.exit(), Exit::Usage);
        assert!(error.to_string().contains("argument \"app:app\" has no meaning"), "{error}");
        let Err(error) = parse("--zzz") else { panic!("--zzz was accepted") };
        assert!(error.to_string().ends_with("hint: --help lists the options"), "{error}");
    }

    #[test]
    fn version_is_printed_as_gunicorn_prints_it() {
        for flag in ["-v", "--version"] {
            let Ok(Outcome::Print(text)) = parse(&[flag.into()], Place::CommandLine, Serving::Python) else {
                panic!("no version")
            };
            assert_eq!(text, format!("ringhorn (version {})\n", env!("CARGO_PKG_VERSION")));
        }
    }
}
