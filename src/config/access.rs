//! `[access]`: who may read what through which listener, and who may use the API; as written and as meant.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::globs::{self, Globs};
use super::mistake::{Located, Mistakes, most_like, quoted};
use super::reader::{Entry, Section};
use super::schema;
use super::users::{ANYONE, EVERYONE_KNOWN, Users};
use super::written::{Setting, addresses, many, path};

/// `[access]`: who may read. Where it is not written, everyone may read what upstream shows to everyone.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// Those who are known.
    pub users: Users,
    /// What they may read. What no rule allows is forbidden.
    pub rules: Vec<Rule>,
    /// Addresses of `server.listen` where none of this holds.
    pub exempt: Vec<SocketAddr>,
}

/// Some may read some repositories.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Who.
    pub readers: Vec<Reader>,
    /// What, as `registry/repository`.
    pub repositories: RepositoryGlobs,
}

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reader {
    /// Whoever says no name.
    Anonymous,
    /// Whoever is known.
    Known,
    /// One who is known.
    User(String),
}

/// Globs over repositories: `*` is within a segment, `**` is any number of them.
#[derive(Debug, Clone, PartialEq)]
pub struct RepositoryGlobs(Globs);

/// `[access]` as written.
#[derive(Debug)]
pub(super) struct WrittenAccess {
    place: super::Place,
    htpasswd: Setting<PathBuf>,
    tokens_file: Setting<PathBuf>,
    rules: Setting<Vec<WrittenRule>>,
    exempt: Setting<Vec<Located<SocketAddr>>>,
}

#[derive(Debug)]
struct WrittenRule {
    place: super::Place,
    users: Setting<Vec<Located<String>>>,
    repositories: Setting<Vec<Located<String>>>,
    refused: bool,
}

// === impl RepositoryGlobs ===

impl RepositoryGlobs {
    /// Reads globs. The error says which is none, and why.
    pub fn new(globs: Vec<String>) -> Result<Self, String> {
        Globs::new(globs).map(Self)
    }

    /// Whether one of them matches `registry/repository`.
    pub fn matches(&self, repository: &str) -> bool {
        self.0.matches(repository)
    }

    /// The globs as written.
    pub fn as_slice(&self) -> &[String] {
        self.0.as_slice()
    }
}

// === impl Reader ===

impl Reader {
    /// How it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Anonymous => ANYONE,
            Self::Known => EVERYONE_KNOWN,
            Self::User(name) => name,
        }
    }

    fn new(text: &str) -> Self {
        match text {
            ANYONE => Self::Anonymous,
            EVERYONE_KNOWN => Self::Known,
            name => Self::User(name.to_owned()),
        }
    }
}

// === impl WrittenAccess ===

impl WrittenAccess {
    pub(super) fn read(entry: Entry<'_>) -> Option<Self> {
        let place = entry.place.clone();
        let mut section: Section<'_> = entry.section(schema::ACCESS)?;
        let access = Self {
            place,
            htpasswd: section.take("htpasswd").and_then(path),
            tokens_file: section.take("tokens_file").and_then(path),
            rules: section
                .take("rules")
                .and_then(Entry::list)
                .map(|list| list.map(|list| list.into_iter().filter_map(WrittenRule::read).collect())),
            exempt: section.take("exempt").and_then(addresses),
        };
        section.finish();
        Some(access)
    }

    pub(super) fn mean(self, listen: &[SocketAddr], mistakes: &Mistakes) -> Access {
        let nobody = self.htpasswd.is_none() && self.tokens_file.is_none();
        let users = Users::mean(self.htpasswd, self.tokens_file, mistakes);
        let rules: Vec<_> = match self.rules {
            Some(rules) => rules.value.into_iter().filter_map(|rule| rule.mean(&users, mistakes)).collect(),
            None => Rule::all_for_the_known().into_iter().collect(),
        };
        let anonymous = rules.iter().any(|rule| rule.readers.contains(&Reader::Anonymous));
        if nobody && !anonymous {
            let problem =
                "nobody could read anything: name an htpasswd file, a tokens_file, or rules for \"anonymous\"";
            mistakes.report(self.place, problem);
        }
        let mut exempt = Vec::new();
        for Located { value, place } in self.exempt.into_iter().flat_map(|list| list.value) {
            if listen.contains(&value) {
                exempt.push(value);
            } else {
                mistakes.report(place, format!("{value} is not one of server.listen"));
            }
        }
        Access { users, rules, exempt }
    }
}

// === impl Rule ===

impl Rule {
    /// What holds where no rules are written: whoever is known may read everything.
    pub(super) fn all_for_the_known() -> Option<Self> {
        let repositories = RepositoryGlobs::new(vec!["**".to_owned()]).ok()?;
        Some(Self { readers: vec![Reader::Known], repositories })
    }
}

impl WrittenRule {
    fn read(entry: Entry<'_>) -> Option<Self> {
        let place = entry.place.clone();
        let mut section = entry.section(schema::RULE)?;
        let misspelt = section.has_unknown_keys();
        let parts = [section.take("users"), section.take("repositories")];
        section.finish();
        let written = parts.iter().flatten().count();
        let [users, repositories] = parts;
        let users = users.and_then(|entry| many(entry, |text| Ok(text.to_owned())));
        let repositories = repositories.and_then(|entry| many(entry, globs::checked));
        let refused = misspelt || usize::from(users.is_some()) + usize::from(repositories.is_some()) < written;
        Some(Self { place, users, repositories, refused })
    }

    fn mean(self, users: &Users, mistakes: &Mistakes) -> Option<Rule> {
        if self.refused {
            return None;
        }
        let (Some(written), Some(repositories)) = (self.users, self.repositories) else {
            mistakes.report(self.place, "a rule needs users and repositories");
            return None;
        };
        report_unknown(&written.value, users, mistakes);
        let readers = written.value.iter().map(|user| Reader::new(&user.value)).collect();
        let globs = repositories.value.into_iter().map(|glob| glob.value).collect();
        match RepositoryGlobs::new(globs) {
            Ok(repositories) => Some(Rule { readers, repositories }),
            Err(problem) => {
                mistakes.report(repositories.place, problem);
                None
            }
        }
    }
}

/// Reports names that no file knows: a slip would lock someone out, or a former user's name wait for a new one.
pub(super) fn report_unknown(written: &[Located<String>], users: &Users, mistakes: &Mistakes) {
    for Located { value: name, place } in written {
        if name == ANYONE || name == EVERYONE_KNOWN || users.names().any(|known| known == name) {
            continue;
        }
        let like = most_like(name, users.names().chain([ANYONE])).map(|like| format!("{like:?}"));
        mistakes.suggest(place.clone(), format!("nobody is called {}", quoted(name)), like);
    }
}
