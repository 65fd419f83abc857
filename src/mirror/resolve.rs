//! Which upstream a request means. A closed world: names are looked up, never dialled (law 10).

use std::borrow::Cow;
use std::collections::HashMap;

use crate::oci::{ImageName, RegistryName, Repository, RepositoryName};

/// The names under which upstreams can be asked for.
#[derive(Debug, Default)]
pub struct Names {
    /// Registry names and aliases, with the canonical name and the upstream's number.
    exact: HashMap<String, (RegistryName, usize)>,
    /// The part of a pattern behind its `*`, such as `.pkg.dev`.
    patterns: Vec<(String, usize)>,
    /// `Host` headers, in lower case.
    hosts: HashMap<String, (RegistryName, usize)>,
    /// For clients that name no upstream.
    default: Option<(RegistryName, usize)>,
    /// The most segments that an alias has.
    longest_alias: usize,
}

/// An upstream, and the repository there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The number under which the upstream was added.
    pub upstream: usize,
    /// Its canonical name; for a pattern, the name that was asked for.
    pub registry: RegistryName,
    /// The rest of the path.
    pub repository: String,
}

/// Why a request means no upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// The registry that was named is not configured.
    #[error(
        "registry {0:?} is not configured on this mirror; an operator can add [upstreams.\"{0}\"] to its configuration"
    )]
    UnknownRegistry(String),
    /// Neither path, nor `ns`, nor Host names one, and there is no default.
    #[error(
        "the request names no registry, and this mirror has no default_upstream: use ?ns=REGISTRY or /v2/REGISTRY/REPOSITORY"
    )]
    NoRegistry,
}

/// Why an image's name can't be told whose it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misnamed {
    /// The registry is not configured.
    #[error(transparent)]
    Unknown(Unresolved),
    /// It begins with another name of a registry.
    #[error("{image} might mean {other} as well, which is pulled by that name here: name its registry, as in {other}")]
    Ambiguous {
        /// What was asked for.
        image: String,
        /// What it might mean.
        other: String,
    },
}

/// How much of a refused name is repeated in a message.
const QUOTED_CHARS_MAX: usize = 100;

// === impl Names ===

impl Names {
    /// Adds an upstream by its exact name and its aliases, which may be paths of any depth.
    pub fn add(&mut self, upstream: usize, registry: &RegistryName, aliases: &[String]) {
        for name in aliases.iter().map(String::as_str).chain([registry.as_str()]) {
            self.longest_alias = self.longest_alias.max(name.split('/').count());
            self.exact.insert(name.to_ascii_lowercase(), (registry.clone(), upstream));
        }
    }

    /// Adds an upstream for every name that ends in `suffix`, which starts with a dot.
    pub fn add_pattern(&mut self, upstream: usize, suffix: &str) {
        self.patterns.push((suffix.to_owned(), upstream));
    }

    /// Makes a `Host` header mean the upstream called `name`.
    pub fn add_host(&mut self, host: &str, name: &str) {
        if let Some(found) = self.exact.get(name).cloned() {
            self.hosts.insert(host.to_ascii_lowercase(), found);
        }
    }

    /// Makes requests that name no upstream mean the one called `name`.
    pub fn set_default(&mut self, name: &str) {
        self.default = self.exact.get(name).cloned();
    }

    /// The canonical name of the registry that a name or alias means.
    pub fn registry_called(&self, name: &str) -> Option<RegistryName> {
        self.look_up(name).map(|(registry, _)| registry)
    }

    /// An image by the canonical name of its registry, as everything that is kept has it. What might mean two things is refused:
    /// a promise must never be about another image.
    pub fn canonical(&self, image: &ImageName) -> Result<ImageName, Misnamed> {
        let Repository { registry, name } = &image.repository;
        if let Some(by_path) = self.strip(name.as_str()).filter(|by_path| by_path.registry != *registry) {
            return Err(Misnamed::Ambiguous {
                image: image.to_string(),
                other: format!("{}/{}", by_path.registry, by_path.repository),
            });
        }
        match self.registry_called(registry.as_str()) {
            Some(registry) => {
                let repository = Repository { registry, name: name.clone() };
                let named = ImageName { repository, reference: image.reference.clone() };
                // By its other names too, Docker Hub has official images that are called without `library/`.
                Ok(named.to_string().parse().unwrap_or(named))
            }
            None => Err(Misnamed::Unknown(unknown(registry.as_str()))),
        }
    }

    /// The same for what may be held since its registry was configured, and isn't any longer.
    pub fn canonical_if_known(&self, image: &ImageName) -> Result<ImageName, Misnamed> {
        match self.canonical(image) {
            Err(Misnamed::Unknown(_)) => Ok(image.clone()),
            found => found,
        }
    }

