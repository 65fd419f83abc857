//! The admin API: that it is what its description says, who may use it, and what it shows.

use cachalot::api_client::{ApiClient, ApiClientError};
use cachalot::secret::Secret;
use serde_json::{Value, json};

use crate::support::client::{Answer, Request};
use crate::support::images::{Blob, Image};
use crate::support::mirror::{Mirror, blob, manifest};
use crate::support::registry::{On, Registry};

const ADMIN: &str = "admin-0123456789";
const READER: &str = "reader-0123456789";

async fn api(mirror: &Mirror, path: &str) -> Value {
    let answer = mirror.admin(&format!("/api/v1{path}")).await;
    assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
    answer.json()
}

/// Fails unless `value` is what `schema` says: types, members, and no member that it doesn't name.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = document.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("{place}: no {name}"));
        return check(document, schema, value, place);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let choice = choices.iter().find(|choice| (choice["type"] == "null") == value.is_null());
        return check(document, choice.unwrap(), value, place);
    }
    let is = |name: &str| match name {
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "null" => value.is_null(),
        other => panic!("{place}: {other}"),
    };
    let right = match &schema["type"] {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().any(|name| is(name.as_str().unwrap())),
        other => panic!("{place} has no type: {other}"),
    };
    assert!(right, "{place} is {value}, not {}", schema["type"]);
    if let Some(values) = schema["enum"].as_array() {
        assert!(values.contains(value), "{place} is {value}");
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(document, &schema["items"], item, &format!("{place}[{index}]"));
    }
    let empty = serde_json::Map::new();
    let members = value.as_object().unwrap_or(&empty);
    for required in schema["required"].as_array().into_iter().flatten() {
        assert!(members.contains_key(required.as_str().unwrap()), "{place} lacks {required}");
    }
    for (name, member) in members {
        match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Null | Value::Bool(true)) => {}
            (Value::Null, Value::Bool(false)) => panic!("{place}.{name} is not described"),
            (Value::Null, other) => check(document, other, member, &format!("{place}.{name}")),
            (schema, _) => check(document, schema, member, &format!("{place}.{name}")),
        }
    }
}

