//! Our own admin API from the other side, for commands that talk to a running server.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::{Method, StatusCode};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use url::Url;

use crate::secret::Secret;
use crate::upstream;

/// A running server, as its admin listener is reached. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ApiClient {
    base: Url,
    token: Option<Secret>,
    http: reqwest::Client,
}

/// Why a server did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ApiClientError {
    /// The address is none.
    #[error("{0:?} is not the address of an admin listener, such as http://127.0.0.1:5051")]
    Address(String),
    /// The client could not be set up.
    #[error("could not set up the connection to the server: {0}")]
    Setup(String),
    /// There is no answer.
    #[error("{base} does not answer: {reason}")]
    Unreachable {
        /// The server.
        base: Url,
        /// Why, from the outside in.
        reason: String,
    },
    /// The server said no.
    #[error("{message}")]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its word for programs.
        code: String,
        /// Its sentence for people.
        message: String,
    },
    /// The answer is none that this version understands.
    #[error("{base} answers, but not as a Cachalot's admin API of this version does ({status})")]
    NotUnderstood {
        /// The server.
        base: Url,
        /// The status of its answer.
        status: StatusCode,
    },
}

/// A page of a list.
#[derive(Debug, serde::Deserialize)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// What to give as `after` for the next page; `None` on the last.
    #[serde(default = "none")]
    pub next: Option<String>,
}

const fn none() -> Option<String> {
    None
}

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take to its end. Long work is asked for once and then looked at.
const TIMEOUT: Duration = Duration::from_mins(1);

/// How long sending a bundle and taking it in may take.
const UPLOAD_TIMEOUT: Duration = Duration::from_hours(24);

/// The longest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;

// === impl ApiClient ===

impl ApiClient {
    /// A client of the server at `address`, such as `http://127.0.0.1:5051`. `ca_file` is believed beside the usual roots.
    /// Reads files: not to be called where others wait.
    pub fn new(address: &str, token: Option<Secret>, ca_file: Option<&Path>) -> Result<Self, ApiClientError> {
        let full = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let base = Url::parse(&full).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        let base = base.ok_or_else(|| ApiClientError::Address(address.to_owned()))?;
        let tls = upstream::tls_settings(ca_file).map_err(ApiClientError::Setup)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| ApiClientError::Setup(error.to_string()))?;
        Ok(Self { base, token, http })
    }

    /// The server's address.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// Asks for something below `/api/v1`, such as `/status`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiClientError> {
        self.send(Method::GET, path, None::<&()>).await
    }

    /// Asks for something to be done, with a body if there is one.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ApiClientError> {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            let body = serde_json::to_vec(body).map_err(|error| ApiClientError::Setup(error.to_string()))?;
            request = request.header(CONTENT_TYPE, "application/json").body(body);
        }
        self.answer(request).await
    }

    /// Sends bytes as they come, such as a bundle.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<T, ApiClientError> {
        let request = self.request(Method::POST, path).timeout(UPLOAD_TIMEOUT);
        let request = request.header(CONTENT_TYPE, "application/x-tar").body(reqwest::Body::wrap_stream(bytes));
        self.answer(request).await
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let address = format!("{}/api/v1{path}", self.base.as_str().trim_end_matches('/'));
        let request = self.http.request(method, address).header(ACCEPT, "application/json");
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    async fn answer<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, ApiClientError> {
        let mut response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.not_understood(status));
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|_| self.not_understood(status));
        }
        let error: Value = serde_json::from_slice(&body).map_err(|_| self.not_understood(status))?;
        let text = |name: &str| error["error"][name].as_str().map(str::to_owned);
        match (text("code"), text("message")) {
            (Some(code), Some(message)) => Err(ApiClientError::Refused { status, code, message }),
            _ => Err(self.not_understood(status)),
        }
    }

    fn not_understood(&self, status: StatusCode) -> ApiClientError {
        ApiClientError::NotUnderstood { base: self.base.clone(), status }
    }

    fn unreachable(&self, error: &reqwest::Error) -> ApiClientError {
        let mut reason = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(inner) = cause {
            reason = format!("{reason}: {inner}");
            cause = inner.source();
        }
        ApiClientError::Unreachable { base: self.base.clone(), reason }
    }
}
