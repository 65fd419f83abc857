//! Random input for all that parses what a stranger sent: seeds are kept in `corpus/`, changed at random, and whatever
//! panics, hangs or breaks a promise is a failure that names the input.
//!
//! `FUZZ_SECONDS` is how long each target runs (5 by default), `FUZZ_SEED` repeats a run.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "in tests a panic is the report")]

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cachalot::bundle::{self, Source, import};
use cachalot::metrics::Metrics;
use cachalot::oci::manifest::Manifest;
use cachalot::oci::{range, route};
use cachalot::server::auth;
use cachalot::store::{Budget, FileSystemFacts, Options, Store};
use cachalot::upstream::foreign;
use cachalot::{config, oci};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

/// The longest input that is made up.
const INPUT_BYTES_MAX: usize = 16 << 10;

/// How long one input may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Words that mean something to one parser or another.
const WORDS: [&str; 40] = [
    "/v2/",
    "manifests/",
    "blobs/",
    "sha256:",
    "sha512:",
    "tags/list",
    "referrers/",
    "_catalog",
    "?ns=",
    "&n=",
    "%2F",
    "%00",
    "%",
    "..",
    "//",
    "bytes=",
    "-",
    ",",
    "0-0",
    "18446744073709551615",
    "18446744073709551616",
    "Basic ",
    "Bearer ",
    "=",
    "realm=\"",
    "\"",
    "\\",
    "scope=\"repository:a:pull\"",
    "{",
    "}",
    "[",
    "]",
    "null",
    "\"digest\":",
    "\"size\":-1",
    "\"mediaType\":",
    "[upstreams.\"",
    "\n",
    "\u{0}",
    "\u{fffd}",
];

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} holds nothing", folder.display());
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Another input, made of one or two that there are.
fn change(random: &mut StdRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut input = corpus.choose(random).unwrap().clone();
    for _ in 0..random.random_range(1..8) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..8) {
            0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
            1 if at < input.len() => input[at] = random.random(),
            2 => input.truncate(at),
            3 if at < input.len() => {
                let end = random.random_range(at..=input.len());
                input.drain(at..end);
            }
            4 => {
                let end = random.random_range(at..=input.len());
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            5 => {
                let other = corpus.choose(random).unwrap();
                input.truncate(at);
                input.extend_from_slice(&other[random.random_range(0..=other.len())..]);
            }
            _ => {
                let word = WORDS.choose(random).unwrap();
                input.splice(at..at, word.bytes());
            }
        }
        input.truncate(INPUT_BYTES_MAX);
    }
    input
}

/// Feeds `target` with changed inputs until its time is over. `run` panics when a promise is broken, and says whether the
/// input was understood: such inputs are changed further.
fn fuzz(target: &str, run: impl Fn(&[u8]) -> bool) {
    let seconds = std::env::var("FUZZ_SECONDS").map_or(5, |text| text.parse().expect("FUZZ_SECONDS is a number"));
    let seed = std::env::var("FUZZ_SEED").map_or_else(|_| rand::rng().next_u64(), |text| text.parse().unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let mut inputs = corpus(target);
    let kept = inputs.len();
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut runs, mut understood) = (0_u64, 0_u64);
    while Instant::now() < end {
        let input = if runs < kept as u64 {
            inputs[usize::try_from(runs).unwrap()].clone()
        } else {
            change(&mut random, &inputs)
        };
        let began = Instant::now();
        let Ok(is_understood) = catch_unwind(AssertUnwindSafe(|| run(&input))) else {
            panic!("{target} failed on {:?} (FUZZ_SEED={seed}, run {runs})", String::from_utf8_lossy(&input));
        };
        if is_understood {
            understood += 1;
            if inputs.len() < kept + 2000 && random.random_ratio(1, 20) {
                inputs.push(input.clone());
            }
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{target} took {:?} for {:?}",
            began.elapsed(),
            String::from_utf8_lossy(&input)
        );
        runs += 1;
    }
    assert!(understood > 0, "{target}: nothing of {runs} was understood, so nothing was tried");
}

