//! Seeding: images fetched before anybody asks for them, many at once, in a run that can be watched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::config::PlatformName;
use crate::mirror::{Mirror, Misnamed, Names, SeedOrder, SeedRun, SeedTally};
use crate::oci::{Digest, ImageName};
use crate::shutdown::Shutdown;
use crate::store::{Pin, PinName, Store};
use crate::tasks;

/// What is to be fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The images.
    pub images: Vec<Wanted>,
    /// Signatures, attestations and SBOMs are left out.
    #[serde(default)]
    pub no_referrers: bool,
    /// The pin that is to keep them.
    #[serde(default)]
    pub pin: Option<PinName>,
    /// Nothing is fetched but what it takes to tell how much there is.
    #[serde(default)]
    pub dry_run: bool,
    /// Once all is held, the pin keeps these images and no others.
    #[serde(default)]
    pub replaces_pin: bool,
}

/// An image that is to be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Which one.
    pub image: ImageName,
    /// For these platforms; empty is all.
    #[serde(default)]
    pub platforms: Vec<PlatformName>,
}

/// How a run stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Whether it goes on.
    pub running: bool,
    /// When it began.
    pub begun: Option<Timestamp>,
    /// Its images, in the order in which they were asked for.
    pub images: Vec<ImageProgress>,
    /// What went wrong with the run as a whole.
    pub problem: Option<String>,
}

/// How an image stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageProgress {
    /// Which one.
    pub image: ImageName,
    /// How it stands.
    pub state: State,
    /// Its manifest, once that is known.
    pub digest: Option<Digest>,
    /// All bytes that belong to it, as far as they are known.
    pub total_bytes: u64,
    /// Those that came from upstream.
    pub fetched_bytes: u64,
    /// Those that another image of the run has brought.
    pub shared_bytes: u64,
    /// Those that were held before.
    pub held_bytes: u64,
    /// How many signatures, attestations and SBOMs came along.
    pub referrers: u64,
    /// What is missing, and why; a sentence each.
    pub missing: Vec<String>,
}

/// How an image of a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its turn has not come.
    Waiting,
    /// It is being fetched.
    Running,
    /// All of it is held.
    Done,
    /// Something is missing.
    Incomplete,
}

/// A run, for those who watch it.
#[derive(Debug)]
pub struct Watch {
    begun: Timestamp,
    images: Vec<(ImageName, Mutex<State>, SeedTally)>,
    ended: Mutex<Option<Result<(), String>>>,
}

/// What is said of a run that was begun.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Begun {
    /// Its number, by which it's watched.
    pub number: u64,
}

/// The runs of a server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Seeds {
    shutdown: Shutdown,
    runs: Arc<Mutex<Runs>>,
}

#[derive(Debug, Default)]
struct Runs {
    last: u64,
    watches: BTreeMap<u64, Arc<Watch>>,
}

/// Why a run was not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotBegun {
    /// There are as many as there may be.
    #[error("{RUNNING_MAX} runs go on already: watch those first")]
    Busy,
    /// Too much at once.
    #[error("at most {IMAGES_MAX} images are fetched in one run")]
    TooMany,
}

/// So many images of a run are fetched at once.
const IMAGES_AT_ONCE: usize = 4;

/// And so many blobs of all of them.
const BLOBS_AT_ONCE: usize = 8;

/// So many images one run may have.
pub const IMAGES_MAX: usize = 10_000;

/// So many runs go on at once.
const RUNNING_MAX: usize = 4;

/// So many runs are remembered.
const REMEMBERED_MAX: usize = 50;

/// Fetches what a request names. Returns once all of it is held, or it's known what is missing.
pub async fn seed(mirror: &Mirror, store: &Store, request: &Request, watch: &Watch) {
    let run = SeedRun::new(BLOBS_AT_ONCE, request.dry_run);
    // A promise for what is not held yet keeps it from its first byte on.
    if let Some(name) = request.pin.as_ref().filter(|_| !request.dry_run)
        && let Err(error) = store.widen_pin(name, pin(request)).await
    {
        return watch.end(Err(format!("could not pin {name}: {error}")));
    }
    let images = request.images.iter().zip(&watch.images);
    let all = stream::iter(images).for_each_concurrent(IMAGES_AT_ONCE, |(wanted, (_, state, tally))| {
        let run = &run;
        async move {
            *state.lock() = State::Running;
            let order = SeedOrder {
                image: wanted.image.clone(),
                platforms: wanted.platforms.clone(),
                referrers: !request.no_referrers,
            };
            mirror.seed(&order, run, tally).await;
            *state.lock() = if tally.missing().is_empty() { State::Done } else { State::Incomplete };
        }
    });
    all.await;
    if !request.dry_run {
        look_again(store, request, watch).await;
        if let Some(name) = request.pin.as_ref().filter(|_| request.replaces_pin && watch.progress().is_complete()) {
            // All of the new is held, so the old may go.
            if let Err(error) = store.pin(name, pin(request)).await {
                return watch.end(Err(format!("could not pin {name}: {error}")));
            }
        }
    }
    watch.end(Ok(()));
}

