//! `cachalot verify`: hashes all that is held again, and says what is wrong.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;
use indicatif::ProgressBar;
use serde::Deserialize;
use serde_json::json;

use crate::api_client::{ApiClient, ApiClientError};
use crate::jobs::verify::{Finding, Progress, Report, verify};
use crate::store::Store;

use super::store::{Place, StoreArgs, bar, refused, size, with_store};
use super::{EXIT_FAILURE, fail};

/// The arguments of `verify`.
#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    store: StoreArgs,
    /// Put what is wrong into quarantine, so that it's fetched again; a running server always does
    #[arg(long)]
    repair: bool,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// What a server says of its verification.
#[derive(Deserialize)]
struct Shown {
    progress: Option<Progress>,
}

/// How often a server is asked how far it has come.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs the command. Fails when anything is wrong, or was before it was repaired.
pub(super) fn run(verify: &Verify) -> ExitCode {
    with_store(&verify.store, async |place| {
        let report = match place {
            Place::Stopped(store, _) => check(store, verify.repair).await.map_err(|message| fail(&message)),
            Place::Running(server) => ask(server).await.map_err(|error| refused(&error)),
        };
        match report {
            Ok(report) => {
                print(&report, verify);
                if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURE) }
            }
            Err(code) => code,
        }
    })
}

async fn check(store: &Store, repair: bool) -> Result<Report, String> {
    let bar = bar();
    let differences = store.audit().await.map_err(|error| error.to_string())?;
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    let report = verify(store, repair, at_once, |progress| show(&bar, progress)).await;
    bar.finish_and_clear();
    Ok(Report { differences, ..report })
}

/// Has a server do it, and follows it.
async fn ask(server: &ApiClient) -> Result<Report, ApiClientError> {
    let bar = bar();
    let mut shown: Shown = server.send(Method::POST, "/verify", None::<&()>).await?;
    loop {
        let progress = shown.progress.unwrap_or_default();
        show(&bar, &progress);
        if !progress.running {
            bar.finish_and_clear();
            return Ok(progress.report);
        }
        tokio::time::sleep(LOOK_EVERY).await;
        shown = server.get("/verify").await?;
    }
}

fn show(bar: &ProgressBar, progress: &Progress) {
    bar.set_length(progress.total_bytes);
    bar.set_position(progress.checked_bytes);
}

#[expect(clippy::print_stdout, reason = "the report is what the command is for")]
fn print(report: &Report, verify: &Verify) {
    if verify.json {
        println!("{}", json!(report));
        return;
    }
    let Report { right, bytes, wrong, unreadable, differences, .. } = report;
    for Finding { digest, what } in wrong {
        println!("wrong       {digest}: {what}{}", if report.repaired { "; in quarantine now" } else { "" });
    }
    for Finding { digest, what } in unreadable {
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
    if !wrong.is_empty() && !report.repaired {
        println!("a server would serve them as they are: run it with --repair to have them fetched again");
    }
}