#[test]
fn request_targets() {
    fuzz("target", |input| {
        let text = String::from_utf8_lossy(input);
        let (path, query) = text.split_once('?').map_or((&*text, None), |(path, query)| (path, Some(query)));
        let Ok(route) = route::parse(path, query) else { return false };
        // What is a route leads nowhere else: no name climbs out of its folder.
        assert!(!route.name.split('/').any(|segment| segment == ".." || segment == "."), "{route:?}");
        assert!(!route.name.contains('\0'), "{route:?}");
        true
    });
}

#[test]
fn ranges() {
    fuzz("range", |input| {
        let specs = match range::parse(Some(input)) {
            range::RangeRequest::Single(spec) => vec![spec],
            range::RangeRequest::Multiple(specs) => specs,
            range::RangeRequest::None | range::RangeRequest::TooMany => return false,
        };
        for size in [0, 1, 1000, u64::MAX] {
            for spec in &specs {
                if let Some(found) = spec.resolve(size) {
                    assert!(found.first <= found.last && found.last < size, "{found:?} of {size}");
                }
            }
            let _ = range::resolve_all(&specs, size);
        }
        true
    });
}

#[test]
fn authorization_headers() {
    fuzz("authorization", |input| auth::parse(&String::from_utf8_lossy(input)).is_some());
}

#[test]
fn challenges_of_upstreams() {
    fuzz("challenge", foreign::is_challenge);
}

#[test]
fn links_to_further_pages() {
    fuzz("link", foreign::is_link);
}

#[test]
fn docker_configurations() {
    fuzz("docker_config", foreign::is_docker_config);
}

#[test]
fn manifests() {
    fuzz("manifest", |input| {
        let Ok(manifest) = Manifest::parse(input, None) else { return false };
        let _ = format!("{manifest:?}");
        true
    });
}

#[test]
fn lists_of_referrers() {
    fuzz("referrers", |input| oci::Referrers::parse(input).is_ok());
}

#[test]
fn digests_and_references() {
    fuzz("reference", |input| {
        let text = String::from_utf8_lossy(input);
        let digest = text.parse::<oci::Digest>();
        if let Ok(digest) = &digest {
            assert_eq!(digest.to_string(), text, "a digest is written as it was read");
        }
        let reference = text.parse::<oci::Reference>();
        digest.is_ok() || reference.is_ok() || text.parse::<oci::RepositoryName>().is_ok()
    });
}

#[test]
fn configurations() {
    fuzz("config", |input| match config::load_text(&String::from_utf8_lossy(input)) {
        Ok(config) => {
            // What is shown can be read again.
            let _ = config.to_toml();
            true
        }
        Err(errors) => {
            let _ = errors.to_string();
            false
        }
    });
}

/// Makes the headers of a tar archive right again, or nothing behind the first change would ever be read.
fn mend_checksums(archive: &mut [u8]) {
    for header in archive.as_chunks_mut::<512>().0 {
        if &header[257..262] == b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

#[test]
fn bundles() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        path: folder.path().to_owned(),
        budget: Arc::new(|_: &FileSystemFacts| Budget {
            capacity_bytes: 64 << 20,
            min_free_bytes: 0,
            min_free_inodes: 0,
        }),
        lock_wait: Duration::ZERO,
        shrink_grace: Options::SHRINK_GRACE,
        offline: false,
        io_threads: 2,
        faults: None,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(Store::open(options, Arc::new(Metrics::new()))).unwrap();
    fuzz("bundle", |input| {
        let mut archive = input.to_vec();
        mend_checksums(&mut archive);
        let source = Source::Stream(Box::pin(Cursor::new(archive)));
        let imported = runtime.block_on(import(&store, source, &bundle::Options::default(), &|_| {}));
        let Ok(imported) = imported else { return false };
        for image in &imported.images {
            let holding = runtime.block_on(store.holding(&image.image, &image.platforms, true)).unwrap();
            assert_eq!(holding.missing, [], "{image:?} is imported, and not all of it is held");
        }
        true
    });
    runtime.block_on(store.close());
}
