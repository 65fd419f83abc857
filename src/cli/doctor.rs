//! `cachalot doctor`: walks to a real upstream as the mirror would, and says in words what works and what does not.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;

use crate::app::Clients;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::nodes::MirrorUrl;
use crate::oci::manifest::{Descriptor, Manifest};
use crate::oci::{Digest, Reference, RegistryName, Repository};
use crate::upstream::{Access, BlobRange, Finding, Instance, Lane, Upstream};

use super::{Settings, block_on, fail, fail_config};

/// Walk to a real upstream step by step: name, door, token, manifest, blob.
#[derive(Clone, Debug, clap::Args)]
pub struct Doctor {
    /// The upstream to ask, by the name that images have in front
    #[arg(long, value_name = "NAME", required_unless_present = "node")]
    upstream: Option<String>,
    /// The image to ask for, such as library/nginx:1.27; without a tag it is latest
    #[arg(value_name = "IMAGE", required_unless_present = "node")]
    image: Option<String>,
    /// Look at this machine instead: will its container runtimes really ask the mirror?
    #[arg(long, conflicts_with_all = ["upstream", "image", "anonymous"])]
    node: bool,
    /// Where the machine's root is, if not here (with --node)
    #[arg(long, value_name = "DIR", default_value = "/", requires = "node")]
    root: PathBuf,
    /// The mirror that they should ask (with --node); otherwise whatever they are told
    #[arg(long, value_name = "URL", requires = "node")]
    mirror: Option<MirrorUrl>,
    /// The mirror's admin listener, to see whether anybody uses it (with --node)
    #[arg(long, value_name = "URL", requires = "node")]
    admin: Option<MirrorUrl>,
    /// Ask as nobody, whatever credentials are configured
    #[arg(long)]
    anonymous: bool,
    #[command(flatten)]
    settings: Settings,
}

/// How much of a blob is asked for.
const RANGE_BYTES: u64 = 64 * 1024;

/// The steps, as they are taken.
struct Walk<'a> {
    out: &'a mut dyn Write,
    well: bool,
}

/// Runs the command.
pub(super) fn main(doctor: &Doctor) -> ExitCode {
    if doctor.node {
        return super::doctor_node::look(&doctor.root, doctor.mirror.as_ref(), doctor.admin.as_ref());
    }
    let config = match doctor.settings.load() {
        Ok(config) => config,
        Err(errors) => return fail_config(&errors),
    };
    block_on(async {
        match doctor.run(&config, &mut io::stdout()).await {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(super::EXIT_FAILURE),
            Err(error) => fail(&error.to_string()),
        }
    })
}

// === impl Doctor ===

impl Doctor {
    /// What to look at: an upstream's name, an image there, and whether to ask as nobody.
    pub fn new(upstream: &str, image: &str, anonymous: bool) -> Self {
        let (settings, root) = (Settings::default(), PathBuf::from("/"));
        let (upstream, image) = (Some(upstream.to_owned()), Some(image.to_owned()));
        Self { upstream, image, anonymous, node: false, root, mirror: None, admin: None, settings }
    }

    /// Walks to the upstream, writing a line a step. Returns whether all went well; fails when the image's name is none, no
    /// such upstream is configured, or nothing can be written.
    pub async fn run(&self, config: &Config, out: &mut dyn Write) -> io::Result<bool> {
        let wrong = |problem: String| io::Error::new(io::ErrorKind::InvalidInput, problem);
        // They are there where no node is looked at.
        let (upstream, image_name) =
            (self.upstream.as_deref().unwrap_or_default(), self.image.as_deref().unwrap_or_default());
        // Another name of a registry is as good as its own.
        let registry = crate::app::names(config).registry_called(upstream);
        let registry = registry.as_ref().map_or(upstream, |registry| registry.as_str());
        let (repository, reference) = image(registry, image_name).map_err(wrong)?;
        let upstream = config.upstream(&repository.registry).ok_or_else(|| {
            wrong(format!("no upstream is called {upstream:?}; add [upstreams.\"{upstream}\"] to the configuration"))
        })?;
        let clients = Clients::new(config, &Instance::random(), &Arc::new(Metrics::new()));
        let client = clients.client(upstream, &repository.registry, None);
        let access = if self.anonymous { Access::Anonymous } else { Access::Configured };
        writeln!(out, "{repository}{}", suffix(&reference))?;
        let mut walk = Walk { out, well: true };
        for finding in client.examine(&repository, access).await {
            walk.tell(&finding)?;
        }
        // From here on as the mirror does it: endpoints in order, redirects, refusals and all.
        if let Some(digest) = walk.manifest(&client, &repository, &reference, access).await? {
            walk.content(&client, &repository, digest, access).await?;
            if access == Access::Configured && upstream_opens_more(upstream, config, &client, &repository) {
                walk.strangers(&client, &repository, digest).await?;
            }
        }
        let verdict = if walk.well { "all well" } else { "something is wrong: see above" };
        writeln!(walk.out, "{verdict}")?;
        Ok(walk.well)
    }
}

