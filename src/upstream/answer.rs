//! What an answer that is none means: its status, when to come back, and the code in its body. Pure.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use super::error::{Failure, UpstreamErrorKind, shortened};
use crate::clock::Timestamp;

/// A `Retry-After` beyond this is taken for this.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(24);
/// The longest code in the specification has 21 characters.
const ERROR_CODE_LEN_MAX: usize = 40;

/// A failed answer by its status alone. 401, 403 and 404 mean more than that to those who know what was asked.
pub(super) fn status_failure(status: StatusCode, headers: &HeaderMap) -> Failure {
    match status {
        StatusCode::TOO_MANY_REQUESTS => UpstreamErrorKind::RateLimited { retry_after: retry_after(headers) }.into(),
        _ => UpstreamErrorKind::Status(status.as_u16()).into(),
    }
}

/// `Retry-After` in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if let Ok(seconds) = text.parse() {
        Duration::from_secs(seconds)
    } else {
        let date = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
        date.saturating_sub(Duration::from_millis(Timestamp::now().0))
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

/// The first code in an OCI error body; `None` when the body is not one.
pub(super) fn oci_error_code(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let code = answer.get("errors")?.get(0)?.get("code")?.as_str()?;
    let plain = !code.is_empty()
        && code.len() <= ERROR_CODE_LEN_MAX
        && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    plain.then(|| shortened(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_that_upstream_asks_for() {
        let wait = |text: &str| {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(wait("120"), Some(120));
        assert_eq!(wait(" 0 "), Some(0));
        assert_eq!(wait("99999999999"), Some(86_400));
        assert_eq!(wait("Fri, 31 Dec 9999 23:59:59 GMT"), Some(86_400));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-5"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn error_bodies() {
        for (body, code) in [
            (r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"x","detail":{}}]}"#, Some("MANIFEST_UNKNOWN")),
            (r#"{"errors":[{"code":"a b <script>"}]}"#, None),
            (r#"{"errors":[]}"#, None),
            (r#"{"error":"not found"}"#, None),
            ("<html>404</html>", None),
            ("", None),
        ] {
            assert_eq!(oci_error_code(body.as_bytes()).as_deref(), code, "{body}");
        }
    }
}
