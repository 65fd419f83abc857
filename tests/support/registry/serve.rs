//! What the scripted registry answers when nothing is to go wrong.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, Reply};
use super::record::Seen;
use super::script::Kind;
use super::wire::Received;
use super::{Door, Referrers, Repository, Shared, State};
use crate::support::images::{DOCKER_MANIFEST, Manifest, OCI_INDEX, OCI_MANIFEST};

// === impl Shared ===

impl Shared {
    /// Records a request and decides its answer.
    pub(super) fn answer(&self, door: Door, request: &Received) -> (Arc<Seen>, Answer) {
        let seen = Arc::new(Seen::new(door, request));
        let mut state = self.state.lock();
        let complaints = complaints(&seen, request);
        state.violations.extend(complaints.into_iter().map(|text| format!("{text}: {} {}", seen.method, seen.target)));
        state.seen.push(Arc::clone(&seen));
        let faults: Vec<_> = state.rules.iter_mut().filter_map(|rule| rule.befalls(&seen)).collect();
        let mut reply = self.reply(&mut state, &seen, request);
        if self.options.html_errors && matches!(reply.status, 401 | 403 | 404) {
            let kept = reply.headers.iter().filter(|(name, _)| *name == "WWW-Authenticate").cloned();
            let mut page = Reply::new(reply.status, "text/html", "<html><h1>No</h1></html>");
            page.headers.extend(kept);
            reply = page;
        }
        drop(state);
        self.arrived.notify_waiters();
        (Arc::clone(&seen), Answer::new(reply, seen.method == "HEAD", self.options.bytes_per_second, &faults))
    }

