//! A client that costs as little as can be: the kernel throws bodies away, so that what is measured is the server.

use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::RecvFlags;

/// How long a response may make no progress.
const PATIENCE: Duration = Duration::from_mins(1);

/// How much is thrown away at a time. The buffer is never written to.
const SCRAP_BYTES: usize = 1 << 20;

/// How long an answer's head may be, with what comes along of its body.
const HEAD_BYTES: usize = 8 << 10;

/// A keep-alive connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    head: Vec<u8>,
    filled: usize,
    /// What is left of the body under way.
    remaining: Option<u64>,
    body_bytes: u64,
}

/// What some clients got in some time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

/// The text of a GET.
pub(crate) fn get(path: &str, range: Option<(u64, u64)>) -> Vec<u8> {
    let range = range.map_or_else(String::new, |(first, last)| format!("Range: bytes={first}-{last}\r\n"));
    let accept = "application/vnd.oci.image.manifest.v1+json, */*";
    format!("GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: {accept}\r\n{range}\r\n").into_bytes()
}

/// Each of `clients` connections makes `times` requests, one after the other.
pub(crate) fn each(addr: SocketAddr, request: &[u8], clients: usize, times: usize) -> io::Result<Load> {
    let mut connections = (0..clients).map(|_| Client::connect(addr)).collect::<io::Result<Vec<_>>>()?;
    let start = Instant::now();
    let bytes: io::Result<u64> = thread::scope(|scope| {
        let run = |client: &mut Client| (0..times).map(|_| client.exchange(request)).sum::<io::Result<u64>>();
        let threads: Vec<_> = connections.iter_mut().map(|client| scope.spawn(move || run(client))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| io::Error::other("a client failed"))?).sum()
    });
    let seconds = start.elapsed().as_secs_f64();
    bytes.map(|bytes| Load { requests: (clients * times) as u64, bytes, seconds })
}

