//! Globs as the configuration writes them: read one by one, matched together, shown as they were written.

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use super::mistake::quoted;

/// Globs over names with segments: `*` stays within a segment, `**` does not, `?`, `[a-z]` and `{a,b}` are as usual.
#[derive(Debug, Clone)]
pub(super) struct Globs {
    written: Vec<String>,
    set: GlobSet,
}

// === impl Globs ===

impl Globs {
    /// Globs that match nothing.
    pub(super) fn none() -> Self {
        Self { written: Vec::new(), set: GlobSet::empty() }
    }

    /// Reads globs. The error says which is none, and why.
    pub(super) fn new(written: Vec<String>) -> Result<Self, String> {
        let mut builder = GlobSetBuilder::new();
        for text in &written {
            builder.add(read(text)?);
        }
        let set = builder.build().map_err(|error| format!("the globs are too large together: {}", error.kind()))?;
        Ok(Self { written, set })
    }

    /// The first that matches, as written.
    pub(super) fn matching(&self, name: &str) -> Option<&str> {
        let index = self.set.matches(name).into_iter().next()?;
        self.written.get(index).map(String::as_str)
    }

    /// Whether one of them matches.
    pub(super) fn matches(&self, name: &str) -> bool {
        self.set.is_match(name)
    }

    /// The globs as written.
    pub(super) fn as_slice(&self) -> &[String] {
        &self.written
    }
}

impl PartialEq for Globs {
    fn eq(&self, other: &Self) -> bool {
        self.written == other.written
    }
}

/// A text that is a glob, as it is written.
pub(super) fn checked(text: &str) -> Result<String, String> {
    read(text).map(|_| text.to_owned())
}

fn read(text: &str) -> Result<Glob, String> {
    if text.is_empty() {
        return Err("\"\" is not a glob".to_owned());
    }
    let built = GlobBuilder::new(text).literal_separator(true).build();
    built.map_err(|error| format!("{} is not a glob: {}", quoted(text), error.kind()))
}
