//! Lists of images as people keep them: one a line, maybe with platforms behind it, and comments.

use crate::config::PlatformName;
use crate::oci::ImageName;

use super::seed::Wanted;

/// A line that is none of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct InvalidList {
    file: String,
    line: usize,
    problem: String,
}

/// The word for all platforms.
const ALL: &str = "all";

/// Reads a list. `platforms` are meant where a line names none; empty is all.
pub fn read(file: &str, text: &str, platforms: &[PlatformName]) -> Result<Vec<Wanted>, InvalidList> {
    let mut images = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split_once('#').map_or(line, |(before, _)| before);
        let mut words = line.split_whitespace();
        let Some(image) = words.next() else { continue };
        let wrong = |problem: String| InvalidList { file: file.to_owned(), line: number + 1, problem };
        let image = image.parse::<ImageName>().map_err(|error| wrong(format!("{image:?} names no image: {error}")))?;
        let own: Vec<&str> = words.flat_map(|word| word.split(',')).filter(|word| !word.is_empty()).collect();
        let platforms = if own.is_empty() { platforms.to_vec() } else { self::platforms(&own).map_err(wrong)? };
        images.push(Wanted { image, platforms });
    }
    Ok(images)
}

/// Platforms as they are written; none for all.
pub fn platforms(written: &[&str]) -> Result<Vec<PlatformName>, String> {
    if written.contains(&ALL) {
        return Ok(Vec::new());
    }
    written.iter().map(|text| text.parse()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_images_and_maybe_platforms() {
        let default = ["linux/amd64".parse().unwrap()];
        let text = "# ours\n\nnginx:1.27\n quay.io/a/b:v1  linux/arm64,linux/arm/v7 # there\nc all\n";
        let read = read("list", text, &default).unwrap();
        let shown: Vec<_> = read
            .iter()
            .map(|wanted| {
                let platforms: Vec<_> = wanted.platforms.iter().map(ToString::to_string).collect();
                (wanted.image.to_string(), platforms.join(" "))
            })
            .collect();
        let expected = [
            ("docker.io/library/nginx:1.27", "linux/amd64"),
            ("quay.io/a/b:v1", "linux/arm64 linux/arm/v7"),
            ("docker.io/library/c:latest", ""),
        ];
        assert_eq!(shown, expected.map(|(image, platforms)| (image.to_owned(), platforms.to_owned())));
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, wrong) in
            [("a:1\nUPPER", "list:2: \"UPPER\" names no image"), ("a:1 linux", "list:1: \"linux\" is not a platform")]
        {
            let error = read("list", text, &[]).unwrap_err().to_string();
            assert!(error.starts_with(wrong), "{error}");
        }
    }
}
