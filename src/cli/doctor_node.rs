//! `cachalot doctor --node`: whether this machine's container runtimes will really ask the mirror, and what to change.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::nodes::{Examined, MirrorUrl, examine};

use super::ask::{ask_mirror, get};
use super::{EXIT_FAILURE, fail};

/// A mirror that takes longer to dial slows every pull down.
const DIAL_SLOW: Duration = Duration::from_millis(200);

/// How long a mirror may take to be dialled, and to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A mirror that nobody has asked for so long is not used.
const UNUSED_SECONDS: i64 = 24 * 60 * 60;

/// The metric that tells when a client last asked.
const LAST_ASKED: &str = "cachalot_client_last_request_timestamp_seconds ";

/// Looks, and tells. With the mirror's admin listener, also whether anybody uses it. The exit code is 0 if all is well.
#[expect(clippy::print_stdout, reason = "what is found is what the command is for")]
pub(super) fn look(root: &Path, mirror: Option<&MirrorUrl>, admin: Option<&MirrorUrl>) -> ExitCode {
    let found = examine(root, mirror);
    if found.runtimes.is_empty() {
        return fail(
            "there is no configuration of containerd, Docker or podman here; name the machine's root with --root",
        );
    }
    println!("configured here: {}", found.runtimes.join(", "));
    for (place, problems) in found.by_place() {
        println!("\n{}", place.display());
        for problem in problems {
            println!("  wrong   {}\n  change  {}", problem.what, problem.advice);
        }
    }
    let answers = ask(&found, mirror);
    let used = admin.is_none_or(was_used_lately);
    if found.problems.is_empty() && answers && used {
        println!("all well");
        return ExitCode::SUCCESS;
    }
    ExitCode::from(EXIT_FAILURE)
}

/// Asks each mirror that clients are told of, and tells how it answers.
#[expect(clippy::print_stdout, reason = "what is found is what the command is for")]
fn ask(found: &Examined, mirror: Option<&MirrorUrl>) -> bool {
    let mut well = true;
    let mirrors: Vec<&MirrorUrl> = mirror.map_or_else(|| found.mirrors.iter().collect(), |mirror| vec![mirror]);
    for mirror in mirrors {
        match ask_mirror(mirror, PATIENCE) {
            Ok(dialled) if dialled <= DIAL_SLOW => println!("{} answers; dialled in {dialled:.1?}", mirror.url),
            Ok(dialled) => {
                well = false;
                println!("{} answers, but took {dialled:.1?} to dial: each pull waits for that", mirror.url);
            }
            Err(problem) => {
                well = false;
                println!("{} does not answer from here: {problem}", mirror.url);
            }
        }
    }
    well
}

/// Whether a client has asked the mirror lately, told as well.
#[expect(clippy::print_stdout, reason = "what is found is what the command is for")]
fn was_used_lately(admin: &MirrorUrl) -> bool {
    let metrics = match get(admin, "/metrics", PATIENCE) {
        Ok((_, answer)) => answer.body,
        Err(error) => {
            println!("{} does not answer from here: {error}", admin.url);
            return false;
        }
    };
    let Some(last) = metrics.lines().find_map(|line| line.strip_prefix(LAST_ASKED)?.trim().parse::<i64>().ok()) else {
        println!("{} answers, but not as a mirror's admin listener does", admin.url);
        return false;
    };
    let ago = Timestamp::now().seconds() - last;
    if last == 0 {
        println!("no client has asked the mirror since it started: nodes go past it");
    } else if ago > UNUSED_SECONDS {
        println!("no client has asked the mirror for {} hours: nodes go past it", ago / 3600);
    } else {
        println!("a client asked the mirror {ago} s ago");
    }
    last != 0 && ago <= UNUSED_SECONDS
}
