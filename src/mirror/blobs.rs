//! Blobs: held, filled, joined, or passed through.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::timeout;

use crate::fill::{
    Demand, Fill, FillError, FillKey, Opened, OriginId, PartsThrough, PassThrough, Passing, TAIL_BYTES, Unstorable,
    Want, parts_through, pass_through,
};
use crate::oci::Digest;
use crate::oci::range::{ByteRange, RangeSpec};
use crate::store::{Blob, Piece, Pieces, StoreError};

use super::bypass::Bypass;
use super::error::{MirrorError, MirrorErrorKind};
use super::origin::UpstreamOrigin;
use super::other_way::{OtherWay, while_held};
use super::outcome::Outcome;
use super::rights::{Link, Probe};
use super::upstreams::Target;
use super::{Mirror, Wanted};

/// A blob, ready to be sent.
#[derive(Debug)]
pub struct BlobAnswer {
    /// Its size, unless upstream has not said.
    pub size_bytes: Option<u64>,
    content: Content,
    wait_for_verified: bool,
    /// Kept as long as it is sent.
    held: (Option<Passing>, Option<Bypass>),
}

#[derive(Debug)]
enum Content {
    Held(Blob),
    InMemory(Bytes),
    Filling { want: Want, verified: bool, joined: bool, other_way: OtherWay },
    PassThrough(PassThrough),
    PartsThrough(PartsThrough),
}

/// One client of a fill.
struct Follower {
    /// Its own way to the bytes.
    origin: Option<OriginId>,
    /// Somebody else started the fill.
    joined: bool,
    /// It may read what others fetched.
    proven: bool,
    demand: Demand,
    want: Want,
}

/// Blobs up to this size are served from memory: it takes fewer calls to the kernel than sending a file does, and copying so
/// little costs less than they do.
const MEMORY_BYTES_MAX: u64 = 64 << 10;

/// How long a fill that is about to end may take for that.
const LEAVING_MAX: Duration = Duration::from_secs(5);

/// How often a look-up is tried when what was held vanishes, or a fill ends, in between.
const ATTEMPTS: usize = 3;

// === impl BlobAnswer ===

impl BlobAnswer {
    /// All its bytes, where they are in memory.
    pub fn in_memory(&self) -> Option<Bytes> {
        if let Content::InMemory(bytes) = &self.content { Some(bytes.clone()) } else { None }
    }

    /// The bytes of `ranges` one after the other, or of the whole blob, and what to say of them. Ranges ascend and don't
    /// overlap.
    pub fn pieces(self, ranges: Option<&[ByteRange]>) -> (Pieces, Outcome) {
        // Law 2's exception: such ranges are over before the digest is known.
        let last = ranges.and_then(<[ByteRange]>::last);
        let ends_early = last.zip(self.size_bytes).is_some_and(|(range, size)| range.last + 1 + TAIL_BYTES <= size);
        let unverified = ends_early && !self.wait_for_verified;
        match self.content {
            Content::Held(blob) => (file_pieces(&blob, ranges), Outcome::Hit),
            Content::InMemory(bytes) => (memory_pieces(&bytes, ranges), Outcome::Hit),
            Content::Filling { want, verified, joined, other_way } => {
                let outcome = match (unverified && !verified, joined) {
                    (true, collapsed) => Outcome::Unverified { collapsed },
                    (false, true) => Outcome::Collapsed,
                    (false, false) => Outcome::Miss,
                };
                let reader = want.into_reader(ranges, self.wait_for_verified);
                (reader.pieces_or(|interrupted| other_way.go(interrupted).boxed()), outcome)
            }
            Content::PassThrough(body) => {
                let outcome = Outcome::Bypass { unverified: unverified && !body.is_small() };
                (while_held(body.pieces(ranges, self.wait_for_verified), self.held), outcome)
            }
            Content::PartsThrough(parts) => {
                let pieces = parts.pieces(ranges.unwrap_or_default());
                (while_held(pieces, self.held), Outcome::Bypass { unverified: true })
            }
        }
    }
}

fn origin(target: &Target, digest: &Digest) -> UpstreamOrigin {
    UpstreamOrigin {
        client: Arc::clone(&target.upstream.client),
        repository: target.repository.clone(),
        digest: *digest,
    }
}

