//! The accept loop under load, at its limits, and while it drains.

use std::collections::VecDeque;

use axum::routing::get;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::*;

const ADDRESSES: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

struct Server {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
    task: JoinHandle<Drained>,
}

async fn start(address: &str, app: Router, limits: Limits, grace: Duration) -> Server {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (metrics, shutdown) = (Arc::new(Metrics::new()), Shutdown::new(grace));
    let task = tasks::spawn("test server", serve(listener, None, app, limits, metrics.clone(), shutdown.clone()));
    Server { address, metrics, shutdown, task }
}

/// `/` says who asks; `/held` answers when it is told to, after it has said that it waits.
fn app() -> (Router, mpsc::Receiver<oneshot::Sender<&'static str>>) {
    let (waiting, held) = mpsc::channel(8);
    let app = Router::new()
        .route("/", get(|axum::Extension(info): axum::Extension<ConnectionInfo>| async move { info.peer.to_string() }))
        .route(
            "/held",
            get(move || async move {
                let (sender, receiver) = oneshot::channel();
                waiting.send(sender).await.unwrap();
                receiver.await.unwrap_or("dropped")
            }),
        );
    (app, held)
}

async fn ask(stream: &mut (impl AsyncWrite + Unpin), path: &str) {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
}

async fn all(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

async fn until(stream: &mut (impl AsyncRead + Unpin), end: &str) {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(stream.read_u8().await.unwrap());
    }
}

const LONG: Duration = Duration::from_hours(1);

#[tokio::test]
async fn requests_know_both_ends_of_their_connection() {
    for address in ADDRESSES {
        let server = start(address, app().0, Limits::default(), LONG).await;
        let mut client = TcpStream::connect(server.address).await.unwrap();
        ask(&mut client, "/").await;
        let own = client.local_addr().unwrap().to_string();
        until(&mut client, &own).await;
        assert_eq!(server.metrics.connections.get(), 1);
        server.shutdown.begin();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        drop(client);
        assert_eq!(server.task.await.unwrap(), Drained { connections_cut: 0 });
        assert_eq!(server.metrics.connections.get(), 0);
    }
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_told_503_and_when_to_come_back() {
    let places = Places::new(PlaceLimits { connections_max: 1, per_address_max: None });
    let limits = Limits { places, refusals_max: 1, ..Limits::default() };
    let (app, mut held) = app();
    let server = start(ADDRESSES[0], app, limits, LONG).await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    ask(&mut first, "/held").await;
    let release = held.recv().await.unwrap();

    let mut second = TcpStream::connect(server.address).await.unwrap();
    ask(&mut second, "/").await;
    let answer = all(&mut second).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    for header in ["retry-after: 5\r\n", "connection: close\r\n", "cache-status: cachalot; detail=refused\r\n"] {
        assert!(answer.contains(header), "{answer}");
    }
    assert!(answer.contains("TOOMANYREQUESTS"), "{answer}");
    assert_eq!(server.metrics.connections_shed.get(), 1);
    // The second still has its place among the refused, as it has not closed its side: a third is closed unheard.
    let mut third = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(third.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(server.metrics.connections_shed.get(), 2);

    release.send("hello").unwrap();
    until(&mut first, "\r\n\r\nhello").await;
    drop((first, second, third));
    server.shutdown.begin();
    assert_eq!(server.task.await.unwrap().connections_cut, 0);
}

#[tokio::test]
async fn draining_refuses_new_connections_and_lets_open_requests_finish() {
    let (app, mut held) = app();
    let server = start(ADDRESSES[0], app, Limits::default(), LONG).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    ask(&mut idle, "/").await;
    let own = idle.local_addr().unwrap().to_string();
    until(&mut idle, &own).await;
    let mut busy = TcpStream::connect(server.address).await.unwrap();
    ask(&mut busy, "/held").await;
    let release = held.recv().await.unwrap();

    server.shutdown.begin();
    assert_eq!(idle.read(&mut [0]).await.unwrap(), 0);
    release.send("hello").unwrap();
    let answer = all(&mut busy).await;
    assert!(answer.contains("connection: close\r\n") && answer.ends_with("hello"), "{answer}");
    drop((idle, busy));
    assert_eq!(server.task.await.unwrap().connections_cut, 0);
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn what_is_left_when_the_grace_period_ends_is_cut_and_counted() {
    let (app, mut held) = app();
    let server = start(ADDRESSES[0], app, Limits::default(), LONG).await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    ask(&mut client, "/held").await;
    let mut release = held.recv().await.unwrap();
    server.shutdown.at_once();
    assert_eq!(server.task.await.unwrap(), Drained { connections_cut: 1 });
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    release.closed().await;
}

/// Yields what it was given, and then nothing more.
struct Script {
    steps: Mutex<VecDeque<io::Result<DuplexStream>>>,
    calls: Arc<Mutex<Vec<Instant>>>,
}

impl Incoming for Script {
    type Stream = DuplexStream;

    async fn accept(&self) -> io::Result<(DuplexStream, ConnectionInfo)> {
        self.calls.lock().push(Instant::now());
        let step = self.steps.lock().pop_front();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        match step {
            Some(step) => step.map(|stream| (stream, ConnectionInfo { peer: nowhere, local: nowhere })),
            None => std::future::pending().await,
        }
    }
}

#[tokio::test]
async fn want_of_descriptors_pauses_and_counts_and_a_broken_connection_does_neither() {
    let (mut client, stream) = tokio::io::duplex(1 << 16);
    let errors = [Errno::MFILE, Errno::NFILE, Errno::CONNABORTED, Errno::NOMEM];
    let steps = errors.into_iter().map(|errno| Err(errno.into())).chain([Ok(stream)]).collect();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let script = Script { steps: Mutex::new(steps), calls: calls.clone() };
    let (metrics, shutdown) = (Arc::new(Metrics::new()), Shutdown::new(LONG));
    let limits = Limits::default();
    let server = serve_incoming(script, None, app().0, limits.clone(), metrics.clone(), shutdown.clone());
    let server = tasks::spawn("test server", server);
    ask(&mut client, "/").await;
    until(&mut client, "127.0.0.1:1").await;
    assert_eq!(metrics.connections_shed.get(), 3);
    let between: Vec<_> = calls.lock().windows(2).map(|pair| pair[1] - pair[0]).collect();
    let paused: Vec<_> = between.iter().map(|gap| *gap >= limits.accept_pause).collect();
    assert_eq!(paused[..2], [true, true], "{between:?}");
    assert!(paused[3], "{between:?}");
    drop(client);
    shutdown.begin();
    server.await.unwrap();
}

#[test]
fn only_errors_of_a_single_connection_are_passed_over() {
    for errno in [Errno::CONNABORTED, Errno::PROTO, Errno::HOSTUNREACH] {
        assert!(concerns_one_connection(&errno.into()), "{errno}");
    }
    for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::BADF, Errno::INVAL] {
        assert!(!concerns_one_connection(&errno.into()), "{errno}");
    }
}
