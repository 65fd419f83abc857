//! Several ranges in one answer: `multipart/byteranges` as in RFC 9110 §14.6, one part for each range, in the order asked.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::oci::range::ByteRange;
use crate::store::{Cut, Piece, Pieces};

/// The parts of one answer: what they hold, and what goes between them.
#[derive(Clone, Debug)]
pub(super) struct Multipart {
    ranges: Vec<ByteRange>,
    size_bytes: u64,
    content_type: String,
    boundary: String,
}

/// A body on its way.
struct Parts {
    content: Pieces,
    /// What goes before the bytes of each range to come.
    to_come: VecDeque<(Bytes, ByteRange)>,
    /// What goes after the last one; `None` once it is out.
    trailer: Option<Bytes>,
    /// How many bytes of the current part are still missing.
    missing: u64,
    /// What is left of a piece that holds more than that.
    rest: Option<Piece>,
}

// === impl Multipart ===

impl Multipart {
    /// An answer with these ranges of content of this size and type.
    ///
    /// The boundary is drawn anew for each answer, so that nobody can make content that contains it. It has letters and
    /// digits only: not every client can read one in quotes.
    pub(super) fn new(ranges: Vec<ByteRange>, size_bytes: u64, content_type: &str) -> Self {
        let boundary = format!("{:032x}", rand::random::<u128>());
        Self { ranges, size_bytes, content_type: content_type.to_owned(), boundary }
    }

    pub(super) fn ranges(&self) -> &[ByteRange] {
        &self.ranges
    }

    /// The `Content-Type` of the answer.
    pub(super) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// The `Content-Length` of the answer.
    pub(super) fn len(&self) -> u64 {
        let parts = self.ranges.iter().enumerate();
        let parts: u64 = parts.map(|(number, range)| self.head(number, *range).len() as u64 + range.len()).sum();
        parts + self.trailer().len() as u64
    }

    /// The whole body, made of the bytes of all ranges one after the other.
    pub(super) fn body(&self, content: Pieces) -> Pieces {
        let heads = self.ranges.iter().enumerate();
        let parts = Parts {
            content,
            to_come: heads.map(|(number, range)| (self.head(number, *range).into(), *range)).collect(),
            trailer: Some(self.trailer().into()),
            missing: 0,
            rest: None,
        };
        stream::try_unfold(parts, |mut parts| async {
            let piece = parts.next_piece().await?;
            Ok(piece.map(|piece| (piece, parts)))
        })
        .boxed()
    }

    fn head(&self, number: usize, range: ByteRange) -> String {
        let line_end = if number == 0 { "" } else { "\r\n" };
        let Self { boundary, content_type, .. } = self;
        let content_range = range.content_range(self.size_bytes);
        format!("{line_end}--{boundary}\r\nContent-Type: {content_type}\r\nContent-Range: {content_range}\r\n\r\n")
    }

    fn trailer(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }
}

// === impl Parts ===

