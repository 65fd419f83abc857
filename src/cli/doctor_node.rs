//! `cachalot doctor --node`: whether this machine's container runtimes will really ask the mirror, and what to change.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::nodes::{Examined, MirrorUrl, examine};

use super::ask::ask_mirror;
use super::{EXIT_FAILURE, fail};

/// A mirror that takes longer to dial slows every pull down.
const DIAL_SLOW: Duration = Duration::from_millis(200);

/// How long a mirror may take to be dialled, and to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks, and tells. The exit code is 0 if all is well.
#[expect(clippy::print_stdout, reason = "what is found is what the command is for")]
pub(super) fn look(root: &Path, mirror: Option<&MirrorUrl>) -> ExitCode {
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
    if found.problems.is_empty() && answers {
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
