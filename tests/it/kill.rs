//! The program is killed at random moments: after each restart every byte that it serves is right.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::support::client::{Connection, End, Request};
use crate::support::images::Image;
use crate::support::mirror::{blob, manifest};
use crate::support::program::Program;
use crate::support::registry::Registry;
use crate::support::{all, until, within};

const MIB: usize = 1024 * 1024;

/// Numbers that look random and are the same each time.
struct Dice(AtomicU64);

/// What the rounds came to.
#[derive(Debug, Default)]
struct Tally {
    complete: AtomicUsize,
    cut: AtomicUsize,
    unanswered: AtomicUsize,
    bytes: AtomicU64,
    held_after: AtomicUsize,
}

// === impl Dice ===

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let mut x = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % sides
    }
}

/// Asks for a path, and fails if anything wrong comes that looks right.
async fn ask(addr: std::net::SocketAddr, path: &str, right: &[bytes::Bytes], tally: &Tally) -> bool {
    let Some(answer) = within("an answer or an end", Connection::attempt(addr, &Request::get(path))).await else {
        tally.unanswered.fetch_add(1, Ordering::Relaxed);
        return false;
    };
    if answer.status() != 200 {
        assert!(answer.status() >= 500, "{path}: {:?}", answer.head);
        return false;
    }
    tally.bytes.fetch_add(answer.body.len() as u64, Ordering::Relaxed);
    if answer.end == End::Complete {
        assert!(right.contains(&answer.body), "{path}: wrong bytes, complete");
        tally.complete.fetch_add(1, Ordering::Relaxed);
        return true;
    }
    assert!(right.iter().any(|right| right.starts_with(&answer.body)), "{path}: wrong bytes, cut");
    tally.cut.fetch_add(1, Ordering::Relaxed);
    false
}

/// Pulls everything of an image as far as it comes.
async fn pull(addr: std::net::SocketAddr, images: Arc<Vec<Image>>, n: usize, tag: String, tally: Arc<Tally>) {
    // The tag may have moved since to any of the images.
    let manifests: Vec<_> = images.iter().map(|image| image.manifest.bytes.clone()).collect();
    ask(addr, &manifest("library/app", &tag), &manifests, &tally).await;
    ask(addr, &manifest("library/app", &images[n].manifest.digest), &manifests[n..=n], &tally).await;
    for part in images[n].blobs() {
        ask(addr, &blob("library/app", &part.digest), std::slice::from_ref(&part.bytes), &tally).await;
    }
}

async fn rounds(count: usize, seed: u64) -> Arc<Tally> {
    let dice = Dice(AtomicU64::new(seed));
    let registry = Registry::start().await;
    let images: Arc<Vec<_>> = Arc::new(
        (0..8).map(|n| Image::new(n, &[10, 30_000 + usize::try_from(n).unwrap() * 7000, MIB + 300_000])).collect(),
    );
    // Room for about half of them: there are evictions all the time.
    let program = Program::new(&registry, "6MiB");
    let tally = Arc::new(Tally::default());
    for round in 0..count {
        // Boot needs no network.
        registry.go_down().await;
        let serving = program.serve().await;
        for image in images.iter() {
            for part in image.blobs() {
                let path = blob("library/app", &part.digest);
                let held = ask(serving.addr, &path, std::slice::from_ref(&part.bytes), &tally);
                tally.held_after.fetch_add(usize::from(held.await), Ordering::Relaxed);
            }
        }
        registry.come_back().await;
        let sign = format!("well{round}");
        registry.put_image("library/app", &sign, &images[0]);
        let sign = (manifest("library/app", &sign), std::slice::from_ref(&images[0].manifest.bytes));
        // An upstream that failed is left alone for a few seconds.
        within("the upstream is asked again", async {
            let mut ticks = tokio::time::interval(std::time::Duration::from_millis(50));
            while !ask(serving.addr, &sign.0, sign.1, &Tally::default()).await {
                ticks.tick().await;
            }
        })
        .await;
        let pulls = (0..3).map(|_| {
            let n = usize::try_from(dice.roll(8)).unwrap();
            let tag = format!("v{}", dice.roll(3));
            registry.put_image("library/app", &tag, &images[n]);
            pull(serving.addr, images.clone(), n, tag, tally.clone())
        });
        let bytes = tally.bytes.load(Ordering::Relaxed);
        let clients = tokio::spawn(all(pulls.collect::<Vec<_>>()));
        // A moment is so many bytes later, or the end of the pulls.
        let moment = bytes + dice.roll(5 * MIB as u64);
        until("the moment has come", || tally.bytes.load(Ordering::Relaxed) >= moment || clients.is_finished()).await;
        serving.kill();
        clients.await.unwrap();

        let report = program.run("verify", &["--json"]);
        let report = String::from_utf8_lossy(&report.stdout).into_owned() + &String::from_utf8_lossy(&report.stderr);
        assert!(report.contains("\"wrong\":[]") && report.contains("\"differences\":[]"), "round {round}: {report}");
        let tmp = std::fs::read_dir(program.data().join("v1/tmp")).unwrap().count();
        assert_eq!(tmp, 0, "round {round}: temporary files were left");
    }
    let (complete, held) = (tally.complete.load(Ordering::Relaxed), tally.held_after.load(Ordering::Relaxed));
    // Or it would prove nothing. How much is complete at the moment of a kill depends on the machine's mood.
    assert!(complete > 0 && held > 0, "{complete} complete answers, {held} blobs held after a kill, in {count} rounds");
    tally
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_the_program_serves_nothing_wrong_afterwards() {
    rounds(8, 1).await;
}

/// `cargo test --release --test it -- --ignored kill::`, a part of `.ci/long`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: part of .ci/long"]
async fn killed_two_hundred_times_the_program_serves_nothing_wrong_afterwards() {
    let tally = rounds(200, 2).await;
    writeln!(std::io::stderr(), "200 kills: {tally:?}").unwrap();
}
