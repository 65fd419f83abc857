//! Digests that an operator forbids, each with a reason, from a file that is read again when it changes.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::config::DENIED_BYTES_MAX;
use crate::files::Watched;
use crate::oci::manifest::Manifest;
use crate::oci::{Digest, Repository, media};

use super::Mirror;
use super::error::{MirrorError, MirrorErrorKind};
use super::manifests::ManifestAnswer;
use super::upstreams::Target;

/// The digests that must not be served, with what is told to those who ask for them.
#[derive(Debug)]
pub struct Denials(Watched<HashMap<Digest, String>>);

/// How much of a reason is told.
const REASON_CHARS_MAX: usize = 200;

/// One digest a line, behind it the reason. Empty lines, and those that begin with `#`, say nothing.
fn parse(bytes: &[u8]) -> Result<HashMap<Digest, String>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text")?;
    let lines = text.lines().enumerate().map(|(n, line)| (n, line.trim()));
    let rules = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).map(|(n, line)| {
        let (digest, reason) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let digest = digest.parse().map_err(|_| format!("line {} does not begin with a digest", n + 1))?;
        let reason: String = reason.trim().chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
        Ok((digest, reason))
    });
    rules.collect()
}

// === impl Denials ===

impl Denials {
    /// Reads nothing before it is asked.
    pub fn new(path: PathBuf) -> Self {
        Self(Watched::new(path, DENIED_BYTES_MAX, parse))
    }

    fn refuse(&self, repository: &Repository, digest: &Digest, what: &str, reason: &str) -> MirrorError {
        let reason = if reason.is_empty() { "no reason is given" } else { reason };
        let (file, name) = (self.0.path().display(), &repository.registry);
        let message = format!(
            "{repository}: {what}{digest} is denied on this mirror by deny_digests_file {file} of {name}: {reason}"
        );
        MirrorError::new(MirrorErrorKind::Denied, message)
    }
}

// === impl Mirror ===

impl Mirror {
    /// Refuses a digest that an operator forbids, and what an index that is forbidden lists.
    pub(super) async fn check_digest(&self, target: &Target, digest: &Digest) -> Result<(), MirrorError> {
        let Some(denials) = &target.upstream.policy.denials else { return Ok(()) };
        let Some(rules) = denials.0.get() else {
            // Nobody knows what it forbids, and it was written to be heeded.
            let message =
                format!("{}: can't be read, so nothing is served; the log says why", denials.0.path().display());
            return Err(MirrorError::new(MirrorErrorKind::Denied, message));
        };
        if let Some(reason) = rules.get(digest) {
            return Err(denials.refuse(&target.repository, digest, "", reason));
        }
        for (denied, reason) in rules.iter() {
            let Ok(Some(record)) = self.0.store.manifest(&target.repository, denied).await else { continue };
            let child = record.descriptors.iter().find(|child| child.digest == *digest);
            // Blobs are shared between images, and each has its own digest to be denied by.
            if child.is_some_and(|child| media::is_manifest_type(&child.media_type)) {
                return Err(denials.refuse(&target.repository, denied, "a part of ", reason));
            }
        }
        Ok(())
    }

    /// Refuses a manifest that an operator forbids, or that can't be pulled because one of its blobs is forbidden.
    pub(super) async fn check_content(&self, target: &Target, answer: &ManifestAnswer) -> Result<(), MirrorError> {
        let Some(denials) = &target.upstream.policy.denials else { return Ok(()) };
        self.check_digest(target, &answer.digest).await?;
        let Ok(manifest) = Manifest::parse(&answer.bytes, Some(&*answer.media_type)) else { return Ok(()) };
        let rules = denials.0.get().unwrap_or_default();
        let blobs = manifest.descriptors().filter(|descriptor| !media::is_manifest_type(&descriptor.media_type));
        for blob in blobs {
            if let Some(reason) = rules.get(&blob.digest) {
                return Err(denials.refuse(&target.repository, &blob.digest, "its part ", reason));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_denied_digests() {
        let (one, other) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let rules = parse(format!("# why\n\n{one}  CVE-2026-1: a hole\n {other}\n").as_bytes()).unwrap();
        assert_eq!(rules.get(&one).map(String::as_str), Some("CVE-2026-1: a hole"));
        assert_eq!(rules.get(&other).map(String::as_str), Some(""));
        assert_eq!(rules.len(), 2);
        assert_eq!(parse(b"# x\nsha256:12 y").unwrap_err(), "line 2 does not begin with a digest");
        assert!(parse(b"\xff").is_err());
    }
}
