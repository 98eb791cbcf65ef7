//! Drawing: what is to be seen goes in, cells come out. No terminal, no clock, no socket.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Paragraph, Row as Cells, Sparkline, Table};
use serde_json::json;

use super::sample::{Row, Sample, Server};
use crate::ctl::table;

/// Rates kept of each slot: no screen is wider.
const HISTORY: usize = 240;
/// Cells of a sparkline below which it says nothing.
const SPARK_LEAST: u16 = 8;
/// Rows of the screen from which the total has a chart of its own.
const CHART_ROWS: u16 = 20;
const CHART_HEIGHT: u16 = 4;
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Slot,
    Rate,
    Cpu,
    P99,
    Connections,
}

impl Sort {
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Slot => Self::Rate,
            Self::Rate => Self::Cpu,
            Self::Cpu => Self::P99,
            Self::P99 => Self::Connections,
            Self::Connections => Self::Slot,
        }
    }

    const fn column(self) -> Column {
        match self {
            Self::Slot => Column::Slot,
            Self::Rate => Column::Rate,
            Self::Cpu => Column::Cpu,
            Self::P99 => Column::P99,
            Self::Connections => Column::Connections,
        }
    }
}

/// Everything that the screen shows.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) server: Server,
    pub(super) rows: Vec<Row>,
    pub(super) all: Row,
    pub(super) sort: Sort,
    pub(super) paused: bool,
    pub(super) colours: bool,
    /// What the last command said, or what is wrong.
    pub(super) notice: Option<String>,
    /// There have been two answers, so there is something to show.
    pub(super) known: bool,
    rates: HashMap<u64, VecDeque<f64>>,
    total: VecDeque<f64>,
    last: Option<Sample>,
}

impl View {
    pub(super) fn new(colours: bool) -> Self {
        Self { colours, ..Self::default() }
    }

    /// Takes in what the server says now.
    pub(super) fn take(&mut self, sample: Sample) {
        self.server = sample.server.clone();
        if let Some(last) = &self.last {
            (self.rows, self.all) = sample.since(last);
            self.known = true;
            // A slot has one line of history, also while two workers share it.
            let mut rates: HashMap<u64, f64> = HashMap::new();
            for row in &self.rows {
                *rates.entry(row.slot).or_default() += row.rate;
            }
            self.rates.retain(|slot, _| rates.contains_key(slot));
            for (slot, rate) in rates {
                push(self.rates.entry(slot).or_default(), rate);
            }
            push(&mut self.total, self.all.rate);
        }
        self.last = Some(sample);
        self.arrange();
    }

    /// Puts the rows in order; the highest first, but for slots.
    pub(super) fn arrange(&mut self) {
        let sort = self.sort;
        let order = |a: &Row, b: &Row| match sort {
            Sort::Slot => Ordering::Equal,
            Sort::Rate => b.rate.total_cmp(&a.rate),
            Sort::Cpu => b.cpu.total_cmp(&a.cpu),
            Sort::P99 => b.p99.cmp(&a.p99),
            Sort::Connections => b.connections.cmp(&a.connections),
        };
        self.rows.sort_by(|a, b| order(a, b).then(a.slot.cmp(&b.slot)).then(a.pid.cmp(&b.pid)));
    }

    fn style(&self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }
}

fn push(history: &mut VecDeque<f64>, rate: f64) {
    if history.len() == HISTORY {
        history.pop_front();
    }
    history.push_back(rate);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Slot,
    Pid,
    State,
    Cpu,
    Rate,
    P50,
    P99,
    InHand,
    Blocked,
    Waiting,
    Connections,
    Memory,
    Spark,
}

/// In the order in which they stand.
const COLUMNS: [Column; 12] = [
    Column::Slot,
    Column::Pid,
    Column::State,
    Column::Cpu,
    Column::Rate,
    Column::P50,
    Column::P99,
    Column::InHand,
    Column::Blocked,
    Column::Waiting,
    Column::Connections,
    Column::Memory,
];

/// In the order in which a screen that is too narrow loses them.
const LOST: [Column; 8] = [
    Column::Memory,
    Column::Pid,
    Column::P50,
    Column::State,
    Column::Connections,
    Column::Waiting,
    Column::Blocked,
    Column::InHand,
];

