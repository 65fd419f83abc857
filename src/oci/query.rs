//! Query parameters of registry URLs: the four that mean something, decoded, checked and bounded.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_decode_str;

/// The longest value of `ns`, in bytes: a host name and a port.
pub const NAMESPACE_BYTES_MAX: usize = 260;
/// How many artifact types one referrers request may name.
pub const ARTIFACT_TYPES_MAX: usize = 64;
/// The longest `last` and the longest `artifactType`, in bytes.
const VALUE_BYTES_MAX: usize = 255;

/// The query parameters that mean something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// `ns`
    Namespace,
    /// `n`
    Limit,
    /// `last`
    Last,
    /// `artifactType`
    ArtifactType,
}

/// A query parameter whose value makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("query parameter {parameter} is {problem}")]
pub struct BadParameter {
    /// Which one.
    pub parameter: Parameter,
    /// What is wrong with it: "not a number".
    pub problem: &'static str,
}

/// The decoded values of a parameter, leaving out empty ones.
fn values(query: &str, parameter: Parameter) -> impl Iterator<Item = Result<Cow<'_, str>, BadParameter>> {
    query
        .split('&')
        .filter_map(move |pair| {
            let (key, value) = pair.split_once('=')?;
            (decode(key)? == parameter.as_str()).then_some(value)
        })
        .filter(|value| !value.is_empty())
        .map(move |value| decode(value).ok_or(BadParameter { parameter, problem: "badly percent-encoded" }))
}

/// The one value of a parameter that has no meaning twice, unless both times it is the same.
fn single(query: &str, parameter: Parameter) -> Result<Option<Cow<'_, str>>, BadParameter> {
    let mut values = values(query, parameter);
    let first = values.next().transpose()?;
    for other in values {
        if Some(other?) != first {
            return Err(BadParameter { parameter, problem: "given twice, with different values" });
        }
    }
    Ok(first)
}

/// `ns`. Its characters are checked because it is sent back in a header, its meaning later.
pub(super) fn namespace(query: &str) -> Result<Option<String>, BadParameter> {
    let Some(value) = single(query, Parameter::Namespace)? else { return Ok(None) };
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"._:-[]".contains(&b);
    if value.len() <= NAMESPACE_BYTES_MAX && value.bytes().all(legal) {
        Ok(Some(value.into_owned()))
    } else {
        Err(BadParameter { parameter: Parameter::Namespace, problem: "not a registry: a host name and port" })
    }
}

/// `n`. A number beyond 64 bits is as good as the largest.
pub(super) fn limit(query: &str) -> Result<Option<u64>, BadParameter> {
    let Some(value) = single(query, Parameter::Limit)? else { return Ok(None) };
    if value.bytes().all(|b| b.is_ascii_digit()) {
        Ok(Some(value.parse().unwrap_or(u64::MAX)))
    } else {
        Err(BadParameter { parameter: Parameter::Limit, problem: "not a number" })
    }
}

/// `last`. Not necessarily a legal tag: some registries list others, and any text has a place in the order.
pub(super) fn last(query: &str) -> Result<Option<String>, BadParameter> {
    let value = single(query, Parameter::Last)?;
    value.map(|value| plain(value, Parameter::Last)).transpose()
}

pub(super) fn artifact_types(query: &str) -> Result<Vec<String>, BadParameter> {
    let parameter = Parameter::ArtifactType;
    let mut types: Vec<String> = Vec::new();
    for value in values(query, parameter) {
        let value = plain(value?, parameter)?;
        if types.contains(&value) {
            continue;
        }
        if types.len() == ARTIFACT_TYPES_MAX {
            return Err(BadParameter { parameter, problem: "given too often" });
        }
        types.push(value);
    }
    Ok(types)
}

fn plain(value: Cow<'_, str>, parameter: Parameter) -> Result<String, BadParameter> {
    if value.len() > VALUE_BYTES_MAX {
        Err(BadParameter { parameter, problem: "too long" })
    } else if value.chars().any(char::is_control) {
        Err(BadParameter { parameter, problem: "not plain text" })
    } else {
        Ok(value.into_owned())
    }
}

/// Undoes percent-encoding; `None` where it is not one (`percent_decode_str` would let a stray `%` pass).
pub(super) fn decode(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    let is_escape =
        |rest: &str| rest.as_bytes().first_chunk::<2>().is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    if !text.split('%').skip(1).all(is_escape) {
        return None;
    }
    percent_decode_str(text).decode_utf8().ok()
}

// === impl Parameter ===

impl Parameter {
    /// Its name in the query.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "ns",
            Self::Limit => "n",
            Self::Last => "last",
            Self::ArtifactType => "artifactType",
        }
    }
}

impl fmt::Display for Parameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
