//! Bodies: whole, short, cut, and left by their client.

use futures_util::{FutureExt, stream};
use http_body::Body as _;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::store::Cut;

/// A file of the bytes 0, 1, … 250, 0, 1, … whose reads wait for a permit.
struct GatedFile {
    gate: Semaphore,
    reads: Mutex<Vec<(u64, usize)>>,
    failing_at: Option<u64>,
    short_by: usize,
}

fn file(permits: usize) -> Arc<GatedFile> {
    let gate = Semaphore::new(permits);
    Arc::new(GatedFile { gate, reads: Mutex::default(), failing_at: None, short_by: 0 })
}

fn content(offset: u64, len: usize) -> Bytes {
    (offset..).take(len).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

impl ReadAt for GatedFile {
    fn read_bytes(&self) -> usize {
        CHUNK_BYTES
    }

    fn read_at(self: Arc<Self>, offset: u64, len: usize) -> BoxFuture<'static, io::Result<Bytes>> {
        Box::pin(async move {
            self.reads.lock().push((offset, len));
            self.gate.acquire().await.unwrap().forget();
            if self.failing_at == Some(offset) {
                return Err(io::Error::other("the disk is tired"));
            }
            Ok(content(offset, len - self.short_by))
        })
    }
}

type Ends = Arc<Mutex<Vec<BodyEnd>>>;

fn frames(
    parts: impl futures_util::Stream<Item = Result<Part, Arc<str>>> + Send + 'static,
    length: Option<u64>,
) -> (Frames, AbortHandle, Ends) {
    let (abort, ends) = (AbortHandle::unattached(), Ends::default());
    let noted = ends.clone();
    let frames = Frames::new(parts.boxed(), length, abort.clone(), Box::new(move |end| noted.lock().push(end)));
    (frames, abort, ends)
}

fn of(parts: Vec<Result<Part, Arc<str>>>, length: Option<u64>) -> (Frames, AbortHandle, Ends) {
    frames(stream::iter(parts), length)
}

#[expect(clippy::unnecessary_wraps, reason = "what a source yields")]
fn memory(text: &'static str) -> Result<Part, Arc<str>> {
    Ok(Part::Memory(Bytes::from_static(text.as_bytes())))
}

/// All frames up to the end, or up to where the body stays pending.
fn collect(frames: &mut Frames) -> Vec<Bytes> {
    let mut all = Vec::new();
    while let Some(Some(frame)) = frames.frame().now_or_never() {
        all.push(frame.unwrap().into_data().unwrap());
    }
    all
}

fn ended(ends: &Ends) -> BodyEnd {
    let ends = ends.lock();
    assert_eq!(ends.len(), 1, "once");
    ends[0].clone()
}

#[tokio::test]
async fn pieces_of_files_and_memory_come_out_whole_and_in_order() {
    let file = file(100);
    let parts = vec![
        memory("head"),
        memory(""),
        Ok(Part::File { file: file.clone(), offset: 7, len: 600_000 }),
        Ok(Part::Memory(content(3, 300_000))),
        Ok(Part::File { file, offset: 0, len: 0 }),
    ];
    let (mut frames, abort, ends) = of(parts, Some(900_004));
    assert_eq!(frames.size_hint().exact(), Some(900_004));
    let all = collect(&mut frames);
    assert!(all.iter().all(|frame| frame.len() <= CHUNK_BYTES));
    assert!(frames.is_end_stream());
    assert_eq!(frames.size_hint().exact(), Some(0));
    assert!(all.concat() == [b"head".as_slice(), &content(7, 600_000), &content(3, 300_000)].concat());
    drop(frames);
    assert_eq!(ended(&ends), BodyEnd { bytes_sent: 900_004, complete: true, cut: None });
    assert_eq!(abort.reason(), None);
}

#[tokio::test]
async fn at_most_one_chunk_is_read_ahead() {
    let file = file(0);
    let len = 4 * CHUNK_BYTES as u64;
    let (mut frames, _abort, _ends) = of(vec![Ok(Part::File { file: file.clone(), offset: 0, len })], Some(len));
    assert!(frames.frame().now_or_never().is_none());
    assert_eq!(file.reads.lock().len(), 1);
    file.gate.add_permits(4);
    for taken in 1..=3 {
        assert!(frames.frame().now_or_never().is_some());
        assert_eq!(file.reads.lock().len(), taken + 1);
    }
    assert!(frames.frame().now_or_never().is_some());
    assert_eq!(file.reads.lock().len(), 4);
    assert!(frames.is_end_stream());
}

