//! The operator's side of the control socket: the commands `ringhorn ctl` and `ringhorn top`.
//!
//! They run in a process of their own and know of a server only what its socket answers
//! ([`crate::master::control`]). Their exit codes: 0, 1 when there is no server or it refuses, 2 when the
//! command line cannot be understood.

mod client;
mod table;
#[cfg(feature = "top")]
mod top;

use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;

pub use self::client::Client;
use crate::error::{Exit, StartError};

/// How often a reload that is waited for is looked at.
const RELOAD_LOOK: Duration = Duration::from_millis(100);

/// The names of the commands: what stands in the place of the application.
pub const COMMANDS: [&str; 2] = ["ctl", "top"];

/// Runs one of [`COMMANDS`] with its arguments; the first of which is its name. Returns the exit code.
#[must_use]
pub fn main(args: &[OsString]) -> i32 {
    let result = match args.split_first() {
        Some((name, rest)) if name == "ctl" => control(rest),
        #[cfg(feature = "top")]
        Some((name, rest)) if name == "top" => top::run(rest),
        #[cfg(not(feature = "top"))]
        Some((name, _)) if name == "top" => {
            Err(StartError::new(Exit::Start, "this program was built without the live screen")
                .hint("`ctl show workers` shows the numbers once"))
        }
        _ => Err(StartError::new(Exit::Usage, "there is no such command").hint("`ringhorn ctl --help`")),
    };
    match result {
        Ok(()) => Exit::Done.code(),
        Err(error) => {
            eprintln!("{error}");
            error.exit().code()
        }
    }
}

fn places() -> [Arg; 2] {
    [
        Arg::new("socket")
            .short('s')
            .long("socket")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("The server's control socket [found in the runtime directory]"),
        Arg::new("pid")
            .short('p')
            .long("pid")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .conflicts_with("socket")
            .help("The server's pidfile, or its process id"),
    ]
}

fn control_command() -> Command {
    Command::new("ringhorn ctl")
        .about("Ask a running server, or tell it what to do")
        .override_usage("ringhorn ctl [OPTIONS] [COMMAND]...")
        .no_binary_name(true)
        .args(places())
        .args([
            Arg::new("json")
                .short('j')
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print the answer as JSON"),
            Arg::new("quick")
                .long("quick")
                .action(ArgAction::SetTrue)
                .help("With stop: do not wait for requests"),
            Arg::new("wait")
                .long("wait")
                .action(ArgAction::SetTrue)
                .help("With reload: wait for the new workers; exit code 1 if the old ones stay"),
            Arg::new("command")
                .short('c')
                .long("command")
                .value_name("COMMAND")
                .help("The command as one text"),
            Arg::new("words")
                .num_args(0..)
                .allow_negative_numbers(true)
                .value_name("COMMAND")
                .help("One of the commands below"),
        ])
        .after_help(
            "Commands:\n  \
             show workers | requests | stats | listeners | settings | config | load | all\n  \
             scale N | scale +N | scale -N     have N workers, N more, N less\n  \
             retire SLOT                       replace the worker of a slot, without a gap\n  \
             worker add [N] | remove [N] | kill PID\n  \
             reload [--wait], upgrade, reopen  as the signals HUP, USR2 and USR1 do\n  \
             stop [--quick]                    as the signals TERM and QUIT do\n  \
             ping, help\n\n\
             Without a command they are read from standard input, one on each line.",
        )
}

fn parse(command: Command, args: &[OsString]) -> Result<Option<ArgMatches>, StartError> {
    match command.try_get_matches_from(args) {
        Ok(matches) => Ok(Some(matches)),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            print(&error.to_string());
            Ok(None)
        }
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            Err(StartError::new(Exit::Usage, line.strip_prefix("error: ").unwrap_or(line))
                .hint("--help shows what there is"))
        }
    }
}

fn control(args: &[OsString]) -> Result<(), StartError> {
    let Some(matches) = parse(control_command(), args)? else { return Ok(()) };
    let mut words: Vec<String> = matches.get_many("words").into_iter().flatten().cloned().collect();
    if let Some(text) = matches.get_one::<String>("command") {
        words = text.split_ascii_whitespace().map(str::to_owned).chain(words).collect();
    }
    let json = matches.get_flag("json");
    if matches.get_flag("quick") {
        if !matches!(words[..], [ref word] if ["stop", "shutdown"].contains(&word.as_str())) {
            return Err(StartError::new(Exit::Usage, "--quick belongs to stop"));
        }
        words.push("quick".to_owned());
    }
    if matches.get_flag("wait") && words != ["reload"] {
        return Err(StartError::new(Exit::Usage, "--wait belongs to reload"));
    }
    let mut client = connect(&matches)?;
    if words.is_empty() {
        return converse(&mut client, json);
    }
    let answer = client.ask(&words)?;
    if matches.get_flag("wait") {
        return wait_for_reload(&mut client, &answer);
    }
    print(&shown(&words, &answer, json));
    Ok(())
}

