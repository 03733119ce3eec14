//! How a transfer looks on a terminal, in a log, and to a program.
//!
//! In: views. Out: a bar with rate, time left and the reason of a stall; lines elsewhere; JSON.
//! Called by: commands.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    cli::{
        output,
        table::{bytes, seconds},
    },
    peer::{
        name::printable,
        view::{DownloadState, DownloadView},
    },
};

/// Between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(10);
/// Between two JSON lines.
const JSON: Duration = Duration::from_secs(1);

/// What stands behind the bar.
fn facts(view: &DownloadView) -> String {
    if view.state == DownloadState::Checking {
        return "checking what is there".to_owned();
    }
    if let Some(reason) = &view.reason {
        return printable(reason);
    }
    let sources = match view.sources.len() {
        1 => "1 source".to_owned(),
        count => format!("{count} sources"),
    };
    let left = view.eta_s.map(|left| format!(", {} left", seconds(left))).unwrap_or_default();
    let have = format!("{} of {}", bytes(view.have), bytes(view.size));
    format!("{have}, {}/s from {sources}{left}", bytes(view.rate as u64))
}

/// Shows one download as it goes.
pub(super) enum Progress {
    Bar(ProgressBar),
    Lines(Instant),
    Json(Instant),
}

impl Progress {
    pub(super) fn new(json: bool) -> Self {
        let long_ago = Instant::now().checked_sub(LINE).unwrap_or_else(Instant::now);
        if json {
            return Self::Json(long_ago);
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines(long_ago);
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(8));
        let template = "{prefix:.bold}\n{bar:36} {percent:>3} %  {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        Self::Bar(bar)
    }

    pub(super) fn show(&mut self, view: &DownloadView) {
        match self {
            Self::Bar(bar) => {
                bar.set_prefix(printable(&view.name));
                bar.set_length(view.size);
                bar.set_position(view.have);
                bar.set_message(facts(view));
            }
            Self::Lines(last) if last.elapsed() >= LINE => {
                *last = Instant::now();
                let percent = (view.have * 100).checked_div(view.size).unwrap_or(0);
                log_line(&format!("{}: {percent} %, {}", printable(&view.name), facts(view)));
            }
            Self::Json(last) if last.elapsed() >= JSON => {
                *last = Instant::now();
                json(view);
            }
            Self::Lines(_) | Self::Json(_) => {}
        }
    }

    /// The last view: the bar goes, the result stays.
    pub(super) fn end(self, view: &DownloadView) {
        match self {
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines(_) => {}
            Self::Json(_) => json(view),
        }
    }
}

/// A line on standard error.
#[allow(clippy::print_stderr, reason = "the command line is where text is printed")]
pub(super) fn log_line(text: &str) {
    eprintln!("{text}");
}

fn json(view: &DownloadView) {
    if let Ok(line) = output::json_line("peer-get", view) {
        output::print(format_args!("{line}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_shows_its_reason_and_nothing_that_turns_the_line() {
        let mut view = DownloadView { state: DownloadState::Running, ..DownloadView::default() };
        view.rate = 2.5e6;
        view.eta_s = Some(75);
        assert_eq!(facts(&view), "0 B of 0 B, 2.5 MB/s from 0 sources, 1 min 15 s left");
        view.reason = Some("building hop 2 of 3\u{1b}[2J".to_owned());
        assert_eq!(facts(&view), "building hop 2 of 3\u{fffd}[2J");
    }
}
