//! What strangers' bytes are read into here, for whoever throws random ones at it.

use http::header::{LINK, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::challenge::Challenge;
use super::docker_config::DockerConfig;
use super::link;

/// Whether lines of `WWW-Authenticate` offer anything that is spoken here.
pub fn is_challenge(lines: &[u8]) -> bool {
    header(&WWW_AUTHENTICATE, lines).is_some_and(|headers| Challenge::best(&headers).is_some())
}

/// Whether lines of `Link` lead to a next page.
pub fn is_link(lines: &[u8]) -> bool {
    header(&LINK, lines).is_some_and(|headers| link::next(&headers).is_some())
}

/// Whether a text is a docker `config.json`, which is then searched.
pub fn is_docker_config(text: &[u8]) -> bool {
    let config = DockerConfig::parse(text);
    config.is_ok_and(|config| {
        for path in ["docker.io/library/app", "quay.io/team/app", "localhost:5000/app"] {
            let registry = path.split('/').next().unwrap_or_default();
            let _ = config.find(registry, path);
        }
        true
    })
}

fn header(name: &HeaderName, lines: &[u8]) -> Option<HeaderMap> {
    let values = lines.split(|byte| *byte == b'\n').map(HeaderValue::from_bytes);
    values.map(|value| Some((name.clone(), value.ok()?))).collect::<Option<_>>()
}