/// `connections` make requests for so long, all of them driven by one thread. `next` says what is asked.
pub(crate) fn during(
    addr: SocketAddr,
    mut next: impl FnMut() -> Vec<u8>,
    connections: usize,
    duration: Duration,
) -> io::Result<Load> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut clients = Vec::new();
    for n in 0..connections {
        let mut client = Client::connect(addr)?;
        client.send(&next())?;
        client.stream.set_nonblocking(true)?;
        epoll::add(&poll, &client.stream, epoll::EventData::new_u64(n as u64), epoll::EventFlags::IN)?;
        clients.push(client);
    }
    let start = Instant::now();
    let mut load = Load { requests: 0, bytes: 0, seconds: 0.0 };
    let mut events = Vec::with_capacity(connections);
    while start.elapsed() < duration {
        let timeout = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
        for event in events.drain(..) {
            let client = &mut clients[usize::try_from(event.data.u64()).unwrap_or_default()];
            match client.receive() {
                Ok(()) => {
                    load.requests += 1;
                    load.bytes += client.body_bytes;
                    // A request fits into an empty socket.
                    client.send(&next())?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
    load.seconds = start.elapsed().as_secs_f64();
    Ok(load)
}

/// When each of many readers had enough, and the memory that the one asked for used meanwhile.
#[derive(Debug)]
pub(crate) struct Ends {
    /// Seconds since the start.
    pub(crate) times: Vec<f64>,
    peak_bytes: u64,
}

/// `count` connections ask for the same and read on until each has got `enough` bytes, all driven by one thread. `memory`
/// is asked now and then.
pub(crate) fn streams(
    addr: SocketAddr,
    request: &[u8],
    count: usize,
    enough: u64,
    memory: impl Fn() -> u64,
) -> io::Result<Ends> {
    const READ_BYTES: u64 = 256 << 10;
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut clients = Vec::new();
    for n in 0..count {
        let mut client = Client::connect(addr)?;
        client.send(request)?;
        client.stream.set_nonblocking(true)?;
        epoll::add(&poll, &client.stream, epoll::EventData::new_u64(n as u64), epoll::EventFlags::IN)?;
        clients.push((client, 0));
    }
    let start = Instant::now();
    let mut ends = Ends { times: Vec::new(), peak_bytes: memory() };
    let mut events = Vec::with_capacity(count);
    let mut rounds = 0u32;
    while ends.times.len() < count && start.elapsed() < PATIENCE * 2 {
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let (client, got) = &mut clients[usize::try_from(event.data.u64()).unwrap_or_default()];
            match client.receive_some(READ_BYTES) {
                // It goes on reading, as the others do, until all have got enough.
                Ok(received) if *got < enough && *got + received >= enough => {
                    *got += received;
                    ends.times.push(start.elapsed().as_secs_f64());
                }
                Ok(received) => *got += received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        rounds += 1;
        if rounds.is_multiple_of(64) {
            ends.peak_bytes = ends.peak_bytes.max(memory());
        }
    }
    ends.peak_bytes = ends.peak_bytes.max(memory());
    Ok(ends)
}

/// Asks at a fixed rate on each of several connections, whether or not the last answer took long. Returns how long each
/// answer took from the moment when it should have been asked for.
pub(crate) fn paced(
    addr: SocketAddr,
    request: &[u8],
    connections: usize,
    per_second: f64,
    duration: Duration,
) -> io::Result<Vec<f64>> {
    let run = || {
        let mut client = Client::connect(addr)?;
        let (start, mut latencies) = (Instant::now(), Vec::new());
        let mut due = Duration::ZERO;
        while due < duration {
            thread::sleep(due.saturating_sub(start.elapsed()));
            client.exchange(request)?;
            latencies.push(start.elapsed().saturating_sub(due).as_secs_f64());
            due += Duration::from_secs_f64(1.0 / per_second);
        }
        Ok(latencies)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(run)).collect();
        let results =
            threads.into_iter().map(|thread| thread.join().map_err(|_| io::Error::other("a client failed"))?);
        results.collect::<io::Result<Vec<_>>>().map(|all| all.concat())
    })
}

// === impl Ends ===

impl Ends {
    /// By how much memory had grown at most, from so much.
    pub(crate) fn grown_from(&self, before: u64) -> u64 {
        self.peak_bytes.saturating_sub(before)
    }
}

// === impl Client ===

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, head: vec![0; HEAD_BYTES], filled: 0, remaining: None, body_bytes: 0 })
    }

    /// Sends a request and throws its answer's body away; returns how long that was.
    pub(crate) fn exchange(&mut self, request: &[u8]) -> io::Result<u64> {
        self.send(request)?;
        self.receive()?;
        Ok(self.body_bytes)
    }

    pub(crate) fn send(&mut self, request: &[u8]) -> io::Result<()> {
        (self.filled, self.remaining, self.body_bytes) = (0, None, 0);
        self.stream.write_all(request)
    }

    /// Receives the answer up to its end. Can be called again after it would have blocked.
    pub(crate) fn receive(&mut self) -> io::Result<()> {
        while self.remaining.is_none() {
            match self.stream.read(&mut self.head[self.filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => self.filled += n,
            }
            self.parse_head()?;
        }
        while let Some(remaining @ 1..) = self.remaining {
            self.remaining = Some(remaining - self.discard(remaining)?);
        }
        Ok(())
    }

    /// Receives no more than `limit` bytes of the body, and the head before it.
    pub(crate) fn receive_some(&mut self, limit: u64) -> io::Result<u64> {
        while self.remaining.is_none() {
            self.filled += self.stream.read(&mut self.head[self.filled..])?;
            self.parse_head()?;
        }
        let Some(remaining @ 1..) = self.remaining else { return Ok(0) };
        let received = self.discard(remaining.min(limit))?;
        self.remaining = Some(remaining - received);
        Ok(received)
    }

    fn discard(&self, limit: u64) -> io::Result<u64> {
        thread_local! {
            static SCRAP: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRAP_BYTES]);
        }
        let len = usize::try_from(limit).unwrap_or(usize::MAX).min(SCRAP_BYTES);
        let received =
            SCRAP.with_borrow_mut(|scrap| rustix::net::recv(&self.stream, &mut scrap[..len], RecvFlags::TRUNC));
        match received?.1 {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            n => Ok(n as u64),
        }
    }

    fn parse_head(&mut self) -> io::Result<()> {
        let received = &self.head[..self.filled];
        let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(()) };
        let head = String::from_utf8_lossy(&received[..end]).to_ascii_lowercase();
        let failed = |what: &str| io::Error::other(format!("{what}: {head}"));
        if !head.starts_with("http/1.1 20") {
            return Err(failed("not served"));
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<u64>().ok());
        let length = length.ok_or_else(|| failed("no length"))?;
        self.body_bytes = length;
        let early = (self.filled - end - 4) as u64;
        self.remaining = Some(length.checked_sub(early).ok_or_else(|| failed("too much"))?);
        Ok(())
    }
}

// === impl Load ===

impl Load {
    pub(crate) fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }

    pub(crate) fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}