/// Fails unless an answer is one that the description has for a request.
fn check_answer(document: &Value, path: &str, method: &str, answer: &Answer) {
    let responses = &document["paths"][path][method]["responses"];
    let status = answer.status().to_string();
    let response = if responses[&status].is_null() { &responses["default"] } else { &responses[&status] };
    let schema = &response["content"]["application/json"]["schema"];
    assert!(!schema.is_null(), "{method} {path} has no {status}");
    assert_eq!(answer.header("content-type"), Some("application/json"));
    check(document, schema, &answer.json(), &format!("{method} {path}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_what_the_description_says() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    let large = Blob::noise(2, 4 << 20);
    registry.put_image("library/app", "v1", &image);
    registry.put_blob("library/app", &large);
    let mirror = Mirror::of(&registry).await;
    mirror.pull("library/app", "v1", &image).await;
    assert_eq!(mirror.get("/v2/library/app/manifests/1?ns=nowhere.example").await.status(), 404);
    mirror.idle().await;
    let gate = registry.gate_body(On::blob(&large.digest).once(), 2 << 20);
    let mut client = mirror.connect().await;
    client.send(&Request::get(blob("library/app", &large.digest))).await;
    assert_eq!(client.head().await.status, 200);
    client.take(1 << 20).await;
    gate.arrived().await;
    let document = api(&mirror, "/openapi.json").await;
    let mut described = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            described += 1;
            assert!(operation["summary"].is_string(), "{method} {path}");
            let filled = path.replace("{name}", "none");
            let request = Request::new(&method.to_uppercase(), format!("/api/v1{filled}"));
            let request = if operation["requestBody"].is_null() { request } else { request.body(b"[]") };
            let answer = mirror.send_admin(&request).await;
            assert!(![404, 405].contains(&answer.status()) || path.contains('{'), "{method} {path}");
            check_answer(&document, path, method, &answer);
        }
    }
    assert!(described >= 9, "{described}");
    let seeding =
        Request::new("POST", "/api/v1/seeds").body(br#"{"images": [{"image": "app:v1"}, {"image": "none:v1"}]}"#);
    check_answer(&document, "/seeds", "post", &mirror.send_admin(&seeding).await);
    let planning = Request::new("POST", "/api/v1/exports/plan").body(br#"{"images": ["app:v1"]}"#);
    let planned = mirror.send_admin(&planning).await;
    assert_eq!(planned.status(), 200);
    check_answer(&document, "/exports/plan", "post", &planned);
    for (path, asked) in [
        ("/have", "/have?image=app:v1&platforms=linux/amd64"),
        ("/have", "/have?image=none:v1&referrers=false"),
        ("/images/parts", "/images/parts?image=app:v1"),
        ("/seeds", "/seeds"),
        ("/seeds/{number}", "/seeds/1"),
    ] {
        let answer = mirror.admin(&format!("/api/v1{asked}")).await;
        assert_eq!(answer.status(), 200, "{asked}");
        check_answer(&document, path, "get", &answer);
    }
    for (path, status) in [("/nothing", 404), ("/requests?limit=0", 400), ("/requests?limt=1", 400)] {
        let answer = mirror.admin(&format!("/api/v1{path}")).await;
        assert_eq!(answer.status(), status, "{path}");
        check(&document, &document["components"]["schemas"]["Error"], &answer.json(), path);
    }
    assert_eq!(mirror.send_admin(&Request::new("POST", "/api/v1/status")).await.status(), 405);
    gate.open();
    client.rest().await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_shown() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000, 3000]);
    let large = Blob::noise(2, 4 << 20);
    registry.put_image("library/app", "v1", &image);
    registry.put_blob("library/app", &large);
    let mirror = Mirror::of(&registry).await;
    mirror.pull("library/app", "v1", &image).await;
    // Else the second joins what the first has not ended, which is no hit.
    mirror.idle().await;
    mirror.pull("library/app", "v1", &image).await;
    for _ in 0..2 {
        assert_eq!(mirror.get("/v2/library/app/manifests/1?ns=nowhere.example").await.status(), 404);
    }
    mirror.idle().await;
    let gate = registry.gate_body(On::blob(&large.digest).once(), 2 << 20);
    let mut client = mirror.connect().await;
    client.send(&Request::get(blob("library/app", &large.digest))).await;
    assert_eq!(client.head().await.status, 200);
    client.take(1 << 20).await;
    gate.arrived().await;
    let fills = api(&mirror, "/fills").await;
    let fill = &fills["items"][0];
    assert_eq!((&fill["digest"], &fill["state"]), (&json!(large.digest), &json!("running")), "{fill}");
    assert_eq!((&fill["size_bytes"], &fill["readers"]), (&json!(4 << 20), &json!(1)), "{fill}");
    assert!(fill["arrived_bytes"].as_u64().unwrap() >= 1 << 20, "{fill}");
    gate.open();
    client.rest().await;
    mirror.idle().await;
    assert_eq!(api(&mirror, "/fills").await["items"], json!([]));
    let status = api(&mirror, "/status").await;
    assert_eq!((&status["ready"], &status["you"]["role"]), (&json!(true), &json!("admin")));
    assert_eq!(status["store"]["blobs"], json!(mirror.holdings().blobs));
    let sent: usize = image.blobs().map(Blob::len).sum();
    assert!(status["totals"]["hits"].as_u64().unwrap() >= 4, "{status}");
    assert!(status["totals"]["sent_bytes"].as_u64().unwrap() >= 2 * sent as u64, "{status}");
    assert!(status["upstream_bytes"].as_u64().unwrap() >= (sent + large.len()) as u64, "{status}");
    let hits = api(&mirror, "/requests?outcome=hit&limit=2").await;
    assert_eq!(hits["items"].as_array().unwrap().len(), 2);
    assert_eq!(hits["items"][0]["repository"], "docker.io/library/app");
    let next = hits["next"].as_str().unwrap();
    let more = api(&mirror, &format!("/requests?outcome=hit&limit=2&after={next}")).await;
    assert!(more["items"][0]["id"].as_u64() < hits["items"][1]["id"].as_u64());
    let refused = api(&mirror, "/refused").await;
    assert_eq!(
        refused["items"][0],
        json!({ "name": "nowhere.example", "count": 2, "add": "[upstreams.\"nowhere.example\"]" })
    );
    let upstreams = api(&mirror, "/upstreams").await;
    let hub = upstreams["items"].as_array().unwrap().iter().find(|upstream| upstream["name"] == "docker.io").unwrap();
    assert!(hub["last_success_ms"].is_u64() && hub["failing_since_ms"].is_null(), "{hub}");
    let endpoint = registry.addr().to_string();
    assert_eq!(hub["breakers"], json!([{ "endpoint": endpoint, "state": "closed", "left_alone_ms": null }]));
    assert_eq!(hub["paused_ms"], Value::Null);
    registry.go_down().await;
    assert!(mirror.get(&manifest("library/other", "v1")).await.status() >= 500);
    let upstreams = api(&mirror, "/upstreams").await;
    let hub = upstreams["items"].as_array().unwrap().iter().find(|upstream| upstream["name"] == "docker.io").unwrap();
    assert!(hub["failing_since_ms"].is_u64() && hub["last_error"].is_string(), "{hub}");
    let breaker = &hub["breakers"][0];
    assert!(breaker["state"] == "open" || breaker["state"] == "half_open", "{breaker}");
    let history = api(&mirror, "/history").await;
    let last = history["items"].as_array().unwrap().last().unwrap();
    assert_eq!(last["upstream_bytes"], status["upstream_bytes"]);
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_are_known_may_look_and_admins_may_change_things() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokens");
    std::fs::write(&tokens, format!("ann:{ADMIN}\nbob:{READER}\n")).unwrap();
    let mirror = Mirror::builder()
        .set("admin", "tokens_file", &json!(tokens).to_string())
        .set("admin", "admins", "[\"ann\"]")
        .start()
        .await;
    for open in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(mirror.admin(open).await.status(), 200, "{open}");
    }
    let refused = mirror.admin("/api/v1/status").await;
    assert_eq!((refused.status(), refused.json()["error"]["code"].clone()), (401, json!("unauthorized")));
    assert!(refused.header("www-authenticate").unwrap().starts_with("Basic "));
    let client = |token: &str| {
        let address = mirror.admin_addr().to_string();
        ApiClient::new(&address, Some(Secret::new(token)), None).unwrap()
    };
    let wrong = client("wrong-0123456789").get::<Value>("/status").await.unwrap_err();
    assert!(matches!(wrong, ApiClientError::Refused { status, .. } if status == 401), "{wrong}");
    let status: Value = client(READER).get("/status").await.unwrap();
    assert_eq!(status["you"], json!({ "name": "bob", "role": "reader" }));
    let level = json!({ "level": "info" });
    let forbidden = client(READER).send::<Value>(http::Method::PUT, "/log", Some(&level)).await.unwrap_err();
    assert!(matches!(forbidden, ApiClientError::Refused { status, .. } if status == 403), "{forbidden}");
    // An admin gets as far as the log, which this process doesn't have.
    let unset = client(ADMIN).send::<Value>(http::Method::PUT, "/log", Some(&level)).await.unwrap_err();
    assert!(unset.to_string().contains("not set up"), "{unset}");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_is_known_pages_of_other_sites_are_kept_out() {
    let mirror = Mirror::builder().start().await;
    let ask = |host: &str| Request::get("/api/v1/status").header("Host", host);
    assert_eq!(mirror.send_admin(&ask("localhost:5051")).await.status(), 200);
    assert_eq!(mirror.send_admin(&ask("evil.example")).await.status(), 403);
    let proxied = Request::get("/api/v1/status").header("X-Forwarded-For", "10.0.0.1");
    assert_eq!(mirror.send_admin(&proxied).await.status(), 403);
    let put = Request::new("PUT", "/api/v1/log").body(b"{}").header("Origin", "http://evil.example");
    assert_eq!(mirror.send_admin(&put).await.status(), 403);
    mirror.finish().await;
}
