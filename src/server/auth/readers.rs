//! Who may read what: the rules of `[access]`, over names that are proven.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::config::{Access, Reader, Rule};

use super::{Identity, Known};

/// The readers of a registry.
#[derive(Debug)]
pub struct Readers {
    known: Known,
    rules: Vec<Rule>,
    exempt: Vec<SocketAddr>,
}

/// What a reader may do with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// A rule names the reader: also what only the mirror's own credential opens is theirs to read.
    Listed,
    /// A rule lets everyone read, so what is private upstream stays private.
    Open,
    /// No rule allows it; saying who one is may change that.
    Unknown,
    /// No rule allows it.
    Denied,
}

// === impl Readers ===

impl Readers {
    /// The readers that `access` names. None of it holds at the addresses in `exempt`.
    pub fn new(access: &Access, exempt: Vec<SocketAddr>) -> Arc<Self> {
        Arc::new(Self { known: Known::new(&access.users), rules: access.rules.clone(), exempt })
    }

    /// Those whose names can be proven.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Whether anyone may use the listener that a client connected to, as if there were no rules.
    pub fn is_exempt(&self, local: SocketAddr) -> bool {
        let matches = |exempt: &SocketAddr| {
            exempt.port() == local.port() && (exempt.ip() == local.ip().to_canonical() || exempt.ip().is_unspecified())
        };
        self.exempt.iter().any(matches)
    }

    /// Whether there is anything to read without a name.
    pub fn admits_anonymous(&self) -> bool {
        self.rules.iter().any(|rule| rule.readers.contains(&Reader::Anonymous))
    }

    /// Whether someone may read a repository (`registry/repository`).
    pub fn admit(&self, reader: &Identity, repository: &str) -> Admission {
        let mut open = false;
        for rule in self.rules.iter().filter(|rule| rule.repositories.matches(repository)) {
            for allowed in &rule.readers {
                match (allowed, reader) {
                    (Reader::Known, Identity::User(_)) => return Admission::Listed,
                    (Reader::User(name), Identity::User(user)) if **name == **user => return Admission::Listed,
                    (Reader::Anonymous, _) => open = true,
                    (Reader::Known | Reader::User(_), _) => {}
                }
            }
        }
        match (open, reader) {
            (true, _) => Admission::Open,
            (false, Identity::Anonymous) => Admission::Unknown,
            (false, Identity::User(_)) => Admission::Denied,
        }
    }
}
