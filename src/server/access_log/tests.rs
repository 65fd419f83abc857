//! The one line of each request, whatever became of it.

use std::io;

use axum::Router;
use axum::routing::get;
use futures_util::FutureExt;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tower::ServiceExt;
use tracing::instrument::WithSubscriber;

use super::*;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn subscriber(&self) -> impl tracing::Subscriber + Send + Sync + use<> {
        let writer = self.clone();
        tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone())
            .finish()
    }

    fn read(&self) -> Vec<serde_json::Value> {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn logged() -> Logged {
    Logged {
        outcome: "hit",
        upstream: "docker.io".to_owned(),
        repository: "library/alpine".to_owned(),
        reference: "3".to_owned(),
        kind: "manifest",
        error: None,
        user: None,
        client: None,
    }
}

fn recorder(metrics: &Arc<Metrics>) -> Recorder {
    Recorder { metrics: Arc::clone(metrics), activity: Activity::default() }
}

fn router(metrics: &Arc<Metrics>) -> Router {
    Router::new()
        .route("/v2/library/alpine/manifests/3", get(|| async { (axum::Extension(logged()), "manifest") }))
        .route("/livez", get(|| async { "ok" }))
        .route("/never", get(std::future::pending::<()>))
        .layer(axum::middleware::from_fn_with_state(recorder(metrics), record))
}

fn request(path: &str) -> Request {
    let peer = "192.0.2.7:40000".parse().unwrap();
    let info = ConnectionInfo { peer, local: peer };
    Request::get(path).extension(info).extension(AbortHandle::unattached()).body(Body::empty()).unwrap()
}

/// What is in the log after the response to `path` was taken to its end.
async fn lines_of(metrics: &Arc<Metrics>, path: &str) -> Vec<serde_json::Value> {
    let lines = Lines::default();
    let answer = async {
        let response = router(metrics).oneshot(request(path)).await.unwrap();
        assert!(lines.read().is_empty(), "the line waits for the end of the body");
        response.into_body().collect().await.unwrap();
    };
    answer.with_subscriber(lines.subscriber()).await;
    lines.read()
}

#[tokio::test]
async fn a_request_is_one_line_with_what_its_handler_added_and_without_the_query() {
    let metrics = Arc::new(Metrics::new());
    let path = "/v2/library/alpine/manifests/3?X-Amz-Signature=secret&ns=docker.io";
    let lines = lines_of(&metrics, path).await;
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    for (field, value) in [
        ("target", "cachalot::access"),
        ("level", "INFO"),
        ("method", "GET"),
        ("path", "/v2/library/alpine/manifests/3"),
        ("ns", "docker.io"),
        ("outcome", "hit"),
        ("upstream", "docker.io"),
        ("repository", "library/alpine"),
        ("reference", "3"),
        ("client", "192.0.2.7"),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    assert_eq!((line["status"].as_u64(), line["bytes"].as_u64()), (Some(200), Some(8)));
    assert_eq!(line["complete"], true);
    assert!(line["ttfb_ms"].as_f64() <= line["duration_ms"].as_f64());
    assert!(line.get("error").is_none() && !line.to_string().contains("secret"), "{line}");

    let text = metrics.render();
    let labels = "upstream=\"docker.io\",kind=\"manifest\",outcome=\"hit\"";
    assert!(text.contains(&format!("cachalot_requests_total{{{labels}}} 1")), "{text}");
    assert!(text.contains("cachalot_response_bytes_total{upstream=\"docker.io\",outcome=\"hit\"} 8"), "{text}");
    assert!(text.contains("cachalot_first_byte_seconds_count 1"), "{text}");
    assert!(metrics.client_last_request_timestamp_seconds.get() > 0);
}

#[tokio::test]
async fn probes_are_debug_lines_and_are_not_counted() {
    let metrics = Arc::new(Metrics::new());
    let lines = lines_of(&metrics, "/livez").await;
    assert_eq!((lines.len(), &lines[0]["level"]), (1, &"DEBUG".into()));
    assert!(!metrics.render().contains("cachalot_requests_total{"));
}

#[tokio::test]
async fn a_client_that_leaves_before_the_response_is_a_line_too() {
    let metrics = Arc::new(Metrics::new());
    let lines = Lines::default();
    async { assert!(router(&metrics).oneshot(request("/never")).now_or_never().is_none()) }
        .with_subscriber(lines.subscriber())
        .await;
    let line = &lines.read()[0];
    assert_eq!((line["status"].as_u64(), &line["outcome"]), (Some(499), &"client-left".into()));
    assert_eq!(metrics.client_last_request_timestamp_seconds.get(), 0);
}

#[tokio::test]
async fn a_response_ended_short_says_why() {
    let metrics = Arc::new(Metrics::new());
    let lines = Lines::default();
    let request = request("/v2/library/alpine/manifests/3");
    let abort = request.extensions().get::<AbortHandle>().unwrap().clone();
    async {
        let response = router(&metrics).oneshot(request).await.unwrap();
        abort.abort("the upstream hung up");
        drop(response);
    }
    .with_subscriber(lines.subscriber())
    .await;
    let line = &lines.read()[0];
    assert_eq!(line["error"], "the upstream hung up");
    assert_eq!((line["bytes"].as_u64(), &line["complete"]), (Some(0), &false.into()));
}

#[test]
fn long_paths_are_shortened_between_characters() {
    assert_eq!(shortened("/v2/"), "/v2/");
    let text = format!("{}é", "x".repeat(PATH_BYTES_MAX - 1));
    assert_eq!(shortened(&text).len(), PATH_BYTES_MAX - 1);
}
