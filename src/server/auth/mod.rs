//! Who asks: names proven by a password or a token, and how guessing is slowed down.

mod attempts;
mod header;
mod readers;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::config::{TokenSecret, Users};
use crate::secret::Secret;
use crate::tasks::Pool;

use attempts::Attempts;
pub use header::{Claim, parse};
pub use readers::{Admission, Readers};

/// Whoever asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// No name was said.
    Anonymous,
    /// The name was proven.
    User(Arc<str>),
}

/// Why a name is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The user, password or token is wrong, or the header is none that is understood.
    Wrong,
    /// It was wrong so often that it is not looked at for a while.
    TooOften,
    /// More passwords are waiting to be checked than is sensible.
    Busy,
}

/// What all listeners share for checking names: threads, what was proven lately, and who guesses. Cheap to clone.
#[derive(Clone)]
pub struct Checks(Arc<Inner>);

struct Inner {
    pool: Pool,
    waiting: Semaphore,
    /// Digests of what was proven: of a secret of this process, the name, the password and the hash that it fits.
    proven: moka::future::Cache<[u8; 32], ()>,
    attempts: Attempts,
    salt: [u8; 32],
}

/// Those whom a listener knows.
pub struct Known {
    passwords: HashMap<String, Secret>,
    /// By their digests. A look-up takes as long as it takes, but what it compares is a digest, which nobody can steer
    /// towards another byte by byte.
    tokens: HashMap<[u8; 32], Arc<str>>,
}

/// How long a password once proven is believed without the work of bcrypt. A changed hash ends it at once.
const PROVEN_FOR: Duration = Duration::from_hours(1);

/// How many proven passwords are remembered.
const PROVEN_MAX: u64 = 10_000;

/// How many passwords may wait for their check: at some 10 a second and thread, what is further back waits in vain.
const WAITING_MAX: usize = 64;

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

// === impl Known ===

impl Known {
    /// Those whom the configuration names.
    pub fn new(users: &Users) -> Self {
        let token = |token: &crate::config::Token| {
            let digest = match &token.secret {
                TokenSecret::Plain(secret) => Sha256::digest(secret.expose()).into(),
                TokenSecret::Sha256(digest) => *digest,
            };
            (digest, Arc::from(token.name.as_str()))
        };
        Self {
            passwords: users.passwords.iter().map(|(name, hash)| (name.clone(), hash.clone())).collect(),
            tokens: users.tokens.iter().map(token).collect(),
        }
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.passwords.is_empty() && self.tokens.is_empty()
    }

    fn token(&self, token: &str) -> Option<Arc<str>> {
        self.tokens.get(&<[u8; 32]>::from(Sha256::digest(token))).cloned()
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").field("passwords", &self.passwords.len()).field("tokens", &self.tokens.len()).finish()
    }
}

// === impl Checks ===

impl Checks {
    /// Nothing proven yet. Passwords are checked on `pool`.
    pub fn new(pool: Pool) -> Self {
        Self(Arc::new(Inner {
            pool,
            waiting: Semaphore::new(WAITING_MAX),
            proven: moka::future::Cache::builder().max_capacity(PROVEN_MAX).time_to_live(PROVEN_FOR).build(),
            attempts: Attempts::new(),
            salt: rand::random(),
        }))
    }

    /// Who a request is from. What is said and not proven is refused, also where nothing need be said.
    pub async fn identify(&self, known: &Known, headers: &HeaderMap, client: IpAddr) -> Result<Identity, Refusal> {
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok(Identity::Anonymous) };
        let claim = header.to_str().ok().and_then(parse).ok_or(Refusal::Wrong)?;
        let (name, password) = match claim {
            // Nobody guesses one, so this needs no slowing down.
            Claim::Token(token) => return known.token(token.expose()).map(Identity::User).ok_or(Refusal::Wrong),
            Claim::Nobody => return Ok(Identity::Anonymous),
            Claim::Password { name, password } => (name, password),
        };
        // Clients that know only Basic carry a token as the password of its name.
        if let Some(owner) = known.token(password.expose()).filter(|owner| **owner == *name) {
            return Ok(Identity::User(owner));
        }
        if self.password(known, &name, &password, client).await? {
            return Ok(Identity::User(name.into()));
        }
        if self.0.attempts.failed(client, &name) {
            tracing::warn!(
                target: "cachalot::audit",
                event = "guessing",
                %client,
                user = name,
                "wrong passwords again and again: they are not looked at for a minute"
            );
        }
        Err(Refusal::Wrong)
    }

    /// Whether a password is right. One that was is not checked again.
    async fn password(&self, known: &Known, name: &str, password: &Secret, client: IpAddr) -> Result<bool, Refusal> {
        let exists = known.passwords.contains_key(name);
        // A name that nobody has takes as long as others.
        let Some(hash) = known.passwords.get(name).or_else(|| known.passwords.values().next()).cloned() else {
            return Ok(false);
        };
        let key = digest(&[&self.0.salt, name.as_bytes(), password.expose().as_bytes(), hash.expose().as_bytes()]);
        if exists && self.0.proven.contains_key(&key) {
            return Ok(true);
        }
        if self.0.attempts.too_often(client, name) {
            return Err(Refusal::TooOften);
        }
        let password = password.clone();
        let check = async {
            // Many nodes that start at once send the same password: it is checked once.
            let _place = self.0.waiting.try_acquire().map_err(|_| Refusal::Busy)?;
            let right = self.0.pool.run(move || bcrypt::verify(password.expose(), hash.expose())).await;
            if right.unwrap_or(false) && exists { Ok(()) } else { Err(Refusal::Wrong) }
        };
        match self.0.proven.try_get_with(key, check).await {
            Ok(()) => Ok(true),
            Err(refusal) => match *refusal {
                Refusal::Busy => Err(Refusal::Busy),
                Refusal::Wrong | Refusal::TooOften => Ok(false),
            },
        }
    }
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Checks")
    }
}

#[cfg(test)]
mod tests;