/// Whether a credential may open here what its clients are then refused.
fn upstream_opens_more(
    upstream: &crate::config::Upstream,
    config: &Config,
    client: &Upstream,
    repository: &Repository,
) -> bool {
    client.has_credential(repository) && !upstream.share_private && config.access.is_none()
}

// === impl Walk ===

impl Walk<'_> {
    fn tell(&mut self, finding: &Finding) -> io::Result<()> {
        let (mark, words) = match &finding.said {
            Ok(words) => ("ok", words),
            Err(words) => ("FAIL", words),
        };
        self.well &= finding.said.is_ok();
        writeln!(self.out, "{mark:<5}{:<9}{:>6} ms  {words}", finding.step, finding.took.as_millis())
    }

    fn step(&mut self, step: &'static str, start: Instant, said: Result<String, String>) -> io::Result<()> {
        self.tell(&Finding { step, took: start.elapsed(), said })
    }

    /// The digest that a reference stands for, by a HEAD, which costs no quota.
    async fn manifest(
        &mut self,
        client: &Upstream,
        repository: &Repository,
        reference: &Reference,
        access: Access,
    ) -> io::Result<Option<Digest>> {
        let start = Instant::now();
        match client.head_manifest(repository, reference, access).await {
            Ok(head) => {
                let digest = head.digest.map_or_else(|| "no digest".to_owned(), |digest| digest.to_string());
                let media_type = head.media_type.unwrap_or_else(|| "no media type".to_owned());
                self.step("tag", start, Ok(format!("{digest}, {media_type}")))?;
                if head.digest.is_some() {
                    return Ok(head.digest);
                }
            }
            Err(error) => {
                self.step("tag", start, Err(error.to_string()))?;
                return Ok(None);
            }
        }
        let start = Instant::now();
        match client.get_manifest(repository, reference, access).await {
            Ok(body) => {
                let digest = Digest::sha256(&body.bytes);
                self.step("manifest", start, Ok(format!("{digest} by its bytes, for its head has no digest")))?;
                Ok(Some(digest))
            }
            Err(error) => {
                self.step("manifest", start, Err(error.to_string()))?;
                Ok(None)
            }
        }
    }

    /// Whether those without a credential may see it too: else the mirror gives it to nobody who isn't listed.
    async fn strangers(&mut self, client: &Upstream, repository: &Repository, digest: Digest) -> io::Result<()> {
        let start = Instant::now();
        let said = match client.head_manifest(repository, &Reference::Digest(digest), Access::Anonymous).await {
            Ok(_) => Ok("anybody may read it, so the mirror's clients may too".to_owned()),
            Err(error) => Err(format!(
                "only our credential opens it, so the mirror's clients get 403: set share_private = true for this upstream, \
                 or list its readers in [access] ({error})"
            )),
        };
        self.step("clients", start, said)
    }

    /// A manifest by its digest, down to an image's, and a part of its largest layer.
    async fn content(
        &mut self,
        client: &Upstream,
        repository: &Repository,
        mut digest: Digest,
        access: Access,
    ) -> io::Result<()> {
        loop {
            let start = Instant::now();
            let manifest = match client.get_manifest(repository, &Reference::Digest(digest), access).await {
                Ok(body) if Digest::of(digest.algorithm(), &body.bytes) == digest => {
                    Manifest::parse(&body.bytes, body.media_type.as_deref()).map_err(|error| error.to_string())
                }
                Ok(_) => Err(format!("what it sent is not {digest}")),
                Err(error) => Err(error.to_string()),
            };
            let manifest = match manifest {
                Ok(manifest) => manifest,
                Err(problem) => return self.step("manifest", start, Err(problem)),
            };
            let words = format!("verified; {} lists {} things", manifest.media_type, manifest.descriptors().count());
            self.step("manifest", start, Ok(words))?;
            match child(&manifest) {
                Some(child) if manifest.is_index() => digest = child.digest,
                _ => {
                    let largest = manifest.layers.iter().filter(|layer| !layer.is_foreign());
                    return match largest.max_by_key(|layer| layer.size_bytes).or(manifest.config.as_ref()) {
                        Some(blob) => self.blob(client, repository, blob).await,
                        None => Ok(()),
                    };
                }
            }
        }
    }

    async fn blob(&mut self, client: &Upstream, repository: &Repository, blob: &Descriptor) -> io::Result<()> {
        let wanted = blob.size_bytes.clamp(1, RANGE_BYTES);
        let range = BlobRange { first: 0, last: Some(wanted - 1) };
        // The second one shows whether the place that the first was sent to is asked right away.
        for step in ["blob", "again"] {
            let start = Instant::now();
            let said = match client.get_blob(repository, &blob.digest, Some(range), Lane::Foreground).await {
                Err(error) => Err(error.to_string()),
                Ok(stream) => {
                    let (ranged, total) = (stream.length == Some(wanted), stream.total_bytes);
                    let mut body = stream.body;
                    let (mut got, mut failed) = (0, None);
                    while got < wanted && failed.is_none() {
                        match body.next().await {
                            Some(Ok(piece)) => got += piece.len() as u64,
                            Some(Err(error)) => failed = Some(error.to_string()),
                            None => failed = Some(format!("it ended after {got} bytes")),
                        }
                    }
                    let how = if ranged { "by range" } else { "but the range was not heeded" };
                    let total =
                        total.map_or_else(|| "a size that it does not say".to_owned(), |t| format!("{t} bytes"));
                    failed.map_or_else(|| Ok(format!("{wanted} bytes of {total} {how}")), Err)
                }
            };
            self.step(step, start, said)?;
        }
        Ok(())
    }
}

