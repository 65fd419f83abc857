//! What a client makes of a `multipart/byteranges` answer, read as strictly as the strictest of them.

use bytes::Bytes;

use super::client::{Answer, End};

/// One part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// The size of the whole, which lazy pullers need as a number.
    pub(crate) total: u64,
    pub(crate) content_type: String,
    pub(crate) bytes: Bytes,
}

/// The parts of an answer that is a complete 206 of several. Fails on whatever a client could stumble over.
#[track_caller]
pub(crate) fn parts(answer: &Answer) -> Vec<Part> {
    assert_eq!((answer.status(), answer.end), (206, End::Complete), "{:?}", answer.head);
    assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()), "{:?}", answer.head);
    assert_eq!(answer.header("content-range"), None, "a multipart answer has these in its parts only");
    let content_type = answer.header("content-type").unwrap();
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").expect("several parts");
    let plain = boundary.bytes().all(|byte| byte.is_ascii_alphanumeric());
    assert!(plain && (1..=70).contains(&boundary.len()), "{content_type}");

    let mut rest = answer.body.clone();
    let mut parts = Vec::new();
    expect(&mut rest, &format!("--{boundary}"));
    while !rest.starts_with(b"--") {
        expect(&mut rest, "\r\n");
        let part = part(&mut rest);
        assert!(!contains(&part.bytes, boundary), "the boundary is in the content");
        parts.push(part);
        expect(&mut rest, &format!("\r\n--{boundary}"));
    }
    expect(&mut rest, "--\r\n");
    assert!(rest.is_empty(), "something follows the last part");
    parts
}

/// Reads a part from its first header to its last byte, for which it must say truly how many there are.
fn part(rest: &mut Bytes) -> Part {
    let (mut content_type, mut range) = (None, None);
    loop {
        let line = line(rest);
        match line.split_once(": ") {
            Some(("Content-Type", value)) => assert_eq!(content_type.replace(value.to_owned()), None),
            Some(("Content-Range", value)) => assert_eq!(range.replace(value.to_owned()), None),
            None if line.is_empty() => break,
            _ => panic!("not a header of a part: {line:?}"),
        }
    }
    let range = range.expect("a part says which bytes it has");
    let (bytes, total) = range.strip_prefix("bytes ").and_then(|range| range.split_once('/')).expect("a range");
    let (first, last) = bytes.split_once('-').expect("a range");
    let [first, last, total] = [first, last, total].map(|number| number.parse::<u64>().expect("a number"));
    let bytes = rest.split_to(usize::try_from(last - first + 1).unwrap());
    Part { first, last, total, content_type: content_type.expect("a part has a type"), bytes }
}

fn line(rest: &mut Bytes) -> String {
    let at = rest.windows(2).position(|window| window == b"\r\n").expect("a line");
    let line = rest.split_to(at + 2);
    String::from_utf8(line[..at].to_vec()).expect("headers are text")
}

#[track_caller]
fn expect(rest: &mut Bytes, text: &str) {
    assert!(rest.starts_with(text.as_bytes()), "{text:?} expected before {:?}", rest.slice(..rest.len().min(80)));
    let _ = rest.split_to(text.len());
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
