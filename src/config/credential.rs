//! Who we are at upstreams: credentials, as written and as meant.

use std::path::PathBuf;

use super::mistake::{Located, Mistakes, Place, quoted};
use super::reader::Entry;
use super::schema;
use super::written::{Setting, path};
use crate::files;
use crate::oci::RepositoryName;
use crate::secret::Secret;

/// Who we are, for a part of a registry.
#[derive(Debug, Clone, PartialEq)]
pub struct Credential {
    /// The registry, maybe with the first segments of repositories (`docker.io/acme`): the longest that fits is used.
    pub scope: String,
    /// How that is shown.
    pub login: Login,
}

/// Where a user's name and password are.
#[derive(Debug, Clone, PartialEq)]
pub enum Login {
    /// Here.
    Password {
        /// The user.
        username: String,
        /// The password or token.
        password: Secret,
        /// The file it was read from, if it was.
        password_file: Option<PathBuf>,
    },
    /// A program knows: `NAME` of `docker-credential-NAME`, or its path.
    Helper(String),
}

/// An entry of `credentials`.
#[derive(Debug)]
pub(super) struct WrittenCredential {
    place: Place,
    scope: Setting<String>,
    username: Setting<String>,
    password: Setting<Secret>,
    password_file: Setting<PathBuf>,
    helper: Setting<String>,
    /// Whether a part was written but refused or misspelt, so that its absence is no mistake of its own.
    refused: bool,
}

/// What says who we are: a user name, a password, a file that holds one, a program that knows both.
pub(super) const PARTS: [&str; 4] = ["username", "password", "password_file", "helper"];

/// The longest password file that is read.
const PASSWORD_FILE_BYTES_MAX: u64 = 64 << 10;

/// Credentials of which each scope has one.
pub(super) fn mean(
    registry: &str,
    written: impl Iterator<Item = WrittenCredential>,
    mistakes: &Mistakes,
) -> Vec<Credential> {
    let mut credentials: Vec<Credential> = Vec::new();
    for credential in written {
        let place = credential.place.clone();
        let Some(credential) = credential.mean(registry, mistakes) else { continue };
        if credentials.iter().any(|other| other.scope == credential.scope) {
            mistakes.report(place, format!("there are two credentials for {}", quoted(&credential.scope)));
        } else {
            credentials.push(credential);
        }
    }
    credentials
}

// === impl WrittenCredential ===

impl WrittenCredential {
    pub(super) fn read(entry: Entry<'_>) -> Option<Self> {
        let place = entry.place.clone();
        let mut section = entry.section(schema::CREDENTIAL)?;
        let misspelt = section.has_unknown_keys();
        let scope = section.take("scope");
        let parts = PARTS.map(|part| section.take(part));
        section.finish();
        Some(Self::of_parts(place, scope, parts, misspelt))
    }

    /// A credential of a scope and of [`PARTS`].
    pub(super) fn of_parts(
        place: Place,
        scope: Option<Entry<'_>>,
        parts: [Option<Entry<'_>>; PARTS.len()],
        misspelt: bool,
    ) -> Self {
        let written = parts.iter().flatten().count() + usize::from(scope.is_some());
        let [username, password, password_file, helper] = parts;
        let credential = Self {
            place,
            scope: scope.and_then(Entry::text).map(|text| text.map(|text| text.trim_end_matches('/').to_owned())),
            username: username.and_then(|entry| entry.parse(user)),
            password: password.and_then(|entry| entry.parse(secret)),
            password_file: password_file.and_then(path),
            helper: helper.and_then(|entry| entry.parse(helper_name)),
            refused: false,
        };
        let read = [
            credential.scope.is_some(),
            credential.username.is_some(),
            credential.password.is_some(),
            credential.password_file.is_some(),
            credential.helper.is_some(),
        ];
        let refused = misspelt || read.into_iter().filter(|read| *read).count() < written;
        Self { refused, ..credential }
    }

    pub(super) fn unwritten(place: Place) -> Self {
        Self { place, scope: None, username: None, password: None, password_file: None, helper: None, refused: false }
    }

    /// Whether any part of it was.
    pub(super) fn is_written(&self) -> bool {
        let written =
            [self.username.is_some(), self.password.is_some(), self.password_file.is_some(), self.helper.is_some()];
        written.contains(&true)
    }

    pub(super) fn mean(self, registry: &str, mistakes: &Mistakes) -> Option<Credential> {
        let Self { place, scope, username, password, password_file, helper, refused } = self;
        let scope = match scope {
            None => registry.to_owned(),
            Some(scope) => mean_scope(registry, scope, mistakes)?,
        };
        if refused {
            return None;
        }
        if let Some(Located { value: helper, place }) = helper {
            if username.is_some() || password.is_some() || password_file.is_some() {
                mistakes.report(place, "a helper knows the user name and the password: leave those out");
            }
            return Some(Credential { scope, login: Login::Helper(helper) });
        }
        let lacks = |part: &str| mistakes.report(place.clone(), format!("this credential lacks a {part}"));
        let user = username.map(|username| username.value);
        if user.is_none() {
            lacks("username");
        }
        let (password, password_file) = match (password, password_file) {
            (Some(password), None) => (Some(password.value), None),
            (None, Some(file)) => (read_password(&file, mistakes), Some(file.value)),
            (Some(_), Some(file)) => {
                mistakes.report(file.place, "this credential has a password already: keep one of the two");
                (None, None)
            }
            (None, None) => {
                lacks("password or password_file");
                (None, None)
            }
        };
        Some(Credential { scope, login: Login::Password { username: user?, password: password?, password_file } })
    }
}

/// A scope that lies in the upstream it is written for, so that no credential can reach another.
fn mean_scope(registry: &str, scope: Located<String>, mistakes: &Mistakes) -> Option<String> {
    let Located { value: scope, place } = scope;
    let inside = scope.strip_prefix(registry).is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix('/').is_some_and(|path| path.parse::<RepositoryName>().is_ok())
    });
    if inside {
        return Some(scope);
    }
    mistakes
        .report(place, format!("{} is not {registry:?} or a part of it, such as \"{registry}/team\"", quoted(&scope)));
    None
}

/// The password in a file, without the line break that editors leave at its end.
fn read_password(file: &Located<PathBuf>, mistakes: &Mistakes) -> Option<Secret> {
    let report = |problem: String| mistakes.report(file.place.clone(), problem);
    let text =
        files::read_text(&file.value, PASSWORD_FILE_BYTES_MAX).map_err(|error| report(error.to_string())).ok()?;
    secret(text.trim_end_matches(['\r', '\n']))
        .map_err(|problem| report(format!("{}: {problem}", file.value.display())))
        .ok()
}

fn user(text: &str) -> Result<String, String> {
    match text {
        "" => Err("the user name is empty".to_owned()),
        _ if text.contains(':') => Err("a user name has no ':', which ends it in Basic authentication".to_owned()),
        _ if text.contains(char::is_control) => Err("a user name has no control characters".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

/// A password, also one from a file. The error never repeats it.
fn secret(text: &str) -> Result<Secret, String> {
    match text {
        "" => Err("the password is empty".to_owned()),
        _ if text.contains(char::is_control) => {
            Err("a password has no control characters such as line breaks".to_owned())
        }
        _ => Ok(Secret::new(text)),
    }
}

/// A helper by its name, or by its path.
fn helper_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.starts_with('/') || (!text.is_empty() && text.chars().all(plain)) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{} is not a helper: write \"ecr-login\" for docker-credential-ecr-login, or the path of a program",
        quoted(text)
    ))
}
