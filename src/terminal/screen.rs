//! What stands on the terminal, or goes into files.
//!
//! Must hold:
//!
//! - Standard output gets the text and nothing else; what else is said goes to standard error. Where
//!   both are a terminal, the text grows above a line that says how far the run is.
//! - Nothing is written but what [`printable`] made of it, and control sequences of this file.
//! - The row that grows is never wider than the terminal: rows are broken here, and what is drawn
//!   again is one row and the line below it. So nothing has to be known of what is above.
//! - A terminal that says it can do nothing (`TERM=dumb`) is a file.

use std::{
    env,
    io::{self, IsTerminal as _, Write},
};

use anstream::ColorChoice;
use terminal_size::{Width, terminal_size};
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::printable::{printable, printable_line};

/// The width of a terminal that does not tell its own.
const WIDTH: usize = 80;

/// The longest line beside the text, in characters.
const MAX_LINE: usize = 1_000;

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Begins what is drawn: the terminal breaks no row by itself, since it counts some characters
/// otherwise.
const BEGIN: &str = "\x1b[?7l";
const END: &str = "\x1b[?7h";

/// To the beginning of the row that grows, and clears from there.
const ERASE: &str = "\x1b[1A\r\x1b[J";

/// Where things are shown.
pub(super) enum Screen {
    /// Into files, pipes, or both.
    Plain {
        /// The text's last line has not ended.
        is_line_open: bool,
    },
    /// On a terminal.
    Live(Live),
}

impl Screen {
    pub(super) fn new() -> Self {
        let can_draw = io::stdout().is_terminal()
            && io::stderr().is_terminal()
            && env::var_os("TERM").is_none_or(|term| term != "dumb");
        if can_draw {
            let colours = anstream::AutoStream::choice(&io::stdout());
            Self::Live(Live {
                has_styles: colours != ColorChoice::Never,
                ..Live::default()
            })
        } else {
            Self::Plain {
                is_line_open: false,
            }
        }
    }

    /// Adds to the text.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        let text = printable(text);
        match self {
            Self::Plain { is_line_open } => {
                *is_line_open = !text.ends_with('\n');
                show(&text)
            }
            Self::Live(live) => show(&live.text(&text, width())),
        }
    }

    /// Ends the text's line, if it has begun.
    pub(super) fn end_line(&mut self) -> io::Result<()> {
        let is_open = match self {
            Self::Plain { is_line_open } => *is_line_open,
            Self::Live(live) => !live.row.is_empty(),
        };
        if is_open { self.text("\n") } else { Ok(()) }
    }

    /// Says something beside the text, on a line of its own.
    pub(super) fn note(&mut self, line: &str) -> io::Result<()> {
        let line = printable_line(line, MAX_LINE);
        match self {
            Self::Plain { .. } => writeln!(io::stderr(), "{line}"),
            Self::Live(live) => show(&live.note(&line, width())),
        }
    }

    /// How far the run is now.
    pub(super) fn status(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Plain { .. } => Ok(()),
            Self::Live(live) => show(&live.status(printable_line(line, MAX_LINE), width())),
        }
    }

    /// Takes the line about how far the run is away.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.end_line()?;
        match self {
            Self::Plain { .. } => Ok(()),
            Self::Live(live) => show(&live.close()),
        }
    }
}

fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn width() -> usize {
    let width = terminal_size().map_or(WIDTH, |(Width(width), _)| width.into());
    width.max(8)
}

/// What has to be known of a terminal.
#[derive(Default)]
pub(super) struct Live {
    /// The text's last row.
    row: String,
    status: String,
    is_drawn: bool,
    has_styles: bool,
}

impl Live {
    /// What adds to the text.
    fn text(&mut self, text: &str, width: usize) -> String {
        let mut rows = String::new();
        for it in text.chars() {
            match it {
                '\n' => {
                    rows += &std::mem::take(&mut self.row);
                    rows.push('\n');
                }
                '\t' => self.row += "    ",
                it => self.row.push(it),
            }
            while self.row.width() > width {
                let rest = self.row.split_off(break_of(&self.row, width));
                rows += self.row.trim_end();
                rows.push('\n');
                self.row = rest;
            }
        }
        self.draw(&rows, width)
    }

    /// What puts a line above the row that grows.
    fn note(&mut self, line: &str, width: usize) -> String {
        let (begin, end) = if self.has_styles {
            (DIM, PLAIN)
        } else {
            ("", "")
        };
        let mut rows = String::new();
        if !self.row.is_empty() {
            rows = std::mem::take(&mut self.row) + "\n";
        }
        rows += begin;
        let mut line = line;
        while line.width() > width {
            let (row, rest) = line.split_at(break_of(line, width));
            rows += row;
            rows.push('\n');
            line = rest;
        }
        rows = rows + line + end + "\n";
        self.draw(&rows, width)
    }

    fn status(&mut self, status: String, width: usize) -> String {
        self.status = status;
        self.draw("", width)
    }

    /// The finished rows, the one that grows, and the status.
    fn draw(&mut self, rows: &str, width: usize) -> String {
        let erase = if self.is_drawn { ERASE } else { "" };
        self.is_drawn = true;
        let (begin, end) = if self.has_styles {
            (DIM, PLAIN)
        } else {
            ("", "")
        };
        let status = &self.status[..fitting(&self.status, width)];
        let row = &self.row;
        format!("{BEGIN}{erase}{rows}{row}\n{begin}{status}{end}{END}")
    }

    fn close(&mut self) -> String {
        let erase = if std::mem::take(&mut self.is_drawn) {
            ERASE
        } else {
            ""
        };
        erase.to_owned()
    }
}

/// Where a row that is too wide is broken: after a space, if there is one.
fn break_of(row: &str, width: usize) -> usize {
    let fitting = fitting(row, width);
    let space = row[..fitting].rfind(' ').map(|at| at + 1);
    // At least one character, so that there is an end.
    space
        .unwrap_or(fitting)
        .max(row.chars().next().map_or(0, char::len_utf8))
}

/// How many bytes of a text fit into this width.
fn fitting(text: &str, width: usize) -> usize {
    let mut remaining = width;
    for (at, it) in text.char_indices() {
        let Some(rest) = remaining.checked_sub(it.width().unwrap_or_default()) else {
            return at;
        };
        remaining = rest;
    }
    text.len()
}
