//! One table of requests and what they must be answered with, run cold, warm and with upstream gone, over IPv4 and
//! IPv6.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::client::{Answer, Connection, End, Request};
use crate::support::images::{Blob, DOCKER_MANIFEST, Image, Index, Manifest, OCI_INDEX, OCI_MANIFEST, sha512};
use crate::support::mirror::{Mirror, blob, manifest};
use crate::support::registry::{Fault, Kind, On, Referrers, Registry};

/// A request and what it must be answered with.
struct Row {
    what: String,
    request: Request,
    namespace: Option<&'static str>,
    statuses: Vec<u16>,
    headers: Vec<(&'static str, Expected)>,
    body: Body,
    needs_upstream: bool,
}

/// What a header must be.
enum Expected {
    Is(String),
    Absent,
}

/// What a body must be.
enum Body {
    Any,
    Bytes(Bytes),
    /// An OCI error with one of these codes.
    Error(&'static [&'static str]),
    /// A JSON object in which these members have these values.
    Json(Value),
}

/// What the registries of the table hold.
struct World {
    hub: Registry,
    corp: Registry,
    index: Index,
    docker: Image,
    tool: Image,
    odd: Image,
    signature: Image,
    ranged: Blob,
    long_digest: String,
}

const TAGS: [&str; 5] = ["1.0", "1.1", "2.0", "latest", "nightly"];

// === impl Row ===

fn row(what: impl Into<String>, request: Request) -> Row {
    Row {
        what: what.into(),
        request,
        namespace: None,
        statuses: vec![200],
        headers: Vec::new(),
        body: Body::Any,
        needs_upstream: false,
    }
}

fn get(path: impl Into<String>) -> Row {
    let path = path.into();
    row(format!("GET {path}"), Request::get(path))
}

impl Row {
    fn status(mut self, statuses: &[u16]) -> Self {
        self.statuses = statuses.to_vec();
        self
    }

    fn is(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, Expected::Is(value.into())));
        self
    }

    fn absent(mut self, name: &'static str) -> Self {
        self.headers.push((name, Expected::Absent));
        self
    }

    fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// The answer echoes this `ns`.
    fn namespace(mut self, namespace: &'static str) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// Nothing of this is held, so it is not asked with upstream gone.
    fn needs_upstream(mut self) -> Self {
        self.needs_upstream = true;
        self
    }

    fn refused(self, status: u16, codes: &'static [&'static str]) -> Self {
        self.status(&[status]).body(Body::Error(codes)).is("content-type", "application/json")
    }

    fn manifest(self, manifest: &Manifest) -> Self {
        self.is("docker-content-digest", &manifest.digest)
            .is("content-type", &manifest.media_type)
            .body(Body::Bytes(manifest.bytes.clone()))
    }

    fn blob(self, digest: &str, bytes: &Bytes) -> Self {
        self.is("docker-content-digest", digest)
            .is("content-type", "application/octet-stream")
            .is("accept-ranges", "bytes")
            .body(Body::Bytes(bytes.clone()))
    }

    fn check(&self, when: &str, answer: &Answer) {
        let context = format!("{when}: {}\n  {:?}\n  {}", self.what, answer.head, printable(answer));
        assert!(self.statuses.contains(&answer.status()), "status, not {:?}, {context}", self.statuses);
        assert_eq!(answer.end, End::Complete, "{context}");
        let status = answer.header("cache-status");
        assert!(status.is_some_and(|status| status.starts_with("cachalot")), "Cache-Status, {context}");
        for name in ["content-encoding", "transfer-encoding", "www-authenticate", "set-cookie", "location"] {
            assert_eq!(answer.header(name), None, "{context}");
        }
        if let Some(namespace) = self.namespace {
            assert_eq!(answer.header("oci-namespace"), Some(namespace), "{context}");
        }
        for (name, expected) in &self.headers {
            let expected = match expected {
                Expected::Is(value) => Some(value.as_str()),
                Expected::Absent => None,
            };
            assert_eq!(answer.header(name), expected, "{name}, {context}");
        }
        let length = answer.header("content-length").and_then(|value| value.parse().ok());
        let to_head = self.what.starts_with("HEAD");
        match &self.body {
            _ if to_head => assert!(answer.body.is_empty() && length.is_some(), "{context}"),
            Body::Any => {}
            Body::Bytes(bytes) => assert!(answer.body == bytes, "the bytes differ, {context}"),
            Body::Error(codes) => {
                assert!(codes.contains(&answer.error_code().as_str()), "code, not {codes:?}, {context}");
                assert!(!answer.error_message().is_empty(), "{context}");
            }
            Body::Json(members) => {
                for (name, value) in members.as_object().unwrap() {
                    assert_eq!(&answer.json()[name], value, "{name}, {context}");
                }
            }
        }
        if let (Body::Bytes(bytes), true) = (&self.body, answer.status() == 200) {
            assert_eq!(length, Some(bytes.len()), "{context}");
        }
    }

    /// The same row for HEAD.
    fn to_head(&self, path: &str) -> Self {
        let headers = self.headers.iter().map(|(name, expected)| match expected {
            Expected::Is(value) => (*name, Expected::Is(value.clone())),
            Expected::Absent => (*name, Expected::Absent),
        });
        let body = if let Body::Bytes(bytes) = &self.body { Body::Bytes(bytes.clone()) } else { Body::Any };
        Self {
            headers: headers.collect(),
            body,
            namespace: self.namespace,
            ..row(format!("HEAD {path}"), Request::head(path))
        }
    }
}

