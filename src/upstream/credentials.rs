//! User names and passwords for registries, and which of them belongs to a repository.

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
}

/// A credential of this upstream, by its place in the list.
pub(super) type CredentialId = usize;

// === impl Credential ===

impl Credential {
    fn covers(&self, path: &str) -> bool {
        let scope = self.scope.trim_end_matches('/');
        path.strip_prefix(scope).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// The credential whose scope is the longest one that `repository` lies under; of equal ones the first.
pub(super) fn for_repository(credentials: &[Credential], repository: &Repository) -> Option<CredentialId> {
    let path = repository.to_string();
    let mut best: Option<(usize, CredentialId)> = None;
    for (id, credential) in credentials.iter().enumerate().filter(|(_, credential)| credential.covers(&path)) {
        let len = credential.scope.trim_end_matches('/').len();
        if best.is_none_or(|(longest, _)| len > longest) {
            best = Some((len, id));
        }
    }
    best.map(|(_, id)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_path_prefix_wins() {
        let scopes = ["docker.io", "docker.io/acme/", "docker.io/acme/app", "quay.io/x", "docker.io/acme"];
        let credentials: Vec<Credential> = scopes
            .iter()
            .map(|scope| Credential {
                scope: (*scope).to_owned(),
                username: "u".to_owned(),
                password: Secret::new("p"),
            })
            .collect();
        for (registry, name, expected) in [
            ("docker.io", "library/nginx", Some(0)),
            ("docker.io", "acme/other", Some(1)),
            ("docker.io", "acme", Some(1)),
            ("docker.io", "acmetoo/other", Some(0)),
            ("docker.io", "acme/app", Some(2)),
            ("docker.io", "acme/app/deep", Some(2)),
            ("docker.io", "acme/apple", Some(1)),
            ("quay.io", "x", Some(3)),
            ("quay.io", "y", None),
            ("ghcr.io", "x", None),
        ] {
            let repository = Repository { registry: registry.parse().unwrap(), name: name.parse().unwrap() };
            assert_eq!(for_repository(&credentials, &repository), expected, "{repository}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let credential =
            Credential { scope: "a".to_owned(), username: "u".to_owned(), password: Secret::new("hunter2") };
        assert!(!format!("{credential:?}").contains("hunter2"));
    }
}
