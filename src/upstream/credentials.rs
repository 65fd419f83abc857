//! Who we are at a registry: credentials from the configuration, docker's files and helpers, and which belongs to a repository.

use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use tokio::time::Instant;

use super::authorize::secret_header;
use super::docker_config::{DockerConfig, Found, Helper};
use super::helper::Helpers;
use crate::files::Watched;
use crate::oci::Repository;
use crate::secret::Secret;

/// A user name and password, and the repositories that they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// A registry or the beginning of a repository's path in it, in whole segments: `docker.io`, `docker.io/acme`,
    /// `docker.io/acme/app`.
    pub scope: String,
    /// The user name, taken literally (`$oauthtoken` is one).
    pub username: String,
    /// The password, or a token that stands for one.
    pub password: Secret,
    /// Where the password was read from. It is read again when that file changes.
    pub password_file: Option<PathBuf>,
}

/// Where a credential comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// The configuration.
    Password(Credential),
    /// A program that is asked for it.
    Helper {
        /// What it is for, as a credential's.
        scope: String,
        /// `NAME` of `docker-credential-NAME`, or the path of the program.
        program: String,
        /// The registry that it is asked about; `None` for the scope's.
        server: Option<String>,
    },
    /// A docker `config.json`, or a mounted `.dockerconfigjson`: for whatever it has a credential.
    DockerConfig(PathBuf),
}

/// What is shown to prove who we are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Login {
    Password {
        username: String,
        password: Secret,
    },
    /// A token that its token server exchanges for those that the registry takes.
    IdentityToken {
        username: String,
        token: Secret,
    },
    /// A token that the registry takes as it is.
    RegistryToken(Secret),
}

/// Who we are for a part of a registry.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) id: CredentialId,
    pub(super) scope: String,
    pub(super) login: Login,
    /// When it was learnt.
    since: Instant,
}

/// Tells identities apart: another password is another identity, whose tokens and refusals are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct CredentialId(u64);

/// The credentials of one upstream.
#[derive(Debug)]
pub(super) struct Credentials {
    sources: Vec<Source>,
    helpers: Helpers,
}

enum Source {
    Password { credential: Credential, file: Option<Watched<Secret>> },
    Helper { scope: String, helper: Helper },
    DockerConfig(Watched<DockerConfig>),
}

/// The best that is known for a repository, before any program was asked.
enum Candidate {
    Login { scope: String, login: Login },
    Helper { scope: String, helper: Helper },
}

const PASSWORD_BYTES_MAX: u64 = 64 << 10;
const DOCKER_CONFIG_BYTES_MAX: u64 = 1 << 20;

fn covers(scope: &str, path: &str) -> bool {
    let scope = scope.trim_end_matches('/');
    path.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The password in a file, without the line break that editors leave at its end.
fn password(bytes: &[u8]) -> Result<Secret, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not UTF-8 text")?.trim_end_matches(['\r', '\n']);
    if text.is_empty() || text.contains(char::is_control) {
        return Err("holds no password: it is empty, or has control characters".to_owned());
    }
    Ok(Secret::new(text))
}

// === impl Identity ===

impl Identity {
    fn new(scope: String, login: Login) -> Arc<Self> {
        static STATE: OnceLock<RandomState> = OnceLock::new();
        let id = CredentialId(STATE.get_or_init(RandomState::new).hash_one((&scope, &login)));
        Arc::new(Self { id, scope, login, since: Instant::now() })
    }

    /// What is sent to a registry that speaks Basic; `None` for tokens, which it would not know.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Login::Password { username, password } = &self.login else { return None };
        secret_header(&format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.expose()))))
    }
}

// === impl Credentials ===

