//! `cachalot verify`: hashes all that is held again, and says what is wrong.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures_util::{StreamExt as _, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::oci::Digest;
use crate::store::{Checked, Store};

use super::store::{StoreArgs, size, with_store};
use super::{EXIT_FAILURE, fail};

/// The arguments of `verify`.
#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    store: StoreArgs,
    /// Put what is wrong into quarantine, so that it's fetched again
    #[arg(long)]
    repair: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Debug, Default)]
struct Report {
    right: u64,
    bytes: u64,
    wrong: Vec<(Digest, String)>,
    unreadable: Vec<(Digest, String)>,
    /// What does not fit together: files without a blob, blobs without a file.
    differences: Vec<String>,
}

/// Runs the command. Fails when anything is wrong, or was before it was repaired.
pub(super) fn run(verify: &Verify) -> ExitCode {
    with_store(&verify.store, async |store| match check(store, verify.repair).await {
        Ok(report) => {
            report.print(verify);
            if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) }
        }
        Err(message) => fail(&message),
    })
}

async fn check(store: &Store, repair: bool) -> Result<Report, String> {
    let held = store.held();
    let bar = ProgressBar::new(held.iter().map(|(_, size_bytes)| size_bytes).sum());
    // The template is a constant; should it be wrong, the bar looks plain.
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta} left") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    let mut report =
        Report { differences: store.audit().await.map_err(|error| error.to_string())?, ..Report::default() };
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let checks = held.into_iter().map(|(digest, size_bytes)| async move {
        let checked =
            if repair { store.check_and_heal_blob(&digest, None).await } else { store.check_blob(&digest, None).await };
        (digest, size_bytes, checked)
    });
    let mut checks = stream::iter(checks).buffer_unordered(at_once);
    while let Some((digest, size_bytes, checked)) = checks.next().await {
        bar.inc(size_bytes);
        match checked {
            Checked::Right => (report.right, report.bytes) = (report.right + 1, report.bytes + size_bytes),
            Checked::Gone => {}
            Checked::Wrong(what) => report.wrong.push((digest, what)),
            Checked::Unreadable(error) => report.unreadable.push((digest, error.to_string())),
        }
    }
    bar.finish_and_clear();
    Ok(report)
}

// === impl Report ===

impl Report {
    fn is_clean(&self) -> bool {
        self.wrong.is_empty() && self.unreadable.is_empty() && self.differences.is_empty()
    }

    #[expect(clippy::print_stdout, reason = "the report is what the command is for")]
    fn print(&self, verify: &Verify) {
        let Self { right, bytes, wrong, unreadable, differences } = self;
        if verify.json {
            let list = |list: &[(Digest, String)]| -> Vec<_> {
                list.iter().map(|(digest, what)| json!({ "digest": digest, "what": what })).collect()
            };
            let (wrong, unreadable) = (list(wrong), list(unreadable));
            let report = json!({
                "right": right, "bytes": bytes, "wrong": wrong, "unreadable": unreadable,
                "differences": differences, "repaired": verify.repair,
            });
            println!("{report}");
            return;
        }
        for (digest, what) in wrong {
            println!("wrong       {digest}: {what}{}", if verify.repair { "; in quarantine now" } else { "" });
        }
        for (digest, what) in unreadable {
            println!("unreadable  {digest}: {what}");
        }
        for what in differences {
            println!("strange     {what}");
        }
        println!(
            "{right} blobs are right ({}), {} are wrong, {} can't be read",
            size(*bytes),
            wrong.len(),
            unreadable.len()
        );
        if !wrong.is_empty() && !verify.repair {
            println!("run it with --repair to have them fetched again");
        }
    }
}
