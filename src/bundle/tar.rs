//! Tar headers, read and written: only what bundles are made of, each with a limit, and what could be a trick is refused. Pure.
//!
//! The well-known libraries take names and extensions of any length into memory, and follow links. Here an archive is only
//! ever a list of names with bytes behind them.

use std::collections::BTreeMap;

/// What an archive consists of.
pub(super) const BLOCK: usize = 512;

/// No name in a bundle is longer.
const NAME_BYTES_MAX: usize = 1024;

/// What stands before an entry (long names, attributes) is no longer.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;

/// So many extensions in a row belong to one entry at most.
const EXTENSIONS_MAX: usize = 8;

/// Where the parts of a header are.
const NAME: std::ops::Range<usize> = 0..100;
const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const LINK: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..262;
const PREFIX: std::ops::Range<usize> = 345..500;

/// The largest size that the field for it holds in octal digits.
const OCTAL_MAX: u64 = 0o777_7777_7777;

/// An entry of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its name: relative, without `.` and `..`; empty for the folder that the archive was made of.
    pub(super) path: String,
    pub(super) size_bytes: u64,
    pub(super) kind: Kind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// Another name for what lies there, from where the entry lies.
    Link(String),
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// An extension of so many bytes, to be given to [`Headers::extend`].
    Extension(usize),
    Entry(Entry),
    /// The archive has ended.
    End,
}

/// What is wrong with an archive's structure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTar {
    /// It never was one, or its bytes have changed.
    #[error("a header is damaged, or this is no tar archive")]
    Damaged,
    /// A number that is none, or too large.
    #[error("the header of {0:?} holds a number that is none")]
    Number(String),
    /// A name that leads out of the archive, or is none.
    #[error("the name {0:?} is refused: names in a bundle are relative and plain")]
    Name(String),
    /// Something else than files, folders and symbolic links.
    #[error("{path:?} is {what}, and a bundle has none of those")]
    Kind {
        /// The entry.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// A name or an extension that goes on and on.
    #[error("a header is longer than any bundle's")]
    TooLong,
    /// An extension that can't be read.
    #[error("an extended header can't be read")]
    Extension,
}

/// Reads headers, with their extensions, one after the other.
#[derive(Debug, Default)]
pub(super) struct Headers {
    pending: Option<Pending>,
    extensions: usize,
    name: Option<String>,
    link: Option<String>,
    size_bytes: Option<u64>,
}

/// The extension whose bytes come next.
#[derive(Clone, Copy, Debug)]
enum Pending {
    Name,
    Link,
    Attributes,
    /// Attributes of all entries to come: nothing in them is of use.
    Ignored,
}

// === impl Headers ===

impl Headers {
    /// Takes in the next block of the archive's structure.
    pub(super) fn next(&mut self, block: &[u8; BLOCK]) -> Result<Step, InvalidTar> {
        if block.iter().all(|byte| *byte == 0) {
            return if self.extensions == 0 { Ok(Step::End) } else { Err(InvalidTar::Damaged) };
        }
        if octal(&block[CHECKSUM]) != Some(checksum(block)) {
            return Err(InvalidTar::Damaged);
        }
        let short = name_of(block);
        let size_bytes = number(&block[SIZE]).ok_or_else(|| InvalidTar::Number(quoted(&short)))?;
        self.pending = match block[KIND] {
            b'L' => Some(Pending::Name),
            b'K' => Some(Pending::Link),
            b'x' => Some(Pending::Attributes),
            b'g' => Some(Pending::Ignored),
            _ => None,
        };
        if self.pending.is_some() {
            self.extensions += 1;
            if size_bytes > EXTENSION_BYTES_MAX || self.extensions > EXTENSIONS_MAX {
                return Err(InvalidTar::TooLong);
            }
            return Ok(Step::Extension(usize::try_from(size_bytes).map_err(|_| InvalidTar::TooLong)?));
        }
        let header = std::mem::take(self);
        let raw = match header.name {
            Some(name) => name,
            None => String::from_utf8(short.clone()).map_err(|_| InvalidTar::Name(quoted(&short)))?,
        };
        let path = plain(&raw)?;
        let kind = match block[KIND] {
            b'0' | 0 | b'7' if raw.ends_with('/') => Kind::Folder,
            b'0' | 0 | b'7' => Kind::File,
            b'5' => Kind::Folder,
            b'2' => {
                let short = until_zero(&block[LINK]);
                let link = header.link.or_else(|| String::from_utf8(short.to_vec()).ok());
                let link = link.ok_or_else(|| InvalidTar::Name(quoted(short)))?;
                if link.len() > NAME_BYTES_MAX {
                    return Err(InvalidTar::TooLong);
                }
                Kind::Link(link)
            }
            other => return Err(InvalidTar::Kind { path, what: strange(other) }),
        };
        // Some writers repeat the size of what a link leads to.
        let size_bytes = if kind == Kind::File { header.size_bytes.unwrap_or(size_bytes) } else { 0 };
        match (kind == Kind::File, path.is_empty()) {
            (true, true) => Err(InvalidTar::Name(raw)),
            _ => Ok(Step::Entry(Entry { path, size_bytes, kind })),
        }
    }