    fn reply(&self, state: &mut State, seen: &Seen, request: &Received) -> Reply {
        if !matches!(seen.method.as_str(), "GET" | "HEAD") && seen.kind != Kind::Token {
            return Reply::error(405, "UNSUPPORTED", "read-only");
        }
        match seen.kind {
            Kind::Token => return state.access.issue(request),
            Kind::Cdn => return content(state, seen, request),
            Kind::Other => return Reply::error(404, "UNSUPPORTED", "no such endpoint"),
            Kind::Ping | Kind::Manifest | Kind::Blob | Kind::Tags | Kind::Referrers => {}
        }
        let missing = seen.kind != Kind::Ping && !state.repositories.contains_key(&seen.repository);
        if self.options.hides_missing && missing {
            state.access.private.entry(seen.repository.clone()).or_default();
        }
        if let Err(refusal) = state.access.check(request, &seen.repository, &format!("http://{}", self.addr)) {
            return refusal;
        }
        if seen.kind == Kind::Ping {
            return Reply::new(200, "application/json", "{}").with("Docker-Distribution-API-Version", "registry/2.0");
        }
        let quota = match (self.options.quota, seen.kind) {
            (Some(quota), Kind::Manifest) => {
                if seen.method == "GET" && state.pulls >= quota {
                    return Reply::error(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.")
                        .with("Retry-After", "60");
                }
                state.pulls += u64::from(seen.method == "GET");
                Some((quota, quota - state.pulls.min(quota)))
            }
            _ => None,
        };
        let code = |usual: &'static str| self.options.not_found_code.unwrap_or(usual);
        let Some(held) = state.repositories.get(&seen.repository) else {
            return Reply::error(404, code("NAME_UNKNOWN"), "repository name not known to registry");
        };
        if let (Some((limit, left)), Kind::Manifest) = (quota, seen.kind) {
            return manifest(held, &seen.reference)
                .with("ratelimit-limit", format!("{limit};w=21600"))
                .with("ratelimit-remaining", format!("{left};w=21600"))
                .with("docker-ratelimit-source", "203.0.113.7");
        }
        if self.options.strict_accept && seen.kind == Kind::Manifest && !is_accepted(held, &seen.reference, request) {
            let message = "OCI index found, but Accept header does not support OCI indexes";
            return Reply::error(404, "MANIFEST_UNKNOWN", message);
        }
        match seen.kind {
            Kind::Manifest if self.options.redirect_manifests => self.redirect(state.generation, seen),
            Kind::Blob if self.options.redirect_blobs && held.blobs.contains_key(&seen.reference) => {
                self.redirect(state.generation, seen)
            }
            Kind::Manifest if !has_manifest(held, &seen.reference) => {
                Reply::error(404, code("MANIFEST_UNKNOWN"), "manifest unknown")
            }
            Kind::Manifest => manifest(held, &seen.reference),
            Kind::Blob => blob(held, &seen.reference, request.header("range")),
            Kind::Tags => self.tags(held, seen, request),
            Kind::Referrers => self.referrers(held, &seen.reference),
            Kind::Ping | Kind::Cdn | Kind::Token | Kind::Other => unreachable!("answered above"),
        }
    }

    /// A 307 to an address at the CDN that is signed for this method and expires.
    fn redirect(&self, generation: u64, seen: &Seen) -> Reply {
        let what = if seen.kind == Kind::Blob { "blobs" } else { "manifests" };
        let signature = format!("X-Method={}&X-Generation={generation}&X-Signature=secret", seen.method);
        let location =
            format!("http://{}/cdn/{what}/{}/{}?{signature}", self.cdn_addr, seen.repository, seen.reference);
        Reply::new(307, "text/html", "<a>Temporary Redirect</a>").with("Location", location)
    }

    fn tags(&self, held: &Repository, seen: &Seen, request: &Received) -> Reply {
        let asked = request.query("n").and_then(|n| n.parse::<usize>().ok());
        if asked.is_some_and(|asked| asked > self.options.tags_asked_max) {
            return Reply::error(400, "PAGINATION_NUMBER_INVALID", "n is too large");
        }
        if self.options.odd_tags {
            let mut tags: Vec<&str> = held.tags.keys().map(String::as_str).collect();
            tags.extend(held.manifests.keys().map(String::as_str));
            return Reply::new(200, "application/json", json!({ "name": seen.repository, "tags": tags }).to_string());
        }
        if self.options.null_tags && held.tags.is_empty() {
            let body = json!({ "name": seen.repository, "tags": Value::Null });
            return Reply::new(200, "application/json", body.to_string());
        }
        let last = request.query("last").unwrap_or_default();
        let limit = asked.unwrap_or(usize::MAX).min(self.options.tags_per_page);
        let all: Vec<_> = held.tags.keys().filter(|tag| tag.as_str() > last).collect();
        let page: Vec<_> = all.iter().take(limit).collect();
        let body = json!({ "name": seen.repository, "tags": page });
        let mut reply = Reply::new(200, "application/json", body.to_string());
        if let (true, Some(last)) = (page.len() < all.len(), page.last()) {
            let origin = if self.options.absolute_links { format!("http://{}", self.addr) } else { String::new() };
            let link = format!("<{origin}/v2/{}/tags/list?last={last}&n={limit}>; rel=\"next\"", seen.repository);
            reply = reply.with("Link", link);
        }
        reply
    }

    fn referrers(&self, held: &Repository, subject: &str) -> Reply {
        match self.options.referrers {
            Referrers::Missing => Reply::new(404, "text/plain; charset=utf-8", "404 page not found\n"),
            Referrers::Login => {
                let location = format!("http://{}/login?continue=x", self.cdn_addr);
                Reply::new(302, "text/html", "<html>Moved</html>").with("Location", location)
            }
            Referrers::Html => Reply::new(200, "text/html; charset=utf-8", "<html>Sign in</html>"),
            Referrers::Listed => {
                let mut manifests: Vec<_> =
                    held.manifests.values().filter_map(|manifest| referrer(manifest, subject)).collect();
                manifests.sort_by_key(|descriptor| descriptor["digest"].to_string());
                let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
                Reply::new(200, OCI_INDEX, index.to_string())
            }
        }
    }
}

/// What the CDN answers.
fn content(state: &State, seen: &Seen, request: &Received) -> Reply {
    let refuse = |status, code: &str| Reply::new(status, "application/xml", format!("<Error>{code}</Error>"));
    if request.query("X-Signature") != Some("secret") || request.query("X-Method") != Some(&seen.method) {
        return refuse(403, "SignatureDoesNotMatch");
    }
    if request.query("X-Generation") != Some(&state.generation.to_string()) {
        return refuse(403, "ExpiredRequest");
    }
    if request.header("authorization").is_some() {
        return refuse(400, "InvalidAuthenticationInfo");
    }
    let (what, name) = seen.repository.split_once('/').unwrap_or_default();
    let Some(held) = state.repositories.get(name) else { return refuse(404, "NoSuchKey") };
    if what == "manifests" {
        return manifest(held, &seen.reference);
    }
    let mut reply = blob(held, &seen.reference, request.header("range"));
    reply.headers.retain(|(name, _)| *name != "Docker-Content-Digest");
    reply.with("ETag", "\"an-object-store's-own\"")
}

/// The descriptor of a manifest that refers to `subject`.
fn referrer(manifest: &Manifest, subject: &str) -> Option<Value> {
    let content: Value = serde_json::from_slice(&manifest.bytes).ok()?;
    (content["subject"]["digest"] == subject).then(|| {
        json!({
            "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.bytes.len(),
            "artifactType": content["artifactType"], "annotations": content["annotations"],
        })
    })
}

fn has_manifest(held: &Repository, reference: &str) -> bool {
    held.manifests.contains_key(held.tags.get(reference).map_or(reference, String::as_str))
}

fn is_accepted(held: &Repository, reference: &str, request: &Received) -> bool {
    let digest = held.tags.get(reference).map_or(reference, String::as_str);
    let media_type = held.manifests.get(digest).map(|manifest| manifest.media_type.as_str());
    let accepted = request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("accept"));
    media_type.is_none_or(|media_type| accepted.into_iter().any(|(_, value)| value.contains(media_type)))
}