fn memory_pieces(bytes: &Bytes, ranges: Option<&[ByteRange]>) -> Pieces {
    let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let piece = |range: &ByteRange| Ok(Piece::Memory(bytes.slice(at(range.first)..at(range.last + 1))));
    let pieces = match ranges {
        Some(ranges) => ranges.iter().map(piece).collect(),
        None => vec![Ok(Piece::Memory(bytes.clone()))],
    };
    stream::iter(pieces).boxed()
}

fn file_pieces(blob: &Blob, ranges: Option<&[ByteRange]>) -> Pieces {
    let piece = |offset, len| Ok(Piece::File { file: Arc::clone(&blob.file), offset, len });
    let pieces: Vec<_> = match ranges {
        Some(ranges) => ranges.iter().map(|range| piece(range.first, range.len())).collect(),
        None if blob.size_bytes == 0 => Vec::new(),
        None => vec![piece(0, blob.size_bytes)],
    };
    stream::iter(pieces).boxed()
}

// === impl Mirror ===

impl Mirror {
    /// A blob of a repository, of which these ranges are wanted, or all if there are none. Ranges wait until its size is known.
    pub async fn blob(
        &self,
        target: &Target,
        digest: &Digest,
        ranges: &[RangeSpec],
    ) -> Result<BlobAnswer, MirrorError> {
        let answer = self.find_blob(target, digest, ranges).await;
        answer.map_err(|error| error.about(&target.repository, &format!("@{digest}")))
    }

    /// A blob's size, without its bytes.
    pub async fn blob_size(&self, target: &Target, digest: &Digest) -> Result<(u64, Outcome), MirrorError> {
        let answer = self.find_blob_size(target, digest).await;
        answer.map_err(|error| error.about(&target.repository, &format!("@{digest}")))
    }