    /// Takes in the bytes of an extension.
    pub(super) fn extend(&mut self, bytes: &[u8]) -> Result<(), InvalidTar> {
        let text = |bytes: &[u8]| {
            let bytes = until_zero(bytes);
            String::from_utf8(bytes.to_vec()).map_err(|_| InvalidTar::Name(quoted(bytes)))
        };
        match self.pending.take() {
            Some(Pending::Name) => self.name = Some(text(bytes)?),
            Some(Pending::Link) => self.link = Some(text(bytes)?),
            Some(Pending::Attributes) => self.take_attributes(bytes)?,
            Some(Pending::Ignored) | None => {}
        }
        Ok(())
    }

    fn take_attributes(&mut self, bytes: &[u8]) -> Result<(), InvalidTar> {
        for (key, value) in attributes(bytes)? {
            match key.as_str() {
                "path" => self.name = Some(value),
                "linkpath" => self.link = Some(value),
                "size" => {
                    let size = value.parse().ok().filter(|size| i64::try_from(*size).is_ok());
                    self.size_bytes = Some(size.ok_or(InvalidTar::Number(value))?);
                }
                key if key.starts_with("GNU.sparse") => {
                    let path = self.name.clone().unwrap_or_default();
                    return Err(InvalidTar::Kind { path, what: strange(b'S') });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// How many bytes fill up the last block of so many.
pub(super) fn padding(size_bytes: u64) -> usize {
    // At most 511.
    usize::try_from(size_bytes.wrapping_neg() % BLOCK as u64).unwrap_or(0)
}

/// The header of a file, or of a folder where the name ends with a slash: always the same for the same name and size.
pub(super) fn header(path: &str, size_bytes: u64) -> Vec<u8> {
    let (long, large) = (path.len() > NAME.len(), size_bytes > OCTAL_MAX);
    let mut bytes = Vec::new();
    if long || large {
        let mut records = String::new();
        if long {
            records.push_str(&attribute("path", path));
        }
        if large {
            records.push_str(&attribute("size", &size_bytes.to_string()));
        }
        bytes.extend(block("extended", records.len() as u64, b'x'));
        bytes.extend(records.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    // What reads no extensions gets as much of the name as there is room for.
    let short = if long { path.get(..NAME.len()).unwrap_or_default() } else { path };
    let kind = if path.ends_with('/') { b'5' } else { b'0' };
    bytes.extend(block(short, if large { 0 } else { size_bytes }, kind));
    bytes
}

/// The end of an archive.
pub(super) fn end() -> [u8; 2 * BLOCK] {
    [0; 2 * BLOCK]
}

fn block(name: &str, size_bytes: u64, kind: u8) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    let mode: &[u8] = if kind == b'5' { b"0000755\0" } else { b"0000644\0" };
    block[100..108].copy_from_slice(mode);
    for owner in [108..116, 116..124] {
        block[owner].copy_from_slice(b"0000000\0");
    }
    block[SIZE].copy_from_slice(format!("{size_bytes:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[KIND] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum = checksum(&block);
    block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// `LENGTH key=value\n`, whose length counts itself.
fn attribute(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len += 1;
    }
    format!("{len} {key}={value}\n")
}

fn attributes(mut bytes: &[u8]) -> Result<BTreeMap<String, String>, InvalidTar> {
    let mut found = BTreeMap::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or(InvalidTar::Extension)?;
        let len = std::str::from_utf8(&bytes[..space]).ok().and_then(|text| text.parse::<usize>().ok());
        let record = len.and_then(|len| bytes.get(space + 1..len)).ok_or(InvalidTar::Extension)?;
        bytes = &bytes[len.unwrap_or(bytes.len())..];
        let record = record.strip_suffix(b"\n").ok_or(InvalidTar::Extension)?;
        // Attributes that are no text (some tools keep hashes there) are none that matter.
        let Ok(record) = std::str::from_utf8(record) else { continue };
        let (key, value) = record.split_once('=').ok_or(InvalidTar::Extension)?;
        found.insert(key.to_owned(), value.to_owned());
    }
    Ok(found)
}

/// The sum of a header's bytes, those of the sum itself taken as spaces.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    sum(block) - sum(&block[CHECKSUM]) + CHECKSUM.len() as u64 * u64::from(b' ')
}

fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(until_zero(field)).ok()?.trim_matches(' ');
    if text.is_empty() {
        return Some(0);
    }
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| u64::from_str_radix(text, 8).ok()).flatten()
}

/// A number in octal digits, or, where they don't suffice, in bytes behind a mark.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 == 0 {
        return octal(field);
    }
    let (high, low) = field.split_at(field.len() - 8);
    let fits = high[0] == 0x80 && high[1..].iter().all(|byte| *byte == 0);
    let value = u64::from_be_bytes(low.try_into().ok()?);
    (fits && i64::try_from(value).is_ok()).then_some(value)
}

fn name_of(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_zero(&block[NAME]);
    // Old GNU archives, which have a space behind the magic, keep other things where the prefix is.
    let prefix = if block[MAGIC] == *b"ustar" && block[262] == 0 { until_zero(&block[PREFIX]) } else { &[] };
    if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// A name without what doesn't matter; one that leads elsewhere is refused.
fn plain(name: &str) -> Result<String, InvalidTar> {
    let refused = || InvalidTar::Name(quoted(name.as_bytes()));
    if name.len() > NAME_BYTES_MAX || name.starts_with('/') || name.contains(['\\', '\0']) {
        return Err(refused());
    }
    let segments: Vec<&str> = name.split('/').filter(|segment| !segment.is_empty() && *segment != ".").collect();
    if segments.contains(&"..") { Err(refused()) } else { Ok(segments.join("/")) }
}

/// What a link in an archive leads to, if that is inside.
pub(super) fn follow(link: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return None;
    }
    let mut segments: Vec<&str> = link.split('/').collect();
    segments.pop();
    for segment in target.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()?),
            other => segments.push(other),
        }
    }
    Some(segments.join("/"))
}

