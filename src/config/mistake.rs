//! Mistakes in the configuration: where each is, what is wrong there, and what may have been meant.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

/// The exit code of a program that was configured wrongly (`EX_USAGE` of sysexits.h).
pub const EXIT_CONFIG: u8 = 64;

/// Everything that is wrong with a configuration, in the order of the file, then environment, then flags. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Mistake>);

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where it was written.
    pub place: Place,
    /// What is wrong, never repeating a secret.
    pub problem: String,
    /// What may have been meant.
    pub suggestion: Option<String>,
}

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Which layer of the configuration.
    pub source: Source,
    /// The path of the key (`upstreams."docker.io".endpoints[0]`); empty where a whole file or its syntax is meant.
    pub key: String,
}

/// A layer of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody wrote it.
    Default,
    /// The configuration file.
    File {
        /// Its path.
        path: Arc<str>,
        /// Where in it; `None` for the file as a whole.
        position: Option<Position>,
    },
    /// A variable of the environment.
    Environment(&'static str),
    /// A flag of the command line.
    Flag(&'static str),
}

/// A place in a text, both counted from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The character in that line.
    pub column: usize,
}

/// A value, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// Collects mistakes while everything else is still being looked at.
#[derive(Debug, Default)]
pub(super) struct Mistakes(RefCell<Vec<Mistake>>);

/// How much of a refused text is repeated in a message.
const QUOTED_CHARS_MAX: usize = 80;

/// A text as it is repeated in messages: quoted, and cut where it is long.
pub(super) fn quoted(text: &str) -> String {
    if text.chars().count() <= QUOTED_CHARS_MAX {
        format!("{text:?}")
    } else {
        format!("{:?}…", text.chars().take(QUOTED_CHARS_MAX).collect::<String>())
    }
}

/// The candidate most like `text`, if any is like it at all: at most a third of its letters wrong.
pub(super) fn most_like<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Distances cost the product of both lengths; nothing that long was meant to be a name of ours.
    let text: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&text, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

// === impl Mistakes ===

impl Mistakes {
    pub(super) fn report(&self, place: Place, problem: impl Into<String>) {
        self.push(Mistake { place, problem: problem.into(), suggestion: None });
    }

    pub(super) fn suggest(&self, place: Place, problem: impl Into<String>, suggestion: Option<String>) {
        self.push(Mistake { place, problem: problem.into(), suggestion });
    }

    fn push(&self, mistake: Mistake) {
        self.0.borrow_mut().push(mistake);
    }

    /// The value, if nothing was wrong.
    pub(super) fn or<T>(self, value: T) -> Result<T, ConfigErrors> {
        let mut mistakes = self.0.into_inner();
        if mistakes.is_empty() {
            return Ok(value);
        }
        mistakes.sort_by_key(|mistake| mistake.place.source.rank());
        Err(ConfigErrors(mistakes))
    }
}

// === impl ConfigErrors ===

impl ConfigErrors {
    /// The mistakes, at least one.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("1 mistake in the configuration:")?,
            count => write!(f, "{count} mistakes in the configuration:")?,
        }
        self.0.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for ConfigErrors {}

// === impl Mistake ===

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)?;
        self.suggestion.as_ref().map_or(Ok(()), |suggestion| write!(f, "; did you mean {suggestion}?"))
    }
}

// === impl Place ===

impl Place {
    /// The place of a setting that nobody wrote.
    pub(super) fn unwritten(key: &str) -> Self {
        Self { source: Source::Default, key: key.to_owned() }
    }

    /// The place as another mistake mentions it.
    pub(super) fn mention(&self) -> String {
        match (&self.source, self.key.as_str()) {
            (source, "") => source.to_string(),
            (Source::Default, key) => format!("{key} by default"),
            (source, key) => format!("{key} ({source})"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.source, self.key.as_str()) {
            (source, "") => source.fmt(f),
            (source, key) => write!(f, "{source}: {key}"),
        }
    }
}

// === impl Source ===

impl Source {
    fn rank(&self) -> (u8, Option<Position>) {
        match self {
            Self::File { position, .. } => (0, *position),
            Self::Environment(_) => (1, None),
            Self::Flag(_) => (2, None),
            Self::Default => (3, None),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, position: None } => f.write_str(path),
            Self::File { path, position: Some(Position { line, column }) } => write!(f, "{path}:{line}:{column}"),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

// === impl Located ===

impl<T> Located<T> {
    pub(super) fn map<U>(self, with: impl FnOnce(T) -> U) -> Located<U> {
        Located { value: with(self.value), place: self.place }
    }
}
