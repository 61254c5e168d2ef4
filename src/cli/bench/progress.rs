//! Bars on stderr, for people only.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What makes them.
pub(super) struct Bars {
    hidden: bool,
}

impl Bars {
    pub(super) fn new(json: bool) -> Self {
        Self { hidden: json }
    }

    pub(super) fn bar(&self, length: u64, what: &'static str) -> ProgressBar {
        let style =
            ProgressStyle::with_template("{msg:8} {wide_bar} {percent:>3} %").expect("a template that is known");
        self.shown(ProgressBar::new(length).with_style(style), what)
    }

    pub(super) fn spinner(&self, what: &'static str) -> ProgressBar {
        let bar = self.shown(ProgressBar::new_spinner(), what);
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn shown(&self, bar: ProgressBar, what: &'static str) -> ProgressBar {
        // Hidden by itself where stderr is no terminal.
        bar.set_draw_target(if self.hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() });
        bar.with_message(what)
    }
}