    /// Finds the upstream that a request means. In order: the path before `/v2/`, the first segments after it, `ns`,
    /// the `Host` header, the default.
    ///
    /// So a path that begins with the name of a registry wins over an `ns` that differs. An alias without a dot does not:
    /// it may just as well be an organisation there (`docker.io/corp/app`), and an image must never be another's.
    pub fn resolve(
        &self,
        prefix: Option<&str>,
        name: &str,
        namespace: Option<&str>,
        host: Option<&str>,
    ) -> Result<Resolved, Unresolved> {
        if let Some(prefix) = prefix {
            let (registry, upstream) = self.look_up(prefix).ok_or_else(|| unknown(prefix))?;
            // Some clients are told the name twice: before and after `/v2/`.
            let repository = self.strip(name).filter(|inner| inner.registry == registry);
            return Ok(repository.unwrap_or_else(|| resolved((registry, upstream), name)));
        }
        let by_path = self.strip(name);
        if let Some(namespace) = namespace {
            let named = self.look_up(namespace);
            let wins = |by_path: &Resolved| {
                looks_like_host(name) || named.as_ref().is_some_and(|(registry, _)| *registry == by_path.registry)
            };
            if let Some(by_path) = by_path.filter(wins) {
                return Ok(by_path);
            }
            return Ok(resolved(named.ok_or_else(|| unknown(namespace))?, name));
        }
        if let Some(by_path) = by_path {
            return Ok(by_path);
        }
        // A first segment that looks like a host was meant as one: no upstream has such a repository, and asking the
        // default for it would tell a stranger's name to it.
        if looks_like_host(name) {
            return Err(unknown(name.split('/').next().unwrap_or_default()));
        }
        let by_host = host.and_then(|host| {
            let host = host.to_ascii_lowercase();
            self.hosts.get(&host).or_else(|| self.hosts.get(without_port(&host)))
        });
        by_host.or(self.default.as_ref()).map(|found| resolved(found.clone(), name)).ok_or(Unresolved::NoRegistry)
    }

    /// Takes the longest name of an upstream off the front of a path, if something is left behind it.
    fn strip(&self, name: &str) -> Option<Resolved> {
        let cuts: Vec<usize> = name.match_indices('/').map(|(at, _)| at).take(self.longest_alias.max(1)).collect();
        cuts.into_iter().rev().find_map(|cut| {
            let found = self.look_up(&name[..cut])?;
            Some(resolved(found, &name[cut + 1..]))
        })
    }

    fn look_up(&self, name: &str) -> Option<(RegistryName, usize)> {
        // Each request is looked up several times, and hardly any is written in capitals.
        let name: Cow<'_, str> = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            name.to_ascii_lowercase().into()
        } else {
            name.into()
        };
        if let Some(found) = self.exact.get(&*name) {
            return Some(found.clone());
        }
        let (_, upstream) = self.patterns.iter().find(|(suffix, _)| {
            name.len() > suffix.len() && name.ends_with(suffix.as_str()) && !name.contains([':', '/', '['])
        })?;
        Some((name.parse().ok()?, *upstream))
    }
}

/// Docker Hub's official images live under `library/`, which people leave out.
fn resolved((registry, upstream): (RegistryName, usize), name: &str) -> Resolved {
    let official = registry.as_str() == "docker.io" && !name.is_empty() && !name.contains('/');
    let repository = if official { format!("library/{name}") } else { name.to_owned() };
    Resolved { upstream, registry, repository }
}

/// Whether the first of several segments was meant as a host: no organisation has a dot or a port in its name.
fn looks_like_host(name: &str) -> bool {
    name.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost")
}

