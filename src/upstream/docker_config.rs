//! Docker's `config.json` read: who we are at which registry, and which program knows. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::credentials::Login;
use crate::secret::Secret;

/// What such a file says. Also a Kubernetes secret of the type `kubernetes.io/dockerconfigjson` is one.
#[derive(Debug, Default)]
pub(super) struct DockerConfig {
    /// By registry, or registry and the first segments of repositories.
    logins: Vec<(String, Login)>,
    /// By registry: the name of the program, and what it calls the registry.
    helpers: Vec<(String, Helper)>,
    /// The program for all others.
    store: Option<String>,
}

/// A program that knows a credential: `docker-credential-NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Helper {
    pub(super) program: String,
    /// What it is asked for.
    pub(super) server: String,
}

/// Where a repository's credential is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Here, for everything below a scope.
    Login { scope: String, login: Login },
    /// A program has it, if anyone.
    Helper { scope: String, helper: Helper },
}

/// What Docker Hub is called in such files and by such programs.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// A key as a registry's name, with a path if it had one and was no address.
fn normal(key: &str) -> String {
    let key = key.trim();
    let (address, rest) = match key.split_once("://") {
        Some((_, rest)) => (true, rest),
        None => (false, key),
    };
    let rest = rest.trim_end_matches('/');
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io".to_owned(),
        host => host.to_owned(),
    };
    let path = if address || matches!(path, "v1" | "v2") { "" } else { path };
    if path.is_empty() { host } else { format!("{host}/{path}") }
}

/// What a helper calls a registry.
fn server(registry: &str) -> String {
    if registry == "docker.io" { DOCKER_HUB_KEY.to_owned() } else { registry.to_owned() }
}

/// The login in an entry of `auths`. `None`: it is empty, which says that a program has it.
fn login(entry: &Value) -> Result<Option<Login>, String> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let mut username = text("username").map(str::to_owned);
    let mut password = text("password").map(str::to_owned);
    if let Some(auth) = text("auth") {
        let bytes = STANDARD.decode(auth).map_err(|_| "an \"auth\" that is not base64")?;
        let both = String::from_utf8(bytes).map_err(|_| "an \"auth\" that is not text")?;
        let (user, word) = both.split_once(':').ok_or("an \"auth\" without a colon")?;
        username = Some(user.to_owned());
        password = Some(word.trim_matches('\0').to_owned()).filter(|word| !word.is_empty());
    }
    if let Some(token) = text("registrytoken") {
        return Ok(Some(Login::RegistryToken(Secret::new(token))));
    }
    if let Some(token) = text("identitytoken") {
        let username = username.unwrap_or_default();
        return Ok(Some(Login::IdentityToken { username, token: Secret::new(token) }));
    }
    Ok(username
        .zip(password)
        .map(|(username, password)| Login::Password { username, password: Secret::new(&password) }))
}

// === impl DockerConfig ===

