//! Downloads that the mirror's own death interrupts: what was there is not fetched again, and nothing wrong is believed.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use crate::support::client::{Connection, Request};
use crate::support::images::{Blob, Image};
use crate::support::mirror::{Mirror, Site, blob, manifest};
use crate::support::registry::{On, Registry};
use crate::support::{until, within};

const MIB: usize = 1024 * 1024;

/// What one request fetches of a large blob.
const SEGMENT: usize = 8 * MIB;

const LARGE: usize = 5 * SEGMENT + 12_345;

/// The program itself, which can be killed. It is, when this is dropped.
struct Program {
    child: Child,
    addr: SocketAddr,
}

// === impl Program ===

impl Program {
    /// Starts the program over a site.
    async fn start(site: &Site, addr: SocketAddr) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_cachalot"))
            .args(["serve", "--config"])
            .arg(site.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let program = Self { child, addr };
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(10));
        within("the program listens", async {
            while tokio::net::TcpStream::connect(addr).await.is_err() {
                ticks.tick().await;
            }
        })
        .await;
        program
    }

    /// Asks for the manifest and then for the layer, of which it reads so many bytes.
    async fn begin(&self, image: &Image, bytes: usize) -> Connection {
        let mut connection = Connection::open(self.addr).await;
        let head = within("the program is open", async {
            loop {
                let answer =
                    Connection::open(self.addr).await.exchange(&Request::get(manifest("library/app", "v1"))).await;
                if answer.status() != 503 {
                    return answer;
                }
            }
        })
        .await;
        head.assert_ok(&image.manifest.bytes);
        let layer = &image.layers[0];
        connection.send(&Request::get(blob("library/app", &layer.digest))).await;
        assert_eq!(connection.head().await.status, 200);
        assert!(connection.take(bytes).await == layer.bytes[..bytes]);
        connection
    }

    /// SIGKILL: nothing of what it had in mind is done any more.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry with an image of one large layer, and a site that mirrors it at a fixed address.
async fn world() -> (Registry, Site, SocketAddr, Image) {
    let registry = Registry::start().await;
    let image = Image::new(1, &[LARGE]);
    registry.put_image("library/app", "v1", &image);
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let builder = Mirror::builder().upstream("docker.io", &registry).set("fill", "parallel_above", "\"16MiB\"");
    let mirror = builder.set("server", "listen", &format!("\"{addr}\"")).start().await;
    (registry, mirror.stop().await, addr, image)
}

/// A file of the only interrupted download.
fn partial(site: &Site, layer: &Blob, file: &str) -> PathBuf {
    let name = layer.digest.replace(':', "-");
    site.data().join("v1/partial/docker.io").join(name).join(file)
}

/// Ends the program when a checkpoint has been taken of at least the first two segments. Returns how much the upstream had
/// sent by then.
async fn interrupt(registry: &Registry, site: &Site, addr: SocketAddr, image: &Image) {
    let layer = &image.layers[0];
    let third = || On::blob(&layer.digest).starting_at(2 * SEGMENT as u64);
    let (early, late) = (registry.gate_body(third(), MIB as u64), registry.gate_body(third(), 2 * MIB as u64));
    let program = Program::start(site, addr).await;
    let client = program.begin(image, 2 * SEGMENT).await;
    early.arrived().await;
    // What arrives from now on is worth a checkpoint, which then holds all that came before.
    let now = SystemTime::now();
    early.open();
    late.arrived().await;
    let state = partial(site, layer, "state.json");
    until("a checkpoint", || state.metadata().and_then(|facts| facts.modified()).is_ok_and(|time| time > now)).await;
    program.kill();
    drop(client);
    late.open();
    registry.heal();
    registry.forget_seen();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_had_arrived_before_a_kill_is_not_fetched_again() {
    let (registry, site, addr, image) = world().await;
    let layer = &image.layers[0];
    interrupt(&registry, &site, addr, &image).await;
    let mirror = site.start().await;
    assert!(!mirror.holds(&layer.digest), "nothing is believed before it's verified");
    mirror.get(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
    mirror.idle().await;
    let again = registry.body_bytes(&On::blob(&layer.digest).get());
    assert!(again <= (LARGE - 2 * SEGMENT) as u64, "{again} of {LARGE} bytes were sent after the restart");
    assert!(mirror.holds(&layer.digest));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_it_was_before_a_kill_is_never_served() {
    let (registry, site, addr, image) = world().await;
    let layer = &image.layers[0];
    interrupt(&registry, &site, addr, &image).await;
    // As after a power cut: what had not reached the disk reads as zeros.
    let data = std::fs::OpenOptions::new().write(true).open(partial(&site, layer, "data")).unwrap();
    for at in [0, 5 * MIB, SEGMENT + 77, 2 * SEGMENT + 1000] {
        data.write_all_at(&[0; 5000], at as u64).unwrap();
    }
    drop(data);
    let mirror = site.start().await;
    mirror.get(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
    mirror.idle().await;
    assert!(mirror.holds(&layer.digest));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_killed_again_and_again_serves_what_is_right_and_gets_there() {
    let (registry, mut site, addr, image) = world().await;
    let layer = &image.layers[0];
    for bytes in [1, 3 * MIB, SEGMENT + 17, 2 * SEGMENT, 3 * SEGMENT + MIB, LARGE - 100_000] {
        let program = Program::start(&site, addr).await;
        let client = program.begin(&image, bytes).await;
        program.kill();
        drop(client);
    }
    let mirror = site.start().await;
    mirror.get(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
    mirror.idle().await;
    assert!(mirror.holds(&layer.digest));
    // And all that lies on disk is right.
    site = mirror.stop().await;
    registry.go_down().await;
    let mirror = site.start().await;
    mirror.get(&blob("library/app", &layer.digest)).await.assert_ok(&layer.bytes);
    mirror.finish().await;
}
