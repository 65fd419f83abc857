//! Typed readers over a parsed TOML file, which report each mistake with its place and go on.

use std::ops::RangeInclusive;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::mistake::{Located, Mistakes, Place, Position, Source, most_like, quoted};
use super::schema::{self, Schema};

/// The file being read, and where its mistakes go.
#[derive(Debug)]
pub(super) struct Document<'a> {
    pub(super) path: Arc<str>,
    pub(super) text: &'a str,
    pub(super) mistakes: &'a Mistakes,
}

/// A table with known keys. Unknown ones are reported when it is opened.
#[derive(Debug)]
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    table: &'a DeTable<'a>,
    place: Place,
    key: String,
    schema: Schema,
    /// Which keys the code asked for, so that code and schema cannot come apart unnoticed.
    asked: Vec<&'static str>,
}

/// A value that was written, not looked at yet.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    document: &'a Document<'a>,
    value: &'a DeValue<'a>,
    pub(super) place: Place,
    expects: &'static str,
}

/// An entry of a table whose keys are the operator's own: the key, and what it is set to.
pub(super) type Named<'a> = (Located<&'a str>, Entry<'a>);

/// The path of a key inside the section at `path`.
fn join(path: &str, name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    let name = if bare { name.to_owned() } else { quoted(name) };
    if path.is_empty() { name } else { format!("{path}.{name}") }
}

/// What a value is, with its article.
fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

// === impl Document ===

impl<'a> Document<'a> {
    /// The top of the file.
    pub(super) fn root(&'a self, table: &'a DeTable<'a>) -> Section<'a> {
        Section::open(self, table, self.place(0, String::new()), schema::ROOT)
    }

    /// The place of what starts at a byte offset.
    pub(super) fn place(&self, offset: usize, key: String) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let position = Position {
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).map_or(0, |start| start.chars().count()) + 1,
        };
        Place { source: Source::File { path: Arc::clone(&self.path), position: Some(position) }, key }
    }
}

// === impl Section ===

impl<'a> Section<'a> {
    fn open(document: &'a Document<'a>, table: &'a DeTable<'a>, place: Place, schema: Schema) -> Self {
        let key = place.key.clone();
        for name in table.keys() {
            let text = name.get_ref().as_ref();
            if schema.has(text) {
                continue;
            }
            let place = document.place(name.span().start, join(&key, text));
            document.mistakes.suggest(place, "unknown key", suggestion(text, schema));
        }
        Self { document, table, place, key, schema, asked: Vec::new() }
    }

    /// Whether it has keys that nobody knows, which then may be what others are missed for.
    pub(super) fn has_unknown_keys(&self) -> bool {
        self.table.keys().any(|name| !self.schema.has(name.get_ref()))
    }

    /// The value of a key of the schema, if it was written.
    pub(super) fn take(&mut self, name: &'static str) -> Option<Entry<'a>> {
        self.asked.push(name);
        let key = self.schema.keys.iter().find(|key| key.name == name);
        debug_assert!(key.is_some(), "{name} is missing from the schema of [{}]", self.schema.path);
        let (_, value) = self.table.iter().find(|(key, _)| key.get_ref() == name)?;
        let expects = key.map_or("", |key| key.expects);
        Some(Entry::new(self.document, value, join(&self.key, name), expects))
    }

    /// Says that something is wrong with the section as a whole.
    pub(super) fn report(&self, problem: &str) {
        self.document.mistakes.report(self.place.clone(), problem);
    }

    /// Ends the section. In debug builds, panics if the schema has a key that the code never asked for.
    pub(super) fn finish(self) {
        for key in self.schema.keys {
            debug_assert!(self.asked.contains(&key.name), "nobody reads {} of [{}]", key.name, self.schema.path);
        }
    }
}

/// What an unknown key of a section may have been meant as.
fn suggestion(name: &str, schema: Schema) -> Option<String> {
    let names = |schema: Schema| schema.keys.iter().map(|key| key.name);
    if let Some(like) = most_like(name, names(schema)) {
        return Some(format!("{like:?}"));
    }
    // Part of a name is how people remember it: `user`, `ttl`.
    if let Some(longer) = names(schema).find(|known| name.len() >= 3 && known.contains(name)) {
        return Some(format!("{longer:?}"));
    }
    let elsewhere = schema::ALL.into_iter().filter(|other| other.path != schema.path && !other.path.is_empty());
    let home = elsewhere.into_iter().find(|other| other.has(name))?;
    Some(format!("{name:?} in [{}]", home.path))
}

// === impl Entry ===

impl<'a> Entry<'a> {
    fn new(document: &'a Document<'a>, value: &'a Spanned<DeValue<'a>>, key: String, expects: &'static str) -> Self {
        Self { document, value: value.get_ref(), place: document.place(value.span().start, key), expects }
    }

