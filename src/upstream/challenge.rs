//! `WWW-Authenticate` read: which schemes a registry offers, and with which parameters. Pure.

use http::{HeaderMap, header::WWW_AUTHENTICATE};

/// A way to authenticate that a registry offers and Cachalot speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Fetch a token at `realm` and send it.
    Bearer {
        /// Where tokens are to be had, as sent: not yet known to be a URL, nor one to be trusted.
        realm: String,
        /// What to name as the service; some registries leave it out.
        service: Option<String>,
        /// The scope that the registry would like to see.
        scope: Option<String>,
        /// Why the token that was sent was refused.
        error: Option<String>,
    },
    /// Send user name and password.
    Basic,
}

/// One challenge as written, of any scheme.
#[derive(Debug, PartialEq, Eq)]
struct Offer {
    scheme: String,
    parameters: Vec<(String, String)>,
}

/// Reads one header line.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// Lines beyond these are not looked at.
const LINES_MAX: usize = 16;
const LINE_BYTES_MAX: usize = 16 * 1024;

// === impl Challenge ===

impl Challenge {
    /// The best offer in all `WWW-Authenticate` lines: Bearer before Basic, the first of its kind.
    pub(super) fn best(headers: &HeaderMap) -> Option<Self> {
        let offers: Vec<Offer> =
            headers.get_all(WWW_AUTHENTICATE).iter().take(LINES_MAX).flat_map(|line| offers(line.as_bytes())).collect();
        offers
            .iter()
            .find_map(Offer::bearer)
            .or_else(|| offers.iter().any(|offer| offer.scheme.eq_ignore_ascii_case("basic")).then_some(Self::Basic))
    }

    /// The scope to add when the registry says that the token it got did not reach far enough.
    pub(super) fn missing_scope(&self) -> Option<&str> {
        match self {
            Self::Bearer { scope: Some(scope), error: Some(error), .. } if error == "insufficient_scope" => Some(scope),
            Self::Bearer { .. } | Self::Basic => None,
        }
    }
}

// === impl Offer ===

impl Offer {
    fn parameter(&self, name: &str) -> Option<String> {
        self.parameters.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.clone())
    }

    fn bearer(&self) -> Option<Challenge> {
        if !self.scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        Some(Challenge::Bearer {
            realm: self.parameter("realm")?,
            service: self.parameter("service"),
            scope: self.parameter("scope"),
            error: self.parameter("error"),
        })
    }
}

/// All challenges of one line, whatever it holds. What makes no sense is skipped.
fn offers(line: &[u8]) -> Vec<Offer> {
    let mut offers: Vec<Offer> = Vec::new();
    let mut cursor = Cursor { bytes: line.get(..LINE_BYTES_MAX).unwrap_or(line), at: 0 };
    loop {
        cursor.skip(|b| matches!(b, b' ' | b'\t' | b','));
        if cursor.peek().is_none() {
            return offers;
        }
        let word = cursor.take(is_token);
        if word.is_empty() {
            cursor.at += 1;
            continue;
        }
        cursor.skip(is_space);
        if cursor.peek() == Some(b'=') {
            cursor.at += 1;
            cursor.skip(is_space);
            let value = cursor.value();
            if let Some(offer) = offers.last_mut() {
                offer.parameters.push((word.to_ascii_lowercase(), value));
            }
        } else {
            offers.push(Offer { scheme: word, parameters: Vec::new() });
            cursor.skip_token68();
        }
    }
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t')
}

fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

