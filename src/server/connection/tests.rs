//! Connections down to the bytes and the FIN on the wire.

use std::io;

use axum::extract::Extension;
use axum::routing::{any, get};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::oci::error::ErrorCode;
use crate::server::accept::Limits;
use crate::server::body;
use crate::server::error::ErrorResponse;
use crate::store::testing::open_file;
use crate::store::{Cut, OpenFile, Piece};
use crate::tasks;

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// More than a client's send buffer holds, less than is drained.
const UNREAD: usize = 700 << 10;

fn limits() -> ConnectionLimits {
    Limits::default().connection
}

/// A connection to `app`, and what becomes of it.
async fn connect(address: &str, app: Router, limits: ConnectionLimits) -> (TcpStream, JoinHandle<End>) {
    connect_draining(address, app, limits, CancellationToken::new()).await
}

async fn connect_draining(
    address: &str,
    app: Router,
    limits: ConnectionLimits,
    draining: CancellationToken,
) -> (TcpStream, JoinHandle<End>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let info = ConnectionInfo { peer, local: listener.local_addr().unwrap() };
    (client, tasks::spawn("test connection", serve(stream, info, app, limits, draining)))
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

/// `pieces` of a body, and then why it ends.
fn cut_after(pieces: Vec<Bytes>) -> crate::store::Pieces {
    let cut = Cut { reason: "the upstream hung up".into() };
    stream::iter(pieces.into_iter().map(|bytes| Ok(Piece::Memory(bytes))).chain([Err(cut)])).boxed()
}

/// `/ok` answers `hello`; `/cut/N` announces N + 100 bytes and has N; `/chunked` has 5 of an unknown number of bytes.
fn app() -> Router {
    async fn cut(axum::extract::Path(n): axum::extract::Path<usize>, Extension(abort): Extension<AbortHandle>) -> Body {
        let pieces = content(n).chunks(300_000).map(Bytes::copy_from_slice).collect();
        body::stream(cut_after(pieces), Some(n as u64 + 100), abort, |_| {})
    }
    async fn chunked(Extension(abort): Extension<AbortHandle>) -> Body {
        body::stream(cut_after(vec![Bytes::from_static(b"hello")]), None, abort, |_| {})
    }
    async fn error() -> ErrorResponse {
        ErrorResponse::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, "nothing is written here")
    }
    Router::new()
        .route("/ok", get(|| async { "hello" }))
        .route("/cut/{n}", any(cut))
        .route("/chunked", any(chunked))
        .fallback(error)
}

async fn read_all(client: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.expect("the connection must end by FIN");
    split(&bytes)
}

fn split(bytes: &[u8]) -> (String, Vec<u8>) {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
    (String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end + 4..].to_vec())
}

/// Reads until what has come ends with `end`.
async fn read_until(client: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        bytes.push(client.read_u8().await.unwrap());
    }
    bytes
}

