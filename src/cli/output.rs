//! How results look: lines, tables without borders, ages, JSON and YAML.

use super::Failure;
use crate::server::logs::Cleaner;
use comfy_table::{ColumnConstraint, Table, Width};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;
use std::io::{IsTerminal, Write};

/// Spaces between two columns.
const COLUMN_GAP: u16 = 3;

/// Prints one line to standard output.
macro_rules! out {
    () => { $crate::cli::output::line("") };
    ($($arg:tt)+) => { $crate::cli::output::line(&format!($($arg)+)) };
}
pub(crate) use out;

/// Prints one line. A reader that has gone away (`| head`) ends the program quietly.
pub(super) fn line(text: &str) {
    bytes(format!("{text}\n").as_bytes());
}

/// Prints bytes as they are.
pub(super) fn bytes(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(0);
    }
}

/// How `get` prints.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// More columns.
    Wide,
    /// The objects as JSON.
    Json,
    /// The objects as YAML.
    Yaml,
    /// `agent/<name>`.
    Name,
}

/// A value as JSON or YAML.
pub(super) fn structured(value: &impl Serialize, format: Format) -> Result<String, Failure> {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).map_err(|e| e.to_string()),
        Format::Json | Format::Wide | Format::Name => serde_json::to_string_pretty(value).map_err(|e| e.to_string()),
    };
    text.map(|t| t.trim_end().to_owned()).map_err(|e| Failure::failed(format!("failed to write the answer: {e}")))
}

/// A table without borders. `widths` are least widths of the columns and grow with the content, so that rows printed later line up.
pub(super) fn table(header: Option<&[&str]>, rows: &[Vec<String>], widths: &mut Vec<u16>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    if let Some(header) = header {
        table.add_row(header.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    // One row is one line, whatever a name or message holds.
    table.add_rows(rows.iter().map(|row| row.iter().map(|cell| one_line(cell)).collect::<Vec<_>>()));
    for (i, width) in table.column_max_content_widths().into_iter().enumerate() {
        if i == widths.len() {
            widths.push(0);
        }
        widths[i] = widths[i].max(width);
    }
    for (column, width) in table.column_iter_mut().zip(widths.iter()) {
        column.set_padding((0, COLUMN_GAP));
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(width + COLUMN_GAP)));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Text of an agent or repository for a terminal: no control characters, one line.
pub(super) fn one_line(text: &str) -> String {
    safe(text).replace(['\n', '\t'], " ").trim().to_owned()
}

/// Text of an agent or repository for a terminal: no control characters.
pub(super) fn safe(text: &str) -> String {
    Cleaner::default().clean(text.as_bytes())
}

/// Text, each line moved in.
pub(super) fn indented(text: &str, by: usize) -> String {
    let gap = " ".repeat(by);
    safe(text).lines().map(|line| format!("{gap}{line}")).collect::<Vec<_>>().join("\n")
}

/// The time since a timestamp, in kubectl's short form.
pub(super) fn age(timestamp: Option<&str>) -> String {
    let Some(then) = timestamp.and_then(|t| t.parse::<Timestamp>().ok()) else { return "<unknown>".to_owned() };
    let seconds = Timestamp::now().as_second().saturating_sub(then.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => format!("{minutes}m{}s", seconds % 60),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 48 => format!("{hours}h"),
        () => format!("{days}d"),
    }
}

/// Colours for people: only on a terminal, and never with `NO_COLOR`.
#[derive(Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    /// For standard output.
    pub(super) fn stdout() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()))
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    pub(super) fn strong(self, text: &str) -> String {
        self.with("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }
}