    fn wrong_type<T>(self) -> Option<T> {
        let problem = format!("expected {}, found {}", self.expects, type_of(self.value));
        self.document.mistakes.report(self.place, problem);
        None
    }

    fn located<T>(self, value: T) -> Located<T> {
        Located { value, place: self.place }
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    /// A text.
    pub(super) fn text(self) -> Option<Located<&'a str>> {
        match self.value {
            DeValue::String(text) => Some(self.located(text.as_ref())),
            _ => self.wrong_type(),
        }
    }

    /// Reads a key of the operator's own, of which this is the value.
    pub(super) fn check<T>(
        &self,
        key: &Located<&str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Located<T>> {
        let report = |problem| self.document.mistakes.report(key.place.clone(), problem);
        parse(key.value).map_err(report).ok().map(|value| Located { value, place: key.place.clone() })
    }

    /// A text that means something; `parse` says what is wrong with one that doesn't.
    pub(super) fn parse<T>(self, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<Located<T>> {
        let mistakes = self.document.mistakes;
        let Located { value, place } = self.text()?;
        parse(value)
            .map_err(|problem| mistakes.report(place.clone(), problem))
            .ok()
            .map(|value| Located { value, place })
    }

    /// `true` or `false`.
    pub(super) fn boolean(self) -> Option<Located<bool>> {
        match self.value {
            DeValue::Boolean(value) => Some(self.located(*value)),
            _ => self.wrong_type(),
        }
    }

    /// A whole number within limits.
    pub(super) fn number(self, limits: RangeInclusive<u32>) -> Option<Located<u32>> {
        let DeValue::Integer(written) = self.value else { return self.wrong_type() };
        let number = u32::from_str_radix(written.as_str(), written.radix()).ok();
        if let Some(number) = number.filter(|number| limits.contains(number)) {
            return Some(self.located(number));
        }
        let problem = format!("{written} is not between {} and {}", limits.start(), limits.end());
        self.document.mistakes.report(self.place, problem);
        None
    }

    /// The members of a list, each with its own place.
    pub(super) fn list(self) -> Option<Located<Vec<Entry<'a>>>> {
        let DeValue::Array(items) = self.value else { return self.wrong_type() };
        let member = |(index, item)| {
            Entry::new(self.document, item, format!("{}[{index}]", self.place.key), member_expects(self.expects))
        };
        let members = items.iter().enumerate().map(member).collect();
        Some(self.located(members))
    }

    /// The members of a list, or one value alone.
    pub(super) fn one_or_many(self) -> Option<Located<Vec<Entry<'a>>>> {
        if matches!(self.value, DeValue::Array(_)) {
            return self.list();
        }
        let place = self.place.clone();
        Some(Located { value: vec![self], place })
    }

    /// A table with known keys.
    pub(super) fn section(self, schema: Schema) -> Option<Section<'a>> {
        match self.value {
            DeValue::Table(table) => Some(Section::open(self.document, table, self.place, schema)),
            _ => self.wrong_type(),
        }
    }

    /// The entries of a table whose keys are the operator's own: each key with its place, and its value.
    pub(super) fn entries(self, expects: &'static str) -> Option<Vec<Named<'a>>> {
        let DeValue::Table(table) = self.value else { return self.wrong_type() };
        let entry = |(name, value): (&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)| {
            let key = join(&self.place.key, name.get_ref());
            let place = self.document.place(name.span().start, key.clone());
            (Located { value: name.get_ref().as_ref(), place }, Entry::new(self.document, value, key, expects))
        };
        Some(table.iter().map(entry).collect())
    }
}

/// What a member of a list is expected to be, of which only wrong types ever speak.
fn member_expects(list: &'static str) -> &'static str {
    if list.starts_with("a list of tables") { "a table" } else { "a text" }
}