fn unknown(name: &str) -> Unresolved {
    Unresolved::UnknownRegistry(name.chars().take(QUOTED_CHARS_MAX).collect())
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// A check that a repository name is one, for messages that name the registry as well.
pub(super) fn repository_name(resolved: &Resolved) -> Result<RepositoryName, crate::oci::name::InvalidName> {
    resolved.repository.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        let mut names = Names::default();
        names.add(0, &"docker.io".parse().unwrap(), &["index.docker.io".into(), "mirror/hub".into()]);
        names.add(1, &"quay.io".parse().unwrap(), &[]);
        names.add(2, &"corp:5000".parse().unwrap(), &["corp".into()]);
        names.add_pattern(3, ".pkg.dev");
        names.add_host("hub.mirror.corp", "docker.io");
        names.set_default("quay.io");
        names
    }

    /// What a request resolves to, as `number registry repository`, or the error's name.
    fn resolve(prefix: &str, name: &str, ns: &str, host: &str) -> String {
        let some = |text: &'static str| (!text.is_empty()).then_some(text);
        let leak = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
        match names().resolve(some(leak(prefix)), name, some(leak(ns)), some(leak(host))) {
            Ok(found) => format!("{} {} {}", found.upstream, found.registry, found.repository),
            Err(Unresolved::UnknownRegistry(name)) => format!("unknown {name}"),
            Err(Unresolved::NoRegistry) => "none".to_owned(),
        }
    }

    #[test]
    fn images_are_called_by_the_canonical_names_of_their_registries() {
        let names = names();
        let canonical = |text: &str| names.canonical(&text.parse().unwrap()).map(|image| image.to_string());
        assert_eq!(canonical("nginx:1"), Ok("docker.io/library/nginx:1".to_owned()));
        assert!(matches!(canonical("nosuch.corp/x:1"), Err(Misnamed::Unknown(_))));
        let mut names = Names::default();
        names.add(0, &"docker.io".parse().unwrap(), &["registry-1.docker.io".to_owned()]);
        names.add(1, &"registry.corp:5000".parse().unwrap(), &["corp".to_owned()]);
        let canonical = |text: &str| names.canonical(&text.parse().unwrap()).map(|image| image.to_string());
        assert_eq!(canonical("registry-1.docker.io/b:1"), Ok("docker.io/library/b:1".to_owned()));
        assert_eq!(canonical("registry-1.docker.io/a/b:1"), Ok("docker.io/a/b:1".to_owned()));
        let refused = canonical("corp/team/app:1").unwrap_err().to_string();
        assert!(refused.contains("as in registry.corp:5000/team/app"), "{refused}");
    }

    #[test]
    fn every_way_to_name_an_upstream() {
        for (prefix, name, ns, host, expected) in [
            // U1: ns
            ("", "library/nginx", "docker.io", "", "0 docker.io library/nginx"),
            ("", "nginx", "docker.io", "", "0 docker.io library/nginx"),
            ("", "nginx", "index.docker.io", "", "0 docker.io library/nginx"),
            ("", "nginx", "DOCKER.io", "", "0 docker.io library/nginx"),
            ("", "a/b", "corp:5000", "", "2 corp:5000 a/b"),
            ("", "a/b", "europe-docker.pkg.dev", "", "3 europe-docker.pkg.dev a/b"),
            ("", "a/b", "evil.example", "", "unknown evil.example"),
            ("", "a/b", "127.0.0.1:1", "", "unknown 127.0.0.1:1"),
            ("", "a/b", "pkg.dev", "", "unknown pkg.dev"),
            ("", "a/b", ".pkg.dev", "", "unknown .pkg.dev"),
            ("", "a/b", "x.pkg.dev:1", "", "unknown x.pkg.dev:1"),
            ("", "a/b", "evil.example/x.pkg.dev", "", "unknown evil.example/x.pkg.dev"),
            // U2: path after /v2/, which wins over ns
            ("", "docker.io/library/nginx", "", "", "0 docker.io library/nginx"),
            ("", "docker.io/nginx", "", "", "0 docker.io library/nginx"),
            ("", "docker.io/nginx", "docker.io", "", "0 docker.io library/nginx"),
            ("", "docker.io/nginx", "quay.io", "", "0 docker.io library/nginx"),
            ("", "mirror/hub/nginx", "", "", "0 docker.io library/nginx"),
            ("", "mirror/other/nginx", "", "", "1 quay.io mirror/other/nginx"),
            ("", "corp/a/b", "", "", "2 corp:5000 a/b"),
            ("", "corp/a/b", "corp:5000", "", "2 corp:5000 a/b"),
            ("", "mirror/hub/nginx", "docker.io", "", "0 docker.io library/nginx"),
            // an alias that may be an organisation elsewhere
            ("", "corp/a", "docker.io", "", "0 docker.io corp/a"),
            ("", "mirror/hub/nginx", "quay.io", "", "1 quay.io mirror/hub/nginx"),
            ("", "corp/a", "evil.example", "", "unknown evil.example"),
            ("", "docker.io/nginx", "evil.example", "", "0 docker.io library/nginx"),
            ("", "evil.example/a/b", "", "", "unknown evil.example"),
            ("", "localhost/a", "", "", "unknown localhost"),
            // an upstream's name alone is a repository of the default
            ("", "corp", "", "", "1 quay.io corp"),
            // U3: path before /v2/
            ("docker.io", "library/nginx", "docker.io", "", "0 docker.io library/nginx"),
            ("docker.io", "docker.io/nginx", "", "", "0 docker.io library/nginx"),
            ("mirror/hub", "nginx", "", "", "0 docker.io library/nginx"),
            ("evil", "nginx", "docker.io", "", "unknown evil"),
            // U4: nothing
            ("", "a/b", "", "", "1 quay.io a/b"),
            ("", "a/b", "", "hub.mirror.corp", "0 docker.io a/b"),
            ("", "nginx", "", "HUB.mirror.corp:5050", "0 docker.io library/nginx"),
            ("", "a/b", "", "other.corp", "1 quay.io a/b"),
        ] {
            assert_eq!(resolve(prefix, name, ns, host), expected, "{prefix:?} {name:?} {ns:?} {host:?}");
        }
    }

    #[test]
    fn without_a_default_a_request_must_name_its_upstream() {
        assert_eq!(Names::default().resolve(None, "a/b", None, None), Err(Unresolved::NoRegistry));
    }
}
