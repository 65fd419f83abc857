//! Texts that look like names of images, wherever they are.

use crate::oci::{ImageName, Reference};

/// Words such as these are tags that people write without a version.
const TAGS: [&str; 4] = ["latest", "stable", "edge", "main"];

/// The parts of a text that look like images: a name with a tag that looks like a version, or with a digest.
pub(super) fn in_text(text: &str) -> impl Iterator<Item = &str> {
    let ends_word = |c: char| {
        c.is_whitespace()
            || matches!(c, '"' | '\'' | '`' | ',' | ';' | '=' | '(' | ')' | '[' | ']' | '{' | '}' | '<' | '>' | '|')
    };
    // Addresses are none, with or without a name before them.
    text.split(ends_word)
        .filter(|word| !word.contains("://"))
        .map(|word| word.trim_end_matches(['.', ':']))
        .filter(|word| is_image(word))
}

fn is_image(word: &str) -> bool {
    let Ok(image) = word.parse::<ImageName>() else { return false };
    match &image.reference {
        Reference::Digest(_) => true,
        Reference::Tag(tag) => {
            let (name, tag) = (word.split_once(':').map_or(word, |(name, _)| name), tag.as_str());
            // `latest` is what a name without a tag means, so it must have been written.
            let written = word.ends_with(tag) && word.len() > tag.len();
            let has_letter = name.contains(|c: char| c.is_ascii_alphabetic());
            // Hosts with ports, times and ratios have numbers alone.
            let version = tag.contains(|c: char| c.is_ascii_digit())
                && (word.contains('/') || tag.contains(['.', '-']) || tag.starts_with('v'));
            written && has_letter && (version || TAGS.contains(&tag))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_versions_and_digests_look_like_images_and_little_else_does() {
        let digest = format!("quay.io/a/b@sha256:{}", "0".repeat(64));
        let text = format!("run nginx:1.27, \"ghcr.io/a/b:v1.2\" or {digest}. redis:7-alpine; a/b:latest x=y/z:3");
        let found: Vec<_> = in_text(&text).collect();
        assert_eq!(found, ["nginx:1.27", "ghcr.io/a/b:v1.2", &digest, "redis:7-alpine", "a/b:latest", "y/z:3"]);
        for none in [
            "redis:6379",
            "10.0.0.1:8080",
            "12:30",
            "https://quay.io/a/b:v1",
            "system:masters",
            "a:b",
            "quay.io/a/b",
            "/etc/a:ro",
            "2024-01-01T10:00:00Z",
            "fe80::1",
            "app.kubernetes.io/name",
            "Always",
            "-v",
            "1:1.5",
        ] {
            assert_eq!(in_text(none).count(), 0, "{none}");
        }
    }
}