/// What was fetched first may be gone again when the last has come: nothing but a look at the end tells.
async fn look_again(store: &Store, request: &Request, watch: &Watch) {
    for (wanted, (image, state, tally)) in request.images.iter().zip(&watch.images) {
        if *state.lock() != State::Done {
            continue;
        }
        let platforms: Vec<String> = wanted.platforms.iter().map(ToString::to_string).collect();
        match store.holding(image, &platforms, !request.no_referrers).await {
            Ok(holding) if holding.missing.is_empty() && holding.digest.is_some() => continue,
            Ok(holding) => {
                let what = match &holding.missing[..] {
                    [] => "its tag or manifest".to_owned(),
                    [one] => one.to_string(),
                    [first, rest @ ..] => format!("{first} and {} more", rest.len()),
                };
                tally.miss(format!(
                    "{what} of {image} not held at the end: it could not be kept, or had to make room; see storage.capacity"
                ));
            }
            Err(error) => tally.miss(error.to_string()),
        }
        *state.lock() = State::Incomplete;
    }
}

/// The pin of a request.
fn pin(request: &Request) -> Pin {
    let mut roots: Vec<ImageName> = request.images.iter().map(|wanted| wanted.image.clone()).collect();
    roots.sort_by_cached_key(ToString::to_string);
    roots.dedup();
    let mut platforms: Vec<String> = Vec::new();
    // Images of a pin share its platforms: where one is wanted for all, so are all.
    if request.images.iter().all(|wanted| !wanted.platforms.is_empty()) {
        platforms = request.images.iter().flat_map(|wanted| &wanted.platforms).map(ToString::to_string).collect();
    }
    platforms.sort_unstable();
    platforms.dedup();
    Pin { roots, platforms, referrers: !request.no_referrers, created: Timestamp::now() }
}

// === impl Request ===

impl Request {
    /// Calls the images by the canonical names of their registries. One whose registry isn't configured is named among what is
    /// missing in the end; one that might mean two is refused.
    pub fn name_canonically(&mut self, names: &Names) -> Result<(), Misnamed> {
        for wanted in &mut self.images {
            wanted.image = names.canonical_if_known(&wanted.image)?;
        }
        Ok(())
    }
}

// === impl State ===

impl State {
    /// Whether nothing more becomes of the image.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Incomplete)
    }
}

// === impl Watch ===

impl Watch {
    /// A run that has not begun.
    pub fn new(request: &Request) -> Self {
        let image = |wanted: &Wanted| (wanted.image.clone(), Mutex::new(State::Waiting), SeedTally::default());
        Self { begun: Timestamp::now(), images: request.images.iter().map(image).collect(), ended: Mutex::new(None) }
    }

    /// How it stands.
    pub fn progress(&self) -> Progress {
        let ended = self.ended.lock().clone();
        let image = |(image, state, tally): &(ImageName, Mutex<State>, SeedTally)| ImageProgress {
            image: image.clone(),
            state: *state.lock(),
            digest: tally.digest(),
            total_bytes: tally.total_bytes.load(Ordering::Relaxed),
            fetched_bytes: tally.fetched_bytes.load(Ordering::Relaxed),
            shared_bytes: tally.shared_bytes.load(Ordering::Relaxed),
            held_bytes: tally.held_bytes.load(Ordering::Relaxed),
            referrers: tally.referrers(),
            missing: tally.missing(),
        };
        Progress {
            running: ended.is_none(),
            begun: Some(self.begun),
            images: self.images.iter().map(image).collect(),
            problem: ended.and_then(Result::err),
        }
    }

    fn end(&self, how: Result<(), String>) {
        self.ended.lock().get_or_insert(how);
    }

    fn is_running(&self) -> bool {
        self.ended.lock().is_none()
    }
}

// === impl Progress ===

impl Progress {
    /// Whether everything that was asked for is held.
    pub fn is_complete(&self) -> bool {
        self.problem.is_none() && self.images.iter().all(|image| image.state == State::Done)
    }
}

// === impl Seeds ===

impl Seeds {
    /// None yet. What is begun ends with the drain.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { shutdown, runs: Arc::default() }
    }

    /// Begins a run, which goes on when whoever asked for it has gone. Returns its number.
    pub fn begin(&self, mirror: Mirror, store: Store, request: Request) -> Result<u64, NotBegun> {
        if request.images.len() > IMAGES_MAX {
            return Err(NotBegun::TooMany);
        }
        let watch = Arc::new(Watch::new(&request));
        let number = {
            let mut runs = self.runs.lock();
            if runs.watches.values().filter(|watch| watch.is_running()).count() >= RUNNING_MAX {
                return Err(NotBegun::Busy);
            }
            let over = runs.watches.iter().filter(|(_, watch)| !watch.is_running()).map(|(number, _)| *number);
            let over: Vec<_> = over.collect();
            for oldest in over.iter().take((runs.watches.len() + 1).saturating_sub(REMEMBERED_MAX)) {
                runs.watches.remove(oldest);
            }
            runs.last += 1;
            let number = runs.last;
            runs.watches.insert(number, Arc::clone(&watch));
            number
        };
        let shutdown = self.shutdown.clone();
        tasks::spawn("seed", async move {
            let ending = Ending(watch);
            tokio::select! {
                () = seed(&mirror, &store, &request, &ending.0) => {}
                () = shutdown.draining() => ending.0.end(Err("the server was stopped; ask again, and it goes on where it was".to_owned())),
            }
        });
        Ok(number)
    }

    /// How a run stands.
    pub fn progress(&self, number: u64) -> Option<Progress> {
        let watch = self.runs.lock().watches.get(&number).cloned();
        watch.map(|watch| watch.progress())
    }

    /// The numbers of the runs that are remembered, the newest first.
    pub fn numbers(&self) -> Vec<u64> {
        self.runs.lock().watches.keys().rev().copied().collect()
    }
}

/// A run that goes on, until this is dropped on whatever path.
struct Ending(Arc<Watch>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(Err("the run ended unexpectedly; the log says why".to_owned()));
    }
}
