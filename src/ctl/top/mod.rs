//! `ringhorn top`: a live screen with a line for each worker.
//!
//! A thread of its own asks the server, so that keys are obeyed while a master that forks or preloads takes
//! its time to answer.

mod sample;
mod screen;

use std::ffi::OsString;
use std::io::{IsTerminal, stdin, stdout};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, Command};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use self::sample::Sample;
use self::screen::View;
use super::client::Client;
use crate::error::{Exit, StartError};
use crate::limits::HEARTBEAT_MS;
use crate::sys::errno::describe;
use crate::sys::signal::{PollFd, PollFlags, Signal, SignalSet, Signals};

/// Columns of `--once` when there is no terminal to ask.
const COLUMNS: u16 = 120;
/// How often keys and signals are looked at.
const KEYS: Duration = Duration::from_millis(50);
/// How long the workers have to begin to count: they do with a sign of life.
const PATIENCE: Duration = Duration::from_millis(3 * HEARTBEAT_MS);
/// How long the answer to a command is shown.
const NOTICE: Duration = Duration::from_secs(4);

fn command() -> Command {
    Command::new("ringhorn top")
        .about("Watch a running server")
        .override_usage("ringhorn top [OPTIONS]")
        .no_binary_name(true)
        .args(super::places())
        .args([
            Arg::new("interval")
                .short('n')
                .long("interval")
                .value_name("SECS")
                .default_value("1")
                .value_parser(interval)
                .help("Seconds between two looks, 0.1 to 60"),
            Arg::new("once")
                .long("once")
                .action(ArgAction::SetTrue)
                .help("Print one table, of the first interval, and leave"),
        ])
        .after_help(
            "Keys: q quit, r reload, + and - scale, p pause, s sort by another column.\n\
             Without colours when NO_COLOR is set.",
        )
}

fn interval(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=60.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("it must be a number of seconds from 0.1 to 60".to_owned()),
    }
}

/// Runs the command with its arguments.
///
/// # Errors
/// A wrong command line, no server, no terminal, or a server that goes away.
pub(super) fn run(args: &[OsString]) -> Result<(), StartError> {
    let Some(matches) = super::parse(command(), args)? else { return Ok(()) };
    let interval = matches.get_one::<Duration>("interval").copied().unwrap_or(Duration::from_secs(1));
    let client = super::connect(&matches)?;
    if matches.get_flag("once") {
        return once(client, interval);
    }
    if !stdin().is_terminal() || !stdout().is_terminal() {
        return Err(StartError::new(Exit::Start, "the live screen needs a terminal")
            .hint("--once prints one table, and `ringhorn ctl --json show load` the numbers"));
    }
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // A terminal that is left in raw mode is no use to anybody. HUP ends the process, as by default: there is no
    // terminal any more.
    let signals = Signals::install(SignalSet::of(&[Signal::TERM, Signal::INT]))
        .map_err(|error| broken("handle signals", &error))?;
    let mut terminal = ratatui::try_init().map_err(|error| broken("use the terminal", &error))?;
    let result = watch(&mut terminal, client, interval, colours, &signals);
    ratatui::restore();
    result
}

fn broken(what: &str, error: &std::io::Error) -> StartError {
    StartError::new(Exit::Start, format!("cannot {what}: {}", describe(error)))
}

fn look(client: &mut Client, interval: Duration) -> Result<Sample, StartError> {
    // The workers count while somebody looks: until the next look, and for some time more, since the server may be
    // busy, and forget it soon after the last one.
    let watch_seconds = 2 * interval.as_secs() + 10;
    let words = ["show", "load", &watch_seconds.to_string()].map(str::to_owned);
    client.ask(&words).map(|answer| Sample::read(&answer))
}

/// The first look, of which the second tells the difference: once all workers count. One that hangs never does.
fn first_look(client: &mut Client, interval: Duration) -> Result<Sample, StartError> {
    let end = Instant::now() + PATIENCE;
    loop {
        let sample = look(client, interval)?;
        if sample.is_counted() || Instant::now() >= end {
            return Ok(sample);
        }
        std::thread::sleep(KEYS);
    }
}

fn once(mut client: Client, interval: Duration) -> Result<(), StartError> {
    let mut view = View::new(false);
    view.take(first_look(&mut client, interval)?);
    std::thread::sleep(interval);
    view.take(look(&mut client, interval)?);
    // Without a terminal, nobody's width is asked for: a script gets all columns.
    let size = stdout().is_terminal().then(ratatui::crossterm::terminal::size);
    let width = size.and_then(Result::ok).map_or(COLUMNS, |(columns, _)| columns.max(40));
    super::print(&printed(&view, width));
    Ok(())
}