fn connect(matches: &ArgMatches) -> Result<Client, StartError> {
    let place = |name| matches.get_one::<PathBuf>(name).map(PathBuf::as_path);
    connect_to(place("socket"), place("pid"))
}

fn connect_to(socket: Option<&Path>, pid: Option<&Path>) -> Result<Client, StartError> {
    let path = match (socket, pid) {
        (Some(path), _) => path.to_owned(),
        (None, Some(pidfile)) => client::socket_of(pidfile)?,
        (None, None) => client::find()?,
    };
    Client::connect(&path)
}

/// Commands from standard input, for people and for scripts.
fn converse(client: &mut Client, json: bool) -> Result<(), StartError> {
    let prompt = || {
        if std::io::stdin().is_terminal() {
            print("ringhorn> ");
        }
    };
    let mut failed = None;
    prompt();
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let words: Vec<String> = line.split_ascii_whitespace().map(str::to_owned).collect();
        match words.first().map(String::as_str) {
            None => {}
            Some("quit" | "exit" | "q") => break,
            Some(_) => match client.ask(&words) {
                Ok(answer) => print(&shown(&words, &answer, json)),
                Err(error) => {
                    eprintln!("{error}");
                    failed = Some(error);
                }
            },
        }
        prompt();
    }
    // A script sees that something went wrong; a person has seen it.
    match failed {
        Some(_) if !std::io::stdin().is_terminal() => {
            Err(StartError::new(Exit::Start, "not every command was obeyed"))
        }
        _ => Ok(()),
    }
}

/// `begun` is the answer to the reload: what the server had counted before it.
fn wait_for_reload(client: &mut Client, begun: &Value) -> Result<(), StartError> {
    loop {
        std::thread::sleep(RELOAD_LOOK);
        let stats = client.ask(&["show".to_owned(), "stats".to_owned()])?;
        if stats["reloads_failed"] != begun["reloads_failed"] {
            return Err(StartError::new(Exit::Start, "the reload failed, and the old workers serve on")
                .hint("the server's error log says why"));
        }
        if stats["reloads"] != begun["reloads"] && stats["state"] != "reloading" {
            print(&format!("reloaded; {} workers\n", stats["workers_target"]));
            return Ok(());
        }
    }
}

/// An answer as people read it.
fn shown(words: &[String], answer: &Value, json: bool) -> String {
    if json {
        return format!("{answer:#}\n");
    }
    let words: Vec<String> = words.iter().map(|word| word.to_ascii_lowercase()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["show", "workers"] => table::workers(&answer["workers"]),
        ["show", "stats"] => table::stats(answer),
        ["show", "requests"] => table::requests(&answer["requests"]),
        ["show", "listeners"] => table::listeners(&answer["listeners"]),
        ["show", "settings"] => table::settings(&answer["settings"]),
        ["show", "all"] => [
            table::stats(&answer["stats"]),
            table::listeners(&answer["listeners"]),
            table::workers(&answer["web_workers"]),
        ]
        .join("\n"),
        ["help"] => table::pairs(&answer["commands"]),
        ["scale" | "worker", ..] if answer["total"].is_u64() => {
            format!("{} workers (there were {})\n", answer["total"], answer["previous"])
        }
        ["worker", "kill", pid] => format!("worker {pid} was told to leave\n"),
        ["retire", slot] => {
            format!("slot {slot}: worker {} leaves when its successor serves\n", answer["retiring"])
        }
        ["ping"] => format!("{}\n", answer["pid"]),
        _ if answer["status"].is_string() => {
            format!("{}\n", answer["status"].as_str().unwrap_or_default().replace('_', " "))
        }
        _ => table::pairs(answer),
    }
}

/// A reader that has gone away wants no more.
fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn args(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn options_may_stand_anywhere_and_a_number_may_be_negative() {
        for line in ["--json scale -1", "scale -1 --json", "scale --json -1"] {
            let matches = parse(control_command(), &args(line)).unwrap().unwrap();
            assert!(matches.get_flag("json"), "{line}");
            let words: Vec<&String> = matches.get_many("words").unwrap().collect();
            assert_eq!(words, ["scale", "-1"], "{line}");
        }
    }

    #[test]
    fn what_cannot_be_understood_ends_with_2() {
        for line in
            ["ctl --no-such", "ctl reload --quick", "ctl stop --wait", "ctl -s a -p b ping", "nothing"]
        {
            assert_eq!(main(&args(line)), 2, "{line}");
        }
    }

    #[test]
    fn no_server_ends_with_1() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.ctl");
        assert_eq!(main(&[OsString::from("ctl"), "-s".into(), path.into(), "ping".into()]), 1);
    }
}