impl DockerConfig {
    /// Reads a file. The error never repeats what is in it.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let file: Value = serde_json::from_slice(bytes).map_err(|_| "is not JSON")?;
        let file = file.as_object().ok_or("is not a JSON object")?;
        let mut config = Self {
            store: file.get("credsStore").and_then(Value::as_str).filter(|name| !name.is_empty()).map(str::to_owned),
            ..Self::default()
        };
        for (key, entry) in file.get("auths").and_then(Value::as_object).into_iter().flatten() {
            if let Some(login) = login(entry).map_err(|problem| format!("has {problem}"))? {
                config.logins.push((normal(key), login));
            }
        }
        for (key, program) in file.get("credHelpers").and_then(Value::as_object).into_iter().flatten() {
            if let Some(program) = program.as_str().filter(|program| !program.is_empty()) {
                let registry = normal(key);
                let helper = Helper { program: program.to_owned(), server: server(&registry) };
                config.helpers.push((registry, helper));
            }
        }
        Ok(config)
    }

    /// Where the credential for a repository is, given by its registry and its whole path: the registry's own program, the
    /// longest entry that the path begins with, the program for all.
    pub(super) fn find(&self, registry: &str, path: &str) -> Option<Found> {
        if let Some((_, helper)) = self.helpers.iter().find(|(known, _)| known == registry) {
            return Some(Found::Helper { scope: registry.to_owned(), helper: helper.clone() });
        }
        let covers =
            |scope: &str| path.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        let covering = self.logins.iter().filter(|(scope, _)| covers(scope));
        if let Some((scope, login)) = covering.max_by_key(|(scope, _)| scope.len()) {
            return Some(Found::Login { scope: scope.clone(), login: login.clone() });
        }
        let program = self.store.clone()?;
        let helper = Helper { program, server: server(registry) };
        Some(Found::Helper { scope: registry.to_owned(), helper })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, word: &str) -> Login {
        Login::Password { username: user.to_owned(), password: Secret::new(word) }
    }

    fn found(config: &DockerConfig, path: &str) -> Option<Found> {
        config.find(path.split('/').next().unwrap(), path)
    }

    #[test]
    fn every_kind_of_entry() {
        let config = DockerConfig::parse(
            br#"{
                "auths": {
                    "https://index.docker.io/v1/": { "auth": "aHVidXNlcjpodWI6d29yZA==" },
                    "corp:5000": { "username": "u", "password": "p" },
                    "corp:5000/team": { "auth": "dGVhbTp0ZWFtd29yZAAA" },
                    "http://old.corp/v2": { "auth": "bzpv" },
                    "acr.example": { "auth": "MDAwMDA6", "identitytoken": "refresh" },
                    "reg.example": { "registrytoken": "bearer" },
                    "kept.example": {}
                },
                "credHelpers": { "ecr.example": "ecr-login", "corp:6000": "x" },
                "credsStore": "secretservice",
                "HttpHeaders": { "User-Agent": "x" }
            }"#,
        )
        .unwrap();
        let login = |scope: &str, login| Some(Found::Login { scope: scope.to_owned(), login });
        let helper = |scope: &str, program: &str, server: &str| {
            let helper = Helper { program: program.to_owned(), server: server.to_owned() };
            Some(Found::Helper { scope: scope.to_owned(), helper })
        };
        let token = |username: &str, token: &str| Login::IdentityToken {
            username: username.to_owned(),
            token: Secret::new(token),
        };
        for (path, expected) in [
            ("docker.io/library/nginx", login("docker.io", password("hubuser", "hub:word"))),
            ("corp:5000/app", login("corp:5000", password("u", "p"))),
            ("corp:5000/team/app", login("corp:5000/team", password("team", "teamword"))),
            ("corp:5000/teams/app", login("corp:5000", password("u", "p"))),
            ("old.corp/app", login("old.corp", password("o", "o"))),
            ("acr.example/app", login("acr.example", token("00000", "refresh"))),
            ("reg.example/app", login("reg.example", Login::RegistryToken(Secret::new("bearer")))),
            ("ecr.example/app", helper("ecr.example", "ecr-login", "ecr.example")),
            ("kept.example/app", helper("kept.example", "secretservice", "kept.example")),
            ("other.example/app", helper("other.example", "secretservice", "other.example")),
        ] {
            assert_eq!(found(&config, path), expected, "{path}");
        }
        let store = DockerConfig::parse(br#"{ "credsStore": "pass" }"#).unwrap();
        assert_eq!(found(&store, "docker.io/x"), helper("docker.io", "pass", DOCKER_HUB_KEY));
        let hub = DockerConfig::parse(br#"{ "credHelpers": { "https://index.docker.io/v1/": "pass" } }"#).unwrap();
        assert_eq!(found(&hub, "docker.io/x"), helper("docker.io", "pass", DOCKER_HUB_KEY));
    }

    #[test]
    fn every_name_of_docker_hub_is_docker_hub() {
        for key in ["docker.io", "https://index.docker.io/v1/", "index.docker.io", "https://registry-1.docker.io/v2/"] {
            let file = format!(r#"{{ "auths": {{ "{key}": {{ "auth": "dTpw" }} }} }}"#);
            let config = DockerConfig::parse(file.as_bytes()).unwrap();
            assert!(matches!(found(&config, "docker.io/x"), Some(Found::Login { .. })), "{key}");
        }
    }

    #[test]
    fn what_is_no_such_file_is_said_without_repeating_it() {
        assert!(DockerConfig::parse(b"{}").unwrap().find("docker.io", "docker.io/x").is_none());
        for bad in ["", "hunter2", "[]", r#"{"auths":{"a":{"auth":"hunter2!"}}}"#, r#"{"auths":{"a":{"auth":"YQ=="}}}"#]
        {
            let problem = DockerConfig::parse(bad.as_bytes()).unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
}