impl Credentials {
    /// Reads no file and runs no program before they are needed.
    pub(super) fn new(sources: Vec<CredentialSource>) -> Self {
        let source = |source| match source {
            CredentialSource::Password(credential) => {
                let file = credential.password_file.clone();
                Source::Password { file: file.map(|path| Watched::new(path, PASSWORD_BYTES_MAX, password)), credential }
            }
            CredentialSource::Helper { scope, program, server } => {
                // A helper knows registries, not parts of them.
                let registry = scope.split('/').next().unwrap_or_default();
                let usual = if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry };
                let helper = Helper { program, server: server.unwrap_or_else(|| usual.to_owned()) };
                Source::Helper { scope, helper }
            }
            CredentialSource::DockerConfig(path) => {
                Source::DockerConfig(Watched::new(path, DOCKER_CONFIG_BYTES_MAX, DockerConfig::parse))
            }
        };
        Self { sources: sources.into_iter().map(source).collect(), helpers: Helpers::default() }
    }

    /// Whether anything may have a credential for anything there.
    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Whether there is, or may be, a credential for a repository: a program may not have been asked yet, and a file that
    /// can't be read may hold one. Who is in doubt takes what is held for private until a stranger was seen to get it.
    pub(super) fn cover(&self, repository: &Repository) -> bool {
        let unreadable = |source: &Source| matches!(source, Source::DockerConfig(file) if file.get().is_none());
        match self.candidate(repository, false) {
            Some(Candidate::Login { .. }) => true,
            Some(Candidate::Helper { helper, .. }) => !self.helpers.has_nothing(&helper),
            None => self.sources.iter().any(unreadable),
        }
    }

    /// Who we are for a repository.
    pub(super) async fn for_repository(&self, repository: &Repository) -> Option<Arc<Identity>> {
        match self.candidate(repository, false)? {
            Candidate::Login { scope, login } => Some(Identity::new(scope, login)),
            Candidate::Helper { scope, helper } => {
                let login = self.helpers.ask(&helper).await.ok().flatten()?;
                Some(Identity::new(scope, login))
            }
        }
    }

    /// Who we are after `refused` was: files are read and programs asked again. `None` if that is still the same.
    pub(super) async fn renewed(&self, repository: &Repository, refused: &Identity) -> Option<Arc<Identity>> {
        let identity = match self.candidate(repository, true)? {
            Candidate::Login { scope, login } => Identity::new(scope, login),
            Candidate::Helper { scope, helper } => {
                let login = self.helpers.ask_again(&helper, refused.since).await.ok().flatten()?;
                Identity::new(scope, login)
            }
        };
        (identity.id != refused.id).then_some(identity)
    }

    /// The configured one whose scope is the longest that `repository` lies under, else what the first file that knows any
    /// says.
    fn candidate(&self, repository: &Repository, now: bool) -> Option<Candidate> {
        if self.sources.is_empty() {
            return None;
        }
        let path = repository.to_string();
        let scoped = self.sources.iter().filter_map(|source| Some((source.scope()?, source)));
        let mut best: Option<(usize, &Source)> = None;
        for (scope, source) in scoped.filter(|(scope, _)| covers(scope, &path)) {
            let len = scope.trim_end_matches('/').len();
            // Of equal ones the first.
            if best.is_none_or(|(longest, _)| len > longest) {
                best = Some((len, source));
            }
        }
        match best {
            Some((_, source)) => source.candidate(repository, &path, now),
            None => self
                .sources
                .iter()
                .filter(|source| source.scope().is_none())
                .find_map(|source| source.candidate(repository, &path, now)),
        }
    }
}

// === impl Source ===

impl Source {
    /// `None`: it knows itself what it is for.
    fn scope(&self) -> Option<&str> {
        match self {
            Self::Password { credential, .. } => Some(&credential.scope),
            Self::Helper { scope, .. } => Some(scope),
            Self::DockerConfig(_) => None,
        }
    }