async fn send(client: &mut TcpStream, text: &str) {
    client.write_all(text.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_cut_body_arrives_as_head_and_exact_prefix_and_then_fin() {
    for address in LOOPBACKS {
        for n in [0, 1, 5, 70_000, 3_000_000] {
            let (mut client, end) = connect(address, app(), limits()).await;
            send(&mut client, &format!("GET /cut/{n} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
            let (head, body) = read_all(&mut client).await;
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(head.contains(&format!("content-length: {}", n + 100)), "{head}");
            assert!(body == content(n), "{} of {n} bytes", body.len());
            drop(client);
            assert_eq!(end.await.unwrap(), End::Aborted);
        }
    }
}

#[tokio::test]
async fn a_slow_client_still_gets_all_that_came_before_the_cut() {
    for n in [0, 1, 70_000] {
        // Neither the head nor the body fits into what is under way between the two.
        let (mut client, stream) = tokio::io::duplex(64);
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let info = ConnectionInfo { peer: nowhere, local: nowhere };
        let serving = serve(stream, info, app(), limits(), CancellationToken::new());
        let end = tasks::spawn("test connection", serving);
        let request = format!("GET /cut/{n} HTTP/1.1\r\nhost: x\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert!(split(&received).1 == content(n), "{n}");
        drop(client);
        assert_eq!(end.await.unwrap(), End::Aborted);
    }
}

#[tokio::test]
async fn unread_input_does_not_turn_fin_into_a_reset() {
    for address in LOOPBACKS {
        for head in [
            // A further request, pipelined; a body that nobody reads; the same, never to be complete.
            "GET /cut/1000 HTTP/1.1\r\nhost: x\r\n\r\nGET /".to_owned(),
            format!("PUT /cut/1000 HTTP/1.1\r\nhost: x\r\ncontent-length: {UNREAD}\r\n\r\n"),
            format!("PUT /cut/1000 HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", UNREAD * 9),
        ] {
            let (mut client, end) = connect(address, app(), limits()).await;
            send(&mut client, &head).await;
            let (mut reading, mut writing) = client.split();
            let mut received = Vec::new();
            let unread = vec![b'a'; UNREAD];
            let (read, written) = tokio::join!(reading.read_to_end(&mut received), writing.write_all(&unread));
            read.expect("the connection must end by FIN");
            written.expect("what is sent must be taken");
            assert_eq!(reading.read(&mut [0]).await.unwrap(), 0, "no reset follows");
            assert_eq!(split(&received).1, content(1000));
            drop(client);
            assert_eq!(end.await.unwrap(), End::Aborted);
        }
    }
}

#[tokio::test]
async fn a_refused_upload_gets_its_answer_and_no_reset() {
    let (mut client, end) = connect(LOOPBACKS[0], app(), limits()).await;
    send(&mut client, &format!("PUT /v2/x/blobs/uploads/1 HTTP/1.1\r\nhost: x\r\ncontent-length: {UNREAD}\r\n\r\n"))
        .await;
    let (mut reading, mut writing) = client.split();
    let mut received = Vec::new();
    let unread = vec![b'a'; UNREAD];
    let (read, written) = tokio::join!(reading.read_to_end(&mut received), writing.write_all(&unread));
    read.unwrap();
    written.unwrap();
    let (head, body) = split(&received);
    assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
    assert!(String::from_utf8(body).unwrap().contains("UNSUPPORTED"));
    drop(client);
    end.await.unwrap();
}

#[tokio::test]
async fn a_complete_response_stays_complete_before_one_that_is_cut() {
    let (mut client, end) = connect(LOOPBACKS[0], app(), limits()).await;
    send(&mut client, "GET /ok HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut client, b"\r\n\r\nhello").await;
    send(&mut client, "GET /cut/7 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(read_all(&mut client).await.1, content(7));
    drop(client);
    assert_eq!(end.await.unwrap(), End::Aborted);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_up_to_the_cut() {
    let (mut client, end) = connect(LOOPBACKS[0], app(), limits()).await;
    let ok = "GET /ok HTTP/1.1\r\nhost: x\r\n\r\n";
    send(&mut client, &format!("{ok}{ok}GET /cut/7 HTTP/1.1\r\nhost: x\r\n\r\n{ok}")).await;
    for _ in 0..2 {
        read_until(&mut client, b"\r\n\r\nhello").await;
    }
    assert_eq!(read_all(&mut client).await.1, content(7));
    drop(client);
    assert_eq!(end.await.unwrap(), End::Aborted);
}

#[tokio::test]
async fn a_body_of_unknown_length_is_cut_without_its_last_chunk() {
    let (mut client, end) = connect(LOOPBACKS[0], app(), limits()).await;
    send(&mut client, "GET /chunked HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let (head, body) = read_all(&mut client).await;
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert_eq!(body, b"5\r\nhello\r\n");
    drop(client);
    assert_eq!(end.await.unwrap(), End::Aborted);
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_body_whose_end_it_cannot_tell() {
    let (mut client, end) = connect(LOOPBACKS[0], app(), limits()).await;
    send(&mut client, "GET /chunked HTTP/1.0\r\n\r\n").await;
    assert!(read_all(&mut client).await.0.starts_with("HTTP/1.0 505 "));
    drop(client);
    assert_eq!(end.await.unwrap(), End::Complete);
    let (mut client, _end) = connect(LOOPBACKS[0], app(), limits()).await;
    send(&mut client, "GET /ok HTTP/1.0\r\n\r\n").await;
    assert_eq!(read_all(&mut client).await.1, b"hello");
}

/// A body that yields what it is sent.
fn channel_body(length: usize) -> (mpsc::Sender<io::Result<Bytes>>, Router, mpsc::Receiver<AbortHandle>) {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(1);
    let (handles, aborts) = mpsc::channel(4);
    let receiver = Arc::new(parking_lot::Mutex::new(Some(receiver)));
    let handler = move |Extension(abort): Extension<AbortHandle>| async move {
        handles.send(abort).await.unwrap();
        let Some(receiver) = receiver.lock().take() else {
            return "hello".into_response();
        };
        let body = Body::from_stream(stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|item| (item, receiver))
        }));
        ([(header::CONTENT_LENGTH, length)], body).into_response()
    };
    (sender, Router::new().fallback(handler), aborts)
}

#[tokio::test]
async fn an_abort_from_elsewhere_ends_a_response_whose_body_waits() {
    let (sender, app, mut aborts) = channel_body(10);
    let (mut client, end) = connect(LOOPBACKS[0], app, limits()).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    sender.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
    read_until(&mut client, b"\r\n\r\nabc").await;
    let abort = aborts.recv().await.unwrap();
    abort.abort("because");
    abort.abort("once more");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    drop(client);
    assert_eq!(end.await.unwrap(), End::Aborted);
    assert_eq!(abort.reason().as_deref(), Some("because"));
    // The body is gone, and with it the receiver.
    sender.closed().await;
}

#[tokio::test]
async fn a_late_abort_does_not_touch_the_next_response() {
    let (sender, app, mut aborts) = channel_body(3);
    let (mut client, end) = connect(LOOPBACKS[0], app, limits()).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    sender.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
    read_until(&mut client, b"\r\n\r\nabc").await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut client, b"\r\n\r\nhello").await;
    aborts.recv().await.unwrap().abort("too late");
    send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut client, b"\r\n\r\nhello").await;
    drop(client);
    assert_eq!(end.await.unwrap(), End::Complete);
}

#[tokio::test]
async fn any_body_that_fails_or_ends_early_is_cut_the_same_way() {
    for failure in [Some(Err(io::Error::other("as planned"))), None] {
        let (sender, app, mut aborts) = channel_body(10);
        let (mut client, end) = connect(LOOPBACKS[0], app, limits()).await;
        send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        sender.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
        if let Some(failure) = failure {
            sender.send(failure).await.unwrap();
        }
        drop(sender);
        assert_eq!(read_all(&mut client).await.1, b"abc");
        drop(client);
        assert_eq!(end.await.unwrap(), End::Aborted);
        assert!(aborts.recv().await.unwrap().reason().is_some());
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_the_body_waits_is_noticed() {
    let (sender, app, _aborts) = channel_body(10);
    let (mut client, end) = connect(LOOPBACKS[0], app, limits()).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut client, b"\r\n\r\n").await;
    drop(client);
    sender.closed().await;
    assert_eq!(end.await.unwrap(), End::Failed);
}

#[tokio::test]
async fn a_head_of_64_kib_is_taken_and_one_beyond_the_limit_is_answered() {
    for (bytes, status) in [(64 << 10, "200"), (120 << 10, "200"), (300 << 10, "431")] {
        let (mut client, end) = connect(LOOPBACKS[0], app(), limits()).await;
        let ranges = "1-2,".repeat(bytes / 4);
        let (mut reading, mut writing) = client.split();
        let request = format!("GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\nrange: bytes={ranges}\r\n\r\n");
        let mut received = Vec::new();
        let (read, written) = tokio::join!(reading.read_to_end(&mut received), writing.write_all(request.as_bytes()));
        read.unwrap();
        written.unwrap();
        assert!(received.starts_with(format!("HTTP/1.1 {status} ").as_bytes()), "{bytes}");
        drop(client);
        end.await.unwrap();
    }
}

#[tokio::test]
async fn the_answer_to_head_has_the_headers_of_get_and_no_body() {
    let (mut client, _end) = connect(LOOPBACKS[0], app(), limits()).await;
    send(&mut client, "GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let get = read_until(&mut client, b"]}").await;
    send(&mut client, "HEAD /nowhere HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let head = read_until(&mut client, b"\r\n\r\n").await;
    let without_date = |bytes: &[u8]| {
        let head = split(bytes).0;
        head.lines().filter(|line| !line.starts_with("date: ")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(without_date(&head), without_date(&get));
    send(&mut client, "GET /ok HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(read_until(&mut client, b"\r\n\r\nhello").await.starts_with(b"HTTP/1.1 200 OK"));
}

fn short(clock: Clock) -> ConnectionLimits {
    let mut limits = limits();
    let soon = Duration::from_millis(20);
    match clock {
        Clock::FirstByte => limits.clocks.first_byte = soon,
        Clock::Head => limits.clocks.head = soon,
        Clock::Idle => limits.clocks.idle = soon,
        Clock::Stall => limits.clocks.stall = soon,
    }
    limits
}

#[tokio::test]
async fn a_connection_that_sends_nothing_is_closed_by_the_first_clock() {
    let (mut client, end) = connect(LOOPBACKS[0], app(), short(Clock::FirstByte)).await;
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    drop(client);
    assert_eq!(end.await.unwrap(), End::Expired(Clock::FirstByte));
}

#[tokio::test]
async fn a_head_that_drips_is_closed_by_the_second_clock() {
    let mut limits = short(Clock::Head);
    limits.head_bytes_max = 64 << 20;
    limits.linger_bytes_max = 0;
    let (client, end) = connect(LOOPBACKS[0], app(), limits).await;
    let (mut reading, mut writing) = client.into_split();
    writing.write_all(b"GET /ok HTTP/1.1\r\nhost: x").await.unwrap();
    // Each further byte is progress, and buys no time.
    let dripping = tasks::spawn("drip", async move { while writing.write_all(b"x").await.is_ok() {} });
    assert_eq!(reading.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(end.await.unwrap(), End::Expired(Clock::Head));
    dripping.await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_closed_by_the_third_clock() {
    let (mut client, end) = connect(LOOPBACKS[0], app(), short(Clock::Idle)).await;
    send(&mut client, "GET /ok HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(read_all(&mut client).await.1, b"hello");
    drop(client);
    assert_eq!(end.await.unwrap(), End::Expired(Clock::Idle));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_closed_by_the_write_clock() {
    let (mut client, end) = connect(LOOPBACKS[0], app(), short(Clock::Stall)).await;
    // More than both sockets buffer.
    send(&mut client, "GET /cut/64000000 HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(end.await.unwrap(), End::Expired(Clock::Stall));
}

#[tokio::test]
async fn draining_closes_an_idle_connection_and_lets_a_busy_one_finish() {
    let draining = CancellationToken::new();
    let (mut idle, idle_end) = connect_draining(LOOPBACKS[0], app(), limits(), draining.clone()).await;
    send(&mut idle, "GET /ok HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut idle, b"\r\n\r\nhello").await;
    let (fresh, fresh_end) = connect_draining(LOOPBACKS[0], app(), limits(), draining.clone()).await;
    let (sender, app, mut aborts) = channel_body(3);
    let (mut busy, busy_end) = connect_draining(LOOPBACKS[0], app, limits(), draining.clone()).await;
    send(&mut busy, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    aborts.recv().await.unwrap();

    draining.cancel();
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    drop((idle, fresh));
    assert_eq!(idle_end.await.unwrap(), End::Complete);
    assert_eq!(fresh_end.await.unwrap(), End::Complete);
    sender.send(Ok(Bytes::from_static(b"abc"))).await.unwrap();
    assert_eq!(read_all(&mut busy).await.1, b"abc");
    drop(busy);
    assert_eq!(busy_end.await.unwrap(), End::Complete);
}

/// What a body is made of, for a response that announces `length`.
fn serving(pieces: Vec<Piece>, length: Option<u64>) -> Router {
    let handler = move |Extension(abort): Extension<AbortHandle>| async move {
        body::stream(stream::iter(pieces).map(Ok).boxed(), length, abort, |_| {})
    };
    Router::new().fallback(handler)
}

fn part(file: &Arc<OpenFile>, offset: u64, len: u64) -> Piece {
    Piece::File { file: file.clone(), offset, len }
}

/// Takes the chunks apart.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let at = body.windows(2).position(|window| window == b"\r\n").unwrap();
        let len = usize::from_str_radix(std::str::from_utf8(&body[..at]).unwrap(), 16).unwrap();
        whole.extend_from_slice(&body[at + 2..at + 2 + len]);
        assert_eq!(&body[at + 2 + len..at + 4 + len], b"\r\n");
        body = &body[at + 4 + len..];
        if len == 0 {
            return whole;
        }
    }
}

const MIB: usize = 1 << 20;

#[tokio::test]
async fn parts_of_files_and_memory_arrive_whole_and_in_order() {
    let whole = content(5 * MIB + 7);
    let file = open_file(&whole);
    assert!(file.is_sendable(), "this test is about sendfile");
    for ranges in [vec![0..1, 4..4], vec![0..0, 0..whole.len()], vec![3..MIB, 7..8, MIB..3 * MIB + 1, 0..70_000]] {
        let mut pieces = vec![Piece::Memory(Bytes::from_static(b"<"))];
        let mut expected = b"<".to_vec();
        for range in ranges {
            pieces.push(part(&file, range.start as u64, range.len() as u64));
            pieces.push(Piece::Memory(Bytes::from_static(b"|")));
            expected.extend_from_slice(&whole[range]);
            expected.push(b'|');
        }
        for length in [Some(expected.len() as u64), None] {
            let (mut client, end) = connect(LOOPBACKS[0], serving(pieces.clone(), length), limits()).await;
            // Pipelined: the second response begins where the first has ended.
            send(
                &mut client,
                "GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
            )
            .await;
            let mut received = Vec::new();
            client.read_to_end(&mut received).await.unwrap();
            for last in [false, true] {
                let (_, rest) = split(&received);
                let body = if length.is_some() { rest[..expected.len()].to_vec() } else { unchunked(&rest) };
                assert!(body == expected, "{length:?}");
                let heads = received.windows(9).enumerate().filter(|(_, window)| *window == b"HTTP/1.1 ");
                let heads: Vec<_> = heads.map(|(at, _)| at).collect();
                assert_eq!(heads.len(), if last { 1 } else { 2 });
                received.drain(..heads.get(1).copied().unwrap_or(0));
            }
            drop(client);
            assert_eq!(end.await.unwrap(), End::Complete);
        }
    }
}

#[tokio::test]
async fn a_stream_that_sends_no_files_gets_their_bytes() {
    let whole = content(MIB + 7);
    let file = open_file(&whole);
    let app = serving(vec![part(&file, 0, whole.len() as u64)], Some(whole.len() as u64));
    let (mut client, stream) = tokio::io::duplex(1000);
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    let info = ConnectionInfo { peer: nowhere, local: nowhere };
    let end = tasks::spawn("test connection", serve(stream, info, app, limits(), CancellationToken::new()));
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.unwrap();
    assert!(split(&received).1 == whole);
    drop(client);
    assert_eq!(end.await.unwrap(), End::Complete);
}

#[tokio::test]
async fn a_file_that_is_too_short_ends_its_response_after_its_last_byte() {
    let whole = content(2 * MIB + 7);
    let file = open_file(&whole);
    let announced = 3 * MIB as u64;
    let app = serving(vec![part(&file, 0, announced)], Some(announced));
    let (mut client, end) = connect(LOOPBACKS[0], app, limits()).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(read_all(&mut client).await.1 == whole);
    drop(client);
    assert_eq!(end.await.unwrap(), End::Aborted);
}

#[tokio::test]
async fn a_head_is_sent_even_if_its_file_gives_nothing() {
    let file = open_file(b"");
    let (mut client, end) = connect(LOOPBACKS[0], serving(vec![part(&file, 0, 9)], Some(9)), limits()).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let (head, body) = read_all(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(body.is_empty());
    drop(client);
    assert_eq!(end.await.unwrap(), End::Aborted);
}

#[tokio::test]
async fn what_stands_for_a_file_is_never_sent_itself() {
    // A layer that copies what goes through it, as one that compresses would.
    let file = open_file(&content(MIB));
    let app = serving(vec![part(&file, 0, MIB as u64)], Some(MIB as u64)).layer(axum::middleware::map_response(
        |response: Response<Body>| async {
            response.map(|body| {
                Body::from_stream(
                    body.into_data_stream().map(|bytes| bytes.map(|bytes| Bytes::copy_from_slice(&bytes))),
                )
            })
        },
    ));
    let (mut client, end) = connect(LOOPBACKS[0], app, limits()).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let (_, body) = read_all(&mut client).await;
    assert!(body.is_empty(), "{} bytes of nothing", body.len());
    drop(client);
    assert_eq!(end.await.unwrap(), End::Aborted);
}

#[tokio::test]
async fn a_client_that_stops_reading_a_file_is_closed_by_the_write_clock() {
    let file = open_file(&content(64 * MIB));
    let app = serving(vec![part(&file, 0, 64 * MIB as u64)], Some(64 * MIB as u64));
    let (mut client, end) = connect(LOOPBACKS[0], app, short(Clock::Stall)).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert_eq!(end.await.unwrap(), End::Expired(Clock::Stall));
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_a_file_is_noticed() {
    let file = open_file(&content(64 * MIB));
    let app = serving(vec![part(&file, 0, 64 * MIB as u64)], Some(64 * MIB as u64));
    let (mut client, end) = connect(LOOPBACKS[0], app, limits()).await;
    send(&mut client, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    read_until(&mut client, b"\r\n\r\n").await;
    drop(client);
    assert_eq!(end.await.unwrap(), End::Failed);
}
