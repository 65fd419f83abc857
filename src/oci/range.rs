//! The `Range` header of RFC 9110: what a client asks for, and which bytes of a blob that is.

/// The most ranges taken from one header. podman sends up to this many for a partial pull and halves them on a 400.
pub const RANGES_MAX: usize = 1024;

/// The longest `Range` header that is read. As many ranges as are taken need less than half of it.
pub const HEADER_BYTES_MAX: usize = 64 * 1024;

/// Bytes `first` to `last`, both included, so never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// Offset of the first byte.
    pub first: u64,
    /// Offset of the last byte, at least `first`.
    pub last: u64,
}

/// What a `Range` header asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeRequest {
    /// The whole: there is no header, or it is to be ignored (malformed, or a unit other than bytes).
    None,
    /// One range.
    Single(RangeSpec),
    /// Two ranges or more, at most [`RANGES_MAX`], in the order asked.
    Multiple(Vec<RangeSpec>),
    /// More than [`RANGES_MAX`] ranges, or a header beyond [`HEADER_BYTES_MAX`]: to be refused with 400, upon which
    /// clients ask for fewer.
    TooMany,
}

/// One range as written, before the size of the blob is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RangeSpec {
    /// `a-b`: from byte a to byte b, both included. May be backwards, and is then unsatisfiable.
    FromTo(u64, u64),
    /// `a-`: from byte a to the end.
    From(u64),
    /// `-n`: the last n bytes.
    Suffix(u64),
}

/// Why several ranges are not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangesRefused {
    /// None of them lies in the blob: 416.
    #[error("none of the ranges asked for lies within the blob")]
    Unsatisfiable,
    /// They overlap or are not in ascending order: 400, upon which clients ask for fewer or for one.
    #[error("the ranges asked for overlap or are not in ascending order; ask for one at a time")]
    Disordered,
}

/// Reads a `Range` header.
///
/// Numbers too large for 64 bits count as the largest. One malformed range makes the whole header malformed, and so
/// ignored; a backwards one (`500-0`) doesn't, and comes out as unsatisfiable.
pub fn parse(header: Option<&[u8]>) -> RangeRequest {
    let Some(set) = header.and_then(|header| std::str::from_utf8(header).ok()).and_then(byte_range_set) else {
        return RangeRequest::None;
    };
    if set.len() > HEADER_BYTES_MAX {
        return RangeRequest::TooMany;
    }
    let mut specs = Vec::new();
    // Empty elements and blanks around commas are legal in any list of RFC 9110.
    for element in set.split(',').map(|element| element.trim_matches([' ', '\t'])).filter(|text| !text.is_empty()) {
        if specs.len() == RANGES_MAX {
            return RangeRequest::TooMany;
        }
        let Some(spec) = RangeSpec::parse(element) else { return RangeRequest::None };
        specs.push(spec);
    }
    match specs[..] {
        [] => RangeRequest::None,
        [spec] => RangeRequest::Single(spec),
        _ => RangeRequest::Multiple(specs),
    }
}

/// The bytes that several ranges mean in a blob of `size_bytes`: as many, in the same order, for clients count the parts.
///
/// Ranges beyond the end are left out, as RFC 9110 has it, unless all are. They may only be the last ones: a client that
/// takes the n-th part for its n-th range then misses parts, which it notices, but never takes one for another. Since what
/// remains doesn't overlap, the parts together are never larger than the blob.
pub fn resolve_all(specs: &[RangeSpec], size_bytes: u64) -> Result<Vec<ByteRange>, RangesRefused> {
    let ranges: Vec<_> = specs.iter().map_while(|spec| spec.resolve(size_bytes)).collect();
    let beyond = &specs[ranges.len()..];
    if beyond.iter().any(|spec| spec.resolve(size_bytes).is_some())
        || ranges.windows(2).any(|pair| pair[1].first <= pair[0].last)
    {
        return Err(RangesRefused::Disordered);
    }
    if ranges.is_empty() {
        return Err(RangesRefused::Unsatisfiable);
    }
    Ok(ranges)
}

/// The `Content-Range` of a 416 answer.
pub fn content_range_unsatisfied(size_bytes: u64) -> String {
    format!("bytes */{size_bytes}")
}

/// What follows `bytes=`, if the unit is bytes.
fn byte_range_set(header: &str) -> Option<&str> {
    let (unit, set) = header.trim_matches([' ', '\t']).split_once('=')?;
    unit.eq_ignore_ascii_case("bytes").then_some(set)
}

/// A number of digits only (`parse` alone would admit a sign), the largest if it doesn't fit.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

// === impl ByteRange ===

impl ByteRange {
    /// How many bytes it holds: at least one.
    #[expect(clippy::len_without_is_empty, reason = "a byte range is never empty")]
    pub const fn len(&self) -> u64 {
        // Only 0..=u64::MAX overflows, which no blob is as long as.
        (self.last - self.first).saturating_add(1)
    }

