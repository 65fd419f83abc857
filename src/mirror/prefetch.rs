//! Prefetch: what a manifest lists is fetched with it, for the platforms that an operator named; what is held is confirmed.

use futures_util::{FutureExt, StreamExt, stream};

use crate::config::PlatformName;
use crate::oci::manifest::{Descriptor, Manifest, manifests_and_blobs};
use crate::oci::{Digest, Platform};

use super::Mirror;
use super::upstreams::Target;

/// Blobs of one manifest that are fetched ahead at once.
const BLOBS_AT_ONCE: usize = 2;

/// Whether content for a platform is among what is wanted.
pub(super) fn is_wanted(platforms: &[PlatformName], platform: &Platform) -> bool {
    platforms.iter().any(|wanted| {
        wanted.os == platform.os
            && wanted.architecture == platform.architecture
            && (wanted.variant.is_none() || wanted.variant == platform.variant)
    })
}

// === impl Mirror ===

impl Mirror {
    /// Begins to fetch what a manifest lists that was fetched just now. Nobody waits for it, and nobody is told of failures:
    /// whoever pulls it hears of them.
    ///
    /// Where credentials are configured, a blob that is held is given out only once upstream has said that it belongs to the
    /// repository. That is asked now: when the blob is wanted, upstream may be gone.
    pub(super) fn prefetch(&self, target: &Target, digest: Digest, manifest: &Manifest) {
        let platforms = &target.upstream.policy.prefetch;
        let is_off = platforms.is_empty() && !self.0.any_credentials;
        if is_off || self.0.settings.offline || target.upstream.client.pause().is_some() {
            return;
        }
        let (children, blobs) = manifests_and_blobs(manifest.descriptors());
        let wanted = |child: &Descriptor| child.platform.as_ref().is_some_and(|known| is_wanted(platforms, known));
        let children: Vec<Digest> = children.iter().filter(|child| wanted(child)).map(|child| child.digest).collect();
        let (held, mut blobs): (Vec<Digest>, Vec<Digest>) =
            blobs.iter().map(|blob| blob.digest).partition(|blob| self.0.store.size_of(blob).is_some());
        if platforms.is_empty() {
            blobs.clear();
        }
        if held.is_empty() && blobs.is_empty() && children.is_empty() {
            return;
        }
        let work = {
            let (mirror, target) = (self.clone(), target.in_background());
            async move {
                let checks = held.into_iter().map(|blob| mirror.clone().confirm_ahead(target.clone(), blob));
                stream::iter(checks.collect::<Vec<_>>()).buffer_unordered(BLOBS_AT_ONCE).for_each(|()| async {}).await;
                for child in children {
                    // Which begins to fetch the child's blobs in turn.
                    let _ = mirror.fetch_manifest(&target, &child).await;
                }
                let fetches = blobs.into_iter().map(|blob| mirror.clone().fetch_ahead(target.clone(), blob));
                stream::iter(fetches.collect::<Vec<_>>()).buffer_unordered(BLOBS_AT_ONCE).for_each(|()| async {}).await;
                Ok(())
            }
            .boxed()
        };
        let (mirror, key) = (self.clone(), (target.repository.clone(), digest));
        // The flight is a task of its own, which ends when the mirror stops; this one only starts it.
        drop(crate::tasks::spawn("prefetch", async move { mirror.0.prefetches.run("prefetch", key, work).await.0 }));
    }

    /// Has upstream say that a held blob belongs to a repository, unless that is known.
    async fn confirm_ahead(self, target: Target, digest: Digest) {
        if self.0.any_credentials
            && !self.link(&target, &digest).await.is_proven()
            && let Err(error) = self.ask_for_blob(&target, &digest).await
        {
            tracing::debug!(%digest, %error, "could not confirm ahead");
        }
    }

    /// Fetches a blob unless it is held, and waits until it has come.
    async fn fetch_ahead(self, target: Target, digest: Digest) {
        if self.0.store.size_of(&digest).is_some() {
            return;
        }
        match self.blob(&target, &digest, &[]).await {
            // Pieces are parts of the file that is being filled: none is read here.
            Ok(answer) => {
                let (mut pieces, _) = answer.pieces(None);
                while let Some(Ok(_)) = pieces.next().await {}
            }
            Err(error) => tracing::debug!(%digest, %error, "could not fetch ahead"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_wanted_with_their_variant_or_with_any() {
        let platform = |os: &str, architecture: &str, variant: Option<&str>| Platform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
            ..Platform::default()
        };
        let wanted = ["linux/amd64".parse().unwrap(), "linux/arm/v7".parse().unwrap()];
        assert!(is_wanted(&wanted, &platform("linux", "amd64", Some("v3"))));
        assert!(is_wanted(&wanted, &platform("linux", "arm", Some("v7"))));
        assert!(!is_wanted(&wanted, &platform("linux", "arm", Some("v6"))));
        assert!(!is_wanted(&wanted, &platform("unknown", "unknown", None)));
    }
}