#[tokio::test]
async fn what_came_before_a_cut_is_sent_and_then_nothing_ever_again() {
    for length in [Some(100), None] {
        let parts = vec![memory("abc"), memory("def"), Err("the upstream hung up".into()), memory("ghi")];
        let (mut frames, abort, ends) = of(parts, length);
        assert_eq!(collect(&mut frames).concat(), b"abcdef");
        assert!(frames.frame().now_or_never().is_none());
        assert!(!frames.is_end_stream());
        assert_eq!(abort.reason().as_deref(), Some("the upstream hung up"));
        drop(frames);
        let cut = Some("the upstream hung up".into());
        assert_eq!(ended(&ends), BodyEnd { bytes_sent: 6, complete: false, cut });
    }
}

#[tokio::test]
async fn the_last_chunk_waits_for_the_source_to_say_that_it_ended() {
    let (sender, receiver) = mpsc::unbounded_channel();
    let parts = stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|part| (part, receiver)) });
    let (mut frames, abort, _ends) = frames(parts, Some(6));
    sender.send(memory("abc")).unwrap();
    assert_eq!(collect(&mut frames).concat(), b"abc");
    sender.send(memory("def")).unwrap();
    assert!(collect(&mut frames).is_empty());
    drop(sender);
    assert_eq!(collect(&mut frames).concat(), b"def");
    assert!(frames.is_end_stream());
    assert_eq!(abort.reason(), None);
}

#[tokio::test]
async fn a_cut_after_the_last_byte_still_keeps_the_body_from_being_complete() {
    let (mut frames, abort, _ends) = of(vec![memory("abc"), memory("def"), Err("wrong digest".into())], Some(6));
    assert_eq!(collect(&mut frames).concat(), b"abc");
    assert_eq!(abort.reason().as_deref(), Some("wrong digest"));
}

#[tokio::test]
async fn too_much_and_too_little_are_both_cut_short() {
    let (mut frames, abort, _ends) = of(vec![memory("abc"), memory("def"), memory("g")], Some(6));
    assert_eq!(collect(&mut frames).concat(), b"abc");
    assert_eq!(abort.reason().as_deref(), Some("there is more than the 6 bytes announced"));
    drop(frames);

    let (mut frames, abort, _ends) = of(vec![memory("abc"), memory("defg")], Some(6));
    assert_eq!(collect(&mut frames).concat(), b"abc");
    assert_eq!(abort.reason().as_deref(), Some("there is more than the 6 bytes announced"));
    drop(frames);

    let (mut frames, abort, ends) = of(vec![memory("abc")], Some(6));
    assert_eq!(collect(&mut frames).concat(), b"abc");
    assert_eq!(abort.reason().as_deref(), Some("the content ended after 3 bytes"));
    drop(frames);
    assert!(!ended(&ends).complete);
}

#[tokio::test]
async fn a_failed_or_short_read_is_cut_after_what_was_read() {
    let chunk = CHUNK_BYTES as u64;
    for (failing_at, short_by, message) in
        [(Some(chunk), 0, "the content could not be read: the disk is tired"), (None, 1, "unexpected end of file")]
    {
        let mut file = file(9);
        let gated = Arc::get_mut(&mut file).unwrap();
        (gated.failing_at, gated.short_by) = (failing_at, short_by);
        let part = Part::File { file, offset: 0, len: 3 * chunk };
        let (mut frames, abort, _ends) = of(vec![Ok(part)], Some(3 * chunk));
        let frames_sent = collect(&mut frames).len();
        assert_eq!(frames_sent, usize::from(short_by == 0));
        let reason = abort.reason().unwrap();
        assert!(reason.contains(message), "{reason}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_neither_complete_nor_cut() {
    let (mut frames, abort, ends) = of(vec![memory("abc"), memory("def")], Some(6));
    assert!(frames.frame().now_or_never().is_some());
    drop(frames);
    assert_eq!(ended(&ends), BodyEnd { bytes_sent: 3, complete: false, cut: None });
    assert_eq!(abort.reason(), None);
}

#[tokio::test]
async fn nothing_at_all_is_complete_from_the_start() {
    let (frames, _abort, ends) = of(Vec::new(), Some(0));
    assert!(frames.is_end_stream());
    drop(frames);
    assert!(ended(&ends).complete);
    let (mut frames, _abort, ends) = of(Vec::new(), None);
    assert!(frames.frame().await.is_none());
    drop(frames);
    assert!(ended(&ends).complete);
}

#[tokio::test]
async fn the_pieces_of_the_store_become_a_body() {
    let cut = Cut { reason: "as planned".into() };
    let pieces = stream::iter([Ok(Piece::Memory(Bytes::from_static(b"abc"))), Err(cut)]).boxed();
    let abort = AbortHandle::unattached();
    let mut body = stream(pieces, Some(6), abort.clone(), |_| {});
    assert_eq!(body.size_hint().exact(), Some(6));
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
    assert!(body.frame().now_or_never().is_none());
    assert_eq!(abort.reason().as_deref(), Some("as planned"));
}
