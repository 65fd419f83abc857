//! The way that questions between mirrors have come: the `Via` header, by which a loop of mirrors is noticed.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};

use super::error::shortened;

/// What this process calls itself among mirrors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance(Arc<str>);

/// A question that must not be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WrongWay {
    /// It has been here before. The mirrors that it came through, this one last.
    Loop(Vec<String>),
    /// It has come through too many mirrors.
    TooFar(Vec<String>),
}

/// Mirrors in a row at most, this one included.
const MIRRORS_MAX: usize = 4;
const PREFIX: &str = "cachalot-";
const LOOP: &str = "a loop of mirrors";

// === impl Instance ===

impl Instance {
    /// A name that no other process has.
    pub fn random() -> Self {
        Self(format!("{PREFIX}{:016x}", rand::random::<u64>()).into())
    }

    /// The mirrors that a request has come through, by its `Via` headers, `None` if it came straight from a client.
    /// Other proxies on the way are passed over.
    pub fn admit(&self, headers: &HeaderMap) -> Result<Option<Arc<str>>, WrongWay> {
        let values = headers.get_all(header::VIA).iter().filter_map(|value| value.to_str().ok());
        let mirrors = values.flat_map(|value| value.split(',')).filter_map(|hop| {
            let name = hop.split_whitespace().nth(1)?;
            name.starts_with(PREFIX).then(|| shortened(name))
        });
        let mirrors: Vec<String> = mirrors.take(MIRRORS_MAX + 1).collect();
        let with_us = |mirrors: Vec<String>| mirrors.into_iter().chain([self.0.to_string()]).collect();
        if mirrors.iter().any(|name| **name == *self.0) {
            return Err(WrongWay::Loop(with_us(mirrors)));
        }
        if mirrors.len() >= MIRRORS_MAX {
            return Err(WrongWay::TooFar(with_us(mirrors)));
        }
        let hops: Vec<String> = mirrors.iter().map(|name| format!("1.1 {name}")).collect();
        Ok((!hops.is_empty()).then(|| hops.join(", ").into()))
    }

    /// The header of a question that has come through `before`, and now through here.
    pub(super) fn with(&self, before: Option<&str>) -> HeaderValue {
        let before = before.map(|before| format!("{before}, ")).unwrap_or_default();
        // Names hold nothing that a header can't; an empty one says nothing wrong.
        HeaderValue::try_from(format!("{before}1.1 {}", self.0)).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

impl fmt::Display for WrongWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loop(mirrors) => {
                write!(f, "{LOOP}, each an endpoint of the other: {}", mirrors.join(" -> "))
            }
            Self::TooFar(mirrors) => {
                write!(f, "more than {MIRRORS_MAX} mirrors in a row: {}", mirrors.join(" -> "))
            }
        }
    }
}

/// What another mirror says in a `Warning`, where an answer to a HEAD has no body to say it in.
pub(super) fn warning(headers: &HeaderMap) -> Option<String> {
    // `Warning: 299 - "text"`. The text is ours, so it holds no quotes.
    let value = headers.get(header::WARNING)?.as_bytes();
    let text = String::from_utf8_lossy(value);
    let (_, text) = text.split_once('"')?;
    let (text, _) = text.rsplit_once('"')?;
    // Each mirror puts its own words in front; what the last one found is what people must know.
    let text = text.find(LOOP).map_or(text, |at| &text[at..]);
    Some(shortened(text)).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::VIA, value.parse().unwrap())).collect()
    }

    #[test]
    fn a_chain_grows_until_it_closes_or_is_too_long() {
        let names: Vec<Instance> = (0..5).map(|_| Instance::random()).collect();
        let mut before: Option<Arc<str>> = None;
        for (n, instance) in names.iter().enumerate() {
            let header = before.clone().map(|before| before.to_string());
            let headers = via(&header.as_deref().into_iter().collect::<Vec<_>>());
            match instance.admit(&headers) {
                Ok(chain) => assert!(n < 4 && chain == before, "{n}"),
                Err(WrongWay::TooFar(mirrors)) => assert!(n == 4 && mirrors.len() == 5),
                Err(wrong) => panic!("{wrong}"),
            }
            before = Some(instance.with(before.as_deref()).to_str().unwrap().into());
        }
        let (first, second) = (&names[0], &names[1]);
        let there = first.with(None);
        let back = second.with(second.admit(&via(&[there.to_str().unwrap()])).unwrap().as_deref());
        let Err(WrongWay::Loop(mirrors)) = first.admit(&via(&[back.to_str().unwrap()])) else { panic!("a loop") };
        assert_eq!(mirrors, [first.0.to_string(), second.0.to_string(), first.0.to_string()]);
    }

    #[test]
    fn other_proxies_are_passed_over() {
        let instance = Instance::random();
        let headers = via(&["1.1 varnish (Varnish/7.0), 1.1 cachalot-0123", "HTTP/1.1 nginx", "garbage"]);
        assert_eq!(instance.admit(&headers).unwrap().as_deref(), Some("1.1 cachalot-0123"));
        assert_eq!(instance.admit(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn a_warning_s_text() {
        let headers = |value: &str| HeaderMap::from_iter([(header::WARNING, value.parse().unwrap())]);
        for text in ["a loop of mirrors: a -> b", "upstream x says 404 (a loop of mirrors: a -> b"] {
            assert_eq!(warning(&headers(&format!("299 - \"{text}\""))).as_deref(), Some("a loop of mirrors: a -> b"));
        }
        assert_eq!(warning(&headers("299 - nothing")), None);
    }
}
