//! The demo's run: starts the parts, pulls cold, at once, warm and without upstream, prints the figures and judges them.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::image::Image;
use super::options::{Options, architecture};
use super::pull::{PullError, Pulled, Source, pull};
use super::registry::{self, SampleRegistry, Stats};
use super::table::{Heading, Row};
use crate::oci::Digest;
use crate::tasks;

/// A running mirror, as whoever started it hands it over.
pub struct Mirror {
    /// Where clients pull.
    pub listen: SocketAddr,
    /// Where the metrics are.
    pub admin: SocketAddr,
    /// Stops it, when awaited.
    pub stop: BoxFuture<'static, ()>,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Something that the demo needs for itself is missing.
    #[error("could not {what}: {source}")]
    Setup {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The figures could not be printed, or the signals that end the demo could not be listened for.
    #[error("could not print, or listen for signals: {0}")]
    Io(#[from] io::Error),
    /// A pull failed, or brought wrong bytes.
    #[error("{step}: {source}")]
    Pull {
        /// The step.
        step: String,
        /// What happened.
        source: PullError,
    },
    /// The tag led to another image.
    #[error("{step}: the tag led to {actual}, but upstream holds {expected}")]
    WrongImage {
        /// The step.
        step: String,
        /// The index that upstream's tag points at.
        expected: Digest,
        /// The index that the client was given.
        actual: Digest,
    },
    /// Upstream sent more, or less, than it should have.
    #[error("{step}: upstream sent {actual} body bytes where {expected} were due; each byte should come once")]
    UpstreamBytes {
        /// The step.
        step: String,
        /// What upstream sent.
        actual: u64,
        /// What it should have sent.
        expected: u64,
    },
    /// A blob was asked for more than once, or by a pull that should have been warm.
    #[error("{step}: upstream answered {actual} GETs of blobs where {expected} were due; one is due for each blob")]
    BlobGets {
        /// The step.
        step: String,
        /// The GETs that upstream counted.
        actual: u64,
        /// One a blob, or none.
        expected: u64,
    },
    /// The demo was ended from outside.
    #[error("interrupted before the last figure")]
    Interrupted,
}

/// The parts of a running demo.
struct Demo<'a> {
    out: &'a mut dyn Write,
    options: &'a Options,
    registry: SampleRegistry,
    single: Image,
    crowd: Image,
    mirror: SocketAddr,
}

/// What a step needs from upstream.
#[derive(Clone, Copy)]
enum Upstream {
    /// Every byte of the image, once.
    Image,
    /// No byte.
    Nothing,
}

/// The registry that the mirror stands in for. The name is reserved, so that it can never be a real one.
const REGISTRY: &str = "demo.example";
const SINGLE: &str = "acme/web";
const CROWD: &str = "acme/train";
const TAG: &str = "1.0";

/// Runs the demo and prints to `out`.
///
/// `start` starts a mirror from the text of a configuration file. `until` ends a demo that stays up.
pub async fn run(
    options: &Options,
    out: &mut dyn Write,
    start: impl AsyncFnOnce(String) -> Result<Mirror, Box<dyn Error + Send + Sync>>,
    until: impl Future<Output = ()>,
) -> Result<(), DemoError> {
    let setup = |what| move |source: Box<dyn Error + Send + Sync>| DemoError::Setup { what, source };
    writeln!(out, "Making two sample images, a registry that holds them, and a mirror in front of it.")?;
    let pool = tasks::Pool::new("demo", 1).map_err(|error| setup("start a thread")(error.into()))?;
    let (single, crowd) = (options.single.clone(), options.crowd.clone());
    let images = pool.run(move || (Image::generate(&single), Image::generate(&crowd)));
    let (single, crowd) = images.await;

    let data = tempfile::Builder::new().prefix("cachalot-demo-").tempdir();
    let data = data.map_err(|error| setup("make a temporary folder")(error.into()))?;
    let registry = SampleRegistry::start(registry::Options {
        bytes_per_second_per_connection: options.bytes_per_second_per_connection,
        ..registry::Options::default()
    });
    let registry = registry.await.map_err(|error| setup("start the sample registry")(error.into()))?;
    registry.add_image(SINGLE, TAG, &single);
    registry.add_image(CROWD, TAG, &crowd);
    let mirror = start(configuration(registry.addr(), data.path())).await.map_err(setup("start the mirror"))?;

    let (listen, admin) = (mirror.listen, mirror.admin);
    let demo = Demo { out, options, registry, single, crowd, mirror: listen };
    let result = demo.play(admin, until).await;
    mirror.stop.await;
    result
}

/// The mirror's configuration: one upstream, and tags that are checked on every pull, so that an outage shows.
fn configuration(upstream: SocketAddr, data: &Path) -> String {
    // A JSON string is a TOML string.
    let path = serde_json::Value::from(data.to_string_lossy());
    format!(
        r#"[server]
listen = "127.0.0.1:0"
default_upstream = "{REGISTRY}"

[admin]
listen = "127.0.0.1:0"

[storage]
path = {path}
capacity = "1GiB"
min_free = "16MiB"

[tags]
ttl = "0s"

[upstreams."{REGISTRY}"]
endpoints = ["http://{upstream}"]
"#
    )
}

// === impl Demo ===

impl Demo<'_> {
    async fn play(mut self, admin: SocketAddr, until: impl Future<Output = ()>) -> Result<(), DemoError> {
        let mut until = std::pin::pin!(until);
        let figures = async {
            tokio::select! { result = self.figures() => result, () = &mut until => Err(DemoError::Interrupted) }
        };
        let result = figures.await;
        if result.is_ok() && !self.options.once {
            let resumed = self.registry.resume().await;
            resumed
                .map_err(|error| DemoError::Setup { what: "start the sample registry again", source: error.into() })?;
            self.print_how_to_pull(admin)?;
            until.await;
        }
        self.registry.stop().await;
        result
    }

