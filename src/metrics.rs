//! Every metric: its name, labels and help text, and the one place where they are written as Prometheus text.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, text};
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::clock::Timestamp;

/// Labels of `cachalot_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// The upstream's configured name or pattern, or `-`.
    pub upstream: String,
    /// `manifest`, `blob`, `tags`, `referrers`, `ping`, `write` or `other`.
    pub kind: &'static str,
    /// An outcome's name.
    pub outcome: &'static str,
}

/// Labels of `cachalot_response_bytes_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    /// The upstream's configured name or pattern, or `-`.
    pub upstream: String,
    /// An outcome's name.
    pub outcome: &'static str,
}

/// Labels of `cachalot_upstream_requests_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamRequestLabels {
    /// The upstream's configured name or pattern.
    pub upstream: String,
    /// `manifest`, `blob`, `tags`, `referrers` or `token`.
    pub kind: &'static str,
    /// The status code (`other` for rare ones), or `timeout`, `connect`, `tls`, `broken` where there was none.
    pub status: String,
}

/// A single `upstream` label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct UpstreamLabels {
    /// The upstream's configured name or pattern.
    pub upstream: String,
}

/// A single `list` label: the name of a `[warm.NAME]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ListLabels {
    /// The name.
    pub list: String,
}

/// Labels of `cachalot_verify_failures_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WhereLabels {
    /// `upstream` (a body was wrong on arrival) or `store` (held content was wrong when it was read).
    pub r#where: &'static str,
}

/// Labels of `cachalot_store_errors_total`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OpLabels {
    /// The file-system operation that failed.
    pub op: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// All metrics of one server. Fields carry the metric's name without its `cachalot_` prefix and unit suffix.
#[derive(Debug)]
#[expect(missing_docs, reason = "the help text of each field stands where it is registered, below")]
pub struct Metrics {
    registry: Mutex<RegistryBox>,
    upstreams: Mutex<Vec<UpstreamLabels>>,
    pub requests: Family<RequestLabels, Counter>,
    pub response_bytes: Family<OutcomeLabels, Counter>,
    pub first_byte_seconds: Histogram,
    pub client_last_request_timestamp_seconds: Gauge,
    pub connections: Gauge,
    pub connections_shed: Counter,
    pub upstream_requests: Family<UpstreamRequestLabels, Counter>,
    pub upstream_bytes: Family<UpstreamLabels, Counter>,
    pub upstream_seconds: Histogram,
    pub upstream_last_success_timestamp_seconds: Family<UpstreamLabels, Gauge>,
    pub upstream_ratelimit_remaining: Family<UpstreamLabels, Gauge>,
    pub fills_in_flight: Gauge,
    pub fill_readers: Gauge,
    pub fill_segments: Counter,
    pub fill_resumes: Counter,
    pub fill_twice_bytes: Counter,
    pub fill_restored_bytes: Counter,
    pub fill_lazy_blocks: Counter,
    pub store_bytes: Gauge,
    pub store_reserved_bytes: Gauge,
    pub store_capacity_bytes: Gauge,
    pub store_blobs: Gauge,
    pub store_pinned_bytes: Gauge,
    pub store_degraded: Gauge,
    pub store_backlog: Gauge,
    pub store_unkept: Counter,
    pub scrubbed_bytes: Counter,
    pub evicted_bytes: Counter,
    pub evicted_idle_seconds: Histogram,
    pub verify_failures: Family<WhereLabels, Counter>,
    pub store_errors: Family<OpLabels, Counter>,
    pub stale_served: Family<UpstreamLabels, Counter>,
    pub stale_age_seconds: Family<UpstreamLabels, Seconds>,
    pub refused_names: Counter,
    pub warm_complete: Family<ListLabels, Gauge>,
    pub warm_last_run_timestamp_seconds: Family<ListLabels, Gauge>,
}

struct RegistryBox(Registry);

impl fmt::Debug for RegistryBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Registry")
    }
}

/// The statuses of upstreams that have series of their own.
const KNOWN_STATUSES: [&str; 26] = [
    "200", "202", "206", "301", "302", "303", "304", "307", "308", "400", "401", "403", "404", "405", "406", "408",
    "410", "416", "429", "451", "500", "501", "502", "503", "504", "522",
];

/// What clients ask an upstream's repositories for.
const CONTENT_KINDS: [&str; 4] = ["manifest", "blob", "tags", "referrers"];

/// 1 ms to 10 minutes.
const LATENCY_BUCKETS: [f64; 15] =
    [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 180.0, 600.0];

/// A minute to a year.
const IDLE_BUCKETS: [f64; 9] =
    [60.0, 600.0, 3600.0, 21600.0, 86400.0, 604_800.0, 2_592_000.0, 7_776_000.0, 31_536_000.0];

// === impl Metrics ===

