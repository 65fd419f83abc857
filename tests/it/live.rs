//! The running program told to change: by a signal, and by the API.

use std::time::Duration;

use serde_json::json;

use crate::support::client::{Request, send};
use crate::support::images::Image;
use crate::support::mirror::{age_tags, manifest};
use crate::support::program::Program;
use crate::support::registry::Registry;
use crate::support::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_reloads_and_a_mistake_changes_nothing() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let program = Program::new(&registry, "64MiB");
    let serving = program.serve().await;
    let path = manifest("library/app", "v1");
    send(serving.addr, &Request::get(&path)).await.assert_ok(&image.manifest.bytes);
    program.rewrite("[upstreams.\"docker.io\"]\n", "[upstreams.\"docker.io\"]\ndeny = [\"library/*\"]\n");
    serving.hang_up();
    until("it has reloaded", || serving.logged().contains("changed: upstreams")).await;
    assert_eq!(send(serving.addr, &Request::get(&path)).await.status(), 403);
    program.rewrite("deny = [", "denny = [");
    serving.hang_up();
    until("it says what is wrong", || serving.logged().contains("denny")).await;
    assert_eq!(send(serving.addr, &Request::get(&path)).await.status(), 403, "as before");
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_is_changed_while_it_runs() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let program = Program::new(&registry, "64MiB");
    let serving = program.serve().await;
    let path = manifest("library/app", "missing");
    let fails_quietly = "upstream request failed";
    assert_eq!(send(serving.addr, &Request::get(&path)).await.status(), 404);
    assert!(!serving.logged().contains(fails_quietly));
    let set = async |level: &str| {
        let body = json!({ "level": level }).to_string();
        let request =
            Request::new("PUT", "/api/v1/log").header("Content-Type", "application/json").body(body.as_bytes());
        send(serving.admin, &request).await
    };
    assert_eq!(set("info,cachalot::upstream=debug").await.status(), 200);
    let path = manifest("library/app", "missing-too");
    assert_eq!(send(serving.addr, &Request::get(&path)).await.status(), 404);
    until("it is logged", || serving.logged().contains(fails_quietly)).await;
    // A level that is none changes nothing.
    let wrong = set("info,cachalot=shouting").await;
    assert_eq!(wrong.status(), 400, "{}", wrong.text());
    assert_eq!(set("info").await.status(), 200);
    assert!(serving.logged().contains("log.level"), "changes are in the audit log");
    serving.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_trusted_for_long_without_word_is_in_the_audit_log() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[200_000]);
    registry.put_image("library/app", "v1", &image);
    let program = Program::new(&registry, "64MiB");
    let serving = program.serve().await;
    let path = manifest("library/app", "v1");
    send(serving.addr, &Request::get(&path)).await.assert_ok(&image.manifest.bytes);
    let data = program.data();
    let tag = data.join("v1/repositories/docker.io/library/app/_tags/v1.json");
    until("it is recorded", || tag.exists()).await;
    drop(serving);
    // Two days without a check.
    age_tags(&data, "docker.io/library/app", Duration::from_hours(48));
    registry.go_down().await;
    let serving = program.serve().await;
    for _ in 0..3 {
        send(serving.addr, &Request::get(&path)).await.assert_ok(&image.manifest.bytes);
    }
    let audit = |serving: &crate::support::program::Serving, word: &str| {
        serving.logged().lines().filter(|line| line.contains("cachalot::audit") && line.contains(word)).count()
    };
    until("it is noted", || audit(&serving, "served stale") > 0).await;
    assert_eq!(audit(&serving, "served stale"), 1, "once in a while");
    serving.kill();
}