impl Column {
    const fn head(self) -> &'static str {
        match self {
            Self::Slot => "SLOT",
            Self::Pid => "PID",
            Self::State => "STATE",
            Self::Cpu => "CPU%",
            Self::Rate => "REQ/S",
            Self::P50 => "P50",
            Self::P99 => "P99",
            Self::InHand => "IN HAND",
            Self::Blocked => "BLOCKED",
            Self::Waiting => "QUEUE",
            Self::Connections => "CONN",
            Self::Memory => "MEMORY",
            Self::Spark => "REQ/S SO FAR",
        }
    }

    const fn width(self) -> u16 {
        match self {
            Self::Slot => 5,
            Self::Pid | Self::State | Self::Blocked | Self::Memory | Self::InHand => 8,
            Self::Cpu | Self::P50 | Self::P99 | Self::Connections => 6,
            Self::Rate => 9,
            Self::Waiting => 5,
            Self::Spark => SPARK_LEAST,
        }
    }

    fn cell(self, row: &Row, total: bool) -> String {
        let number = |number: Option<u64>| number.map_or("-".to_owned(), |number| number.to_string());
        match self {
            Self::Slot if total => "all".to_owned(),
            Self::Slot => row.slot.to_string(),
            Self::Pid | Self::State if total => String::new(),
            Self::Pid => row.pid.to_string(),
            Self::State => row.state.clone(),
            Self::Cpu => format!("{:.0}", row.cpu),
            Self::Rate if row.rate < 1000.0 => format!("{:.1}", row.rate),
            Self::Rate => format!("{:.0}", row.rate),
            Self::P50 => row.p50.map_or("-".to_owned(), time),
            Self::P99 => row.p99.map_or("-".to_owned(), time),
            Self::InHand => number(row.in_hand),
            Self::Blocked => row.blocked.map_or("-".to_owned(), |(some, of)| format!("{some}/{of}")),
            Self::Waiting => number(row.waiting),
            Self::Connections => row.connections.to_string(),
            Self::Memory => table::bytes(&json!(row.memory_bytes)),
            Self::Spark => String::new(),
        }
    }

    /// What is out of the ordinary is in colour.
    fn style(self, row: &Row, view: &View) -> Style {
        let colour = match self {
            Self::Cpu if row.cpu >= 90.0 => Color::Red,
            Self::Cpu if row.cpu >= 60.0 => Color::Yellow,
            Self::Cpu if row.cpu >= 1.0 => Color::Green,
            Self::Rate if row.rate > 0.0 => Color::Cyan,
            Self::Waiting if row.waiting.unwrap_or_default() > 0 => Color::Yellow,
            Self::Blocked => match row.blocked {
                Some((some, of)) if some > 0 && some == of => Color::Red,
                Some((some, _)) if some > 0 => Color::Yellow,
                _ => return Style::new(),
            },
            Self::State if row.state == "aborted" => Color::Red,
            Self::State if !row.state.is_empty() && row.state != "ready" => Color::Yellow,
            Self::State => Color::Green,
            _ => return Style::new(),
        };
        view.style(colour)
    }
}

/// Microseconds as people say them, in at most six cells.
fn time(us: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let number = us as f64;
    match us {
        ..1_000 => format!("{us}us"),
        1_000..10_000 => format!("{:.1}ms", number / 1e3),
        10_000..1_000_000 => format!("{:.0}ms", number / 1e3),
        1_000_000..100_000_000 => format!("{:.1}s", number / 1e6),
        _ => format!("{:.0}s", number / 1e6),
    }
}

/// The columns for so many cells, and what is left for the sparkline.
fn fitting(width: u16) -> (Vec<Column>, u16) {
    let mut columns = COLUMNS.to_vec();
    let needed = |columns: &[Column]| columns.iter().map(|column| column.width() + 1).sum::<u16>();
    for lost in LOST {
        if needed(&columns) <= width {
            break;
        }
        columns.retain(|column| *column != lost);
    }
    let left = width.saturating_sub(needed(&columns));
    if left >= SPARK_LEAST {
        columns.push(Column::Spark);
    }
    (columns, left)
}

pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    let chart = if area.height >= CHART_ROWS { CHART_HEIGHT } else { 0 };
    let [head, above, body, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(chart),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(headline(view)), head);
    if chart > 0 {
        draw_chart(frame, view, above);
    }
    draw_table(frame, view, body);
    frame.render_widget(Paragraph::new(footline(view)), foot);
}

