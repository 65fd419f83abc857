//! What can go wrong between us and a registry, in sentences that its users will read.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// A request to an upstream that did not end well.
///
/// Its text names the upstream, the endpoint, what happened and what to do about it. It never holds a secret, a token or
/// the query string of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamError {
    /// The upstream's label.
    pub upstream: String,
    /// Host and port of the endpoint that was asked.
    pub endpoint: String,
    /// What happened.
    pub kind: UpstreamErrorKind,
    /// What the operating system, the TLS library or the registry said, where that adds something.
    pub cause: Option<String>,
}

/// What happened to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamErrorKind {
    /// 404.
    NotFound {
        /// The answer carried an OCI error body: a registry said so, not some server in front of it. Answers to HEAD have
        /// no body, so there this is always `false`.
        oci_body: bool,
    },
    /// 401 or 403 from the registry or its token endpoint, after everything we may try.
    Refused {
        /// The status of the answer.
        status: u16,
        /// No credential of ours was used, or none was accepted: many registries say this for what doesn't exist.
        anonymous: bool,
        /// The scope of the configured credential that was rejected before access was refused without it, too.
        rejected: Option<String>,
    },
    /// 429.
    RateLimited {
        /// How long upstream wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// Any other status that is no answer: 5xx, or an odd one.
    Status(u16),
    /// No connection: nobody listens, or the network is down.
    Connect,
    /// No connection: its name can't be looked up.
    Name,
    /// A connection, but a certificate that nobody vouches for, or that is another's: maybe it is not who we think.
    Certificate,
    /// A connection, but no TLS session; or no usable TLS settings of our own.
    Tls,
    /// A deadline passed.
    Timeout(Phase),
    /// The connection broke, before the answer or in the middle of its body.
    Broken,
    /// An answer that makes no sense. The text says what is wrong with it.
    Protocol(String),
    /// A redirect or a token realm that points where this upstream may not send us.
    RedirectRefused,
}

/// What was waited for when a deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// One of our own connections to this upstream to become free.
    Queue,
    /// A connection.
    Connect,
    /// The head of the answer.
    Header,
    /// More of the body.
    Body,
}

/// An error that doesn't know yet at which upstream and endpoint it happened.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) kind: UpstreamErrorKind,
    pub(super) cause: Option<String>,
    /// It happened where a redirect led to, and says nothing of the endpoint.
    pub(super) left: bool,
}

/// How much of a foreign text goes into a message.
const CAUSE_CHARS_MAX: usize = 200;

// === impl UpstreamError ===

impl UpstreamError {
    /// Whether another endpoint, or the same one a little later, may well do better: nothing was said about the content.
    pub fn is_transient(&self) -> bool {
        self.kind.is_transient()
    }
}

impl fmt::Display for UpstreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "upstream {} ", self.upstream)?;
        if self.endpoint != self.upstream {
            write!(f, "({}) ", self.endpoint)?;
        }
        write!(f, "{}", self.kind)?;
        if let Some(cause) = &self.cause {
            write!(f, " ({cause})")?;
        }
        write!(f, "; {}", self.kind.advice())
    }
}

impl StdError for UpstreamError {}

// === impl UpstreamErrorKind ===

