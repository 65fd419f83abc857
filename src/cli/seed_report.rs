//! How `cachalot seed` shows a run: bars on a terminal, lines elsewhere, a summary, and what is missing.

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal as _;

use indicatif::{MultiProgress, ProgressBar};
use parking_lot::Mutex;
use serde_json::json;

use crate::jobs::seed::{ImageProgress, Progress, State};

use super::store::{size, styled};

/// Shows one run.
pub(super) struct Display {
    json: bool,
    dry: bool,
    bars: Option<Bars>,
    /// The images whose end was told.
    told: Mutex<HashSet<usize>>,
}

struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    images: Mutex<HashMap<usize, ProgressBar>>,
}

// === impl Display ===

impl Display {
    pub(super) fn new(json: bool, dry: bool) -> Self {
        let bars = (!json && std::io::stderr().is_terminal()).then(Bars::new);
        Self { json, dry, bars, told: Mutex::default() }
    }

    /// Says something that is neither about an image nor the end.
    #[expect(clippy::print_stderr, reason = "this is where commands talk to the person who typed them")]
    pub(super) fn say(&self, text: &str) {
        match &self.bars {
            // Without a terminal there is nothing that it could get lost among.
            Some(bars) => drop(bars.all.println(text)),
            None => eprintln!("{text}"),
        }
    }

    /// Shows how the run stands.
    pub(super) fn show(&self, progress: &Progress) {
        if let Some(bars) = &self.bars {
            bars.show(progress);
        }
        for (number, image) in progress.images.iter().enumerate() {
            if image.state.is_over() && self.told.lock().insert(number) {
                self.tell(image);
            }
        }
    }

    #[expect(clippy::print_stdout, reason = "the report is what the command is for")]
    fn tell(&self, image: &ImageProgress) {
        if self.json {
            return;
        }
        let (verb, state) = match (self.dry, image.state) {
            (true, _) => ("to fetch", "would fetch"),
            (false, State::Incomplete) => ("fetched", "incomplete"),
            (false, _) => ("fetched", "seeded"),
        };
        let digest = image.digest.map(|digest| format!("@{digest}")).unwrap_or_default();
        let referrers = match image.referrers {
            0 => String::new(),
            1 => ", 1 referrer".to_owned(),
            many => format!(", {many} referrers"),
        };
        let (fetched, shared, held) = (size(image.fetched_bytes), size(image.shared_bytes), size(image.held_bytes));
        let line =
            format!("{state} {}{digest}: {fetched} {verb}, {shared} shared, {held} held{referrers}", image.image);
        match &self.bars {
            Some(bars) => bars.all.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
    }

    /// Tells how it ended.
    #[expect(clippy::print_stdout, clippy::print_stderr, reason = "the report is what the command is for")]
    pub(super) fn end(&self, progress: &Progress) {
        self.show(progress);
        if let Some(bars) = &self.bars {
            drop(bars.all.clear());
        }
        if self.json {
            println!("{}", json!(progress));
            return;
        }
        let sum = |part: fn(&ImageProgress) -> u64| size(progress.images.iter().map(part).sum());
        let complete = progress.images.iter().filter(|image| image.state == State::Done).count();
        println!(
            "{complete} of {} images {}: {} {}, {} shared between them, {} held before",
            progress.images.len(),
            if self.dry { "can be had" } else { "are held" },
            sum(|image| image.fetched_bytes),
            if self.dry { "to fetch" } else { "fetched" },
            sum(|image| image.shared_bytes),
            sum(|image| image.held_bytes),
        );
        for image in progress.images.iter().filter(|image| !image.missing.is_empty()) {
            eprintln!("missing of {}:", image.image);
            for what in &image.missing {
                eprintln!("  {what}");
            }
        }
        if let Some(problem) = &progress.problem {
            eprintln!("cachalot: {problem}");
        }
    }
}

// === impl Bars ===

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let total = all.add(styled("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}"));
        Self { all, total, images: Mutex::default() }
    }

    fn show(&self, progress: &Progress) {
        let mut images = self.images.lock();
        let (mut total, mut there) = (0, 0);
        for (number, image) in progress.images.iter().enumerate() {
            let here = (image.fetched_bytes + image.shared_bytes + image.held_bytes).min(image.total_bytes);
            (total, there) = (total + image.total_bytes, there + here);
            if image.state == State::Running {
                let bar = images.entry(number).or_insert_with(|| {
                    let bar = styled("{bar:30} {bytes:>10}/{total_bytes:<10} {msg}");
                    bar.set_message(image.image.to_string());
                    self.all.insert_before(&self.total, bar)
                });
                bar.set_length(image.total_bytes);
                bar.set_position(here);
            } else if let Some(bar) = images.remove(&number) {
                self.all.remove(&bar);
            }
        }
        let over = progress.images.iter().filter(|image| image.state.is_over()).count();
        self.total.set_length(total);
        self.total.set_position(there);
        self.total.set_message(format!("{over} of {} images", progress.images.len()));
    }
}
