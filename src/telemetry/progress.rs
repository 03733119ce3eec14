//! How far a start has come: a bar under the log on a terminal, nothing but the log elsewhere.
//!
//! In: phases. Out: a bar on standard error. Called by: the client's phases; logs writes around it.

use std::{
    io::IsTerminal,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use systemd_journal_logger::connected_to_journal;

/// The bar that stands under the log; one at a time.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);
const TICK: Duration = Duration::from_millis(120);
const DRAWS_PER_SECOND: u8 = 10;

/// A bar of named phases; it goes when this is dropped.
#[derive(Debug)]
pub struct PhaseBar(Option<ProgressBar>);

impl PhaseBar {
    /// A bar of `phases`, if standard error is a terminal that people look at.
    pub fn new(phases: usize) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if !std::io::stderr().is_terminal() || dumb || connected_to_journal() {
            return Self(None);
        }
        let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
        let bar = ProgressBar::with_draw_target(Some(phases as u64), target);
        let template = "{spinner:.cyan} {bar:24.cyan/dim} {pos}/{len} {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar.enable_steady_tick(TICK);
        *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = Some(bar.clone());
        Self(Some(bar))
    }

    /// `done` phases are over; `text` says what the next one waits for.
    pub fn show(&self, done: usize, text: &str) {
        if let Some(bar) = &self.0 {
            bar.set_position(done as u64);
            if bar.message() != text {
                bar.set_message(text.to_owned());
            }
        }
    }
}

impl Drop for PhaseBar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            *SHOWN.lock().unwrap_or_else(PoisonError::into_inner) = None;
            bar.finish_and_clear();
        }
    }
}

/// Writes lines above the bar, if there is one.
pub(super) fn above(write: impl FnOnce()) {
    let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match shown {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}