    /// The `Content-Range` of a 206 answer with these bytes. The total is always a number: lazy pullers can't read `*`.
    pub fn content_range(&self, size_bytes: u64) -> String {
        format!("bytes {}-{}/{size_bytes}", self.first, self.last)
    }
}

// === impl RangeSpec ===

impl RangeSpec {
    fn parse(text: &str) -> Option<Self> {
        match text.split_once('-')? {
            ("", suffix) => Some(Self::Suffix(number(suffix)?)),
            (first, "") => Some(Self::From(number(first)?)),
            (first, last) => Some(Self::FromTo(number(first)?, number(last)?)),
        }
    }

    /// The bytes it means in a blob of `size_bytes`, cut at its end; `None` if it is unsatisfiable (416).
    pub fn resolve(&self, size_bytes: u64) -> Option<ByteRange> {
        let end = size_bytes.checked_sub(1)?;
        let (first, last) = match *self {
            Self::FromTo(first, last) => (first, last.min(end)),
            Self::From(first) => (first, end),
            Self::Suffix(0) => return None,
            Self::Suffix(bytes) => (size_bytes.saturating_sub(bytes), end),
        };
        (first <= last).then_some(ByteRange { first, last })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The answer to a header on a blob of 2048 bytes, in one line.
    fn answer(header: &str, size_bytes: u64) -> String {
        match parse(Some(header.as_bytes())) {
            RangeRequest::None => "200".to_owned(),
            RangeRequest::TooMany => "400".to_owned(),
            RangeRequest::Single(spec) => spec.resolve(size_bytes).map_or_else(
                || format!("416 {}", content_range_unsatisfied(size_bytes)),
                |range| format!("206 {} {}", range.len(), range.content_range(size_bytes)),
            ),
            RangeRequest::Multiple(specs) => match resolve_all(&specs, size_bytes) {
                Ok(ranges) => format!("206 {:?}", ranges.iter().map(|r| (r.first, r.last)).collect::<Vec<_>>()),
                Err(RangesRefused::Unsatisfiable) => "416".to_owned(),
                Err(RangesRefused::Disordered) => "400".to_owned(),
            },
        }
    }

    #[test]
    fn the_range_table_of_the_protocol() {
        let table = [
            // one range
            ("bytes=500-1499", "206 1000 bytes 500-1499/2048"),
            ("bytes=500-", "206 1548 bytes 500-2047/2048"),
            ("bytes=-500", "206 500 bytes 1548-2047/2048"),
            ("bytes=2000-5000", "206 48 bytes 2000-2047/2048"),
            ("bytes=0-", "206 2048 bytes 0-2047/2048"),
            ("bytes=0-0", "206 1 bytes 0-0/2048"),
            ("bytes=-1", "206 1 bytes 2047-2047/2048"),
            ("bytes=-2048", "206 2048 bytes 0-2047/2048"),
            ("bytes=-9999", "206 2048 bytes 0-2047/2048"),
            ("bytes=0-99999999999999999999999", "206 2048 bytes 0-2047/2048"),
            ("bytes=-99999999999999999999999", "206 2048 bytes 0-2047/2048"),
            ("Bytes=0-1", "206 2 bytes 0-1/2048"),
            ("bytes=0-1,", "206 2 bytes 0-1/2048"),
            (" bytes= 0-1 ", "206 2 bytes 0-1/2048"),
            // outside the blob
            ("bytes=500-0", "416 bytes */2048"),
            ("bytes=5000-10000", "416 bytes */2048"),
            ("bytes=2048-", "416 bytes */2048"),
            ("bytes=-0", "416 bytes */2048"),
            ("bytes=99999999999999999999999-", "416 bytes */2048"),
            // to be ignored
            ("", "200"),
            ("bytes", "200"),
            ("bytes=", "200"),
            ("bytes=,", "200"),
            ("bytes=-", "200"),
            ("bytes=--1", "200"),
            ("bytes=a-b", "200"),
            ("bytes=+1-2", "200"),
            ("bytes=1- 2", "200"),
            ("bytes=1", "200"),
            ("bytes=1-2-3", "200"),
            ("bytes=0-1,x", "200"),
            ("bytes =0-1", "200"),
            ("items=0-1", "200"),
            ("bytes:0-1", "200"),
            // several
            ("bytes=0-1,4-5", "206 [(0, 1), (4, 5)]"),
            ("bytes=0-1 ,\t4-5,, 9-", "206 [(0, 1), (4, 5), (9, 2047)]"),
            ("bytes=0-1,2-3", "206 [(0, 1), (2, 3)]"),
            ("bytes=0-1,5000-", "206 [(0, 1)]"),
            ("bytes=0-1,-1", "206 [(0, 1), (2047, 2047)]"),
            ("bytes=0-1,5-4,9000-", "206 [(0, 1)]"),
            ("bytes=5000-,6000-", "416"),
            ("bytes=9-8,-0", "416"),
            // A part left out between others would shift those that follow.
            ("bytes=0-1,9-8,10-11", "400"),
            ("bytes=5000-,0-1", "400"),
            ("bytes=-0,0-1", "400"),
            ("bytes=0-5,5-9", "400"),
            ("bytes=4-5,0-1", "400"),
            ("bytes=0-,0-", "400"),
        ];
        for (header, expected) in table {
            assert_eq!(answer(header, 2048), expected, "{header:?}");
        }
    }

    #[test]
    fn nothing_of_an_empty_blob_can_be_had() {
        for header in ["bytes=0-", "bytes=0-0", "bytes=-1", "bytes=-0"] {
            assert_eq!(answer(header, 0), "416 bytes */0", "{header:?}");
        }
    }

    #[test]
    fn no_header_and_bytes_that_are_no_text_mean_the_whole() {
        assert_eq!(parse(None), RangeRequest::None);
        assert_eq!(parse(Some(b"bytes=0-\xff")), RangeRequest::None);
    }

    #[test]
    fn as_many_ranges_as_podman_sends_are_taken_and_one_more_is_too_many() {
        let header = |count: usize| {
            format!("bytes={}", (0..count).map(|i| format!("{}-{}", i * 20, i * 20 + 9)).collect::<Vec<_>>().join(","))
        };
        assert!(matches!(parse(Some(header(1024).as_bytes())), RangeRequest::Multiple(specs) if specs.len() == 1024));
        assert_eq!(parse(Some(header(1025).as_bytes())), RangeRequest::TooMany);
    }

    #[test]
    fn a_header_is_read_up_to_its_limit() {
        let header = |len: usize| format!("bytes=0-{:0>len$}", "9");
        let read = parse(Some(header(HEADER_BYTES_MAX - 2).as_bytes()));
        assert_eq!(read, RangeRequest::Single(RangeSpec::FromTo(0, 9)));
        assert_eq!(parse(Some(header(HEADER_BYTES_MAX - 1).as_bytes())), RangeRequest::TooMany);
    }

    #[test]
    fn the_longest_range_has_a_length() {
        assert_eq!(ByteRange { first: 0, last: u64::MAX }.len(), u64::MAX);
    }

    fn specs() -> impl Strategy<Value = RangeSpec> {
        let offset = prop_oneof![0..40_u64, Just(u64::MAX - 1), Just(u64::MAX)];
        prop_oneof![
            (offset.clone(), offset.clone()).prop_map(|(first, last)| RangeSpec::FromTo(first, last)),
            offset.clone().prop_map(RangeSpec::From),
            offset.prop_map(RangeSpec::Suffix),
        ]
    }

    fn text(spec: RangeSpec) -> String {
        match spec {
            RangeSpec::FromTo(first, last) => format!("{first}-{last}"),
            RangeSpec::From(first) => format!("{first}-"),
            RangeSpec::Suffix(bytes) => format!("-{bytes}"),
        }
    }

    /// Does the byte at `offset` belong to what is asked for?
    fn asked(spec: RangeSpec, offset: u64, size_bytes: u64) -> bool {
        match spec {
            RangeSpec::FromTo(first, last) => first <= offset && offset <= last,
            RangeSpec::From(first) => first <= offset,
            RangeSpec::Suffix(bytes) => size_bytes - offset <= bytes,
        }
    }

    proptest! {
        #[test]
        fn a_range_means_the_bytes_that_a_naive_reading_picks(spec in specs(), size_bytes in 0..32_u64) {
            let naive: Vec<u64> = (0..size_bytes).filter(|offset| asked(spec, *offset, size_bytes)).collect();
            let resolved = spec.resolve(size_bytes).map_or_else(Vec::new, |range| (range.first..=range.last).collect());
            prop_assert_eq!(resolved, naive);
        }

        #[test]
        fn what_is_written_is_read_back(specs in prop::collection::vec(specs(), 1..20)) {
            let header = format!("bytes={}", specs.iter().map(|spec| text(*spec)).collect::<Vec<_>>().join(", "));
            let expected =
                if let [spec] = specs[..] { RangeRequest::Single(spec) } else { RangeRequest::Multiple(specs) };
            prop_assert_eq!(parse(Some(header.as_bytes())), expected);
        }

        #[test]
        fn several_ranges_never_add_up_to_more_than_the_blob(
            specs in prop::collection::vec(specs(), 0..8),
            size_bytes in 0..64_u64,
        ) {
            if let Ok(ranges) = resolve_all(&specs, size_bytes) {
                prop_assert!(ranges.iter().map(ByteRange::len).sum::<u64>() <= size_bytes);
                // The n-th part is the n-th range's.
                for (range, spec) in ranges.iter().zip(&specs) {
                    prop_assert_eq!(Some(*range), spec.resolve(size_bytes));
                }
            }
        }

        #[test]
        fn no_header_makes_the_parser_panic(header in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(Some(&header));
        }

        #[test]
        fn no_header_that_looks_like_a_range_makes_the_parser_panic(header in "bytes=[-0-9, ]{0,60}") {
            let _ = parse(Some(header.as_bytes()));
        }
    }
}