impl UpstreamErrorKind {
    /// See [`UpstreamError::is_transient`].
    pub fn is_transient(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Connect
            | Self::Name
            | Self::Certificate
            | Self::Tls
            | Self::Timeout(_)
            | Self::Broken => true,
            Self::Status(status) => *status >= 500 || *status == 408,
            Self::NotFound { .. } | Self::Refused { .. } | Self::Protocol(_) | Self::RedirectRefused => false,
        }
    }

    /// Whether it is an answer about what was asked for, if not the one that was hoped for.
    pub(super) fn is_verdict(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Refused { .. })
    }

    /// Whether a token server's answer to a POST may mean that it only knows GET.
    pub(super) fn means_no_post(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. } | Self::Status(400 | 404 | 405))
    }

    pub(super) fn is_anonymous_refusal(&self) -> bool {
        matches!(self, Self::Refused { anonymous: true, .. })
    }

    fn advice(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "check the image's name, tag or digest",
            Self::Refused { rejected: Some(_), .. } => "check that credential's user name and password",
            Self::Refused { anonymous: true, .. } => {
                "the image does not exist, or it is private: check its name, or configure a credential for it"
            }
            Self::Refused { anonymous: false, .. } => {
                "check that the configured credential may pull it and that its name is right"
            }
            Self::RateLimited { .. } => "try again later, or configure a credential with a higher limit",
            Self::Status(_) => "check the registry's own status and logs",
            Self::Connect => "check that it is up and that this host may reach it",
            Self::Name => "check the name, and that this host can look names up",
            Self::Certificate => {
                "if it is signed by an authority of your own, set ca_file for this upstream; else somebody may be in between"
            }
            Self::Tls => {
                "check that it speaks TLS (if it speaks plain HTTP, give it endpoints = [\"http://HOST:PORT\"]), and this upstream's ca_file and client_cert"
            }
            Self::Timeout(Phase::Queue) => "try again, or raise max_connections for this upstream",
            Self::Timeout(Phase::Connect | Phase::Header | Phase::Body) | Self::Broken => {
                "check the registry and the network on the way to it"
            }
            Self::Protocol(_) => "check that the endpoint is a registry and that no proxy rewrites its answers",
            Self::RedirectRefused => "if that is intended, list the host in redirect_hosts for this upstream",
        }
    }
}

impl fmt::Display for UpstreamErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { .. } => f.write_str("says that it does not exist: 404"),
            Self::Refused { status, rejected: Some(scope), .. } => {
                write!(f, "rejected the credential configured for {scope}, and refused access without it: {status}")
            }
            Self::Refused { status, anonymous: true, .. } => write!(f, "refused anonymous access: {status}"),
            Self::Refused { status, anonymous: false, .. } => write!(f, "refused access with our credential: {status}"),
            Self::RateLimited { retry_after: None } => f.write_str("limits our requests: 429"),
            Self::RateLimited { retry_after: Some(wait) } => {
                write!(f, "limits our requests: 429, for {} s more", wait.as_secs())
            }
            Self::Status(status) if *status >= 500 => write!(f, "failed: {status}"),
            Self::Status(status) => write!(f, "gave an answer that means nothing here: {status}"),
            Self::Connect => f.write_str("can't be reached"),
            Self::Name => f.write_str("can't be found by its name"),
            Self::Certificate => f.write_str("shows a certificate that is not trusted"),
            Self::Tls => f.write_str("can't be talked to over TLS"),
            Self::Timeout(Phase::Queue) => f.write_str("is busy with our other requests"),
            Self::Timeout(Phase::Connect) => f.write_str("did not accept a connection in time"),
            Self::Timeout(Phase::Header) => f.write_str("did not answer in time"),
            Self::Timeout(Phase::Body) => f.write_str("stopped sending in the middle of an answer"),
            Self::Broken => f.write_str("broke the connection before its answer was complete"),
            Self::Protocol(what) => write!(f, "gave a wrong answer: {what}"),
            Self::RedirectRefused => f.write_str("sent us where we must not go"),
        }
    }
}

// === impl Failure ===

impl Failure {
    pub(super) fn protocol(what: impl Into<String>) -> Self {
        UpstreamErrorKind::Protocol(what.into()).into()
    }

    pub(super) fn refused_target(why: impl Into<String>) -> Self {
        Self { cause: Some(why.into()), ..UpstreamErrorKind::RedirectRefused.into() }
    }

    pub(super) fn timeout(phase: Phase) -> Self {
        UpstreamErrorKind::Timeout(phase).into()
    }

