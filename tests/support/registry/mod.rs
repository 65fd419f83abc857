//! The scripted registry: a real HTTP server that behaves as any registry does, counts what it is asked, and
//! misbehaves on demand.
//!
//! It is written over bare TCP streams, so that it can lie about everything. Blobs can be redirected to a second
//! listener (the CDN) with signed addresses that expire. Requests that wait, wait at a [`Gate`] that the test opens.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

mod access;
mod answer;
mod gate;
pub(crate) mod profile;
mod record;
mod script;
mod serve;
mod wire;

pub(crate) use access::{Auth, Bearer, Denial, Exchange};
pub(crate) use gate::Gate;
pub(crate) use record::Seen;
pub(crate) use script::{Fault, Kind, On};

use super::images::{Blob, Image, Index, Manifest};
use super::within;

/// A registry on the loopback interface. Cheap to clone; all clones are the same registry.
#[derive(Clone, Debug)]
pub(crate) struct Registry(Arc<Shared>);

/// What a registry is started with.
#[derive(Clone, Debug)]
pub(crate) struct Builder {
    options: Options,
    bind: &'static str,
    auth: Auth,
}

/// What does not change while the registry lives.
#[expect(clippy::struct_excessive_bools, reason = "each is a peculiarity that some registry has and others do not")]
#[derive(Clone, Debug)]
struct Options {
    redirect_blobs: bool,
    redirect_manifests: bool,
    bytes_per_second: Option<u64>,
    referrers: Referrers,
    absolute_links: bool,
    tags_per_page: usize,
    /// A list of tags asked for by more at a time is refused, as ECR does.
    tags_asked_max: usize,
    /// Whoever may not see a repository is told the same as of one that isn't there: Docker Hub.
    hides_missing: bool,
    /// Pulls that are counted, and how many there are: Docker Hub.
    quota: Option<u64>,
    /// A manifest that is not of an accepted type isn't there: ghcr.io.
    strict_accept: bool,
    /// Refusals and "not found" come as pages for people: nvcr.io.
    html_errors: bool,
    /// The code of "not found", where it is not the specification's: Harbor.
    not_found_code: Option<&'static str>,
    /// Lists of tags also hold digests: Artifactory.
    odd_tags: bool,
    /// An empty list of tags is null: Nexus.
    null_tags: bool,
}

/// How the registry answers when asked for referrers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Referrers {
    /// As the specification wants it, without applying filters.
    Listed,
    /// 404, as registries before version 1.1.
    Missing,
    /// 200 with a login page.
    Html,
    /// A redirect to a login page elsewhere, as Google's.
    Login,
}

#[derive(Debug)]
struct Shared {
    options: Options,
    addr: SocketAddr,
    cdn_addr: SocketAddr,
    state: Mutex<State>,
    /// Signalled when a request arrives.
    arrived: Notify,
    connections: AtomicUsize,
    listening: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
struct State {
    repositories: BTreeMap<String, Repository>,
    access: access::Access,
    rules: Vec<script::Rule>,
    seen: Vec<Arc<Seen>>,
    /// What no polite client does; see [`Registry::violations`].
    violations: Vec<String>,
    /// Signed addresses of earlier generations have expired.
    generation: u64,
    /// Manifests that were sent, where that is counted.
    pulls: u64,
}

#[derive(Debug, Default)]
struct Repository {
    tags: BTreeMap<String, String>,
    manifests: HashMap<String, Manifest>,
    blobs: HashMap<String, Bytes>,
}

/// Which of the two listeners a connection came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Registry,
    Cdn,
}

// === impl Builder ===

impl Builder {
    /// Blobs are answered with a 307 to the CDN.
    pub(crate) fn redirect_blobs(mut self) -> Self {
        self.options.redirect_blobs = true;
        self
    }

    /// Manifests are answered with a 307 to the CDN.
    pub(crate) fn redirect_manifests(mut self) -> Self {
        self.options.redirect_manifests = true;
        self
    }

    /// Each connection carries at most so many bytes a second.
    pub(crate) fn bandwidth(mut self, bytes_per_second: u64) -> Self {
        self.options.bytes_per_second = Some(bytes_per_second);
        self
    }

    pub(crate) fn referrers(mut self, referrers: Referrers) -> Self {
        self.options.referrers = referrers;
        self
    }

    /// A page of a tag list never holds more; the rest follows by `Link`.
    pub(crate) fn tags_per_page(mut self, count: usize) -> Self {
        self.options.tags_per_page = count;
        self
    }

    /// `Link` headers name the registry's own address, as some do.
    pub(crate) fn absolute_links(mut self) -> Self {
        self.options.absolute_links = true;
        self
    }

    /// A list of tags asked for by more at a time is refused.
    pub(crate) fn tags_asked_max(mut self, count: usize) -> Self {
        self.options.tags_asked_max = count;
        self
    }

    /// What isn't there is refused like what may not be seen.
    pub(crate) fn hides_missing(mut self) -> Self {
        self.options.hides_missing = true;
        self
    }