impl Parts {
    async fn next_piece(&mut self) -> Result<Option<Piece>, Cut> {
        if self.missing > 0 {
            let mut piece = match self.rest.take() {
                Some(piece) => piece,
                None => {
                    self.content.next().await.unwrap_or_else(|| Err(Cut::new("the content ended within a part")))?
                }
            };
            let first = piece.split_to(self.missing);
            self.missing -= first.len();
            self.rest = (!piece.is_empty()).then_some(piece);
            return Ok(Some(first));
        }
        if let Some((head, range)) = self.to_come.pop_front() {
            self.missing = range.len();
            return Ok(Some(Piece::Memory(head)));
        }
        if self.trailer.is_none() {
            return Ok(None);
        }
        // Only content that has come to a good end may be followed by what makes the answer complete.
        match self.content.next().await {
            Some(Err(cut)) => Err(cut),
            Some(Ok(_)) => Err(Cut::new("there is more content than the parts can hold")),
            None if self.rest.is_some() => Err(Cut::new("there is more content than the parts can hold")),
            None => Ok(self.trailer.take().map(Piece::Memory)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    async fn read(pieces: Pieces) -> (Vec<u8>, Option<Cut>) {
        let mut got = Vec::new();
        let mut pieces = pieces;
        while let Some(piece) = pieces.next().await {
            match piece {
                Ok(piece) => got.extend_from_slice(&piece.read().await.unwrap()),
                Err(cut) => return (got, Some(cut)),
            }
        }
        (got, None)
    }

    /// The content as pieces that end anywhere, not only where ranges do.
    fn cut_up(content: &[u8], piece_bytes: usize) -> Vec<Result<Piece, Cut>> {
        content.chunks(piece_bytes).map(|chunk| Ok(Piece::Memory(Bytes::copy_from_slice(chunk)))).collect()
    }

    fn whole(ranges: &[ByteRange], blob: &[u8]) -> Vec<u8> {
        let bytes = |range: &ByteRange| {
            blob[usize::try_from(range.first).unwrap()..=usize::try_from(range.last).unwrap()].to_vec()
        };
        ranges.iter().flat_map(bytes).collect()
    }

    #[tokio::test]
    async fn an_answer_is_to_the_byte_what_the_standard_shows() {
        let ranges = vec![ByteRange { first: 0, last: 3 }, ByteRange { first: 8, last: 9 }];
        let multipart = Multipart::new(ranges, 10, "application/octet-stream");
        let boundary = multipart.boundary.clone();
        assert!(boundary.len() == 32 && boundary.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_eq!(multipart.content_type(), format!("multipart/byteranges; boundary={boundary}"));
        let (got, cut) = read(multipart.body(stream::iter(cut_up(b"012389", 4)).boxed())).await;
        let expected = format!(
            "--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 0-3/10\r\n\r\n0123\
             \r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes 8-9/10\r\n\r\n89\
             \r\n--{boundary}--\r\n"
        );
        assert_eq!((String::from_utf8(got).unwrap(), cut), (expected, None));
    }

    #[test]
    fn no_two_answers_have_the_same_boundary() {
        let ranges = vec![ByteRange { first: 0, last: 0 }];
        let [one, other] = [(); 2].map(|()| Multipart::new(ranges.clone(), 1, "text/plain"));
        assert_ne!(one.boundary, other.boundary);
    }

    #[tokio::test]
    async fn content_that_is_cut_short_or_too_long_never_gets_its_last_line() {
        let ranges = vec![ByteRange { first: 0, last: 3 }, ByteRange { first: 8, last: 9 }];
        let failed = || stream::iter([Err(Cut::new("upstream failed"))]).boxed();
        for content in [
            stream::iter(cut_up(b"01238", 4)).boxed(),
            stream::iter(cut_up(b"0123899", 4)).boxed(),
            stream::iter(cut_up(b"0123", 4)).chain(failed()).boxed(),
            // All bytes came, and then the digest was wrong.
            stream::iter(cut_up(b"012389", 4)).chain(failed()).boxed(),
        ] {
            let multipart = Multipart::new(ranges.clone(), 10, "text/plain");
            let (got, cut) = read(multipart.body(content)).await;
            assert!(cut.is_some() && (got.len() as u64) < multipart.len());
        }
    }

    proptest! {
        #[test]
        fn the_length_is_what_is_sent_however_the_content_is_cut_up(
            lengths in prop::collection::vec((0_u64..50, 1_u64..200), 1..60),
            piece_bytes in 1_usize..300,
        ) {
            let mut at = 0;
            let ranges: Vec<_> = lengths.iter().map(|(gap, len)| {
                let first = at + gap;
                at = first + len;
                ByteRange { first, last: at - 1 }
            }).collect();
            let blob: Vec<u8> = (0..at).map(|n| u8::try_from(n % 251).unwrap()).collect();
            let multipart = Multipart::new(ranges.clone(), at, "text/plain");
            let content = stream::iter(cut_up(&whole(&ranges, &blob), piece_bytes)).boxed();
            let (got, cut) = futures_util::FutureExt::now_or_never(read(multipart.body(content))).unwrap();
            prop_assert_eq!(cut, None);
            prop_assert_eq!(got.len() as u64, multipart.len());
            let expected: Vec<u8> = ranges.iter().enumerate().flat_map(|(number, range)| {
                [multipart.head(number, *range).into_bytes(), whole(&[*range], &blob)].concat()
            }).chain(multipart.trailer().into_bytes()).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