fn printable(answer: &Answer) -> String {
    answer.text().chars().take(300).collect()
}

// === impl World ===

impl World {
    async fn new() -> Self {
        let hub = Registry::builder().redirect_blobs().start().await;
        let corp = Registry::builder().absolute_links().tags_per_page(2).start().await;
        let index = Index::new(1, &[3000, 100]);
        hub.put_index("library/app", "v1", &index);
        let docker = Image::docker(3, &[700]);
        hub.put_image("library/app", "docker", &docker);
        let odd = Image::new(4, &[900]);
        hub.put_image("team/blobs/manifests/tags", "list", &odd);
        let signature = Image::artifact(5, "application/vnd.example.signature", &docker.manifest);
        hub.put_untagged("library/app", &signature);
        let sbom = Image::artifact(6, "application/vnd.example.sbom", &docker.manifest);
        hub.put_untagged("library/app", &sbom);
        let ranged = Blob::noise(7, 2048);
        hub.put_blob("library/app", &ranged);
        hub.put_blob("library/app", &Blob::new(""));
        let long_digest = sha512(&ranged.bytes);
        hub.put_blob_as("library/app", &long_digest, ranged.bytes.clone());
        let tool = Image::new(8, &[1500]);
        for tag in TAGS {
            corp.put_image("team/tool", tag, &tool);
        }
        Self { hub, corp, index, docker, tool, odd, signature, ranged, long_digest }
    }

    async fn mirror(&self, v6: bool) -> Mirror {
        let builder = Mirror::builder()
            .upstream("docker.io", &self.hub)
            .upstream_set("docker.io", "aliases", "[\"hub\"]")
            .upstream("registry.corp:5000", &self.corp)
            .upstream_set("registry.corp:5000", "aliases", "[\"corp\", \"mirrors/deep\"]")
            .set("server", "default_upstream", "\"docker.io\"")
            .set("server.hosts", "\"corp.mirror.example\"", "\"registry.corp:5000\"")
            .set("tags", "list_ttl", "\"1h\"")
            .set("tags", "negative_ttl", "\"1h\"")
            .tag_ttl("1h");
        if v6 { builder.v6() } else { builder }.start().await
    }

    fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        pings(&mut rows);
        self.shapes(&mut rows);
        self.contents(&mut rows);
        tag_lists(&mut rows);
        self.referrers(&mut rows);
        self.refusals(&mut rows);
        rows
    }

    /// Every way to say which upstream is meant.
    fn shapes(&self, rows: &mut Vec<Row>) {
        let (index, tool) = (&self.index.manifest, &self.tool.manifest);
        // U1: ns, also percent-encoded, with a port, and under the other names of Docker Hub
        rows.push(get("/v2/library/app/manifests/v1?ns=docker.io").manifest(index).namespace("docker.io"));
        rows.push(get("/v2/app/manifests/v1?ns=docker.io").manifest(index).namespace("docker.io"));
        rows.push(get("/v2/app/manifests/v1?ns=index.docker.io").manifest(index).namespace("index.docker.io"));
        rows.push(get("/v2/app/manifests/v1?x=1&ns=registry-1.docker.io&y").manifest(index));
        let with_port = get("/v2/team/tool/manifests/1.0?ns=registry.corp%3A5000").manifest(tool);
        rows.push(with_port.namespace("registry.corp:5000"));
        rows.push(get("/v2/team/tool/manifests/1.0?ns=registry.corp:5000").manifest(tool));
        // U2: behind /v2/, with or without an ns that agrees
        rows.push(get("/v2/docker.io/library/app/manifests/v1").manifest(index));
        rows.push(get("/v2/docker.io/app/manifests/v1").manifest(index));
        rows.push(get("/v2/hub/app/manifests/v1").manifest(index));
        rows.push(get("/v2/docker.io/library/app/manifests/v1?ns=docker.io").manifest(index).namespace("docker.io"));
        rows.push(get("/v2/corp/team/tool/manifests/1.0").manifest(tool));
        rows.push(get("/v2/mirrors/deep/team/tool/manifests/1.0").manifest(tool));
        // a registry's name in the path wins over an ns that differs, an alias that may be an organisation does not
        rows.push(get("/v2/corp/team/tool/manifests/1.0?ns=registry.corp:5000").manifest(tool));
        rows.push(get("/v2/docker.io/app/manifests/v1?ns=registry.corp:5000").manifest(index));
        // U3: before /v2/
        rows.push(get("/docker.io/v2/library/app/manifests/v1?ns=docker.io").manifest(index).namespace("docker.io"));
        rows.push(get("/docker.io/v2/app/manifests/v1").manifest(index));
        rows.push(get("/corp/v2/team/tool/manifests/1.0").manifest(tool));
        rows.push(get("/mirrors/deep/v2/team/tool/manifests/1.0?ns=registry.corp:5000").manifest(tool));
        // U4: nothing, or the Host header
        rows.push(get("/v2/library/app/manifests/v1").manifest(index).absent("oci-namespace"));
        rows.push(get("/v2/app/manifests/v1").manifest(index));
        for host in ["corp.mirror.example", "CORP.mirror.example:5050"] {
            let request = Request::get("/v2/team/tool/manifests/1.0").header("Host", host);
            rows.push(row(format!("Host: {host}"), request).manifest(tool));
        }
        // a repository may hold the words of the grammar
        rows.push(get(manifest("team/blobs/manifests/tags", "list")).manifest(&self.odd.manifest));
        let layer = &self.odd.layers[0];
        rows.push(get(blob("team/blobs/manifests/tags", &layer.digest)).blob(&layer.digest, &layer.bytes));
        // blobs by every shape
        let layer = &self.tool.layers[0];
        for shape in [
            "/v2/team/tool/blobs/DIGEST?ns=registry.corp%3A5000",
            "/v2/corp/team/tool/blobs/DIGEST",
            "/corp/v2/team/tool/blobs/DIGEST",
            "/mirrors/deep/v2/team/tool/blobs/DIGEST",
        ] {
            rows.push(get(shape.replace("DIGEST", &layer.digest)).blob(&layer.digest, &layer.bytes));
        }
    }

    /// Manifests and blobs of every kind, by tag and digest, GET and HEAD.
    fn contents(&self, rows: &mut Vec<Row>) {
        for (reference, found) in [
            ("v1", &self.index.manifest),
            (self.index.manifest.digest.as_str(), &self.index.manifest),
            (&self.index.images[1].manifest.digest, &self.index.images[1].manifest),
            ("docker", &self.docker.manifest),
            (&self.docker.manifest.digest.replace(':', "%3A"), &self.docker.manifest),
        ] {
            let path = manifest("library/app", reference);
            let plain = get(&path).manifest(found).namespace("docker.io");
            rows.push(plain.to_head(&path));
            rows.push(plain);
            // what the client accepts does not matter for what is held
            let request = Request::get(&path).header("Accept", "application/json").header("Accept-Encoding", "gzip");
            rows.push(row(format!("Accept JSON, {path}"), request).manifest(found));
        }
        assert_eq!(
            [&self.index.manifest.media_type, &self.docker.manifest.media_type, &self.tool.manifest.media_type],
            [OCI_INDEX, DOCKER_MANIFEST, OCI_MANIFEST]
        );
        let empty = Blob::new("");
        let config = &self.docker.config;
        for (digest, bytes) in [
            (&config.digest, &config.bytes),
            (&self.docker.layers[0].digest, &self.docker.layers[0].bytes),
            (&self.ranged.digest, &self.ranged.bytes),
            (&self.long_digest, &self.ranged.bytes),
            (&empty.digest, &empty.bytes),
            (&self.signature.config.digest, &self.signature.config.bytes),
        ] {
            let path = blob("library/app", digest);
            let plain = get(&path).blob(digest, bytes).namespace("docker.io");
            rows.push(plain.to_head(&path));
            rows.push(plain);
            let request = Request::get(path.replace("sha256:", "sha256%3a")).header("Accept-Encoding", "zstd, gzip");
            rows.push(row(format!("encoded and gzip invited, {path}"), request).blob(digest, bytes));
        }
        let on_empty = row("a range of nothing", Request::get(blob("library/app", &empty.digest)).range("bytes=0-"));
        rows.push(on_empty.status(&[416]).is("content-range", "bytes */0"));
        self.conditional_ranges(rows);
    }

    fn conditional_ranges(&self, rows: &mut Vec<Row>) {
        let (digest, bytes) = (&self.ranged.digest, &self.ranged.bytes);
        let path = blob("library/app", digest);
        let ours = Request::get(&path).range("bytes=1-2").header("If-Range", format!("\"{digest}\""));
        let part = row("If-Range with our tag", ours).status(&[206]).is("content-range", "bytes 1-2/2048");
        rows.push(part.blob(digest, &bytes.slice(1..3)));
        let other = Request::get(&path).range("bytes=1-2").header("If-Range", "\"something else\"");
        rows.push(row("If-Range with another", other).blob(digest, bytes));
        let head = row("HEAD with a range", Request::head(&path).range("bytes=1-2"));
        rows.push(head.blob(digest, bytes).is("content-length", "2048").absent("content-range"));
        for (path, digest) in
            [(path.clone(), digest.clone()), (manifest("library/app", "docker"), self.docker.manifest.digest.clone())]
        {
            let known = Request::get(&path).header("If-None-Match", format!("\"x\", W/\"{digest}\""));
            let known = row(format!("what is known, {path}"), known).status(&[304]).is("etag", format!("\"{digest}\""));
            rows.push(known.absent("content-type").body(Body::Bytes(Bytes::new())));
        }
        let other = Request::get(&path).header("If-None-Match", "\"something else\"");
        rows.push(row("If-None-Match with another", other).blob(digest, bytes));
        // containerd 2.1.0 does this to manifests too
        let all = row("a manifest's range", Request::get(manifest("library/app", "docker")).range("bytes=0-"));
        rows.push(all.status(&[200, 206]).manifest(&self.docker.manifest));
    }

    fn referrers(&self, rows: &mut Vec<Row>) {
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX });
        let path = |digest: &str| format!("/v2/library/app/referrers/{digest}?ns=docker.io");
        let subject = path(&self.docker.manifest.digest);
        rows.push(get(&subject).is("content-type", OCI_INDEX).body(Body::Json(index)).namespace("docker.io"));
        let none = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] });
        let unknown = get(path(&Blob::new("nobody").digest)).needs_upstream();
        rows.push(unknown.is("content-type", OCI_INDEX).body(Body::Json(none)));
        let filtered = get(format!("{subject}&artifactType=application%2Fvnd.example.signature"));
        rows.push(filtered.is("content-type", OCI_INDEX).is("oci-filters-applied", "artifactType"));
        rows.push(get(path("sha256:short")).refused(400, &["DIGEST_INVALID"]));
    }

    fn refusals(&self, rows: &mut Vec<Row>) {
        let digest = &self.ranged.digest;
        for (method, path) in [
            ("POST", "/v2/library/app/blobs/uploads/".to_owned()),
            ("POST", "/v2/library/app/blobs/uploads/?mount=sha256:0&from=x".to_owned()),
            ("PATCH", "/v2/library/app/blobs/uploads/1234".to_owned()),
            ("PUT", format!("/v2/library/app/blobs/uploads/1234?digest={digest}")),
            ("PUT", "/v2/library/app/manifests/v1?ns=docker.io".to_owned()),
            ("DELETE", "/v2/library/app/manifests/v1".to_owned()),
            ("DELETE", format!("/v2/library/app/blobs/{digest}")),
        ] {
            let mut request = Request::new(method, &path);
            if method.starts_with('P') {
                request = request.body(b"some content");
            }
            rows.push(row(format!("{method} {path}"), request).refused(405, &["UNSUPPORTED"]).is("allow", "GET, HEAD"));
        }
        rows.push(get(manifest("library/app", "v9")).refused(404, &["MANIFEST_UNKNOWN"]).needs_upstream());
        let nothing = Blob::new("nothing").digest;
        rows.push(get(manifest("library/app", &nothing)).refused(404, &["MANIFEST_UNKNOWN"]).needs_upstream());
        rows.push(get(blob("library/app", &nothing)).refused(404, &["BLOB_UNKNOWN"]).needs_upstream());
        // a manifest is no blob, and that is known without asking
        let found = &self.docker.manifest.digest;
        rows.push(get(blob("library/app", found)).refused(404, &["BLOB_UNKNOWN"]).namespace("docker.io"));
        let nobody = get(manifest("nobody/nothing", "v1")).needs_upstream();
        rows.push(nobody.refused(404, &["MANIFEST_UNKNOWN", "NAME_UNKNOWN"]));
        for bad in ["sha256:short", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
            rows.push(get(blob("library/app", bad)).refused(400, &["DIGEST_INVALID"]));
            rows.push(get(manifest("library/app", bad)).refused(400, &["DIGEST_INVALID"]));
        }
        let upper = digest.to_uppercase().replace("SHA256", "sha256");
        rows.push(get(blob("library/app", &upper)).refused(400, &["DIGEST_INVALID"]));
        rows.push(get(manifest("library/UPPER", "v1")).refused(400, &["NAME_INVALID"]));
        rows.push(get("/v2/library//app/manifests/v1").refused(400, &["NAME_INVALID"]));
        rows.push(get("/v2/library/../app/manifests/v1").refused(400, &["NAME_INVALID"]));
        rows.push(get(manifest("library/app", ".bad")).status(&[400, 404]));
        rows.push(get("/v2/_catalog").status(&[404, 405]).body(Body::Error(&["UNSUPPORTED"])));
        rows.push(get("/v2/library/app/nonsense").status(&[404]));
        rows.push(get("/elsewhere").status(&[404]));
    }
}