fn manifest(held: &Repository, reference: &str) -> Reply {
    let digest = held.tags.get(reference).map_or(reference, String::as_str);
    let Some(manifest) = held.manifests.get(digest) else {
        return Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
    };
    Reply::new(200, &manifest.media_type, manifest.bytes.clone()).with("Docker-Content-Digest", digest)
}

fn blob(held: &Repository, digest: &str, range: Option<&str>) -> Reply {
    let Some(bytes) = held.blobs.get(digest) else { return Reply::error(404, "BLOB_UNKNOWN", "blob unknown") };
    let mut reply = Reply::new(200, "application/octet-stream", bytes.clone())
        .with("Docker-Content-Digest", digest)
        .with("Accept-Ranges", "bytes");
    match range.map(|range| resolve(range, bytes)) {
        None => {}
        Some(Some(range)) => reply.range = Some(range),
        Some(None) => {
            return Reply::error(416, "SIZE_INVALID", "range")
                .with("Content-Range", format!("bytes */{}", bytes.len()));
        }
    }
    reply
}

/// The first and last byte that a single range asks for.
fn resolve(range: &str, bytes: &Bytes) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let end = bytes.len().checked_sub(1)?;
    let range = if first.is_empty() {
        (bytes.len().saturating_sub(last.parse().ok()?), end)
    } else {
        (first.parse().ok()?, if last.is_empty() { end } else { last.parse::<usize>().ok()?.min(end) })
    };
    (range.0 <= range.1).then_some(range)
}

/// What no polite client asks.
fn complaints(seen: &Seen, request: &Received) -> Vec<&'static str> {
    let mut complaints = Vec::new();
    let queries: HashMap<_, _> = request.query.iter().cloned().collect();
    if seen.kind == Kind::Cdn && request.header("authorization").is_some() {
        complaints.push("credentials were sent to the CDN");
    }
    if queries.contains_key("ns") {
        complaints.push("ns was passed on");
    }
    if request.header("range").is_some_and(|range| range.contains(',')) {
        complaints.push("several ranges were asked at once");
    }
    let content = matches!(seen.kind, Kind::Manifest | Kind::Blob | Kind::Cdn);
    if content && request.header("accept-encoding").is_some_and(|value| value != "identity") {
        complaints.push("a content coding was invited");
    }
    if seen.kind == Kind::Manifest {
        let accept: Vec<_> = request.headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("accept")).collect();
        if ![OCI_INDEX, OCI_MANIFEST, DOCKER_MANIFEST].iter().all(|t| accept.iter().any(|(_, v)| v.contains(t))) {
            complaints.push("not every manifest type was accepted");
        }
    }
    complaints
}
