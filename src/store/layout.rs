//! Where everything lies in the data directory: names of files and back again, pure.
//!
//! ```text
//! <storage.path>/
//!   CACHEDIR.TAG
//!   lock
//!   v1/
//!     blobs/sha256/ab/abcd…          verified content, mode 0444; mtime = last read
//!     partial/<registry>/sha256-abcd…/data, state.json, recent.json
//!     repositories/<registry>/<repository>/_tags/<tag>.json
//!     repositories/<registry>/<repository>/_manifests/sha256-abcd….json
//!     repositories/<registry>/<repository>/_lists/<name>.json
//!     pins/<name>.json               roots that must stay
//!     scrub.json                     how far the scrub has come
//!     had-credentials                some of what lies here may have been had with a credential
//!     quarantine/sha256-abcd…        failed verification after it was committed
//!     tmp/                           files on their way to where they belong
//! ```

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::oci::{Algorithm, Digest, RegistryName, Repository, Tag};

/// The algorithms that have a folder under `blobs/`.
pub(super) const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];

/// The layout version that this program reads and writes.
const VERSION: &str = "v1";

/// The folders of a repository that hold records. `_` starts no legal name segment, so no repository collides with them.
pub(super) const TAGS: &str = "_tags";
/// See [`TAGS`].
pub(super) const MANIFESTS: &str = "_manifests";
/// See [`TAGS`].
pub(super) const LISTS: &str = "_lists";

/// The paths of one data directory.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
    base: PathBuf,
}

/// Whether a folder is a store's data directory, or was one.
pub fn is_store(folder: &Path) -> bool {
    folder.join(VERSION).is_dir()
}

// === impl Layout ===

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), base: root.join(VERSION) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn base(&self) -> &Path {
        &self.base
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn cachedir_tag(&self) -> PathBuf {
        self.root.join("CACHEDIR.TAG")
    }

    pub(super) fn algorithm(&self, algorithm: Algorithm) -> PathBuf {
        self.base.join("blobs").join(algorithm.as_str())
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.algorithm(digest.algorithm());
        path.push(shard(&hex));
        path.push(&hex);
        path
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.base.join("partial")
    }

    /// The folder of a partial. `turn` is 0 unless the folder of an earlier partial of the same blob is still being
    /// removed.
    pub(super) fn partial(&self, registry: &RegistryName, digest: &Digest, turn: u32) -> PathBuf {
        let name = if turn == 0 { dashed(digest) } else { format!("{}.{turn}", dashed(digest)) };
        self.partials().join(registry.as_str()).join(name)
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.base.join("tmp")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.base.join("quarantine")
    }

    pub(super) fn quarantined(&self, digest: &Digest) -> PathBuf {
        self.quarantine().join(dashed(digest))
    }

    pub(super) fn pins(&self) -> PathBuf {
        self.base.join("pins")
    }

    pub(super) fn pin(&self, name: &Tag) -> PathBuf {
        self.pins().join(format!("{name}.json"))
    }

    /// How far the scrub has come.
    pub(super) fn scrub(&self) -> PathBuf {
        self.base.join("scrub.json")
    }

    /// Says that credentials were in use.
    pub(super) fn credentials(&self) -> PathBuf {
        self.base.join("had-credentials")
    }

    pub(super) fn repositories(&self) -> PathBuf {
        self.base.join("repositories")
    }

    pub(super) fn repository(&self, repository: &Repository) -> PathBuf {
        let mut path = self.repositories();
        path.push(repository.registry.as_str());
        path.extend(repository.name.segments());
        path
    }

    pub(super) fn tag(&self, repository: &Repository, tag: &Tag) -> PathBuf {
        self.repository(repository).join(TAGS).join(format!("{tag}.json"))
    }

    pub(super) fn manifest(&self, repository: &Repository, digest: &Digest) -> PathBuf {
        self.repository(repository).join(MANIFESTS).join(format!("{}.json", dashed(digest)))
    }

    pub(super) fn list(&self, repository: &Repository, file_name: &str) -> PathBuf {
        self.repository(repository).join(LISTS).join(file_name)
    }
}

/// `alg-hex`, for where `:` would be awkward.
pub(super) fn dashed(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm(), digest.hex())
}