    async fn find_blob(
        &self,
        target: &Target,
        digest: &Digest,
        ranges: &[RangeSpec],
    ) -> Result<BlobAnswer, MirrorError> {
        self.check_digest(target, digest).await?;
        self.check_readable(target, Probe::Blob(digest)).await?;
        let mut link = self.link(target, digest).await;
        self.refuse_manifest(target, digest, link.is_proven()).await?;
        for _ in 0..ATTEMPTS {
            if let Some(size_bytes) = self.0.store.size_of(digest) {
                self.prove(target, digest, &mut link).await?;
                match self.open_held(digest, size_bytes).await {
                    Ok(Some(content)) => return Ok(self.answer(Some(size_bytes), content)),
                    // It was gone or damaged; the store has forgotten it, so it's fetched again.
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%digest, "could not open a held blob: {error}; passing it through");
                        return self.pass_through(target, digest, &self.demand(ranges, None)).await;
                    }
                }
            }
            if let Some(answer) = self.fill(target, digest, &mut link, ranges).await? {
                return Ok(answer);
            }
        }
        self.pass_through(target, digest, &self.demand(ranges, None)).await
    }

    async fn open_held(&self, digest: &Digest, size_bytes: u64) -> Result<Option<Content>, StoreError> {
        if size_bytes <= MEMORY_BYTES_MAX {
            Ok(self.0.store.read_blob(digest).await?.map(Content::InMemory))
        } else {
            Ok(self.0.store.open_blob(digest).await?.map(Content::Held))
        }
    }

    async fn find_blob_size(&self, target: &Target, digest: &Digest) -> Result<(u64, Outcome), MirrorError> {
        self.check_digest(target, digest).await?;
        self.check_readable(target, Probe::Blob(digest)).await?;
        let link = self.link(target, digest).await;
        self.refuse_manifest(target, digest, link.is_proven()).await?;
        if let Some(size_bytes) = self.0.store.size_of(digest) {
            if !link.is_proven() {
                self.confirm(target, digest).await?;
            }
            return Ok((size_bytes, Outcome::Hit));
        }
        // What a GET would be refused is not promised.
        self.refuse_cold_blob(target, digest)?;
        // A recorded manifest says how long its blobs are: probes of lazy pullers cost upstream nothing.
        if let Link::Proven { size_bytes: Some(size_bytes) } = link {
            return Ok((size_bytes, Outcome::Hit));
        }
        match self.ask_for_blob(target, digest).await {
            Ok(Some(size_bytes)) => Ok((size_bytes, Outcome::Asked)),
            Ok(None) => Err(MirrorError::new(
                MirrorErrorKind::Unusable,
                format!("{} has {digest} but does not say how long it is", target.repository),
            )),
            Err(error) => {
                self.remember_missing(target, Wanted::Blob(*digest), &error);
                Err(error)
            }
        }
    }

    /// Makes sure that a blob may be read through this repository, if that is not known yet.
    async fn prove(&self, target: &Target, digest: &Digest, link: &mut Link) -> Result<(), MirrorError> {
        if !link.is_proven() {
            self.confirm(target, digest).await?;
            *link = Link::Proven { size_bytes: link.expected_bytes() };
        }
        Ok(())
    }

    /// What ranges of a blob come to.
    fn demand(&self, ranges: &[RangeSpec], expected_bytes: Option<u64>) -> Demand {
        let ranges = if self.0.settings.ranges_wait_for_verified { &[] } else { ranges };
        Demand::of(ranges, expected_bytes)
    }

    fn answer(&self, size_bytes: Option<u64>, content: Content) -> BlobAnswer {
        let wait_for_verified = self.0.settings.ranges_wait_for_verified;
        BlobAnswer { size_bytes, content, wait_for_verified, held: (None, None) }
    }

    /// Joins or starts a fill. `None` when things have changed in the meantime, so that the look-up starts again.
    async fn fill(
        &self,
        target: &Target,
        digest: &Digest,
        link: &mut Link,
        ranges: &[RangeSpec],
    ) -> Result<Option<BlobAnswer>, MirrorError> {
        self.refuse_cold_blob(target, digest)?;
        if target.via.is_some() {
            // The fill of another mirror's client may be waiting for ours: a question of its own finds out.
            self.ask_for_blob(target, digest).await?;
        }
        let key = FillKey { registry: target.repository.registry.clone(), digest: *digest };
        // Who is to read what others fetched proves its own right first; the one who starts a fill proves it by what
        // upstream answers.
        if self.0.fills.knows(&key) {
            self.prove(target, digest, link).await?;
        } else if self.is_full_of(self.0.fills.len()) {
            // What only waits for a slow disk asks upstream for nothing more: whoever comes then is served past it (law 6).
            if self.is_full_of(self.0.fills.fetching()) {
                return Err(MirrorError::overloaded());
            }
            return self.pass_through(target, digest, &self.demand(ranges, link.expected_bytes())).await.map(Some);
        }
        let expected_bytes = link.expected_bytes();
        let demand = self.demand(ranges, expected_bytes);
        let origin = Arc::new(origin(target, digest));
        match self.0.fills.open(key, expected_bytes, origin, &demand) {
            Opened::Held => Ok(None),
            Opened::Leaving(fill) => {
                // A disk that hangs may keep it.
                match timeout(LEAVING_MAX, fill.left()).await {
                    Ok(()) => Ok(None),
                    Err(_) => self.pass_through(target, digest, &demand).await.map(Some),
                }
            }
            Opened::Mismatched(error) => Err(error.into()),
            Opened::Stalled => self.pass_stalled(target, digest, &demand).await.map(Some),
            Opened::Filling { fill, origin, joined, shared, want } => {
                if shared {
                    self.prove(target, digest, link).await?;
                }
                let follower = Follower { origin, joined, proven: link.is_proven(), demand, want };
                self.follow(target, &fill, follower, !ranges.is_empty()).await
            }
        }
    }

    /// Waits for a fill's head. `None` when the fill ended before our origin's turn came, on what others' repositories
    /// said.
    async fn follow(
        &self,
        target: &Target,
        fill: &Arc<Fill>,
        follower: Follower,
        need_size: bool,
    ) -> Result<Option<BlobAnswer>, MirrorError> {
        let Follower { origin, joined, proven, demand, want } = follower;
        let digest = fill.key().digest;
        let own_failure = || origin.and_then(|origin| fill.failure_of(origin));
        let head = match fill.head(demand.first()).await {
            Ok(head) => head,
            Err(FillError::NotStorable { why: Unstorable::Stalled, .. }) => {
                return self.pass_stalled(target, &digest, &demand).await.map(Some);
            }
            Err(FillError::NotStorable { .. }) => return self.pass_through(target, &digest, &demand).await.map(Some),
            Err(error) => {
                let error = match (error, own_failure()) {
                    (FillError::Origin(_), Some(own)) => own.into(),
                    (FillError::Origin(other), None) if other.kind.is_about_repository() => return Ok(None),
                    (error, _) => MirrorError::from(error),
                };
                self.remember_missing(target, Wanted::Blob(digest), &error);
                return if joined { Err(error) } else { self.heard(target, Err(error)) };
            }
        };
        // A fill that others started may have had its head before upstream failed.
        if !joined {
            self.heard(target, Ok(()))?;
        }
        if !proven {
            // Another client's origin may have given what ours refused.
            if let Some(error) = own_failure() {
                return Err(error.into());
            }
            self.confirmed(&target.repository, &digest, head.size_bytes).await;
        }
        let size_bytes = match head.size_bytes {
            Some(size) => Some(size),
            None if need_size => Some(fill.size().await?),
            None => None,
        };
        let other_way = OtherWay {
            fills: self.0.fills.clone(),
            key: fill.key().clone(),
            origin: self::origin(target, &digest),
            wait_for_verified: self.0.settings.ranges_wait_for_verified,
        };
        let content = Content::Filling { want, verified: head.verified, joined, other_way };
        Ok(Some(self.answer(size_bytes, content)))
    }

    /// Whether so many fills, and what goes past the store, are as many misses as there may be.
    fn is_full_of(&self, fills: usize) -> bool {
        fills + self.0.tower.bypasses.len() >= self.0.settings.misses_max
    }

    /// Law 6: what can't be kept is still delivered.
    async fn pass_through(&self, target: &Target, digest: &Digest, demand: &Demand) -> Result<BlobAnswer, MirrorError> {
        self.refuse_cold_blob(target, digest)?;
        let bypass = self.0.tower.bypasses.enter(self.0.settings.misses_max).ok_or_else(MirrorError::overloaded)?;
        let answer =
            |size_bytes, content| BlobAnswer { held: (None, Some(bypass)), ..self.answer(size_bytes, content) };
        let origin = origin(target, digest);
        let parts = parts_through(Arc::new(origin.clone()), demand).await.map_err(MirrorError::from);
        if let Some(parts) = self.heard(target, parts)? {
            return Ok(answer(Some(parts.size_bytes), Content::PartsThrough(parts)));
        }
        let body = pass_through(&origin, *digest, Arc::clone(&self.0.metrics)).await.map_err(MirrorError::from);
        let body = self.heard(target, body)?;
        Ok(answer(body.size_bytes(), Content::PassThrough(body)))
    }

    /// The same while the disk takes no writes: a few clients of each blob, for nothing is shared that way.
    async fn pass_stalled(&self, target: &Target, digest: &Digest, demand: &Demand) -> Result<BlobAnswer, MirrorError> {
        let key = FillKey { registry: target.repository.registry.clone(), digest: *digest };
        let Some(passing) = self.0.fills.pass(&key) else {
            let message = "the disk takes no writes at the moment, and enough others are served past it; try again";
            return Err(MirrorError::new(MirrorErrorKind::Internal, message));
        };
        let mut answer = self.pass_through(target, digest, demand).await?;
        answer.held.0 = Some(passing);
        Ok(answer)
    }

    /// Manifests are no blobs, though some clients look for them here first: upstream need not be asked.
    async fn refuse_manifest(&self, target: &Target, digest: &Digest, linked: bool) -> Result<(), MirrorError> {
        if linked || !matches!(self.0.store.manifest(&target.repository, digest).await, Ok(Some(_))) {
            return Ok(());
        }
        let message = format!("{digest} is a manifest of {}, not a blob", target.repository);
        Err(MirrorError::new(MirrorErrorKind::UnknownBlob, message))
    }

    /// What can be said of a blob that is not held without asking upstream.
    fn refuse_cold_blob(&self, target: &Target, digest: &Digest) -> Result<(), MirrorError> {
        if self.0.settings.offline {
            return Err(MirrorError::offline(&format!("{}@{digest}", target.repository)).of_blob());
        }
        match self.known_missing(target, Wanted::Blob(*digest)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
