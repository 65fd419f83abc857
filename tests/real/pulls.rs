//! What every client must be able to do through the mirror: pull cold, warm, and when upstream is gone.

use std::collections::BTreeSet;

use crate::fixture::FIXTURE;
use crate::image::{By, Image};
use crate::mirror::Mirror;
use crate::process::wait_until;
use crate::upstream::Upstream;

/// A program that pulls images.
pub(crate) trait Client {
    /// Pulls `image` into an empty store of the client's own, and returns the digests of what it then holds.
    fn pull(&self, mirror: &Mirror, image: &Image, by: By) -> BTreeSet<String>;
}

/// Pulls `image` from a fresh mirror by tag, and from another one by digest; then both ways warm; then with upstream stopped.
/// Upstream sends each blob once, for the first pull.
pub(crate) fn cold_warm_and_without_upstream(client: &impl Client, image: &Image) {
    for first in [By::Tag, By::Digest] {
        let mut upstream = Upstream::start(&FIXTURE.storage);
        let mirror = Mirror::start(&upstream);

        check(client, &mirror, image, first);
        // A registry logs a request a moment after its last byte has gone out.
        wait_until("upstream has sent every blob", || upstream.blob_bytes_sent() >= image.blob_bytes());

        check(client, &mirror, image, By::Tag);
        check(client, &mirror, image, By::Digest);
        assert_eq!(upstream.blob_bytes_sent(), image.blob_bytes(), "each blob left upstream once, for the cold pull");

        upstream.stop();
        check(client, &mirror, image, By::Tag);
        check(client, &mirror, image, By::Digest);
    }
}

/// One pull, after which the client holds all that upstream has under that name, byte for byte.
pub(crate) fn check(client: &(impl Client + ?Sized), mirror: &Mirror, image: &Image, by: By) {
    let held = client.pull(mirror, image, by);
    let missing: Vec<_> = image.digests().difference(&held).cloned().collect();
    assert!(missing.is_empty(), "{} by {by:?}: the client lacks {missing:?} and holds {held:?}", image.repository);
}
