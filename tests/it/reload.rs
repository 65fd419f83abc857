//! Changing the configuration while the server runs: what has changed is in force, nobody's request fails, and what is
//! wrong changes nothing.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::support::client::{self, Request};
use crate::support::images::Image;
use crate::support::mirror::{Mirror, blob, manifest};
use crate::support::registry::Registry;
use crate::support::within;

async fn reload(mirror: &Mirror) -> Result<Value, Value> {
    let answer = mirror.send_admin(&Request::new("POST", "/api/v1/reload")).await;
    if answer.status() == 200 { Ok(answer.json()) } else { Err(answer.json()) }
}

fn htpasswd(path: &Path, password: &str) {
    std::fs::write(path, format!("ann:{}\n", bcrypt::hash(password, 4).unwrap())).unwrap();
}

fn basic(password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("ann:{password}")))
}

/// Pulls again and again until told to stop, and counts what was not a 200.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(mirror: &Mirror, requests: &[Request]) -> Self {
        let (stop, done, failed) = (Arc::default(), Arc::default(), Arc::default());
        let addr = mirror.addr();
        let one = |n: usize| {
            let (stop, done, failed): (Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>) =
                (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&failed));
            let requests = requests.to_vec();
            cachalot::tasks::spawn("load", async move {
                let mut at = n;
                while !stop.load(Ordering::Relaxed) {
                    let answer = client::send(addr, &requests[at % requests.len()]).await;
                    if answer.status() != 200 || answer.end != client::End::Complete {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                    at += 1;
                }
            })
        };
        let tasks = (0..4).map(one).collect();
        Self { stop, done, failed, tasks }
    }

    /// Waits until everyone who pulls has had some more answers.
    async fn goes_on(&self) {
        let goal = self.done.load(Ordering::Relaxed) + 20;
        crate::support::until("the load goes on", || self.done.load(Ordering::Relaxed) >= goal).await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            within("the load ends", task).await.unwrap();
        }
        assert_eq!(self.failed.load(Ordering::Relaxed), 0, "of {} requests", self.done.load(Ordering::Relaxed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn upstream_access_and_capacity_change_under_load_and_no_request_fails() {
    let (first, second) = (Registry::start().await, Registry::start().await);
    let (app, other) = (Image::new(1, &[2000, 300_000]), Image::new(2, &[3000]));
    first.put_image("library/app", "v1", &app);
    second.put_image("library/app", "v1", &app);
    second.put_image("library/other", "v1", &other);
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("htpasswd");
    htpasswd(&users, "old-password");
    let mirror = Mirror::builder()
        .upstream("docker.io", &first)
        .set("access", "htpasswd", &json!(users).to_string())
        .set("access", "rules", "[{ users = [\"anonymous\", \"ann\"], repositories = [\"docker.io/library/app\"] }]")
        .start()
        .await;
    mirror.pull("library/app", "v1", &app).await;
    let mut requests: Vec<_> = app.blobs().map(|part| Request::get(blob("library/app", &part.digest))).collect();
    requests.push(Request::get(manifest("library/app", "v1")));
    let load = Load::start(&mirror, &requests);
    load.goes_on().await;
    // Nothing is different.
    assert_eq!(reload(&mirror).await.unwrap(), json!({ "changed": [], "needs_restart": [] }));
    // Another capacity.
    mirror.site().rewrite("256MiB", "128MiB");
    assert_eq!(reload(&mirror).await.unwrap()["changed"], json!(["storage.capacity"]));
    assert_eq!(mirror.holdings().capacity_bytes, 128 << 20);
    load.goes_on().await;
    // Another place of the upstream, and another rule.
    mirror.site().rewrite(&first.url(), &second.url());
    mirror.site().rewrite("docker.io/library/app", "docker.io/library/*");
    let changed = reload(&mirror).await.unwrap()["changed"].clone();
    assert_eq!(changed, json!(["access", "upstreams"]));
    load.goes_on().await;
    mirror.pull("library/other", "v1", &other).await;
    assert_eq!(first.violations(), [""; 0]);
    // Another password.
    let ping = async |password: &str| {
        let request = Request::get("/v2/").header("Authorization", basic(password));
        mirror.send(&request).await.status()
    };
    assert_eq!(ping("old-password").await, 200);
    htpasswd(&users, "new-password");
    assert_eq!(reload(&mirror).await.unwrap()["changed"], json!(["access"]));
    assert_eq!((ping("old-password").await, ping("new-password").await), (401, 200));
    load.goes_on().await;
    load.end().await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_changes_nothing_and_says_why() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    mirror.site().rewrite("256MiB", "64 elephants");
    let error = reload(&mirror).await.unwrap_err();
    assert_eq!(error["error"]["code"], "not_reloaded");
    assert!(error["error"]["message"].as_str().unwrap().contains("64 elephants"), "{error}");
    assert_eq!(mirror.holdings().capacity_bytes, 256 << 20);
    mirror.pull("library/app", "v1", &image).await;
    // What can't change says so, what can does.
    mirror.site().rewrite("64 elephants", "64MiB");
    mirror.site().rewrite("[admin]", "[fill]\nconnections_per_blob = 2\n[admin]");
    let reloaded = reload(&mirror).await.unwrap();
    assert_eq!(reloaded, json!({ "changed": ["storage.capacity"], "needs_restart": ["fill"] }));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_noticed() {
    let mirror = Mirror::builder().watch().start().await;
    mirror.site().rewrite("256MiB", "100MiB");
    crate::support::until("the capacity follows the file", || mirror.holdings().capacity_bytes == 100 << 20).await;
    mirror.finish().await;
}