/// The folder that a blob's file is in: the first two hex digits.
fn shard(hex: &str) -> &str {
    hex.get(..2).unwrap_or(hex)
}

/// The digest whose blob lies at `blobs/<algorithm>/<shard>/<name>`, if one does.
pub(super) fn blob_at(algorithm: Algorithm, folder: &OsStr, name: &OsStr) -> Option<Digest> {
    let hex = name.to_str()?;
    (folder == shard(hex)).then(|| Digest::from_hex(algorithm, hex).ok()).flatten()
}

/// The digest in the name of a manifest record.
pub(super) fn manifest_at(name: &OsStr) -> Option<Digest> {
    let (algorithm, hex) = name.to_str()?.strip_suffix(".json")?.split_once('-')?;
    Digest::from_hex(algorithm.parse().ok()?, hex).ok()
}

/// The digest of the blob that a partial's folder is for.
pub(super) fn partial_at(name: &OsStr) -> Option<Digest> {
    let name = name.to_str()?;
    let (name, turn) = name.split_once('.').map_or((name, None), |(name, turn)| (name, Some(turn)));
    let (algorithm, hex) = name.split_once('-')?;
    let digest = Digest::from_hex(algorithm.parse().ok()?, hex).ok()?;
    turn.is_none_or(|turn| turn.parse::<u32>().is_ok()).then_some(digest)
}

/// The tag in the name of a tag record.
pub(super) fn tag_at(name: &OsStr) -> Option<Tag> {
    name.to_str()?.strip_suffix(".json")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        Layout::new(Path::new("/d"))
    }

    #[test]
    fn every_blob_path_leads_back_to_its_digest() {
        for digest in [Digest::sha256(b"x"), Digest::of(Algorithm::Sha512, b"x")] {
            let path = layout().blob(&digest);
            let folder = path.parent().and_then(Path::file_name).unwrap();
            assert_eq!(blob_at(digest.algorithm(), folder, path.file_name().unwrap()), Some(digest));
            assert_eq!(path, layout().algorithm(digest.algorithm()).join(&digest.hex()[..2]).join(digest.hex()));
        }
    }

    #[test]
    fn strange_names_are_no_blobs() {
        let hex = Digest::sha256(b"x").hex();
        for (folder, name) in
            [("zz", hex.as_str()), (&hex[..2], &hex[1..]), (&hex[..2], "README"), ("", ""), ("é", "é")]
        {
            assert_eq!(blob_at(Algorithm::Sha256, OsStr::new(folder), OsStr::new(name)), None, "{folder}/{name}");
        }
    }

    #[test]
    fn record_paths_lead_back_to_what_they_record() {
        let repository = Repository { registry: "[::1]:5000".parse().unwrap(), name: "a/manifests/b".parse().unwrap() };
        let digest = Digest::sha256(b"x");
        let path = layout().manifest(&repository, &digest);
        assert!(path.starts_with("/d/v1/repositories/[::1]:5000/a/manifests/b/_manifests"));
        assert_eq!(manifest_at(path.file_name().unwrap()), Some(digest));
        let tag: Tag = "v1.json".parse().unwrap();
        let path = layout().tag(&repository, &tag);
        assert_eq!(path.to_str(), Some("/d/v1/repositories/[::1]:5000/a/manifests/b/_tags/v1.json.json"));
        assert_eq!(tag_at(path.file_name().unwrap()), Some(tag));
    }

    #[test]
    fn a_partial_of_a_later_turn_has_its_own_folder() {
        let (registry, digest) = ("docker.io".parse().unwrap(), Digest::sha256(b"x"));
        assert_ne!(layout().partial(&registry, &digest, 0), layout().partial(&registry, &digest, 1));
        for turn in [0, 1, 17] {
            let folder = layout().partial(&registry, &digest, turn);
            assert_eq!(partial_at(folder.file_name().unwrap()), Some(digest));
        }
        for strange in ["sha256-00", "sha256-", "README", "", "sha256-é", &format!("{}.x", dashed(&digest))] {
            assert_eq!(partial_at(OsStr::new(strange)), None, "{strange}");
        }
    }
}