/// The manifest of an index that most people would pull.
fn child(manifest: &Manifest) -> Option<&Descriptor> {
    let is_usual = |child: &&Descriptor| {
        child.platform.as_ref().is_some_and(|known| known.os == "linux" && known.architecture == "amd64")
    };
    manifest.manifests.iter().find(is_usual).or(manifest.manifests.first())
}

fn suffix(reference: &Reference) -> String {
    match reference {
        Reference::Tag(tag) => format!(":{tag}"),
        Reference::Digest(digest) => format!("@{digest}"),
    }
}

/// An image's repository and reference at a registry, which may stand in front of it.
fn image(registry: &str, image: &str) -> Result<(Repository, Reference), String> {
    let wrong = || format!("{image:?} is no image, such as \"library/nginx:1.27\"");
    let rest = image.strip_prefix(registry).and_then(|rest| rest.strip_prefix('/')).unwrap_or(image);
    let (name, reference) = match rest.split_once('@') {
        Some((name, digest)) => (name.split(':').next().unwrap_or(name), digest),
        None => rest.rsplit_once(':').unwrap_or((rest, "latest")),
    };
    let registry: RegistryName = registry.parse().map_err(|_| format!("{registry:?} is no registry's name"))?;
    let official = registry.as_str() == "docker.io" && !name.contains('/');
    let name = if official { format!("library/{name}") } else { name.to_owned() };
    let name = name.parse().map_err(|_| wrong())?;
    Ok((Repository { registry, name }, reference.parse().map_err(|_| wrong())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_by_every_spelling() {
        let digest = Digest::sha256(b"");
        for (registry, text, expected) in [
            ("docker.io", "nginx", "docker.io/library/nginx:latest"),
            ("docker.io", "docker.io/library/nginx:1.27", "docker.io/library/nginx:1.27"),
            ("corp:5000", "corp:5000/a/b:v1", "corp:5000/a/b:v1"),
            ("corp:5000", &format!("a/b:v1@{digest}"), &format!("corp:5000/a/b@{digest}")),
        ] {
            let (repository, reference) = image(registry, text).unwrap();
            assert_eq!(format!("{repository}{}", suffix(&reference)), expected, "{text}");
        }
        assert!(image("docker.io", "Nginx").is_err());
        assert!(image("docker.io", "a:b:c").is_err());
    }
}
