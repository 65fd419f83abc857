//! `[warm.NAME]`: lists of images that are kept warm, as written and as meant.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::meaning::value_or;
use super::mistake::{Located, Mistakes};
use super::policy::PlatformName;
use super::reader::{Entry, Named};
use super::schema;
use super::written::{Setting, duration, many, path};
use crate::oci::{ImageName, Tag};

/// A list of images that are fetched before anybody asks for them, again and again, and kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warm {
    /// What it's called, and the pin that keeps its images.
    pub name: Tag,
    /// The images.
    pub images: Vec<ImageName>,
    /// A file with further images, one a line, which is read again each time.
    pub file: Option<PathBuf>,
    /// How often they are looked at.
    pub interval: Duration,
    /// The platforms that are fetched, where the file says nothing else; empty is all.
    pub platforms: Vec<PlatformName>,
    /// Signatures, attestations and SBOMs too.
    pub referrers: bool,
}

/// One list.
#[derive(Debug)]
pub(super) struct WrittenWarm {
    name: Located<Tag>,
    images: Setting<Vec<Located<ImageName>>>,
    file: Setting<PathBuf>,
    interval: Setting<Duration>,
    platforms: Setting<Vec<Located<PlatformName>>>,
    referrers: Setting<bool>,
}

/// Each look asks upstream about every tag.
const INTERVAL: RangeInclusive<Duration> = Duration::from_secs(10)..=Duration::from_hours(365 * 24);

const DEFAULT_INTERVAL: Duration = Duration::from_hours(1);

/// Reads all of them.
pub(super) fn read(entries: Option<Vec<Named<'_>>>) -> Vec<WrittenWarm> {
    entries.into_iter().flatten().filter_map(|(name, entry)| WrittenWarm::read(&name, entry)).collect()
}

/// What they come to.
pub(super) fn mean(written: Vec<WrittenWarm>, mistakes: &Mistakes) -> Vec<Warm> {
    written.into_iter().map(|warm| warm.mean(mistakes)).collect()
}

// === impl WrittenWarm ===

impl WrittenWarm {
    fn read(name: &Located<&str>, entry: Entry<'_>) -> Option<Self> {
        let name = entry.check(name, |text| text.parse::<Tag>().map_err(|error| error.to_string()));
        let mut section = entry.section(schema::WARM)?;
        let image = |text: &str| text.parse::<ImageName>().map_err(|error| error.to_string());
        let images = section.take("images").and_then(|entry| many(entry, image));
        let file = section.take("file").and_then(path);
        let interval = section.take("interval").and_then(|entry| duration(entry, &INTERVAL));
        let platforms = section.take("platforms").and_then(|entry| many(entry, str::parse));
        let referrers = section.take("referrers").and_then(Entry::boolean);
        section.finish();
        Some(Self { name: name?, images, file, interval, platforms, referrers })
    }

    fn mean(self, mistakes: &Mistakes) -> Warm {
        if self.images.is_none() && self.file.is_none() {
            mistakes.report(self.name.place, "a list of nothing: give images or a file");
        }
        let all = |list: Setting<Vec<Located<ImageName>>>| list.into_iter().flat_map(|list| list.value);
        Warm {
            name: self.name.value,
            images: all(self.images).map(|image| image.value).collect(),
            file: self.file.map(|file| file.value),
            interval: value_or(self.interval, DEFAULT_INTERVAL),
            platforms: self.platforms.into_iter().flat_map(|list| list.value).map(|platform| platform.value).collect(),
            referrers: value_or(self.referrers, true),
        }
    }
}