    /// GETs of manifests are counted, and refused beyond so many.
    pub(crate) fn quota(mut self, pulls: u64) -> Self {
        self.options.quota = Some(pulls);
        self
    }

    /// Manifests of types that are not accepted are not there.
    pub(crate) fn strict_accept(mut self) -> Self {
        self.options.strict_accept = true;
        self
    }

    /// Refusals come as pages for people.
    pub(crate) fn html_errors(mut self) -> Self {
        self.options.html_errors = true;
        self
    }

    /// "Not found" has a code of the registry's own.
    pub(crate) fn not_found_code(mut self, code: &'static str) -> Self {
        self.options.not_found_code = Some(code);
        self
    }

    /// Lists of tags hold what is no tag.
    pub(crate) fn odd_tags(mut self) -> Self {
        self.options.odd_tags = true;
        self
    }

    /// A list of no tags is null.
    pub(crate) fn null_tags(mut self) -> Self {
        self.options.null_tags = true;
        self
    }

    pub(crate) fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// Listens on `[::1]`.
    pub(crate) fn v6(mut self) -> Self {
        self.bind = "[::1]:0";
        self
    }

    pub(crate) async fn start(self) -> Registry {
        let listener = TcpListener::bind(self.bind).await.unwrap();
        let cdn = TcpListener::bind(self.bind).await.unwrap();
        let shared = Arc::new(Shared {
            options: self.options,
            addr: listener.local_addr().unwrap(),
            cdn_addr: cdn.local_addr().unwrap(),
            state: Mutex::new(State {
                repositories: BTreeMap::new(),
                access: access::Access::new(self.auth),
                rules: Vec::new(),
                seen: Vec::new(),
                violations: Vec::new(),
                generation: 0,
                pulls: 0,
            }),
            arrived: Notify::new(),
            connections: AtomicUsize::new(0),
            listening: Mutex::new(Vec::new()),
        });
        let registry = Registry(shared);
        registry.listen(listener, cdn);
        registry
    }
}

// === impl Registry ===

impl Registry {
    pub(crate) fn builder() -> Builder {
        let options = Options {
            redirect_blobs: false,
            redirect_manifests: false,
            bytes_per_second: None,
            referrers: Referrers::Listed,
            absolute_links: false,
            tags_per_page: 1000,
            tags_asked_max: usize::MAX,
            hides_missing: false,
            quota: None,
            strict_accept: false,
            html_errors: false,
            not_found_code: None,
            odd_tags: false,
            null_tags: false,
        };
        Builder { options, bind: "127.0.0.1:0", auth: Auth::Open }
    }