    fn candidate(&self, repository: &Repository, path: &str, now: bool) -> Option<Candidate> {
        match self {
            Self::Password { credential, file } => {
                let Credential { scope, username, password, .. } = credential.clone();
                let read = file.as_ref().and_then(|file| if now { file.get_now() } else { file.get() });
                let password = read.map_or(password, |read| (*read).clone());
                Some(Candidate::Login { scope, login: Login::Password { username, password } })
            }
            Self::Helper { scope, helper } => Some(Candidate::Helper { scope: scope.clone(), helper: helper.clone() }),
            Self::DockerConfig(file) => {
                let config = if now { file.get_now() } else { file.get() };
                Some(match config?.find(repository.registry.as_str(), path)? {
                    Found::Login { scope, login } => Candidate::Login { scope, login },
                    Found::Helper { scope, helper } => Candidate::Helper { scope, helper },
                })
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { credential, .. } => credential.fmt(f),
            Self::Helper { scope, helper } => f.debug_tuple("Helper").field(scope).field(helper).finish(),
            Self::DockerConfig(file) => file.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(scope: &str) -> Credential {
        let (username, password) = (scope.to_owned(), Secret::new("hunter2"));
        Credential { scope: scope.to_owned(), username, password, password_file: None }
    }

    fn repository(path: &str) -> Repository {
        let (registry, name) = path.split_once('/').unwrap();
        Repository { registry: registry.parse().unwrap(), name: name.parse().unwrap() }
    }

    #[tokio::test]
    async fn the_longest_path_prefix_wins() {
        let scopes = ["docker.io", "docker.io/acme/", "docker.io/acme/app", "quay.io/x", "docker.io/acme"];
        let sources = scopes.map(|scope| CredentialSource::Password(credential(scope))).to_vec();
        let credentials = Credentials::new(sources);
        for (path, expected) in [
            ("docker.io/library/nginx", Some("docker.io")),
            ("docker.io/acme/other", Some("docker.io/acme/")),
            ("docker.io/acme", Some("docker.io/acme/")),
            ("docker.io/acmetoo/other", Some("docker.io")),
            ("docker.io/acme/app", Some("docker.io/acme/app")),
            ("docker.io/acme/app/deep", Some("docker.io/acme/app")),
            ("docker.io/acme/apple", Some("docker.io/acme/")),
            ("quay.io/x", Some("quay.io/x")),
            ("quay.io/y", None),
            ("ghcr.io/y", None),
        ] {
            let found = credentials.for_repository(&repository(path)).await;
            assert_eq!(found.as_ref().map(|identity| identity.scope.as_str()), expected, "{path}");
            assert_eq!(credentials.cover(&repository(path)), expected.is_some(), "{path}");
        }
    }

    #[tokio::test]
    async fn a_changed_file_is_another_identity() {
        let folder = tempfile::tempdir().unwrap();
        let (word, config) = (folder.path().join("word"), folder.path().join("config.json"));
        std::fs::write(&word, "first\n").unwrap();
        std::fs::write(&config, r#"{"auths":{"quay.io":{"auth":"dTpw"}}}"#).unwrap();
        let from_file = Credential { password_file: Some(word.clone()), ..credential("docker.io") };
        let sources = vec![CredentialSource::Password(from_file), CredentialSource::DockerConfig(config.clone())];
        let credentials = Credentials::new(sources);
        for (path, file, text) in
            [("docker.io/x", &word, "second\n"), ("quay.io/x", &config, r#"{"auths":{"quay.io":{"auth":"dTpwdw=="}}}"#)]
        {
            let first = credentials.for_repository(&repository(path)).await.unwrap();
            assert!(credentials.renewed(&repository(path), &first).await.is_none(), "nothing has changed");
            std::fs::write(file, text).unwrap();
            let second = credentials.renewed(&repository(path), &first).await.unwrap();
            assert_ne!(second.id, first.id);
            assert_eq!(credentials.for_repository(&repository(path)).await.unwrap().id, second.id);
        }
        assert!(credentials.cover(&repository("quay.io/x")));
        assert!(!credentials.cover(&repository("ghcr.io/x")));
        let unreadable = Credentials::new(vec![CredentialSource::DockerConfig(folder.path().join("missing"))]);
        assert!(unreadable.cover(&repository("ghcr.io/x")), "nobody knows");
        assert!(unreadable.for_repository(&repository("ghcr.io/x")).await.is_none());
    }

    #[test]
    fn a_secret_is_not_shown() {
        let credentials = Credentials::new(vec![CredentialSource::Password(credential("a"))]);
        let identity = Identity::new("a".to_owned(), Login::RegistryToken(Secret::new("hunter2")));
        assert!(!format!("{credentials:?} {identity:?}").contains("hunter2"));
    }
}
