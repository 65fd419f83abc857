//! Seeding: all of an image is fetched before anybody asks for it, for some platforms or for all, with what refers to it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::config::PlatformName;
use crate::fill::FillKey;
use crate::oci::manifest::{Descriptor, Manifest, manifests_and_blobs};
use crate::oci::referrers::{Referrers, cosign_tags};
use crate::oci::{Digest, ImageName, Reference, Verified};
use crate::upstream::Access;

use super::error::{MirrorError, MirrorErrorKind};
use super::manifests::ManifestAnswer;
use super::outcome::Outcome;
use super::prefetch::is_wanted;
use super::retries::{Again, Failure, Retries};
use super::upstreams::Target;
use super::{HeldManifest, Mirror};

/// What is wanted of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Which one.
    pub image: ImageName,
    /// Of an image for several platforms, only these; empty is all.
    pub platforms: Vec<PlatformName>,
    /// Signatures, attestations and SBOMs too.
    pub referrers: bool,
}

/// What all images of one run share.
#[derive(Debug)]
pub struct Run {
    /// Nothing is fetched but what it takes to tell how much there is.
    dry: bool,
    blobs: Semaphore,
    retries: Retries,
    /// What an image of this run has or fetches already.
    claimed: Mutex<HashSet<Digest>>,
}

/// How far an image has come. What is counted only grows.
#[derive(Debug, Default)]
pub struct Tally {
    /// All bytes that belong to it, as far as they are known yet.
    pub total_bytes: AtomicU64,
    /// Those that came from upstream; in a dry run, those that would.
    pub fetched_bytes: AtomicU64,
    /// Those that another image of the run has brought or brings.
    pub shared_bytes: AtomicU64,
    /// Those that were held before.
    pub held_bytes: AtomicU64,
    missing: Mutex<Vec<String>>,
    referrers: AtomicU64,
    digest: Mutex<Option<Digest>>,
}

/// One image on its way.
struct Seeding<'a> {
    mirror: &'a Mirror,
    target: Target,
    order: &'a Order,
    run: &'a Run,
    tally: &'a Tally,
    /// The manifests that were looked at, for they may lead in circles.
    seen: Mutex<HashSet<Digest>>,
}

/// How long a blob that has come may take to be held.
const LEAVING_MAX: Duration = Duration::from_secs(10);

/// Indexes of indexes and signatures of signatures are followed so far.
const DEPTH_MAX: usize = 8;

/// Of one image so many manifests are looked at.
const MANIFESTS_MAX: usize = 20_000;

/// Of so many manifests of an index the blobs are fetched at once.
const CHILDREN_AT_ONCE: usize = 4;

/// So many reasons are kept for one image.
const MISSING_MAX: usize = 100;

// === impl Run ===

impl Run {
    /// A run that fetches so many blobs at once, or that only looks how much there is.
    pub fn new(blobs_at_once: usize, dry: bool) -> Self {
        Self {
            dry,
            blobs: Semaphore::new(blobs_at_once.max(1)),
            retries: Retries::default(),
            claimed: Mutex::default(),
        }
    }
}

// === impl Tally ===

impl Tally {
    /// The image's manifest, once it is known.
    pub fn digest(&self) -> Option<Digest> {
        *self.digest.lock()
    }

    /// How many signatures, attestations and SBOMs there are.
    pub fn referrers(&self) -> u64 {
        self.referrers.load(Ordering::Relaxed)
    }

    /// What is missing, and why; a sentence each.
    pub fn missing(&self) -> Vec<String> {
        self.missing.lock().clone()
    }

    /// Notes what is missing, and why.
    pub fn miss(&self, what: String) {
        let mut missing = self.missing.lock();
        if missing.len() < MISSING_MAX && !missing.contains(&what) {
            missing.push(what);
        }
    }
}

// === impl Mirror ===

impl Mirror {
    /// Fetches all of an image that isn't held. Returns when all is held, or the tally says what is missing.
    pub async fn seed(&self, order: &Order, run: &Run, tally: &Tally) {
        let repository = &order.image.repository;
        let resolved = self.resolve(None, repository.name.as_str(), Some(repository.registry.as_str()), None);
        // Whoever may have images seeded is no stranger.
        let target = match resolved {
            Ok(target) => Target { listed: true, ..target.in_background() },
            Err(error) => return tally.miss(error.to_string()),
        };
        self.learn_rights(&target, &order.image.reference).await;
        let seeding = Seeding { mirror: self, target, order, run, tally, seen: Mutex::default() };
        match seeding.manifest_at_last(&order.image.reference).await {
            Ok(manifest) => {
                *tally.digest.lock() = Some(manifest.digest);
                if let Outcome::Stale { .. } = manifest.outcome {
                    let why = manifest.warning.as_deref().unwrap_or("upstream could not be asked");
                    tally.miss(format!("{} may be out of date: {why}", order.image));
                }
                seeding.take(manifest, true, 0).await;
            }
            Err(error) => tally.miss(error.to_string()),
        }
    }
}