fn strange(kind: u8) -> &'static str {
    match kind {
        b'1' => "a hard link",
        b'3' | b'4' => "a device",
        b'6' => "a pipe",
        b'S' => "a sparse file",
        _ => "of an unknown kind",
    }
}

fn quoted(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Step, InvalidTar> {
        let mut headers = Headers::default();
        let mut rest = bytes;
        loop {
            let (block, behind) = rest.split_first_chunk::<BLOCK>().unwrap();
            match headers.next(block)? {
                Step::Extension(len) => {
                    headers.extend(&behind[..len])?;
                    rest = &behind[len.next_multiple_of(BLOCK)..];
                }
                step => return Ok(step),
            }
        }
    }

    fn entry(path: &str, size_bytes: u64, kind: Kind) -> Step {
        Step::Entry(Entry { path: path.to_owned(), size_bytes, kind })
    }

    #[test]
    fn what_is_written_is_read_again() {
        let long = format!("blobs/sha512/{}", "a".repeat(128));
        for (path, size) in [("index.json", 0), (&long, 5), ("blobs/x", 9 << 30), (&long, i64::MAX as u64)] {
            assert_eq!(read(&header(path, size)).unwrap(), entry(path, size, Kind::File));
        }
        assert_eq!(read(&header("blobs/", 0)).unwrap(), entry("blobs", 0, Kind::Folder));
        assert_eq!(read(&end()).unwrap(), Step::End);
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed_or_harmless() {
        let right = header("blobs/sha256/ab", 77);
        for at in 0..right.len() {
            for bit in 0..8 {
                let mut wrong = right.clone();
                wrong[at] ^= 1 << bit;
                let read = read(&wrong);
                assert!(read.is_err() || read == Ok(entry("blobs/sha256/ab", 77, Kind::File)), "{at}: {read:?}");
            }
        }
    }

    /// A header as other tools may write it.
    fn strange_header(name: &str, kind: u8, change: impl Fn(&mut [u8; BLOCK])) -> Vec<u8> {
        let mut made = block(name, 0, kind);
        change(&mut made);
        let sum = checksum(&made);
        made[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        made.to_vec()
    }

    #[test]
    fn tricks_are_refused() {
        for name in ["/etc/passwd", "../x", "a/../../x", "a\\b", &"x/".repeat(50)[..99].replace('x', "..")] {
            assert!(matches!(read(&header(name, 0)), Err(InvalidTar::Name(_))), "{name}");
        }
        for kind in [b'1', b'3', b'4', b'6', b'S', b'Z'] {
            assert!(matches!(read(&strange_header("a", kind, |_| {})), Err(InvalidTar::Kind { .. })));
        }
        let huge = strange_header("a", b'L', |block| block[SIZE].copy_from_slice(b"77777777777\0"));
        assert_eq!(read(&huge), Err(InvalidTar::TooLong));
        let negative = strange_header("a", b'0', |block| block[SIZE].fill(0xff));
        assert!(matches!(read(&negative), Err(InvalidTar::Number(_))));
        let mut headers = Headers { link: Some("x".repeat(NAME_BYTES_MAX + 1)), ..Headers::default() };
        let link = strange_header("a", b'2', |_| {});
        assert_eq!(headers.next(link.first_chunk().unwrap()), Err(InvalidTar::TooLong));
        let mut headers = Headers::default();
        for _ in 0..EXTENSIONS_MAX {
            let block = *block("x", 0, b'x').first_chunk().unwrap();
            assert_eq!(headers.next(&block), Ok(Step::Extension(0)));
        }
        assert_eq!(headers.next(&block("x", 0, b'x')), Err(InvalidTar::TooLong));
    }

    #[test]
    fn names_of_other_writers_are_read() {
        let prefixed = strange_header("sha256/ab", b'0', |block| block[PREFIX][..5].copy_from_slice(b"blobs"));
        assert_eq!(read(&prefixed).unwrap(), entry("blobs/sha256/ab", 0, Kind::File));
        assert_eq!(read(&header("./index.json", 3)).unwrap(), entry("index.json", 3, Kind::File));
        assert_eq!(read(&header("./", 0)).unwrap(), entry("", 0, Kind::Folder));
        let link = strange_header("a/layer.tar", b'2', |block| block[LINK][..8].copy_from_slice(b"../b.tar"));
        assert_eq!(read(&link).unwrap(), entry("a/layer.tar", 0, Kind::Link("../b.tar".to_owned())));
        assert_eq!(follow("a/layer.tar", "../b.tar").as_deref(), Some("b.tar"));
        assert_eq!(follow("layer.tar", "../b.tar"), None);
        assert_eq!(follow("a/layer.tar", "/etc/passwd"), None);
        let base256 = strange_header("a", b'0', |block| {
            block[SIZE].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]);
        });
        assert_eq!(read(&base256).unwrap(), entry("a", (2 << 32) + 1, Kind::File));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), BLOCK), text in "\\PC*") {
            let mut headers = Headers::default();
            let _ = headers.next(bytes.first_chunk().unwrap());
            let _ = headers.extend(text.as_bytes());
            let _ = attributes(text.as_bytes());
            let _ = attributes(&bytes);
        }
    }
}