    async fn figures(&mut self) -> Result<(), DemoError> {
        let (clients, warm) = (self.options.clients, self.options.warm_pulls);
        let single = self.single.clone();
        let crowd = self.crowd.clone();
        let (single_mb, crowd_mb) = (megabytes(&single), megabytes(&crowd));
        writeln!(self.out, "Image A has {single_mb:.0} MB for one platform, image B {crowd_mb:.0} MB.")?;
        if let Some(limit) = self.options.bytes_per_second_per_connection {
            writeln!(
                self.out,
                "Upstream gives each connection {} MB/s, as registries' networks do.",
                limit / 1_000_000
            )?;
        }
        writeln!(self.out, "\n{Heading}")?;
        let direct = Source { addr: self.registry.addr(), namespace: None, ..self.source(SINGLE) };
        let mirrored = self.source(SINGLE);
        self.step("A from upstream, no mirror", 1, &direct, &single, Upstream::Image).await?;
        self.step("A through the mirror, cold", 1, &mirrored, &single, Upstream::Image).await?;
        let at_once = self.source(CROWD);
        self.step(&format!("B by {clients} at once, cold"), clients, &at_once, &crowd, Upstream::Image).await?;
        self.repeat(&format!("A warm, median of {warm}"), &mirrored, &single).await?;
        self.registry.stop().await;
        let last = self.repeat(&format!("A warm, upstream stopped, median of {warm}"), &mirrored, &single).await?;
        writeln!(self.out, "\nEvery byte of every pull was right. Ratio: what upstream sent, in images; without a")?;
        writeln!(
            self.out,
            "mirror, {clients} clients make it {clients}.00x. With upstream stopped, the tag was answered with"
        )?;
        let status = last.as_ref().and_then(|pulled| pulled.tag_status.as_deref()).unwrap_or("no Cache-Status");
        writeln!(self.out, "  Cache-Status: {status}")?;
        Ok(())
    }

    fn source(&self, repository: &'static str) -> Source {
        Source { addr: self.mirror, namespace: Some(REGISTRY), repository, tag: TAG, architecture: architecture() }
    }

    /// One step, printed and judged.
    async fn step(
        &mut self,
        step: &str,
        clients: usize,
        source: &Source,
        image: &Image,
        due: Upstream,
    ) -> Result<(), DemoError> {
        let before = self.registry.stats();
        let (elapsed, pulls) = pull_at_once(clients, source).await;
        let row = self.row(step, elapsed, &pulled(step, pulls, image)?, image, before, due)?;
        writeln!(self.out, "{row}")?;
        Ok(())
    }

    /// Warm pulls one after another, of which none may need a byte from upstream. The row shows the median; the result is
    /// the last.
    async fn repeat(&mut self, step: &str, source: &Source, image: &Image) -> Result<Option<Pulled>, DemoError> {
        let mut rows = Vec::new();
        let mut last = None;
        for _ in 0..self.options.warm_pulls.max(1) {
            let before = self.registry.stats();
            let (elapsed, pulls) = pull_at_once(1, source).await;
            let mut pulls = pulled(step, pulls, image)?;
            rows.push(self.row(step, elapsed, &pulls, image, before, Upstream::Nothing)?);
            last = pulls.pop();
        }
        rows.sort_by_key(|row| row.elapsed);
        if let Some(median) = rows.get(rows.len() / 2) {
            writeln!(self.out, "{median}")?;
        }
        Ok(last)
    }