impl Metrics {
    /// All metrics at zero.
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Mutex::new(RegistryBox(Registry::default())),
            upstreams: Mutex::default(),
            requests: Family::default(),
            response_bytes: Family::default(),
            first_byte_seconds: Histogram::new(LATENCY_BUCKETS),
            client_last_request_timestamp_seconds: Gauge::default(),
            connections: Gauge::default(),
            connections_shed: Counter::default(),
            upstream_requests: Family::default(),
            upstream_bytes: Family::default(),
            upstream_seconds: Histogram::new(LATENCY_BUCKETS),
            upstream_last_success_timestamp_seconds: Family::default(),
            upstream_ratelimit_remaining: Family::default(),
            fills_in_flight: Gauge::default(),
            fill_readers: Gauge::default(),
            fill_segments: Counter::default(),
            fill_resumes: Counter::default(),
            fill_twice_bytes: Counter::default(),
            fill_restored_bytes: Counter::default(),
            fill_lazy_blocks: Counter::default(),
            store_bytes: Gauge::default(),
            store_reserved_bytes: Gauge::default(),
            store_capacity_bytes: Gauge::default(),
            store_blobs: Gauge::default(),
            store_pinned_bytes: Gauge::default(),
            store_degraded: Gauge::default(),
            store_backlog: Gauge::default(),
            store_unkept: Counter::default(),
            scrubbed_bytes: Counter::default(),
            evicted_bytes: Counter::default(),
            evicted_idle_seconds: Histogram::new(IDLE_BUCKETS),
            verify_failures: Family::default(),
            store_errors: Family::default(),
            stale_served: Family::default(),
            stale_age_seconds: Family::default(),
            refused_names: Counter::default(),
            warm_complete: Family::default(),
            warm_last_run_timestamp_seconds: Family::default(),
        };
        let registry = metrics.registered();
        metrics.registry = Mutex::new(RegistryBox(registry));
        for place in ["upstream", "store"] {
            let _ = metrics.verify_failures.get_or_create(&WhereLabels { r#where: place });
        }
        metrics
    }

    fn registered(&self) -> Registry {
        let mut r = Registry::with_prefix("cachalot");
        r.register("requests", "Client requests by upstream, kind and outcome", self.requests.clone());
        r.register("response_bytes", "Body bytes sent to clients", self.response_bytes.clone());
        r.register("first_byte_seconds", "Time from request to response headers", self.first_byte_seconds.clone());
        r.register(
            "client_last_request_timestamp_seconds",
            "When a client last asked for content; 0 if none has, which usually means that no node uses the mirror",
            self.client_last_request_timestamp_seconds.clone(),
        );
        r.register("connections", "Client connections open", self.connections.clone());
        r.register(
            "connections_shed",
            "Client connections refused at the connection limit or for want of descriptors",
            self.connections_shed.clone(),
        );
        r.register(
            "upstream_requests",
            "Requests sent to upstreams by kind and status",
            self.upstream_requests.clone(),
        );
        r.register("upstream_bytes", "Body bytes received from upstreams", self.upstream_bytes.clone());
        r.register(
            "upstream_seconds",
            "Time from sending an upstream request to its response headers",
            self.upstream_seconds.clone(),
        );
        r.register(
            "upstream_last_success_timestamp_seconds",
            "When an upstream last answered as it should",
            self.upstream_last_success_timestamp_seconds.clone(),
        );
        r.register(
            "upstream_ratelimit_remaining",
            "Pulls left in the upstream's window, as its ratelimit-remaining header says",
            self.upstream_ratelimit_remaining.clone(),
        );
        r.register("fills_in_flight", "Blobs being downloaded", self.fills_in_flight.clone());
        r.register("fill_readers", "Clients reading blobs that are being downloaded", self.fill_readers.clone());
        self.register_fills(&mut r);
        self.register_store(&mut r);
        r.register("stale_served", "Tags served stale because upstream failed", self.stale_served.clone());
        r.register("stale_age_seconds", "Age of the stale tag served last", self.stale_age_seconds.clone());
        r.register("refused_names", "Requests for registries that are not configured", self.refused_names.clone());
        r.register("warm_complete", "Whether all images of a list are held (1 or 0)", self.warm_complete.clone());
        let last_run = self.warm_last_run_timestamp_seconds.clone();
        r.register("warm_last_run_timestamp_seconds", "When a list was last looked at to its end", last_run);
        r
    }

    fn register_store(&self, r: &mut Registry) {
        r.register("store_bytes", "Bytes held, as counted against the capacity", self.store_bytes.clone());
        r.register("store_reserved_bytes", "Bytes reserved for downloads", self.store_reserved_bytes.clone());
        r.register("store_capacity_bytes", "The configured capacity", self.store_capacity_bytes.clone());
        r.register("store_blobs", "Blobs held", self.store_blobs.clone());
        r.register("store_pinned_bytes", "Bytes held that pins keep", self.store_pinned_bytes.clone());
        r.register(
            "store_degraded",
            "1 while the disk can't keep what it should, and content is passed through",
            self.store_degraded.clone(),
        );
        r.register(
            "store_backlog",
            "Manifests, tags and lists that were served from memory and are not on disk yet",
            self.store_backlog.clone(),
        );
        r.register(
            "store_unkept",
            "Manifests, tags and lists that were served and that the disk did not take in the end",
            self.store_unkept.clone(),
        );
        r.register("scrubbed_bytes", "Bytes that the scrub hashed again", self.scrubbed_bytes.clone());
        r.register("evicted_bytes", "Bytes evicted to make room", self.evicted_bytes.clone());
        r.register_with_unit(
            "evicted_idle",
            "How long evicted blobs had not been read: hours mean that the capacity is too small",
            Unit::Seconds,
            self.evicted_idle_seconds.clone(),
        );
        r.register(
            "verify_failures",
            "Content that did not match its digest, on arrival from upstream or when read from the store",
            self.verify_failures.clone(),
        );
        r.register("store_errors", "Failed file-system operations", self.store_errors.clone());
    }

    fn register_fills(&self, r: &mut Registry) {
        r.register("fill_segments", "Ranges of blobs asked of upstreams", self.fill_segments.clone());
        r.register("fill_resumes", "Broken downloads that were resumed", self.fill_resumes.clone());
        r.register("fill_twice_bytes", "Bytes that upstreams sent a second time", self.fill_twice_bytes.clone());
        r.register(
            "fill_restored_bytes",
            "Bytes of interrupted downloads that were found on disk and not fetched again",
            self.fill_restored_bytes.clone(),
        );
        r.register(
            "fill_lazy_blocks",
            "Blocks of 256 KiB fetched for clients that wanted only parts of a blob",
            self.fill_lazy_blocks.clone(),
        );
    }

    /// The Prometheus text exposition of everything.
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing into a string can't fail.
        let _ = text::encode(&mut out, &self.registry.lock().0);
        out
    }

    /// Makes the series of an upstream appear, at zero, before anything happens there. `outcomes` are all that a request
    /// can have.
    pub fn declare_upstream(&self, upstream: &str, outcomes: &[&'static str]) {
        let labels = UpstreamLabels { upstream: upstream.to_owned() };
        let _ = self.upstream_bytes.get_or_create(&labels);
        let _ = self.upstream_last_success_timestamp_seconds.get_or_create(&labels);
        let _ = self.stale_served.get_or_create(&labels);
        for outcome in outcomes {
            for kind in CONTENT_KINDS {
                let _ = self.requests.get_or_create(&RequestLabels { upstream: upstream.to_owned(), kind, outcome });
            }
            let _ = self.response_bytes.get_or_create(&OutcomeLabels { upstream: upstream.to_owned(), outcome });
        }
        let mut upstreams = self.upstreams.lock();
        if !upstreams.contains(&labels) {
            upstreams.push(labels);
        }
    }

    /// Makes the series of file-system operations appear, at zero: an alert sees no increase in what was not there before.
    pub fn declare_operations(&self, ops: impl IntoIterator<Item = &'static str>) {
        for op in ops {
            let _ = self.store_errors.get_or_create(&OpLabels { op });
        }
    }

    /// Body bytes received from all upstreams that were declared.
    pub fn upstream_bytes_in_all(&self) -> u64 {
        self.upstreams.lock().iter().map(|labels| self.upstream_bytes.get_or_create(labels).get()).sum()
    }

    /// Counts one request to an upstream that took `elapsed` to its headers or its failure.
    pub fn upstream_answered(&self, upstream: &str, kind: &'static str, status: &str, elapsed: Duration) {
        // A hostile upstream could answer with a thousand different numbers.
        let status = if KNOWN_STATUSES.contains(&status) || !status.starts_with(|c: char| c.is_ascii_digit()) {
            status
        } else {
            "other"
        };
        let labels = UpstreamRequestLabels { upstream: upstream.to_owned(), kind, status: status.to_owned() };
        self.upstream_requests.get_or_create(&labels).inc();
        self.upstream_seconds.observe(elapsed.as_secs_f64());
    }

    /// Notes that an upstream just answered as it should.
    pub fn upstream_succeeded(&self, upstream: &str) {
        let labels = UpstreamLabels { upstream: upstream.to_owned() };
        self.upstream_last_success_timestamp_seconds.get_or_create(&labels).set(Timestamp::now().seconds());
    }

    /// Counts a failed file-system operation.
    pub fn store_failed(&self, op: &'static str) {
        self.store_errors.get_or_create(&OpLabels { op }).inc();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_the_prefix_and_a_help_text() {
        let metrics = Metrics::new();
        metrics.upstream_answered("docker.io", "blob", "200", Duration::from_millis(3));
        let text = metrics.render();
        assert!(
            text.contains("cachalot_upstream_requests_total{upstream=\"docker.io\",kind=\"blob\",status=\"200\"} 1")
        );
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("cachalot_"), "{line}");
        }
        for line in text.lines().filter(|line| line.starts_with("# HELP")) {
            assert!(line.split(' ').count() > 4, "{line}");
        }
    }
}
