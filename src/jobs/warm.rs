//! Warm-up: lists of images that are fetched ahead of rollouts, looked at again and again, and kept.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock::Timestamp;
use crate::config::Warm;
use crate::files;
use crate::metrics::{ListLabels, Metrics};
use crate::mirror::Mirror;
use crate::store::Store;
use crate::tasks::Pool;

use super::lists;
use super::seed::{Request, Seeds, Wanted};

/// The lists of a server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Warming {
    seeds: Seeds,
    metrics: Arc<Metrics>,
    lists: Arc<Mutex<Vec<List>>>,
}

/// How a list stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListState {
    /// What it's called, and the pin that keeps its images.
    pub name: String,
    /// How often it's looked at.
    pub interval_seconds: u64,
    /// The number of its last run; see [`Seeds::progress`].
    pub run: Option<u64>,
    /// Whether all of it was held at the end of a run; `None` before the first has ended.
    pub complete: Option<bool>,
    /// When that was.
    pub ended: Option<Timestamp>,
    /// Why its last run did not begin.
    pub problem: Option<String>,
}

#[derive(Debug)]
struct List {
    warm: Warm,
    due: Instant,
    running: bool,
    state: ListState,
}

/// How often lists are looked at that may be due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// When a list is looked at again whose run could not begin.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// A longer file is no list.
const FILE_BYTES_MAX: u64 = 16 << 20;

// === impl Warming ===

impl Warming {
    /// No lists yet.
    pub fn new(seeds: Seeds, metrics: Arc<Metrics>) -> Self {
        Self { seeds, metrics, lists: Arc::default() }
    }

    /// Keeps these lists from now on. What is new or has changed is due at once.
    pub fn set(&self, wanted: &[Warm]) {
        let mut lists = self.lists.lock();
        let mut before = std::mem::take(&mut *lists);
        for warm in wanted {
            match before.iter().position(|list| list.warm == *warm) {
                Some(at) => lists.push(before.swap_remove(at)),
                None => lists.push(List::new(warm.clone())),
            }
        }
    }

    /// How they stand.
    pub fn states(&self) -> Vec<ListState> {
        self.lists.lock().iter().map(|list| list.state.clone()).collect()
    }

    /// Fetches what is due, for ever. `mirror` is the one in force; files are read on `pool`.
    pub async fn keep(self, mirror: impl Fn() -> Mirror, store: Store, pool: Pool) {
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.note_ends();
            for warm in self.due() {
                let name = warm.name.clone();
                let begun = match read(warm, &pool).await {
                    Ok(request) => self.begin(mirror(), store.clone(), request),
                    Err(problem) => Err(problem),
                };
                if let Err(problem) = &begun {
                    tracing::warn!(list = %name, "the images of [warm.{name}] were not looked at: {problem}");
                }
                self.note_begin(name.as_str(), begun);
            }
        }
    }

    fn begin(&self, mirror: Mirror, store: Store, mut request: Request) -> Result<u64, String> {
        request.name_canonically(mirror.names()).map_err(|error| error.to_string())?;
        self.seeds.begin(mirror, store, request).map_err(|error| error.to_string())
    }

    /// The lists whose time has come, each told of once.
    fn due(&self) -> Vec<Warm> {
        let now = Instant::now();
        let mut lists = self.lists.lock();
        let due = lists.iter_mut().filter(|list| !list.running && list.due <= now);
        due.map(|list| {
            list.due = now + list.warm.interval;
            list.warm.clone()
        })
        .collect()
    }

    fn note_begin(&self, name: &str, begun: Result<u64, String>) {
        let mut lists = self.lists.lock();
        let Some(list) = lists.iter_mut().find(|list| list.state.name == name) else { return };
        match begun {
            Ok(number) => {
                (list.running, list.state.run, list.state.problem) = (true, Some(number), None);
            }
            Err(problem) => {
                (list.due, list.state.problem) = (Instant::now() + AGAIN_AFTER, Some(problem));
                self.note_complete(list, false);
            }
        }
    }

    fn note_complete(&self, list: &mut List, complete: bool) {
        list.state.complete = Some(complete);
        let labels = ListLabels { list: list.state.name.clone() };
        self.metrics.warm_complete.get_or_create(&labels).set(i64::from(complete));
    }

    fn note_ends(&self) {
        for list in self.lists.lock().iter_mut().filter(|list| list.running) {
            let progress = list.state.run.and_then(|number| self.seeds.progress(number));
            if progress.as_ref().is_some_and(|progress| progress.running) {
                continue;
            }
            let complete = progress.is_some_and(|progress| progress.is_complete());
            (list.running, list.state.ended) = (false, Some(Timestamp::now()));
            self.note_complete(list, complete);
            if !complete {
                let (name, run) = (&list.state.name, list.state.run.unwrap_or_default());
                tracing::warn!(list = %name, run, "not all of [warm.{name}] is held; GET /api/v1/seeds/{run} says what is missing");
            }
            let labels = ListLabels { list: list.state.name.clone() };
            self.metrics.warm_last_run_timestamp_seconds.get_or_create(&labels).set(Timestamp::now().seconds());
        }
    }
}

/// What a list comes to right now.
async fn read(warm: Warm, pool: &Pool) -> Result<Request, String> {
    let wanted = |image| Wanted { image, platforms: warm.platforms.clone() };
    let mut images: Vec<Wanted> = warm.images.into_iter().map(wanted).collect();
    if let Some(file) = warm.file {
        let platforms = warm.platforms.clone();
        images.extend(pool.run(move || read_file(&file, &platforms)).await?);
    }
    Ok(Request { images, no_referrers: !warm.referrers, pin: Some(warm.name), dry_run: false, replaces_pin: true })
}

fn read_file(file: &Path, platforms: &[crate::config::PlatformName]) -> Result<Vec<Wanted>, String> {
    let text = files::read_text(file, FILE_BYTES_MAX).map_err(|error| error.to_string())?;
    lists::read(&file.display().to_string(), &text, platforms).map_err(|error| error.to_string())
}

// === impl List ===

impl List {
    fn new(warm: Warm) -> Self {
        let state = ListState {
            name: warm.name.to_string(),
            interval_seconds: warm.interval.as_secs(),
            run: None,
            complete: None,
            ended: None,
            problem: None,
        };
        Self { warm, due: Instant::now(), running: false, state }
    }
}
