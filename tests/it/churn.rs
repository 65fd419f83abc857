//! Many clients pull a set three times the budget: the disk never holds more than it may, and what is held is worth it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::support::client::Request;
use crate::support::images::{Blob, Image};
use crate::support::mirror::{Mirror, blob, disk_usage, manifest};
use crate::support::registry::Registry;

const KIB: usize = 1024;

/// What clients pull, and how.
#[derive(Clone, Copy)]
struct Plan {
    clients: u64,
    images: u64,
    capacity_mib: u64,
    /// When a client has had enough.
    until: Until,
    /// Nodes don't ask for layers that they have. They are replaced by new ones after a while.
    nodes_skip: bool,
}

#[derive(Clone, Copy)]
enum Until {
    Pulls(usize),
    Time(Duration),
}

/// One request as it was sent: which pull it belongs to, and what it asked for.
struct Asked {
    pull: u64,
    digest: String,
    charge: u64,
}

/// A cache of blobs that evicts what was asked for longest ago and knows nothing of images.
struct PlainLru {
    capacity: u64,
    held: HashMap<String, (u64, u64)>,
    by_age: VecDeque<(u64, String)>,
    bytes: u64,
    clock: u64,
}

/// What came of it.
#[derive(Debug)]
struct Outcome {
    pulls: u64,
    /// The share of pulls for which upstream sent nothing, in per mille.
    whole: u64,
    /// The same of the plain cache, asked the same in the same order.
    plain: u64,
    du_max: u64,
    capacity: u64,
}

/// So many pulls a node lives.
const NODE_PULLS: usize = 12;

/// A number that looks random and is the same in every run.
fn dice(seed: u64, sides: u64) -> u64 {
    let mut x = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) % sides
}

/// As the store counts it.
fn charge(bytes: usize) -> u64 {
    let bytes = (bytes as u64).next_multiple_of(4096);
    bytes + bytes / 1024 + 512
}

/// Images as people build them: a base that many share, a runtime that some share, and what is their own.
fn images(count: u64) -> Vec<Image> {
    let image = |n: u64| {
        let parts = [Blob::noise(1_000 + n % 12, 128 * KIB), Blob::noise(2_000 + n % 60, 64 * KIB)];
        let own = [Blob::noise(10_000 + n, 96 * KIB), Blob::noise(100_000 + n, 8 * KIB)];
        Image::of(n, parts.into_iter().chain(own).collect())
    };
    (0..count).map(image).collect()
}

/// Few images are asked for often, and many now and then.
fn choose(seed: u64, images: u64) -> usize {
    let roll = u128::from(dice(seed, 1 << 20));
    usize::try_from((roll * roll * roll * u128::from(images)) >> 60).unwrap()
}

impl PlainLru {
    fn new(capacity: u64) -> Self {
        Self { capacity, held: HashMap::new(), by_age: VecDeque::new(), bytes: 0, clock: 0 }
    }

    /// Whether it is held; it is afterwards.
    fn ask(&mut self, digest: &str, charge: u64) -> bool {
        self.clock += 1;
        let known = self.held.insert(digest.to_owned(), (self.clock, charge)).is_some();
        self.by_age.push_back((self.clock, digest.to_owned()));
        if !known {
            self.bytes += charge;
        }
        while self.bytes > self.capacity {
            let (asked, digest) = self.by_age.pop_front().unwrap();
            // Asked for again since, it has a later place as well.
            if self.held.get(&digest).is_some_and(|(last, _)| *last == asked) {
                self.bytes -= self.held.remove(&digest).unwrap().1;
            }
        }
        known
    }
}

/// One client: pulls image after image. Returns the pulls for which upstream sent nothing.
async fn client(
    mirror: Arc<Mirror>,
    images: Arc<Vec<Image>>,
    plan: Plan,
    number: u64,
    asked: Arc<Mutex<Vec<Asked>>>,
    ids: Arc<AtomicU64>,
) -> u64 {
    let (mut whole, mut connection, begun) = (0, mirror.connect().await, Instant::now());
    let mut node: HashSet<String> = HashSet::new();
    for pulls in 0.. {
        let enough = match plan.until {
            Until::Pulls(count) => pulls == count,
            Until::Time(time) => begun.elapsed() >= time,
        };
        if enough {
            break;
        }
        if pulls % NODE_PULLS == 0 {
            node.clear();
        }
        let image = &images[choose(number << 32 | pulls as u64, plan.images)];
        let pull = ids.fetch_add(1, Ordering::SeqCst);
        let parts = std::iter::once((&image.manifest.digest, &image.manifest.bytes, true))
            .chain(image.blobs().map(|part| (&part.digest, &part.bytes, false)));
        let mut from_here = true;
        for (digest, bytes, is_manifest) in parts {
            if plan.nodes_skip && !is_manifest && !node.insert(digest.clone()) {
                continue;
            }
            asked.lock().push(Asked { pull, digest: digest.clone(), charge: charge(bytes.len()) });
            let path = if is_manifest { manifest("library/app", digest) } else { blob("library/app", digest) };
            let answer = connection.exchange(&Request::get(path)).await;
            answer.assert_ok(bytes);
            let status = answer.header("cache-status").unwrap();
            // Whoever joins another's download costs upstream nothing, as in the plain cache, which knows no time.
            from_here &= status.contains("; hit") || status.contains("collapsed");
        }
        whole += u64::from(from_here);
    }
    drop(connection);
    whole
}