    /// An open registry that serves its blobs itself.
    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    /// `http://` and the address.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.0.addr)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.0.addr
    }

    pub(crate) fn cdn_addr(&self) -> SocketAddr {
        self.0.cdn_addr
    }

    // --- what it holds

    pub(crate) fn put_blob(&self, repository: &str, blob: &Blob) {
        self.put_blob_as(repository, &blob.digest, blob.bytes.clone());
    }

    /// Holds bytes under a digest, which may be another algorithm's, or wrong.
    pub(crate) fn put_blob_as(&self, repository: &str, digest: &str, bytes: Bytes) {
        self.repository(repository, |held| held.blobs.insert(digest.to_owned(), bytes));
    }

    pub(crate) fn put_manifest(&self, repository: &str, tag: Option<&str>, manifest: &Manifest) {
        self.repository(repository, |held| {
            held.manifests.insert(manifest.digest.clone(), manifest.clone());
            if let Some(tag) = tag {
                held.tags.insert(tag.to_owned(), manifest.digest.clone());
            }
        });
    }

    pub(crate) fn put_image(&self, repository: &str, tag: &str, image: &Image) {
        self.put_untagged(repository, image);
        self.put_manifest(repository, Some(tag), &image.manifest);
    }

    /// Holds an image that only its digest names, as an artifact that refers to another.
    pub(crate) fn put_untagged(&self, repository: &str, image: &Image) {
        image.blobs().for_each(|blob| self.put_blob(repository, blob));
        self.put_manifest(repository, None, &image.manifest);
    }

    pub(crate) fn put_index(&self, repository: &str, tag: &str, index: &Index) {
        index.images.iter().for_each(|image| self.put_untagged(repository, image));
        self.put_manifest(repository, Some(tag), &index.manifest);
    }

    pub(crate) fn delete_tag(&self, repository: &str, tag: &str) {
        self.repository(repository, |held| held.tags.remove(tag));
    }

    pub(crate) fn delete_manifest(&self, repository: &str, digest: &str) {
        self.repository(repository, |held| held.manifests.remove(digest));
    }

    pub(crate) fn delete_blob(&self, repository: &str, digest: &str) {
        self.repository(repository, |held| held.blobs.remove(digest));
    }

    fn repository<T>(&self, name: &str, change: impl FnOnce(&mut Repository) -> T) -> T {
        change(self.0.state.lock().repositories.entry(name.to_owned()).or_default())
    }

    // --- who may have it

    pub(crate) fn add_user(&self, username: &str, password: &str) {
        self.0.state.lock().access.users.insert(username.to_owned(), password.to_owned());
    }

    /// Only these users may read the repository.
    pub(crate) fn make_private(&self, repository: &str, users: &[&str]) {
        let users: BTreeSet<_> = users.iter().map(|user| (*user).to_owned()).collect();
        self.0.state.lock().access.private.insert(repository.to_owned(), users);
    }

    /// Every token given out so far stops working.
    pub(crate) fn expire_tokens(&self) {
        self.0.state.lock().access.expire_tokens();
    }

    /// Every signed CDN address given out so far stops working.
    pub(crate) fn expire_signatures(&self) {
        self.0.state.lock().generation += 1;
    }

    // --- how it misbehaves

    /// Answers to requests that match `on` suffer `fault`.
    pub(crate) fn fault(&self, on: On, fault: Fault) {
        self.0.state.lock().rules.push(script::Rule::new(on, fault));
    }

    /// Forgets all faults and gates. Requests that wait at a gate go on waiting until it opens.
    pub(crate) fn heal(&self) {
        self.0.state.lock().rules.clear();
    }

    /// Requests that match wait before the head of their answer.
    pub(crate) fn gate(&self, on: On) -> Gate {
        let gate = Gate::new();
        self.fault(on, Fault::SlowHead(gate.clone()));
        gate
    }

    /// GETs of this blob wait before the head of their answer.
    pub(crate) fn gate_blob(&self, digest: &str) -> Gate {
        self.gate(On::blob(digest).get())
    }

    /// Answers to requests that match wait after `after` bytes of the body.
    pub(crate) fn gate_body(&self, on: On, after: u64) -> Gate {
        let gate = Gate::new();
        self.fault(on, Fault::Stall(after, gate.clone()));
        gate
    }

    /// Closes the listeners and all connections: from now on nobody can connect.
    pub(crate) async fn go_down(&self) {
        let listening = std::mem::take(&mut *self.0.listening.lock());
        for task in listening {
            task.abort();
            let _ = within("the registry goes down", task).await;
        }
    }

    /// Listens again, at the same addresses.
    pub(crate) async fn come_back(&self) {
        let listener = TcpListener::bind(self.0.addr).await.unwrap();
        let cdn = TcpListener::bind(self.0.cdn_addr).await.unwrap();
        self.listen(listener, cdn);
    }

    // --- what it was asked

    /// The requests that match, in the order in which they came.
    pub(crate) fn seen(&self, on: &On) -> Vec<Arc<Seen>> {
        self.0.state.lock().seen.iter().filter(|seen| on.matches(seen)).cloned().collect()
    }

    /// How many requests matched.
    pub(crate) fn count(&self, on: &On) -> usize {
        self.seen(on).len()
    }

    /// Body bytes written in answers to requests that match.
    pub(crate) fn body_bytes(&self, on: &On) -> u64 {
        self.seen(on).iter().map(|seen| seen.body_bytes()).sum()
    }

    /// Pulls that counted against the quota.
    pub(crate) fn pulls(&self) -> u64 {
        self.0.state.lock().pulls
    }

    /// Waits until at least `count` requests have matched.
    pub(crate) async fn asked(&self, on: &On, count: usize) {
        within("requests at the registry", async {
            loop {
                let arrival = self.0.arrived.notified();
                tokio::pin!(arrival);
                arrival.as_mut().enable();
                if self.count(on) >= count {
                    return;
                }
                arrival.await;
            }
        })
        .await;
    }

    /// Connections accepted by either listener.
    pub(crate) fn connections(&self) -> usize {
        self.0.connections.load(Ordering::SeqCst)
    }

    /// Forgets what was asked so far.
    pub(crate) fn forget_seen(&self) {
        self.0.state.lock().seen.clear();
    }

    /// What was asked that no mirror should: credentials at the CDN, `ns` passed on, compressed or several ranges.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.0.state.lock().violations.clone()
    }

    fn listen(&self, listener: TcpListener, cdn: TcpListener) {
        let mut listening = self.0.listening.lock();
        for (listener, door) in [(listener, Door::Registry), (cdn, Door::Cdn)] {
            let weak = Arc::downgrade(&self.0);
            listening.push(cachalot::tasks::spawn("registry", async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let Some(shared) = weak.upgrade() else { return };
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(connection(weak.clone(), door, stream));
                }
            }));
        }
    }
}

/// Serves a connection for as long as there is a registry and the connection is not to be closed.
async fn connection(registry: std::sync::Weak<Shared>, door: Door, mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = bytes::BytesMut::new();
    while let Ok(Some(request)) = wire::receive(&mut stream, &mut buffer).await {
        let Some(shared) = registry.upgrade() else { return };
        let (seen, answer) = shared.answer(door, &request);
        drop(shared);
        match answer.send(&mut stream, &seen).await {
            Ok(answer::Next::KeepOpen) => {}
            Ok(answer::Next::Close) | Err(_) => return,
        }
    }
}

// === impl Shared ===

impl Drop for Shared {
    fn drop(&mut self) {
        for task in self.listening.get_mut() {
            task.abort();
        }
    }
}
