//! Who is known: the users of an htpasswd file and the holders of tokens, read from their files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::mistake::{Located, Mistakes, Place};
use super::written::Setting;
use crate::files;
use crate::secret::Secret;

/// Those whom a listener knows by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Users {
    /// The file of names and bcrypt hashes, as `htpasswd -B` makes it.
    pub htpasswd: Option<PathBuf>,
    /// The file of names and tokens.
    pub tokens_file: Option<PathBuf>,
    /// The bcrypt hash of each user's password.
    pub passwords: BTreeMap<String, Secret>,
    /// The tokens and the names they stand for. A name may have several, so that one can follow another.
    pub tokens: Vec<Token>,
}

/// A token and whose it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Whose it is.
    pub name: String,
    /// The token, or its digest.
    pub secret: TokenSecret,
}

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenSecret {
    /// The token itself.
    Plain(Secret),
    /// Its SHA-256.
    Sha256([u8; 32]),
}

/// The longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The costliest hash that is checked: each step doubles the time, and 14 is a second already.
const BCRYPT_COST_MAX: u32 = 14;

/// The shortest token: anything shorter can be guessed.
const TOKEN_CHARS_MIN: usize = 16;

/// Names that mean something else in rules.
const RESERVED: [&str; 2] = [ANYONE, EVERYONE_KNOWN];

/// In a rule: whoever says no name.
pub(super) const ANYONE: &str = "anonymous";

/// In a rule: whoever is known.
pub(super) const EVERYONE_KNOWN: &str = "*";

// === impl Users ===

impl Users {
    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.passwords.is_empty() && self.tokens.is_empty()
    }

    /// The names, some perhaps more than once.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.passwords.keys().map(String::as_str).chain(self.tokens.iter().map(|token| token.name.as_str()))
    }

    /// Reads the files that were named.
    pub(super) fn mean(htpasswd: Setting<PathBuf>, tokens_file: Setting<PathBuf>, mistakes: &Mistakes) -> Self {
        let mut users = Self::default();
        if let Some(file) = htpasswd {
            each_line(&file, mistakes, |line| {
                let (name, hash) = password_line(line)?;
                match users.passwords.insert(name.clone(), hash) {
                    Some(_) => Err(format!("the user {name:?} is there twice")),
                    None => Ok(()),
                }
            });
            users.htpasswd = Some(file.value);
        }
        if let Some(file) = tokens_file {
            each_line(&file, mistakes, |line| {
                users.tokens.push(token_line(line)?);
                Ok(())
            });
            users.tokens_file = Some(file.value);
        }
        users
    }
}

/// Reads a file line by line; empty ones and those that begin with `#` say nothing. No message repeats what is in it.
fn each_line(file: &Located<PathBuf>, mistakes: &Mistakes, mut read: impl FnMut(&str) -> Result<(), String>) {
    let place = |_: &Path| -> Place { file.place.clone() };
    let text = match files::read_text(&file.value, FILE_BYTES_MAX) {
        Ok(text) => text,
        Err(error) => return mistakes.report(place(&file.value), error.to_string()),
    };
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Err(problem) = read(line) {
            mistakes.report(place(&file.value), format!("{}:{}: {problem}", file.value.display(), number + 1));
        }
    }
}

fn user_name(name: &str) -> Result<String, String> {
    if RESERVED.contains(&name) {
        return Err(format!("{name:?} means something else in rules and is no user"));
    }
    match name {
        "" => Err("the line has no name before its ':'".to_owned()),
        _ if name.len() > 255 || name.contains(char::is_control) => {
            Err("a name has at most 255 bytes and no control characters".to_owned())
        }
        _ => Ok(name.to_owned()),
    }
}

/// A line of an htpasswd file. Only bcrypt withstands whoever gets hold of the file.
fn password_line(line: &str) -> Result<(String, Secret), String> {
    let (name, hash) = line.split_once(':').ok_or("the line is not a name, ':' and a hash")?;
    let name = user_name(name)?;
    let bcrypt = ["$2y$", "$2b$", "$2a$"].iter().find_map(|prefix| hash.strip_prefix(prefix));
    let cost = bcrypt.filter(|rest| rest.len() == 56 && rest.is_ascii()).and_then(|rest| {
        let (cost, salt_and_hash) = rest.split_once('$')?;
        let radix64 = |c: u8| c.is_ascii_alphanumeric() || c == b'.' || c == b'/';
        salt_and_hash.bytes().all(radix64).then(|| cost.parse::<u32>().ok()).flatten()
    });
    match cost {
        Some(4..=BCRYPT_COST_MAX) => Ok((name, Secret::new(hash))),
        Some(cost) => Err(format!("the hash of {name:?} has cost {cost}: 4 to {BCRYPT_COST_MAX} are checked here")),
        None => Err(format!("the hash of {name:?} is not bcrypt: make it with `htpasswd -B`")),
    }
}

/// A line of a tokens file: a name, ':', and the token or `sha256:` and its digest.
fn token_line(line: &str) -> Result<Token, String> {
    let (name, token) = line.split_once(':').ok_or("the line is not a name, ':' and a token")?;
    let (name, token) = (user_name(name.trim())?, token.trim());
    let secret = match token.strip_prefix("sha256:") {
        Some(digest) => {
            let mut bytes = [0; 32];
            let decoded = hex::decode_to_slice(digest, &mut bytes);
            decoded.map_err(|_| format!("the digest of {name:?}'s token is not 64 hexadecimal digits"))?;
            TokenSecret::Sha256(bytes)
        }
        None if token.chars().count() < TOKEN_CHARS_MIN => {
            return Err(format!("the token of {name:?} is shorter than {TOKEN_CHARS_MIN} characters"));
        }
        None if token.contains(|c: char| !c.is_ascii_graphic()) => {
            return Err(format!("the token of {name:?} has blanks or characters that no header carries"));
        }
        None => TokenSecret::Plain(Secret::new(token)),
    };
    Ok(Token { name, secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of "secret", at the least cost there is.
    const HASH: &str = "$2y$05$kmYUPTd1bN0vJm3sQ8dGfOq7s0m3Yq1m1uFQH5U7o1v1M0w8a9b2C";

    #[test]
    fn lines_are_read_and_mistakes_never_repeat_a_secret() {
        assert_eq!(password_line(&format!("ann:{HASH}")).unwrap().0, "ann");
        let wrong = [
            "ann".to_owned(),
            format!(":{HASH}"),
            format!("anonymous:{HASH}"),
            format!("*:{HASH}"),
            "ann:$apr1$hunter2$hunter2".to_owned(),
            "ann:hunter2".to_owned(),
            format!("ann:{}", HASH.replace("$05$", "$31$")),
            format!("ann:{HASH}hunter2"),
        ];
        for line in wrong {
            let problem = password_line(&line).unwrap_err();
            assert!(!problem.contains("hunter2") && !problem.contains("kmYU"), "{problem}");
        }
        assert_eq!(token_line("ci: 0123456789abcdef").unwrap().name, "ci");
        let digest = "00".repeat(32);
        assert_eq!(token_line(&format!("ci:sha256:{digest}")).unwrap().secret, TokenSecret::Sha256([0; 32]));
        for line in ["ci", "ci:hunter2", "ci:hunter2 hunter2 hunter2", "ci:sha256:hunter2", "*:0123456789abcdef"] {
            let problem = token_line(line).unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }
}