/// The table alone, as text: what `--once` prints.
fn printed(view: &View, width: u16) -> String {
    let height = u16::try_from(view.rows.len()).unwrap_or(u16::MAX).saturating_add(5);
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height.min(1_000)));
    let drawn = terminal.draw(|frame| screen::draw_plain(frame, view));
    debug_assert!(drawn.is_ok());
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(width)).map(|cells| {
        let line: String = cells.iter().map(ratatui::buffer::Cell::symbol).collect();
        format!("{}\n", line.trim_end())
    });
    lines.collect::<String>().trim_end().to_owned() + "\n"
}

/// What the asking thread is told.
type Words = Vec<String>;

/// What it answers.
enum Heard {
    Load(Box<Sample>),
    Said(String),
    Gone(StartError),
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    client: Client,
    interval: Duration,
    colours: bool,
    signals: &Signals,
) -> Result<(), StartError> {
    let (tell, told) = channel::<Words>();
    let (hear, heard) = channel::<Heard>();
    // Not joined: it may be waiting for the server when the user has had enough.
    std::thread::spawn(move || ask(client, interval, &told, &hear));
    let mut view = View::new(colours);
    let mut notice_end = None;
    loop {
        if notice_end.is_some_and(|end| Instant::now() >= end) {
            (view.notice, notice_end) = (None, None);
        }
        terminal.draw(|frame| screen::draw(frame, &view)).map_err(|error| broken("draw", &error))?;
        if terminal_is_gone() {
            return Ok(());
        }
        if event::poll(Duration::ZERO).map_err(|error| broken("read keys", &error))? {
            let event = event::read().map_err(|error| broken("read keys", &error))?;
            if let Event::Key(key) = event
                && key.kind == KeyEventKind::Press
            {
                match action(key) {
                    Some(Key::Quit) => return Ok(()),
                    Some(Key::Pause) => view.paused = !view.paused,
                    Some(Key::Sort) => {
                        view.sort = view.sort.next();
                        view.arrange();
                    }
                    Some(Key::Tell(words)) => {
                        // When the other end is gone, the reason is on its way.
                        let _ = tell.send(words.split(' ').map(str::to_owned).collect());
                    }
                    None => {}
                }
            }
        }
        if !signals.take().is_empty() {
            return Ok(());
        }
        loop {
            match heard.try_recv() {
                Ok(Heard::Load(sample)) if !view.paused => view.take(*sample),
                Ok(Heard::Load(_)) => {}
                Ok(Heard::Said(text)) => {
                    view.notice = Some(text);
                    notice_end = Some(Instant::now() + NOTICE);
                }
                Ok(Heard::Gone(error)) => return Err(error),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }
}

/// Waits for a key, for [`KEYS`] at most, and tells whether the terminal has been closed meanwhile. crossterm
/// reads the end of such a terminal for ever, at the cost of a whole CPU, so it is never asked to.
fn terminal_is_gone() -> bool {
    let input = stdin();
    let mut fds = [PollFd::new(&input, PollFlags::IN)];
    let time = KEYS.try_into().ok();
    match rustix::event::poll(&mut fds, time.as_ref()) {
        Ok(_) => fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL),
        // Interrupted by a signal, most likely that of another size.
        Err(_) => false,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Quit,
    Pause,
    Sort,
    Tell(&'static str),
}

fn action(key: KeyEvent) -> Option<Key> {
    match key.code {
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Char('p' | ' ') => Some(Key::Pause),
        KeyCode::Char('s') => Some(Key::Sort),
        KeyCode::Char('r') => Some(Key::Tell("reload")),
        KeyCode::Char('+' | '=') => Some(Key::Tell("scale +1")),
        KeyCode::Char('-') => Some(Key::Tell("scale -1")),
        _ => None,
    }
}

type Look = fn(&mut Client, Duration) -> Result<Sample, StartError>;

/// Asks the server once in an interval, and in between tells it what the user wants.
fn ask(mut client: Client, interval: Duration, told: &Receiver<Words>, hear: &Sender<Heard>) {
    let mut look: Look = first_look;
    loop {
        let heard = match std::mem::replace(&mut look, self::look)(&mut client, interval) {
            Ok(sample) => Heard::Load(Box::new(sample)),
            // It may have been an upgrade: whoever has the socket's name now is the server.
            Err(error) => match client.again() {
                Ok(again) => {
                    client = again;
                    look = first_look;
                    Heard::Said("connected to the server again".to_owned())
                }
                Err(_) => Heard::Gone(error),
            },
        };
        let gone = matches!(heard, Heard::Gone(_));
        if hear.send(heard).is_err() || gone {
            return;
        }
        let next = Instant::now() + interval;
        loop {
            match told.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(words) => {
                    let said = match client.ask(&words) {
                        Ok(answer) => super::shown(&words, &answer, false).trim_end().to_owned(),
                        Err(error) => error.what().to_owned(),
                    };
                    if hear.send(Heard::Said(said)).is_err() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fmt::Write as _;
    use std::path::Path;

    use ratatui::buffer::{Buffer, Cell};
    use ratatui::style::{Color, Modifier};

    use super::*;

    #[test]
    fn keys_do_what_the_last_line_says() {
        let key = |code| action(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(key(KeyCode::Char('q')), Some(Key::Quit));
        assert_eq!(key(KeyCode::Char('r')), Some(Key::Tell("reload")));
        assert_eq!(key(KeyCode::Char('+')), Some(Key::Tell("scale +1")));
        assert_eq!(key(KeyCode::Char('-')), Some(Key::Tell("scale -1")));
        assert_eq!((key(KeyCode::Char('p')), key(KeyCode::Char('s'))), (Some(Key::Pause), Some(Key::Sort)));
        assert_eq!(key(KeyCode::Char('c')), None);
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(action(interrupt), Some(Key::Quit));
    }

    #[test]
    fn an_interval_is_some_seconds() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "61", "-1", "nan", "soon"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paper_has_all_workers_and_no_keys() {
        let text = printed(&screen::tests::watched(30, false), 120);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2 + 2 + 30, "{text}");
        assert!(lines[33].trim_start().starts_with("29 ") && !text.contains("quit"));
    }

    /// The picture in the README is what the code draws. `RINGHORN_BLESS=1` writes it anew.
    #[test]
    fn the_picture_is_current() {
        let mut terminal = Terminal::new(TestBackend::new(118, 20)).unwrap();
        let view = screen::tests::watched(4, true);
        terminal.draw(|frame| screen::draw(frame, &view)).unwrap();
        let wanted = svg(terminal.backend().buffer());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/top.svg");
        if std::env::var_os("RINGHORN_BLESS").is_some() {
            std::fs::write(&path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "docs/top.svg is not what is drawn; run `RINGHORN_BLESS=1 cargo test --features top --lib picture`"
        );
    }

    /// Cells as a picture: each run of one style at its place, so that the browser's font may be any.
    fn svg(buffer: &Buffer) -> String {
        const CELL: (f64, f64) = (8.4, 18.0);
        let (width, height) =
            (f64::from(buffer.area.width) * CELL.0 + 24.0, f64::from(buffer.area.height) * CELL.1 + 24.0);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" \
             font-size=\"14\" xml:space=\"preserve\">\n<rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#16181d\"/>\n"
        );
        let style = |cell: &Cell| (cell.fg, cell.modifier);
        for (y, row) in buffer.content().chunks(usize::from(buffer.area.width)).enumerate() {
            let mut x = 0;
            for run in row.chunk_by(|a, b| style(a) == style(b)) {
                let text: String = run.iter().map(Cell::symbol).collect();
                let begin = x;
                x += run.len();
                if text.trim().is_empty() {
                    continue;
                }
                let (fg, modifier) = style(&run[0]);
                let colour = match fg {
                    Color::Red => "#ff6b68",
                    Color::Yellow => "#e5c07b",
                    Color::Green => "#98c379",
                    Color::Cyan => "#56b6c2",
                    _ => "#d7dae0",
                };
                // Bars are drawn: fonts disagree about how high they are.
                if text.chars().any(|char| ('▁'..='█').contains(&char)) {
                    for (at, char) in text.chars().enumerate().filter(|(_, char)| ('▁'..='█').contains(char))
                    {
                        let high = f64::from(char as u32 - '▁' as u32 + 1) / 8.0 * CELL.1;
                        let _ = writeln!(
                            out,
                            "<rect x=\"{:.1}\" y=\"{:.2}\" width=\"{:.1}\" height=\"{high:.2}\" fill=\"{colour}\"/>",
                            12.0 + (begin + at) as f64 * CELL.0,
                            12.0 + (y + 1) as f64 * CELL.1 - high,
                            CELL.0,
                        );
                    }
                    continue;
                }
                let bold = if modifier.contains(Modifier::BOLD) { " font-weight=\"bold\"" } else { "" };
                let line = if modifier.contains(Modifier::UNDERLINED) {
                    " text-decoration=\"underline\""
                } else {
                    ""
                };
                // Blanks at the ends would be laid out by each reader in its own way.
                let lead = text.chars().take_while(|char| *char == ' ').count();
                let text = text.trim();
                let _ = writeln!(
                    out,
                    "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\"{bold}{line} textLength=\"{:.1}\" \
                     lengthAdjust=\"spacingAndGlyphs\">{}</text>",
                    12.0 + (begin + lead) as f64 * CELL.0,
                    12.0 + y as f64 * CELL.1 + 13.5,
                    text.chars().count() as f64 * CELL.0,
                    text.replace('&', "&amp;").replace('<', "&lt;").replace(' ', "\u{a0}"),
                );
            }
        }
        out.push_str("</svg>\n");
        out
    }
}