    /// The figures of some pulls, after upstream's part in them was judged.
    fn row(
        &self,
        step: &str,
        elapsed: Duration,
        pulls: &[Pulled],
        image: &Image,
        before: Stats,
        due: Upstream,
    ) -> Result<Row, DemoError> {
        let upstream = self.registry.stats().since(before);
        let image_bytes = image.pull_bytes(architecture());
        let blobs = image.platform(architecture()).map_or(0, |part| part.blobs().count() as u64);
        let (bytes, gets) = match due {
            Upstream::Image => (image_bytes, blobs),
            Upstream::Nothing => (0, 0),
        };
        let step = step.to_owned();
        if upstream.body_bytes != bytes {
            return Err(DemoError::UpstreamBytes { step, actual: upstream.body_bytes, expected: bytes });
        }
        if upstream.blob_gets != gets {
            return Err(DemoError::BlobGets { step, actual: upstream.blob_gets, expected: gets });
        }
        Ok(Row {
            step,
            clients: pulls.len(),
            elapsed,
            client_bytes: pulls.iter().map(|pulled| pulled.bytes).sum(),
            upstream_bytes: upstream.body_bytes,
            image_bytes,
        })
    }

    fn print_how_to_pull(&mut self, admin: SocketAddr) -> io::Result<()> {
        let mirror = self.mirror;
        let image = format!("{mirror}/{REGISTRY}/{SINGLE}:{TAG}");
        write!(
            self.out,
            "
Upstream runs again, and the mirror stays up until Ctrl-C. Pull through it:

  curl -s 'http://{mirror}/v2/{SINGLE}/manifests/{TAG}?ns={REGISTRY}'
  skopeo inspect --tls-verify=false docker://{image}
  podman pull --tls-verify=false {image}
  docker pull {image}
  ctr images pull --plain-http {image}

What it counted:

  curl -s http://{admin}/metrics
"
        )?;
        self.out.flush()
    }
}

/// The same pull by some clients that start together. The time is that of the last.
async fn pull_at_once(clients: usize, source: &Source) -> (Duration, Vec<Result<Pulled, PullError>>) {
    let begin = Instant::now();
    let pulls: Vec<_> = (0..clients)
        .map(|_| {
            let source = source.clone();
            tasks::spawn("demo client", async move { pull(&source).await })
        })
        .collect();
    let mut results = Vec::with_capacity(clients);
    for pull in pulls {
        // A panic is a bug of the demo itself; it goes on here.
        results.push(pull.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())));
    }
    (begin.elapsed(), results)
}