/// As [`draw`], for paper: who it is, and the table.
pub(super) fn draw_plain(frame: &mut Frame<'_>, view: &View) {
    let [head, body] = Layout::vertical([Constraint::Length(2), Constraint::Min(1)]).areas(frame.area());
    frame.render_widget(Paragraph::new(headline(view)), head);
    draw_table(frame, view, body);
}

fn headline(view: &View) -> Text<'static> {
    let Server { app, pid, state, uptime, target, requests, listeners } = &view.server;
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let state_style = view.style(if state == "serving" { Color::Green } else { Color::Yellow });
    let mut first = vec![
        Span::styled("ringhorn ", bold),
        Span::styled(clean(app), view.style(Color::Cyan).add_modifier(Modifier::BOLD)),
        Span::raw("  "),
        Span::styled(clean(state), state_style),
        Span::raw(format!("  up {}", table::duration(&json!(uptime)))),
        Span::raw(format!("  pid {pid}")),
    ];
    if view.paused {
        first.push(Span::styled("  PAUSED", view.style(Color::Yellow).add_modifier(Modifier::BOLD)));
    }
    let second = format!("{target} workers  {requests} requests  {}", clean(&listeners.join(" ")));
    Text::from(vec![Line::from(first), Line::from(second)])
}

fn footline(view: &View) -> Line<'static> {
    if let Some(notice) = &view.notice {
        return Line::styled(clean(notice), view.style(Color::Yellow));
    }
    let mut spans = Vec::new();
    for (key, what) in [("q", "quit"), ("r", "reload"), ("+/-", "scale"), ("p", "pause"), ("s", "sort")] {
        spans.push(Span::styled(key, Style::new().add_modifier(Modifier::BOLD)));
        spans.push(Span::raw(format!(" {what}  ")));
    }
    Line::from(spans)
}

fn draw_chart(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let area = Rect { height: area.height.saturating_sub(1), ..area };
    let width = usize::from(area.width);
    let shown = view.total.len().min(width);
    let peak = view.total.iter().copied().fold(0.0, f64::max);
    // The newest stands at the right edge from the start.
    let mut data = vec![0; width - shown];
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate in tenths")]
    data.extend(view.total.iter().skip(view.total.len() - shown).map(|rate| (rate * 10.0) as u64));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate in tenths")]
    let max = ((peak * 10.0) as u64).max(1);
    frame.render_widget(Sparkline::default().data(data).max(max).style(view.style(Color::Cyan)), area);
}

fn draw_table(frame: &mut Frame<'_>, view: &View, area: Rect) {
    if !view.known {
        let which = if view.last.is_some() { "second" } else { "first" };
        let text = format!("waiting for the server's {which} answer");
        return frame.render_widget(Paragraph::new(text), area);
    }
    let (columns, left) = fitting(area.width);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let head = columns.iter().map(|column| {
        let text = column.head();
        let style =
            if *column == view.sort.column() { bold.add_modifier(Modifier::UNDERLINED) } else { bold };
        aligned(*column, text.to_owned()).style(style)
    });
    let line = |row: &Row, history: Option<&VecDeque<f64>>, total: bool| {
        let cells: Vec<Text<'static>> = columns
            .iter()
            .map(|column| match column {
                Column::Spark => Text::styled(
                    history.map(|history| spark(history, left.saturating_sub(1))).unwrap_or_default(),
                    view.style(Color::Cyan),
                ),
                column => {
                    let style = if total { bold } else { Style::new() };
                    aligned(*column, column.cell(row, total)).style(style.patch(column.style(row, view)))
                }
            })
            .collect();
        Cells::new(cells)
    };
    let shown = usize::from(area.height.saturating_sub(2));
    let hidden = view.rows.len().saturating_sub(shown);
    // A line of its own says that there are more than the screen has room for.
    let shown = if hidden > 0 { shown.saturating_sub(1) } else { shown };
    let mut lines: Vec<Cells<'static>> = vec![line(&view.all, Some(&view.total), true)];
    lines.extend(view.rows.iter().take(shown).map(|row| line(row, view.rates.get(&row.slot), false)));
    let widths = columns.iter().map(|column| match column {
        Column::Spark => Constraint::Min(SPARK_LEAST),
        column => Constraint::Length(column.width()),
    });
    frame.render_widget(Table::new(lines, widths).header(Cells::new(head)).column_spacing(1), area);
    if hidden > 0 && area.height > 2 {
        let more = format!("... and {} more workers", view.rows.len() - shown);
        let last = Rect { y: area.bottom() - 1, height: 1, ..area };
        frame.render_widget(Paragraph::new(more), last);
    }
}

