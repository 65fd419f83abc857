//! `Link` headers read: where the next page of a list is. Pure.

use http::{HeaderMap, header::LINK};

/// Headers beyond these are not looked at.
const LINES_MAX: usize = 16;

/// The target of the first `rel="next"` link, as sent.
pub(super) fn next(headers: &HeaderMap) -> Option<String> {
    headers.get_all(LINK).iter().take(LINES_MAX).filter_map(|line| line.to_str().ok()).find_map(next_in_line)
}

fn next_in_line(line: &str) -> Option<String> {
    let mut rest = line;
    loop {
        let (_, after) = rest.split_once('<')?;
        let (target, after) = after.split_once('>')?;
        let (parameters, next_link) = match end_of_link(after) {
            Some(end) => (after.get(..end)?, after.get(end + 1..)?),
            None => (after, ""),
        };
        if parameters.split(';').any(is_next) {
            return Some(target.to_owned());
        }
        rest = next_link;
    }
}

/// The place of the comma that ends a link: the first one outside of quotes.
fn end_of_link(parameters: &str) -> Option<usize> {
    let mut quoted = false;
    parameters.find(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
}

fn is_next(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| {
        name.trim().eq_ignore_ascii_case("rel")
            && value.trim().trim_matches('"').split(' ').any(|relation| relation.eq_ignore_ascii_case("next"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn next_links() {
        for (line, expected) in [
            (r#"</v2/a/tags/list?last=b&n=2>; rel="next""#, Some("/v2/a/tags/list?last=b&n=2")),
            ("</v2/a>; rel=next", Some("/v2/a")),
            (r#"</first>; rel="first", </next,1>; title="a,b"; REL="prev next""#, Some("/next,1")),
            (r#"</v2/a>; rel="prev""#, None),
            ("</v2/a>", None),
            ("</v2/a", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(LINK, line.parse().unwrap())]);
            assert_eq!(next(&headers).as_deref(), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_without_panic(line in r#"(<|>|,|;|rel|=|"|next| |é){0,40}"#) {
            let _ = next_in_line(&line);
        }
    }
}