/// The pulls, if all succeeded and brought the image.
fn pulled(step: &str, results: Vec<Result<Pulled, PullError>>, image: &Image) -> Result<Vec<Pulled>, DemoError> {
    let expected = image.index.digest;
    let judge = |result: Result<Pulled, PullError>| {
        let pulled = result.map_err(|source| DemoError::Pull { step: step.to_owned(), source })?;
        if pulled.digest == expected {
            Ok(pulled)
        } else {
            Err(DemoError::WrongImage { step: step.to_owned(), expected, actual: pulled.digest })
        }
    };
    results.into_iter().map(judge).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people, rounded to one place")]
fn megabytes(image: &Image) -> f64 {
    image.pull_bytes(architecture()) as f64 / 1e6
}

// === impl Mirror ===

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("listen", &self.listen).field("admin", &self.admin).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;
    use std::sync::Arc;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use parking_lot::Mutex;
    use tokio::net::TcpListener;
    use tokio::sync::{Notify, OnceCell};

    use super::super::image::{ImageSpec, PlatformSpec};
    use super::super::tests::ask;
    use super::*;

    #[derive(Clone, Copy, PartialEq)]
    enum Kind {
        /// Asks upstream once for everything.
        Good,
        /// Asks upstream every time.
        Forgetful,
        /// Changes a byte of every layer.
        Corrupt,
    }

    type Held = Arc<Mutex<HashMap<String, Arc<OnceCell<(String, Vec<u8>)>>>>>;

    async fn answer(request: Request<Incoming>, kind: Kind, upstream: SocketAddr, held: Held) -> Response<Full<Bytes>> {
        assert_eq!(request.uri().query(), Some("ns=demo.example"));
        let (method, path) = (request.method().as_str(), request.uri().path());
        let key = format!("{method} {path}");
        let cell =
            if kind == Kind::Forgetful { Arc::default() } else { Arc::clone(held.lock().entry(key).or_default()) };
        let (head, body) = cell.get_or_init(|| ask(upstream, method, path, "")).await.clone();
        let mut response = Response::builder().header("cache-status", "test; hit");
        for line in head.lines().filter(|line| !line.starts_with("connection")) {
            if let Some((name, value)) = line.split_once(": ") {
                response = response.header(name, value);
            }
        }
        let mut body = body;
        if kind == Kind::Corrupt && path.contains("/blobs/") {
            body[0] ^= 1;
        }
        response.body(Full::from(body)).unwrap()
    }

    async fn start(kind: Kind, configuration: String) -> Mirror {
        let configuration: toml::Table = configuration.parse().unwrap();
        let upstream = configuration["upstreams"]["demo.example"]["endpoints"][0].as_str().unwrap();
        let upstream = upstream.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap();
        let held = Held::default();
        let accepting = tokio::spawn(async move {
            loop {
                let stream = TokioIo::new(listener.accept().await.unwrap().0);
                let held = Arc::clone(&held);
                let service = service_fn(move |request| {
                    let held = Arc::clone(&held);
                    async move { Ok::<_, Infallible>(answer(request, kind, upstream, held).await) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
            }
        });
        Mirror { listen, admin: listen, stop: Box::pin(async move { accepting.abort() }) }
    }

    /// Tells when the demo has said that it stays up.
    struct Watched {
        text: Vec<u8>,
        up: Arc<Notify>,
    }

    impl Write for Watched {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.text.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.up.notify_one();
            Ok(())
        }
    }

    async fn once(kind: Kind) -> (String, Result<(), DemoError>) {
        small_demo(kind, true, std::future::pending(), &Arc::default()).await
    }

    async fn small_demo(
        kind: Kind,
        once: bool,
        until: impl Future<Output = ()>,
        up: &Arc<Notify>,
    ) -> (String, Result<(), DemoError>) {
        let image = |seed| ImageSpec {
            seed,
            platforms: vec![PlatformSpec { architecture: architecture(), file_bytes: vec![100_000; 4] }],
        };
        let options = Options {
            once,
            clients: 4,
            warm_pulls: 2,
            bytes_per_second_per_connection: None,
            single: image(1),
            crowd: image(2),
        };
        let mut out = Watched { text: Vec::new(), up: Arc::clone(up) };
        let result = run(&options, &mut out, async |text| Ok(start(kind, text).await), until).await;
        (String::from_utf8(out.text).unwrap(), result)
    }

    #[tokio::test]
    async fn a_good_mirror_passes_and_its_figures_are_printed() {
        let (out, result) = once(Kind::Good).await;
        result.unwrap();
        let ratio =
            |step: &str| out.lines().find(|line| line.contains(step)).and_then(|line| line.split(' ').next_back());
        for (step, expected) in [
            ("A from upstream, no mirror", "1.00x"),
            ("A through the mirror, cold", "1.00x"),
            ("B by 4 at once, cold", "1.00x"),
            ("A warm, median", "0.00x"),
            ("A warm, upstream stopped", "0.00x"),
        ] {
            assert_eq!(ratio(step), Some(expected), "{step}: {out}");
        }
        assert!(out.contains("Cache-Status: test; hit"), "{out}");
    }

    #[tokio::test]
    async fn an_interruption_before_the_last_figure_is_an_error() {
        let (out, result) = small_demo(Kind::Good, false, async {}, &Arc::default()).await;
        assert!(matches!(result, Err(DemoError::Interrupted)), "{result:?} {out}");
    }

    #[tokio::test]
    async fn it_stays_up_until_it_is_told_to_end_and_says_how_to_pull() {
        let up = Arc::new(Notify::new());
        let (out, result) = small_demo(Kind::Good, false, up.notified(), &up).await;
        result.unwrap();
        assert!(out.contains("stays up until Ctrl-C"), "{out}");
        assert!(out.contains("/demo.example/acme/web:1.0\n"), "{out}");
    }

    #[tokio::test]
    async fn a_mirror_that_asks_upstream_for_every_client_is_found_out() {
        let (out, result) = once(Kind::Forgetful).await;
        let Err(DemoError::UpstreamBytes { step, actual, expected }) = result else { panic!("{result:?} {out}") };
        assert_eq!(step, "B by 4 at once, cold");
        assert_eq!(actual, 4 * expected);
    }

    #[tokio::test]
    async fn a_mirror_that_changes_a_byte_is_found_out() {
        let (out, result) = once(Kind::Corrupt).await;
        let Err(error) = result else { panic!("{out}") };
        assert!(matches!(error, DemoError::Pull { source: PullError::Mismatch { .. }, .. }), "{error}");
        assert!(error.to_string().starts_with("A through the mirror, cold: GET http://127.0.0.1:"), "{error}");
    }

    #[test]
    fn the_configuration_survives_an_odd_folder_name() {
        let text = configuration(SocketAddr::from(([127, 0, 0, 1], 5000)), Path::new("/tmp/a \"b\" \\c"));
        let parsed: toml::Table = text.parse().unwrap();
        assert_eq!(parsed["storage"]["path"].as_str(), Some("/tmp/a \"b\" \\c"));
        assert_eq!(parsed["upstreams"]["demo.example"]["endpoints"][0].as_str(), Some("http://127.0.0.1:5000"));
    }
}