fn aligned(column: Column, text: String) -> Text<'static> {
    let text = Text::raw(clean(&text));
    match column {
        Column::State | Column::Spark => text,
        _ => text.right_aligned(),
    }
}

/// The last rates as bars, the newest at the right.
fn spark(history: &VecDeque<f64>, width: u16) -> String {
    let shown = history.len().min(usize::from(width));
    let rates = history.iter().skip(history.len() - shown);
    let peak = rates.clone().copied().fold(0.0, f64::max);
    let bar = |rate: &f64| {
        if *rate <= 0.0 {
            return ' ';
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 7")]
        let step = ((rate / peak * 8.0).ceil() as usize).clamp(1, BARS.len());
        BARS[step - 1]
    };
    let blank = usize::from(width) - shown;
    std::iter::repeat_n(' ', blank).chain(rates.map(bar)).collect()
}

/// Names come from outside, and a terminal obeys control characters.
fn clean(text: &str) -> String {
    text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Buffer;

    use super::*;
    use crate::ctl::top::sample::{Meter, Worker};

    fn worker(slot: u64, requests: u64, us: u64) -> Worker {
        let meter = Meter {
            requests,
            in_hand: slot,
            waiting: 0,
            blocked: slot,
            runners: 4,
            times: vec![(us, requests - requests / 50), (us * 9, requests / 50)],
        };
        Worker {
            slot,
            pid: 4711 + slot,
            state: "ready".to_owned(),
            cpu_seconds: 0.0,
            memory_bytes: Some(42 << 20),
            requests,
            connections: 17 + slot,
            meter: Some(meter),
        }
    }

    /// A server with so many workers, watched for a while.
    pub(in crate::ctl::top) fn watched(workers: u64, colours: bool) -> View {
        let mut view = View::new(colours);
        let mut total = vec![1_000_u64; usize::try_from(workers).unwrap()];
        for tick in 0..90_u64 {
            let mut sample = Sample {
                now: 500.0 + tick as f64,
                server: Server {
                    app: "mysite.wsgi:application".to_owned(),
                    pid: 4710,
                    state: "serving".to_owned(),
                    uptime: 500.0 + tick as f64,
                    target: workers,
                    requests: total.iter().sum(),
                    listeners: vec!["http://0.0.0.0:8000".to_owned()],
                },
                workers: Vec::new(),
            };
            for (slot, count) in total.iter_mut().enumerate() {
                let slot = slot as u64;
                let wave = ((tick as f64 / 9.0 + slot as f64).sin() + 1.4) * 1_000.0;
                *count += wave as u64;
                let mut worker = worker(slot, *count, 700 + 150 * slot);
                worker.cpu_seconds = tick as f64 * (0.35 + 0.18 * slot as f64);
                sample.workers.push(worker);
            }
            view.take(sample);
        }
        view
    }

    fn drawn(view: &View, width: u16, height: u16) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().buffer().clone()
    }

    fn lines(buffer: &Buffer) -> Vec<String> {
        buffer
            .content()
            .chunks(usize::from(buffer.area.width))
            .map(|cells| {
                cells.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
            })
            .collect()
    }

    #[test]
    fn every_number_stands_under_its_head() {
        let lines = lines(&drawn(&watched(2, true), 140, 12));
        assert!(
            lines[0].starts_with("ringhorn mysite.wsgi:application  serving  up 9m 49s  pid 4710"),
            "{lines:#?}"
        );
        assert!(
            lines[1].starts_with("2 workers  ") && lines[1].ends_with("http://0.0.0.0:8000"),
            "{lines:#?}"
        );
        let heads: Vec<&str> = lines[2].split_whitespace().collect();
        assert_eq!(
            heads,
            "SLOT PID STATE CPU% REQ/S P50 P99 IN HAND BLOCKED QUEUE CONN MEMORY REQ/S SO FAR"
                .split(' ')
                .collect::<Vec<_>>()
        );
        // Right under right: the last cell of each number is that of its head.
        for head in
            ["SLOT", "PID", "CPU%", "REQ/S", "P50", "P99", "IN HAND", "BLOCKED", "QUEUE", "CONN", "MEMORY"]
        {
            let end = lines[2].find(head).unwrap() + head.len();
            let under: Vec<char> = lines[4].chars().collect();
            assert!(under[end - 1] != ' ' && under[end] == ' ', "{head}: {lines:#?}");
        }
        let row: Vec<&str> = lines[5].split_whitespace().collect();
        assert_eq!(row[..4], ["1", "4712", "ready", "53"]);
        assert_eq!(row[5..12], ["850us", "7.7ms", "1", "1/4", "0", "18", "42.0M"]);
        let all: Vec<&str> = lines[3].split_whitespace().collect();
        assert_eq!((all[0], all[1]), ("all", "88"));
        assert_eq!(all[5..10], ["1", "1/8", "0", "35", "84.0M"]);
        assert!(lines[11].starts_with("q quit  r reload"));
    }

    /// Too narrow is no reason to show less than what one looks for first, or to panic.
    #[test]
    fn any_size_of_terminal_is_drawn() {
        let view = watched(3, true);
        for (width, height) in [(80, 24), (60, 10), (40, 8), (30, 6), (12, 4), (1, 1), (250, 60)] {
            let lines = lines(&drawn(&view, width, height));
            if width >= 30 && height >= 6 {
                for head in ["SLOT", "CPU%", "REQ/S", "P99"] {
                    assert!(lines.iter().any(|line| line.contains(head)), "{width}: {lines:#?}");
                }
            }
        }
        let narrow = lines(&drawn(&view, 44, 10));
        assert!(!narrow[2].contains("MEMORY") && !narrow[2].contains("PID"), "{narrow:#?}");
    }

    #[test]
    fn more_workers_than_lines_are_counted() {
        let lines = lines(&drawn(&watched(40, false), 100, 16));
        assert!(lines.iter().any(|line| line == "... and 30 more workers"), "{lines:#?}");
        assert!(lines[14].starts_with("... and") && lines[15].starts_with("q quit"), "{lines:#?}");
    }

    #[test]
    fn without_colours_there_is_none() {
        let plain = drawn(&watched(2, false), 120, 30);
        assert!(plain.content().iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
        let coloured = drawn(&watched(2, true), 120, 30);
        assert!(coloured.content().iter().any(|cell| cell.fg == Color::Cyan));
        assert_eq!(lines(&plain), lines(&coloured));
    }

    #[test]
    fn rows_are_sorted_by_what_the_user_wants() {
        let mut view = watched(3, false);
        let order = |view: &View| view.rows.iter().map(|row| row.slot).collect::<Vec<_>>();
        assert_eq!(order(&view), [0, 1, 2]);
        for (sort, first) in
            [(Sort::Rate, None), (Sort::Cpu, Some(2)), (Sort::P99, Some(2)), (Sort::Connections, Some(2))]
        {
            view.sort = view.sort.next();
            assert_eq!(view.sort, sort);
            view.arrange();
            assert!(first.is_none_or(|first| order(&view)[0] == first), "{sort:?}");
            if sort == Sort::Rate {
                assert!(view.rows.windows(2).all(|pair| pair[0].rate >= pair[1].rate));
            }
        }
        assert_eq!(view.sort.next(), Sort::Slot);
    }

    #[test]
    fn one_answer_is_not_enough_and_a_pause_is_seen() {
        let mut view = View::new(false);
        assert!(lines(&drawn(&view, 80, 10)).iter().any(|line| line.contains("first answer")));
        view.take(Sample::default());
        assert!(lines(&drawn(&view, 80, 10)).iter().any(|line| line.contains("second answer")));
        view.paused = true;
        view.notice = Some("3 workers\u{1b}[2J".to_owned());
        let lines = lines(&drawn(&view, 80, 10));
        assert!(lines[0].ends_with("PAUSED"));
        assert!(lines[9].starts_with("3 workers") && !lines[9].contains('\u{1b}'));
    }

    #[test]
    fn times_fit_their_column() {
        for (us, said) in [
            (0, "0us"),
            (999, "999us"),
            (1_000, "1.0ms"),
            (12_345, "12ms"),
            (999_999, "1000ms"),
            (1_500_000, "1.5s"),
            (120_000_000, "120s"),
        ] {
            assert_eq!(time(us), said);
            assert!(said.len() <= usize::from(Column::P99.width()));
        }
    }

    #[test]
    fn a_sparkline_ends_with_the_newest_and_rises_to_the_peak() {
        let history: VecDeque<f64> = [0.0, 1.0, 4.0, 8.0].into();
        assert_eq!(spark(&history, 6), "   ▁▄█");
        assert_eq!(spark(&history, 2), "▄█");
        assert_eq!(spark(&VecDeque::new(), 3), "   ");
    }
}