    /// Reads a failed exchange: its kind from the whole chain of causes, its text from the innermost one. The outer
    /// ones hold the address with its query string.
    pub(super) fn of_exchange(error: &reqwest::Error) -> Self {
        let causes = Causes(Some(error));
        let refused = causes.clone().find_map(<dyn StdError>::downcast_ref::<super::resolver::NoPublicAddress>);
        if let Some(refused) = refused {
            return Self::refused_target(refused.to_string());
        }
        let tls = causes.clone().find_map(<dyn StdError>::downcast_ref::<rustls::Error>);
        let kind = if let Some(rustls::Error::InvalidCertificate(_)) = tls {
            UpstreamErrorKind::Certificate
        } else if tls.is_some() {
            UpstreamErrorKind::Tls
        } else if causes.clone().any(<dyn StdError>::is::<super::resolver::NoAddress>) {
            UpstreamErrorKind::Name
        } else if error.is_connect() && error.is_timeout() {
            UpstreamErrorKind::Timeout(Phase::Connect)
        } else if error.is_connect() {
            UpstreamErrorKind::Connect
        } else {
            UpstreamErrorKind::Broken
        };
        let cause = causes.skip(1).last().map(|cause| shortened(&cause.to_string()));
        Self { cause, ..kind.into() }
    }

    /// Says that it was not the registry itself that failed, but the server that hands out its tokens.
    pub(super) fn at_token_server(self, server: &str) -> Self {
        self.because(format!("token server {server}"))
    }

    /// Says that it happened where a redirect led to, if that is so.
    pub(super) fn after_leaving(self, left: bool) -> Self {
        Self { left: self.left || left, ..self }
    }

    /// Says that this is what was found a moment ago, and that the endpoint was not asked again.
    pub(super) fn left_alone(self) -> Self {
        self.because("as of a moment ago".to_owned())
    }

    /// Puts `reason` in front of the cause.
    pub(super) fn because(self, reason: String) -> Self {
        let cause = match self.cause {
            Some(cause) => format!("{reason}: {cause}"),
            None => reason,
        };
        Self { cause: Some(cause), ..self }
    }

    /// Says of a refusal that the credential configured for `scope` was tried before, and rejected.
    pub(super) fn after_rejecting(mut self, scope: &str) -> Self {
        if let UpstreamErrorKind::Refused { rejected, .. } = &mut self.kind {
            *rejected = Some(scope.to_owned());
        }
        self
    }

    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.kind, UpstreamErrorKind::Refused { .. })
    }

    /// The `status` label of an exchange that brought no status.
    pub(super) fn metric_status(&self) -> &'static str {
        match self.kind {
            UpstreamErrorKind::Timeout(_) => "timeout",
            UpstreamErrorKind::Tls | UpstreamErrorKind::Certificate => "tls",
            UpstreamErrorKind::Connect | UpstreamErrorKind::Name | UpstreamErrorKind::RedirectRefused => "connect",
            _ => "broken",
        }
    }

    pub(super) fn at(self, upstream: &str, endpoint: &str) -> UpstreamError {
        UpstreamError {
            upstream: upstream.to_owned(),
            endpoint: endpoint.to_owned(),
            kind: self.kind,
            cause: self.cause,
        }
    }
}

impl From<UpstreamErrorKind> for Failure {
    fn from(kind: UpstreamErrorKind) -> Self {
        Self { kind, cause: None, left: false }
    }
}

/// `text` without control characters and not too long, for a message.
pub(super) fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(CAUSE_CHARS_MAX).collect()
}

/// An error and everything it was caused by, also what hides inside of I/O errors.
#[derive(Clone)]
struct Causes<'a>(Option<&'a (dyn StdError + 'static)>);

impl<'a> Iterator for Causes<'a> {
    type Item = &'a (dyn StdError + 'static);

    fn next(&mut self) -> Option<Self::Item> {
        let error = self.0?;
        // An I/O error shows its inner error's cause as its own and skips the inner error itself.
        self.0 = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
        Some(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_is_called_like_its_upstream_is_named_once() {
        let said = |endpoint| Failure::from(UpstreamErrorKind::Connect).at("quay.io", endpoint).to_string();
        assert_eq!(
            said("quay.io"),
            "upstream quay.io can't be reached; check that it is up and that this host may reach it"
        );
        assert!(said("10.0.0.1:5000").starts_with("upstream quay.io (10.0.0.1:5000) can't be reached"));
    }
}