async fn run(plan: Plan) -> Outcome {
    let registry = Registry::start().await;
    let images = Arc::new(images(plan.images));
    for image in images.iter() {
        registry.put_untagged("library/app", image);
    }
    let distinct: HashMap<_, _> = images.iter().flat_map(Image::blobs).map(|part| (&part.digest, part.len())).collect();
    let capacity = plan.capacity_mib << 20;
    let set: u64 = distinct.values().map(|bytes| charge(*bytes)).sum();
    assert!(set >= 3 * capacity, "a set of {set} bytes");
    let mirror =
        Mirror::builder().upstream("docker.io", &registry).capacity(&format!("{}MiB", plan.capacity_mib)).start().await;
    let mirror = Arc::new(mirror);
    let (over, du_max) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let watch = {
        let (over, du_max, data) = (over.clone(), du_max.clone(), mirror.site().data());
        std::thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                du_max.fetch_max(disk_usage(&data), Ordering::SeqCst);
                std::thread::yield_now();
            }
        })
    };
    let (asked, ids) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
    let mut clients = JoinSet::new();
    for number in 0..plan.clients {
        clients.spawn(client(mirror.clone(), images.clone(), plan, number, asked.clone(), ids.clone()));
    }
    let whole: u64 = clients.join_all().await.into_iter().sum();
    over.store(true, Ordering::SeqCst);
    watch.join().unwrap();
    Arc::into_inner(mirror).unwrap().finish().await;

    let mut lru = PlainLru::new(capacity);
    let mut missed = HashSet::new();
    for Asked { pull, digest, charge } in asked.lock().iter() {
        if !lru.ask(digest, *charge) {
            missed.insert(*pull);
        }
    }
    let pulls = ids.load(Ordering::SeqCst);
    Outcome {
        pulls,
        whole: whole * 1000 / pulls,
        plain: (pulls - missed.len() as u64) * 1000 / pulls,
        du_max: du_max.load(Ordering::SeqCst),
        capacity,
    }
}

fn judge(outcome: &Outcome, what: &str) {
    let mut figures = std::io::stderr();
    writeln!(figures, "{what}: {outcome:?}").unwrap();
    assert!(outcome.du_max <= outcome.capacity + outcome.capacity / 100, "{outcome:?}");
    assert!(outcome.pulls > 0 && outcome.whole > 0 && outcome.plain < 1000, "it proves nothing: {outcome:?}");
    assert!(outcome.whole >= outcome.plain, "{outcome:?}");
}

const SHORT: Plan = Plan { clients: 64, images: 700, capacity_mib: 24, until: Until::Pulls(20), nodes_skip: false };

#[tokio::test(flavor = "multi_thread")]
async fn a_set_three_times_the_budget_stays_within_it_and_is_kept_as_well_as_blobs_alone_would_be() {
    let outcome = run(SHORT).await;
    judge(&outcome, "all layers asked for");
}

#[tokio::test(flavor = "multi_thread")]
async fn base_layers_that_nodes_have_already_are_kept_for_those_that_do_not() {
    let outcome = run(Plan { nodes_skip: true, ..SHORT }).await;
    judge(&outcome, "nodes skip what they have");
}

/// `cargo test --release --test it -- --ignored churn::`, a part of `.ci/long`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes twenty minutes: part of .ci/long"]
async fn for_ten_minutes_a_set_three_times_the_budget_is_kept_as_well_as_blobs_alone_would_be() {
    for nodes_skip in [false, true] {
        let plan = Plan { until: Until::Time(Duration::from_mins(10)), nodes_skip, ..SHORT };
        let outcome = run(plan).await;
        judge(&outcome, if nodes_skip { "nodes skip what they have" } else { "all layers asked for" });
    }
}
