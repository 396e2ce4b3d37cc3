//! The display: redrawn lines on a terminal, plain lines in a pipe.

use std::{io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::state::View;

pub(super) enum Display {
    Quiet,
    Plain { shown: Option<View> },
    Terminal { all: MultiProgress, overall: ProgressBar, slots: Vec<ProgressBar>, verify: Option<ProgressBar> },
}

impl Display {
    pub(super) fn new(quiet: bool) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !std::io::stdout().is_terminal() {
            return Self::Plain { shown: None };
        }
        let all = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::stdout());
        let overall = line(&all);
        Self::Terminal { all, overall, slots: Vec::new(), verify: None }
    }

    pub(super) fn show(&mut self, view: &View) {
        match self {
            Self::Quiet => {}
            Self::Plain { shown } => {
                if shown.as_ref() != Some(view) {
                    print!("{}", plain(shown.as_ref(), view));
                    *shown = Some(view.clone());
                }
            }
            Self::Terminal { all, overall, slots, .. } => {
                let mut head = view.head.clone();
                if let Some(notice) = &view.notice {
                    head = format!("rollback: {notice}\n{head}");
                }
                overall.set_message(head);
                while slots.len() < view.lines.len() {
                    slots.push(line(all));
                }
                for bar in slots.drain(view.lines.len()..) {
                    all.remove(&bar);
                }
                for (bar, (label, text)) in slots.iter().zip(&view.lines) {
                    bar.set_message(format!("{label}: {text}"));
                }
            }
        }
    }

    pub(super) fn waiting_to_verify(&mut self, monitor: Duration) {
        let seconds = monitor.as_secs_f32().ceil();
        self.say(&format!("verify: Waiting {seconds} seconds to verify that tasks are stable..."));
    }

    pub(super) fn say(&mut self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Plain { .. } => println!("{text}"),
            Self::Terminal { all, verify, .. } => {
                verify.get_or_insert_with(|| line(all)).set_message(text.to_owned());
            }
        }
    }

    /// Leaves the last state on the screen.
    pub(super) fn finish(&mut self) {
        if let Self::Terminal { overall, slots, verify, .. } = self {
            for bar in std::iter::once(overall).chain(slots).chain(verify) {
                bar.abandon();
            }
        }
    }
}

fn line(all: &MultiProgress) -> ProgressBar {
    let bar = all.add(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
        bar.set_style(style);
    }
    bar
}

/// Only what changed since `before`.
fn plain(before: Option<&View>, view: &View) -> String {
    let mut out = String::new();
    if let Some(notice) = view.notice.as_ref().filter(|_| before.is_none_or(|b| b.notice.is_none())) {
        out.push_str(&format!("rollback: {notice}\n"));
    }
    if before.is_none_or(|b| b.head != view.head) {
        out.push_str(&format!("{}\n", view.head));
    }
    for (at, (label, text)) in view.lines.iter().enumerate() {
        let same = before.and_then(|b| b.lines.get(at)).is_some_and(|have| have == &(label.clone(), text.clone()));
        if !same && !text.is_empty() {
            out.push_str(&format!("{label}: {text}\n"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_only_what_changed() {
        let view = |running, texts: [&str; 2]| View {
            running,
            total: 2,
            head: format!("{running} out of 2"),
            notice: None,
            lines: vec![("1/2".into(), texts[0].into()), ("2/2".into(), texts[1].into())],
        };
        let (first, second) = (view(0, ["preparing", ""]), view(1, ["running", "starting"]));
        assert_eq!(plain(None, &first), "0 out of 2\n1/2: preparing\n");
        assert_eq!(plain(Some(&first), &second), "1 out of 2\n1/2: running\n2/2: starting\n");
        assert_eq!(plain(Some(&second), &second), "");
    }
}