// === impl Seeding ===

impl Seeding<'_> {
    /// A manifest, held from now on unless this is a dry run.
    async fn manifest(&self, reference: &Reference) -> Result<ManifestAnswer, MirrorError> {
        if !self.run.dry {
            let manifest = self.mirror.manifest(&self.target, reference).await?;
            self.repair_rights(&manifest).await;
            return Ok(manifest);
        }
        let (client, repository) = (&self.target.upstream.client, &self.target.repository);
        if let Reference::Digest(digest) = reference
            && let Some(held) = self.mirror.held_manifest(&self.target, digest).await
        {
            return Ok(held.answer(Outcome::Hit));
        }
        if self.mirror.0.settings.offline {
            return Err(MirrorError::offline(&format!("{repository} {reference}")));
        }
        let body = client.get_manifest(repository, reference, Access::Configured).await?;
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => body.digest.unwrap_or_else(|| Digest::sha256(&body.bytes)),
        };
        Verified::check(&digest, &body.bytes).map_err(|mismatch| MirrorError::wrong_manifest(repository, &mismatch))?;
        let media_type = body.media_type.unwrap_or_default().into();
        Ok(HeldManifest { bytes: body.bytes, media_type, digest }.answer(Outcome::Miss))
    }

    /// The same, tried again while that may help.
    async fn manifest_at_last(&self, reference: &Reference) -> Result<ManifestAnswer, MirrorError> {
        let mut failures = 0;
        loop {
            match self.manifest(reference).await {
                Err(error) if self.run.retries.waited(&error.clone().into(), failures).await => failures += 1,
                done => return done,
            }
        }
    }

    /// Records that a manifest is open to all, where it was fetched when nobody had asked.
    async fn repair_rights(&self, manifest: &ManifestAnswer) {
        if !self.mirror.is_public(&self.target) {
            return;
        }
        let recorded = self.mirror.0.store.manifest(&self.target.repository, &manifest.digest).await;
        if recorded.is_ok_and(|record| record.is_some_and(|record| !record.public)) {
            let (bytes, media_type) = (manifest.bytes.clone(), &*manifest.media_type);
            // It was read well a moment ago.
            let _ = self.mirror.keep_manifest(&self.target, manifest.digest, bytes, Some(media_type));
        }
    }

    /// Takes a manifest with all that belongs to it. Only that of the image itself has platforms to choose from.
    fn take(&self, manifest: ManifestAnswer, is_root: bool, depth: usize) -> BoxFuture<'_, ()> {
        async move {
            let digest = manifest.digest;
            let is_full = {
                let mut seen = self.seen.lock();
                if seen.contains(&digest) {
                    return;
                }
                seen.len() >= MANIFESTS_MAX || !seen.insert(digest)
            };
            if is_full || depth > DEPTH_MAX {
                let limits = format!("more than {MANIFESTS_MAX} manifests, or {DEPTH_MAX} deep in each other");
                return self.tally.miss(format!("{} consists of {limits}: the rest is left out", self.order.image));
            }
            let held = matches!(manifest.outcome, Outcome::Hit | Outcome::Revalidated | Outcome::Stale { .. });
            let size_bytes = manifest.bytes.len() as u64;
            if self.count(&digest, size_bytes, held) {
                self.count_fetched(size_bytes);
            }
            let parsed = match Manifest::parse(&manifest.bytes, Some(&*manifest.media_type)) {
                Ok(parsed) => parsed,
                Err(error) => return self.tally.miss(format!("{}@{digest}: {error}", self.target.repository)),
            };
            let (manifests, blobs) = manifests_and_blobs(parsed.descriptors());
            let manifests = manifests.into_iter().cloned().collect();
            let chosen = if is_root { self.choose(manifests) } else { manifests };
            let blobs: Vec<_> = blobs.into_iter().map(|blob| self.blob(blob.clone())).collect();
            let children: Vec<_> = chosen.into_iter().map(|child| self.child(child.digest, depth + 1)).collect();
            let children = stream::iter(children).buffer_unordered(CHILDREN_AT_ONCE).collect::<Vec<()>>();
            futures_util::future::join(futures_util::future::join_all(blobs), children).await;
            if self.order.referrers {
                self.take_referrers(digest, depth).await;
            }
        }
        .boxed()
    }

    async fn child(&self, digest: Digest, depth: usize) {
        match self.manifest_at_last(&Reference::Digest(digest)).await {
            Ok(manifest) => self.take(manifest, false, depth).await,
            Err(error) => self.tally.miss(error.to_string()),
        }
    }

    /// The children of an index that are wanted. Those that say of no platform what they are belong to the others, as
    /// attestations do that a builder appends.
    fn choose(&self, mut children: Vec<Descriptor>) -> Vec<Descriptor> {
        let wanted = &self.order.platforms;
        if wanted.is_empty() || children.is_empty() {
            return children;
        }
        let of = |child: &Descriptor| child.platform.clone().filter(|platform| platform.os != "unknown");
        for platform in wanted {
            if !children
                .iter()
                .any(|child| of(child).is_some_and(|known| is_wanted(std::slice::from_ref(platform), &known)))
            {
                let has: Vec<_> = children.iter().filter_map(of).map(|known| known.to_string()).collect();
                self.tally.miss(format!("{} has nothing for {platform}, only {}", self.order.image, has.join(" ")));
            }
        }
        children.retain(|child| match of(child) {
            Some(platform) => is_wanted(wanted, &platform),
            None => self.order.referrers,
        });
        children
    }

    /// Takes what refers to a manifest: by the API for that, and by the tags that tools write where there is none.
    async fn take_referrers(&self, subject: Digest, depth: usize) {
        // Registries refuse what they don't know, or don't let everybody have.
        let is_refused =
            |error: &MirrorError| matches!(error.kind, MirrorErrorKind::Denied | MirrorErrorKind::UnknownName);
        let is_none = |error: &MirrorError| error.is_not_found() || is_refused(error);
        let mut found = HashSet::new();
        match self.mirror.referrers_list(&self.target, &subject).await {
            Ok(answer) => match Referrers::parse(answer.list.body.as_bytes()) {
                Ok(list) => found.extend(list.digests()),
                Err(error) => self.tally.miss(format!("the referrers of {subject}: {error}")),
            },
            Err(error) if is_none(&error) => {}
            Err(error) => self.tally.miss(error.to_string()),
        }
        for tag in cosign_tags(&subject) {
            match self.manifest_at_last(&Reference::Tag(tag)).await {
                Ok(manifest) => {
                    self.tally.referrers.fetch_add(1, Ordering::Relaxed);
                    self.take(manifest, false, depth + 1).await;
                }
                Err(error) if is_none(&error) => {}
                Err(error) => self.tally.miss(error.to_string()),
            }
        }
        for digest in found {
            self.tally.referrers.fetch_add(1, Ordering::Relaxed);
            self.child(digest, depth + 1).await;
        }
    }

    /// Counts something that belongs to the image. Says whether it is to be fetched, and counted as that when it comes.
    fn count(&self, digest: &Digest, size_bytes: u64, held: bool) -> bool {
        self.tally.total_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        let news = self.run.claimed.lock().insert(*digest);
        if !news {
            self.tally.shared_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        } else if held {
            self.tally.held_bytes.fetch_add(size_bytes, Ordering::Relaxed);
        }
        news && !held
    }

    fn count_fetched(&self, bytes: u64) {
        self.tally.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    async fn blob(&self, blob: Descriptor) {
        let Ok(_turn) = self.run.blobs.acquire().await else { return };
        let held = self.mirror.0.store.size_of(&blob.digest).is_some();
        let is_to_come = self.count(&blob.digest, blob.size_bytes, held);
        if self.run.dry {
            if is_to_come {
                self.count_fetched(blob.size_bytes);
            }
            return;
        }
        let (mut failures, mut counted_bytes) = (0, if is_to_come { 0 } else { u64::MAX });
        while let Err(failure) = self.fetch(&blob, &mut counted_bytes).await {
            if !self.run.retries.waited(&failure, failures).await {
                return self.tally.miss(failure.why);
            }
            failures += 1;
        }
    }

    /// Fetches a blob, if it has to be, and sees that it's held then. Of its bytes so many were counted before.
    async fn fetch(&self, blob: &Descriptor, counted_bytes: &mut u64) -> Result<(), Failure> {
        let failed = |why: &str, again| Failure { why: format!("{} {why}", blob.digest), again };
        let answer = self.mirror.blob(&self.target, &blob.digest, &[]).await?;
        let (mut pieces, outcome) = answer.pieces(None);
        if outcome == Outcome::Hit {
            return Ok(());
        }
        if let Outcome::Bypass { .. } = outcome {
            // It would come, and go past the store.
            return Err(failed("can't be kept; storage.capacity says how much may be", Again::Never));
        }
        let mut come_bytes = 0;
        while let Some(piece) = pieces.next().await {
            // Pieces are parts of the file that is being filled: none is read here.
            come_bytes += piece.map_err(|_| failed("broke off; the log says why", Again::Soon))?.len();
            self.count_fetched(come_bytes.saturating_sub(*counted_bytes));
            *counted_bytes = come_bytes.max(*counted_bytes);
        }
        // It goes to its clients before it is held for good.
        let key = FillKey { registry: self.target.repository.registry.clone(), digest: blob.digest };
        let _ = timeout(LEAVING_MAX, self.mirror.0.fills.left(&key)).await;
        if self.mirror.0.store.size_of(&blob.digest).is_some() {
            return Ok(());
        }
        Err(failed("came, but could not be kept; storage.capacity says how much may be", Again::Never))
    }
}

impl std::fmt::Debug for Seeding<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seeding").field("image", &self.order.image).finish_non_exhaustive()
    }
}
