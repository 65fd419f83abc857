//! What the registry is told to do wrong, and to whom.

use super::gate::Gate;
use super::record::Seen;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ping,
    Manifest,
    Blob,
    /// Content asked from the CDN listener.
    Cdn,
    Tags,
    Referrers,
    Token,
    Other,
}

/// Which requests, and how many of them. What is not said matches all.
#[derive(Clone, Debug)]
pub(crate) struct On {
    kind: Option<Kind>,
    method: Option<&'static str>,
    repository: Option<String>,
    reference: Option<String>,
    ranged: Option<bool>,
    from_byte: Option<u64>,
    skip: usize,
    times: usize,
}

/// What goes wrong with an answer. Positions count bytes of the body as sent.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The connection closes after so many bytes (FIN).
    Cut(u64),
    /// The connection is reset after so many bytes (RST).
    Reset(u64),
    /// Nothing comes after so many bytes until the gate opens.
    Stall(u64, Gate),
    /// No head comes until the gate opens.
    SlowHead(Gate),
    /// So many bytes every 10 ms.
    Drip(usize),
    /// The bit pattern of this byte of the *whole* content is inverted.
    Corrupt(u64),
    /// The body is these bytes instead; the length is theirs.
    Body(&'static [u8]),
    /// `Content-Length` says this instead of the truth; the connection closes at the end.
    ContentLength(u64),
    /// No `Content-Length`; the connection's end is the body's.
    NoLength,
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// The body is this much longer than it should be, and the length says so.
    Overlong(usize),
    /// The connection closes without an answer.
    HangUp,
    /// A range is answered by 200 and the whole.
    IgnoreRange,
    /// A page for people: 200, `text/html`.
    Html,
    /// The body is compressed and says so.
    Gzip,
    /// This status instead, with these headers and an OCI error body.
    Status(u16, Vec<(&'static str, String)>),
    /// This status, with a body that no registry wrote.
    ForeignStatus(u16),
    /// A header is left out.
    Without(&'static str),
    /// A header is set, or replaced.
    With(&'static str, String),
}

/// A fault with those it befalls.
#[derive(Debug)]
pub(super) struct Rule {
    on: On,
    fault: Fault,
}

// === impl On ===

impl On {
    pub(crate) fn any() -> Self {
        Self {
            kind: None,
            method: None,
            repository: None,
            reference: None,
            ranged: None,
            from_byte: None,
            skip: 0,
            times: usize::MAX,
        }
    }

    pub(crate) fn kind(kind: Kind) -> Self {
        Self { kind: Some(kind), ..Self::any() }
    }

    /// A blob asked from the registry itself, by its digest.
    pub(crate) fn blob(digest: &str) -> Self {
        Self { reference: Some(digest.to_owned()), ..Self::kind(Kind::Blob) }
    }

    /// Content asked from the CDN, by its digest.
    pub(crate) fn cdn(digest: &str) -> Self {
        Self { reference: Some(digest.to_owned()), ..Self::kind(Kind::Cdn) }
    }

    /// A manifest, by its tag or digest.
    pub(crate) fn manifest(reference: &str) -> Self {
        Self { reference: Some(reference.to_owned()), ..Self::kind(Kind::Manifest) }
    }

    pub(crate) fn repository(mut self, name: &str) -> Self {
        self.repository = Some(name.to_owned());
        self
    }

    pub(crate) fn get(mut self) -> Self {
        self.method = Some("GET");
        self
    }

    pub(crate) fn head(mut self) -> Self {
        self.method = Some("HEAD");
        self
    }

    /// Only requests with a `Range` header, or only those without.
    pub(crate) fn ranged(mut self, ranged: bool) -> Self {
        self.ranged = Some(ranged);
        self
    }

    /// Only requests for a range that begins at this byte.
    pub(crate) fn starting_at(mut self, first: u64) -> Self {
        self.from_byte = Some(first);
        self
    }

    /// Only the first `count` that match.
    pub(crate) fn times(mut self, count: usize) -> Self {
        self.times = count;
        self
    }

    pub(crate) fn once(self) -> Self {
        self.times(1)
    }

    /// Not the first `count` that match.
    pub(crate) fn after(mut self, count: usize) -> Self {
        self.skip = count;
        self
    }

    pub(super) fn matches(&self, seen: &Seen) -> bool {
        self.kind.is_none_or(|kind| kind == seen.kind)
            && self.method.is_none_or(|method| method == seen.method)
            && self.repository.as_ref().is_none_or(|name| *name == seen.repository)
            && self.reference.as_ref().is_none_or(|reference| *reference == seen.reference)
            && self.ranged.is_none_or(|ranged| ranged == seen.header("range").is_some())
            && self.from_byte.is_none_or(|first| seen.range().is_some_and(|(from, _)| from == first))
    }
}

// === impl Fault ===

impl Fault {
    pub(crate) fn status(status: u16) -> Self {
        Self::Status(status, Vec::new())
    }

    pub(crate) fn too_many_requests(retry_after: Option<&str>) -> Self {
        Self::Status(429, retry_after.map(|value| ("Retry-After", value.to_owned())).into_iter().collect())
    }
}

// === impl Rule ===

impl Rule {
    pub(super) fn new(on: On, fault: Fault) -> Self {
        Self { on, fault }
    }

    /// The fault, when it befalls this request. Counts it.
    pub(super) fn befalls(&mut self, seen: &Seen) -> Option<Fault> {
        if !self.on.matches(seen) {
            return None;
        }
        if self.on.skip > 0 {
            self.on.skip -= 1;
            return None;
        }
        if self.on.times == 0 {
            return None;
        }
        self.on.times = self.on.times.saturating_sub(1);
        Some(self.fault.clone())
    }
}