fn pings(rows: &mut Vec<Row>) {
    for path in ["/v2/", "/v2", "/docker.io/v2/", "/corp/v2/", "/v2/?ns=docker.io"] {
        rows.push(
            get(path)
                .is("docker-distribution-api-version", "registry/2.0")
                .body(Body::Json(json!({})))
                .absent("docker-content-digest"),
        );
    }
}

fn tag_lists(rows: &mut Vec<Row>) {
    let list = |query: &str, tags: &[&str]| {
        get(format!("/v2/team/tool/tags/list?{query}ns=registry.corp%3A5000"))
            .is("content-type", "application/json")
            .body(Body::Json(json!({ "tags": tags })))
    };
    rows.push(list("", &TAGS).absent("link").namespace("registry.corp:5000"));
    rows.push(list("n=0&", &[]).absent("link"));
    rows.push(list("last=1.1&", &TAGS[2..]).absent("link"));
    rows.push(list("last=zzz&", &[]).absent("link"));
    rows.push(list("n=5&", &TAGS).absent("link"));
    rows.push(list("n=3&", &TAGS[..3]));
    rows.push(list("n=2&last=1.1&", &TAGS[2..4]));
}

async fn run_the_table(v6: bool) {
    let world = World::new().await;
    let mirror = world.mirror(v6).await;
    assert_eq!(mirror.addr().is_ipv6(), v6);
    let rows = world.rows();
    for when in ["cold", "warm", "upstream gone"] {
        if when == "upstream gone" {
            world.hub.go_down().await;
            world.corp.go_down().await;
        }
        let mut connection = mirror.connect().await;
        for row in rows.iter().filter(|row| when != "upstream gone" || !row.needs_upstream) {
            let answer = connection.exchange(&row.request).await;
            row.check(when, &answer);
            if answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                connection = mirror.connect().await;
            }
        }
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_answered_as_the_table_says_over_ipv4() {
    run_the_table(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_is_answered_as_the_table_says_over_ipv6() {
    run_the_table(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tag_lists_page_by_links_that_stay_on_the_mirror_whatever_the_shape() {
    let world = World::new().await;
    let mirror = world.mirror(false).await;
    for first in [
        "/v2/team/tool/tags/list?n=2&ns=registry.corp%3A5000",
        "/v2/corp/team/tool/tags/list?n=2",
        "/v2/mirrors/deep/team/tool/tags/list?n=2",
        "/corp/v2/team/tool/tags/list?n=2&ns=registry.corp:5000",
        "/mirrors/deep/v2/team/tool/tags/list?n=2",
    ] {
        let shape = &first[..first.find("/tags/list").unwrap()];
        let mut next = Some(first.to_owned());
        let mut tags = Vec::new();
        while let Some(path) = next {
            let answer = mirror.get(&path).await;
            assert_eq!(answer.status(), 200, "{path}");
            let page = answer.json()["tags"].as_array().unwrap().clone();
            assert!((1..=2).contains(&page.len()), "{path}: {page:?}");
            tags.extend(page);
            assert!(tags.len() <= TAGS.len(), "the pages of {first} don't end: {tags:?}");
            next = answer.header("link").map(|link| {
                assert!(link.ends_with("; rel=\"next\""), "{link}");
                let target = &link[1..link.find('>').unwrap()];
                assert!(target.starts_with(shape), "{target} leaves {shape}");
                assert_eq!(target.contains("ns=registry.corp"), first.contains("ns="), "{target}");
                target.to_owned()
            });
        }
        assert_eq!(tags, TAGS, "{first}");
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn referrers_are_listed_filtered_and_found_by_their_fallback_tag() {
    for mode in [Referrers::Listed, Referrers::Missing, Referrers::Html] {
        let registry = Registry::builder().referrers(mode).start().await;
        let image = Image::new(1, &[]);
        registry.put_image("library/app", "v1", &image);
        let mut descriptors = Vec::new();
        for (seed, artifact_type) in [(2, "application/x-signature"), (3, "application/x-sbom")] {
            let artifact = Image::artifact(seed, artifact_type, &image.manifest);
            registry.put_untagged("library/app", &artifact);
            descriptors.push(json!({
                "mediaType": OCI_MANIFEST, "digest": artifact.manifest.digest, "artifactType": artifact_type,
                "size": artifact.manifest.bytes.len(),
            }));
        }
        let fallback = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors });
        if mode != Referrers::Listed {
            let index = Manifest::new(OCI_INDEX, &fallback);
            registry.put_manifest("library/app", Some(&image.manifest.fallback_tag()), &index);
        }
        let mirror = Mirror::of(&registry).await;
        let path = format!("/v2/library/app/referrers/{}?ns=docker.io", image.manifest.digest);
        let all = mirror.get(&path).await;
        assert_eq!((all.status(), all.header("content-type")), (200, Some(OCI_INDEX)), "{mode:?} {}", all.text());
        assert_eq!(all.json()["manifests"].as_array().unwrap().len(), 2, "{mode:?}");
        let some = mirror.get(&format!("{path}&artifactType=application%2Fx-sbom")).await;
        assert_eq!(some.json()["manifests"][0]["digest"], descriptors[1]["digest"], "{mode:?}");
        assert_eq!(some.json()["manifests"].as_array().unwrap().len(), 1, "{mode:?}");
        assert_eq!(some.header("oci-filters-applied"), Some("artifactType"));
        let unknown = format!("/v2/library/app/referrers/{}?ns=docker.io", Blob::new("nobody").digest);
        let none = mirror.get(&unknown).await;
        assert_eq!((none.status(), &none.json()["manifests"]), (200, &json!([])), "{mode:?}");
        mirror.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_sixty_thousand_bytes_and_pipelined_requests_are_taken() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[5000]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    let ranges: Vec<_> = (0..9000u32).map(|n| format!("{n}-{n}")).collect();
    let long = Request::get(manifest("library/app", "v1")).header("X-Long", ranges.join(",")[..60_000].to_owned());
    mirror.send(&long).await.assert_ok(&image.manifest.bytes);
    let mut connection = Connection::open(mirror.addr()).await;
    let layer = &image.layers[0];
    for _ in 0..3 {
        connection.send(&Request::get(blob("library/app", &layer.digest))).await;
        connection.send(&Request::head(manifest("library/app", "v1"))).await;
    }
    for _ in 0..3 {
        connection.answer().await.assert_ok(&layer.bytes);
        assert_eq!(connection.answer().await.status(), 200);
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_has_the_length_of_the_get_and_stores_nothing() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[5000]);
    registry.put_image("library/app", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    let layer = &image.layers[0];
    // Nothing says yet how long it is.
    let cold = mirror.head(&blob("library/app", &layer.digest)).await;
    assert_eq!((cold.status(), cold.header("content-length")), (200, Some("5000")));
    assert_eq!(cold.header("cache-status"), Some("cachalot; fwd=miss"));
    assert!(!mirror.holds(&layer.digest));
    let unknown = manifest("library/app", "v2");
    for path in ["/v2/", "/nothing", "/v2/library/app/manifests/v1?ns=other.example", unknown.as_str()] {
        let (head, get) = (mirror.head(path).await, mirror.get(path).await);
        let length = get.body.len().to_string();
        assert!(!get.body.is_empty() && head.body.is_empty(), "{path}");
        assert_eq!((head.status(), head.header("content-length")), (get.status(), Some(length.as_str())), "{path}");
    }
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ping_and_the_probes_never_ask_upstream() {
    let registry = Registry::start().await;
    let mirror = Mirror::of(&registry).await;
    assert_eq!(mirror.get("/v2/").await.status(), 200);
    assert_eq!(mirror.get("/docker.io/v2/").await.status(), 200);
    for page in ["/livez", "/readyz"] {
        assert_eq!(mirror.admin(page).await.status(), 200);
    }
    assert!(mirror.metrics().await.contains("cachalot_requests_total"));
    assert_eq!((registry.connections(), registry.count(&On::kind(Kind::Ping))), (0, 0));
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_another_repository_has_too_is_had_though_upstream_refuses_heads() {
    let registry = Registry::start().await;
    let image = Image::new(1, &[1000]);
    registry.put_image("library/app", "v1", &image);
    registry.put_image("library/copy", "v1", &image);
    let mirror = Mirror::of(&registry).await;
    mirror.get(&manifest("library/app", &image.manifest.digest)).await.assert_ok(&image.manifest.bytes);
    registry.fault(On::any().head(), Fault::status(405));
    mirror.get(&manifest("library/copy", &image.manifest.digest)).await.assert_ok(&image.manifest.bytes);
    mirror.finish().await;
}