// === impl Cursor ===

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn skip(&mut self, which: impl Fn(u8) -> bool) {
        while self.peek().is_some_and(&which) {
            self.at += 1;
        }
    }

    fn take(&mut self, which: impl Fn(u8) -> bool) -> String {
        let start = self.at;
        self.skip(which);
        String::from_utf8_lossy(self.bytes.get(start..self.at).unwrap_or_default()).into_owned()
    }

    /// A parameter's value: a quoted string (up to the end of the line when the closing quote is missing), or a bare one.
    fn value(&mut self) -> String {
        if self.peek() != Some(b'"') {
            return self.take(|b| !matches!(b, b',' | b' ' | b'\t'));
        }
        self.at += 1;
        let mut value = Vec::new();
        while let Some(b) = self.peek() {
            self.at += 1;
            match b {
                b'"' => break,
                b'\\' => {
                    if let Some(escaped) = self.peek() {
                        value.push(escaped);
                        self.at += 1;
                    }
                }
                other => value.push(other),
            }
        }
        String::from_utf8_lossy(&value).into_owned()
    }

    /// The base64-like blob that may stand in place of parameters (`Negotiate YII=`). Stays where it is when what
    /// follows is a parameter.
    fn skip_token68(&mut self) {
        let start = self.at;
        self.skip(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b));
        self.skip(|b| b == b'=');
        self.skip(is_space);
        if !matches!(self.peek(), None | Some(b',')) {
            self.at = start;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (WWW_AUTHENTICATE, line.parse().unwrap())).collect()
    }

    #[expect(clippy::unnecessary_wraps, reason = "compared with options")]
    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>, error: Option<&str>) -> Option<Challenge> {
        let own = |text: Option<&str>| text.map(ToOwned::to_owned);
        Some(Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope), error: own(error) })
    }

    #[test]
    fn challenges_seen_in_the_wild() {
        for (lines, expected) in [
            (
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#,
                ][..],
                bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/alpine:pull"),
                    None,
                ),
            ),
            (
                &[r#"Bearer realm="https://nvcr.io/proxy_auth""#][..],
                bearer("https://nvcr.io/proxy_auth", None, None, None),
            ),
            (
                &[r#"bearer realm=https://a/t , SERVICE=x,error="insufficient_scope",scope="repository:a:pull,push""#]
                    [..],
                bearer("https://a/t", Some("x"), Some("repository:a:pull,push"), Some("insufficient_scope")),
            ),
            (
                &[r#"Basic realm="https://1.dkr.ecr.eu-west-1.amazonaws.com/",service="ecr.amazonaws.com""#][..],
                Some(Challenge::Basic),
            ),
            (&["Basic", r#"Bearer realm="https://a/t""#][..], bearer("https://a/t", None, None, None)),
            (
                &[r#"Basic realm="x", Bearer realm="https://a/t",service="s""#][..],
                bearer("https://a/t", Some("s"), None, None),
            ),
            (&[r#"Negotiate YIIabc==, NTLM, Bearer realm="https://a/t""#][..], bearer("https://a/t", None, None, None)),
            (&[r#"Bearer realm="https://a/t?a=\"b\"""#][..], bearer("https://a/t?a=\"b\"", None, None, None)),
            (&[r#"Bearer realm="https://a/unclosed"#][..], bearer("https://a/unclosed", None, None, None)),
            (&[r#"Bearer realm="",service="x""#][..], None),
            (&["Bearer"][..], None),
            (&["Bearer", "Basic realm=x"][..], Some(Challenge::Basic)),
            (&["", ",,,", "=\"", "Digest realm=x"][..], None),
            (&[][..], None),
        ] {
            assert_eq!(Challenge::best(&headers(lines)), expected, "{lines:?}");
        }
    }

    #[test]
    fn only_insufficient_scope_asks_for_more() {
        let more = headers(&[r#"Bearer realm="https://a/t",scope="repository:b:pull",error="insufficient_scope""#]);
        assert_eq!(Challenge::best(&more).unwrap().missing_scope(), Some("repository:b:pull"));
        let other = headers(&[r#"Bearer realm="https://a/t",scope="repository:b:pull",error="invalid_token""#]);
        assert_eq!(Challenge::best(&other).unwrap().missing_scope(), None);
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_panic(line in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = offers(&line);
        }

        #[test]
        fn any_soup_of_the_grammar_is_read_without_panic(line in r#"(Bearer|Basic|realm|scope|"|\\|=|,| |a|/|\t){0,40}"#) {
            let _ = offers(line.as_bytes());
        }

        #[test]
        fn quoted_parameters_come_back_whole(
            values in prop::collection::vec("[ -~]{1,40}", 1..4),
            before in prop::sample::select(vec!["", "Basic realm=\"x\", ", "Negotiate abc=, "]),
        ) {
            let names = ["realm", "service", "scope"];
            let mut line = format!("{before}Bearer ");
            for (name, value) in names.iter().zip(&values) {
                let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
                line.extend([name, "=\"", &quoted, "\","]);
            }
            let offers = offers(line.as_bytes());
            let bearer = offers.last().unwrap();
            for (name, value) in names.iter().zip(&values) {
                let found = bearer.parameter(name);
                prop_assert_eq!(found.as_ref(), Some(value));
            }
        }
    }
}
