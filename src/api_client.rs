//! Our own admin API from the other side, for commands that talk to a running server.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http::{Method, StatusCode};
use reqwest::header::{ACCEPT, CONTENT_TYPE, ETAG};
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

/// Bytes that a server gives, such as a bundle.
pub struct Download {
    /// What the server says that they are the version of, without quotes.
    pub etag: Option<String>,
    /// How many there are.
    pub size_bytes: Option<u64>,
    /// The bytes. A body that ends too early ends with an error.
    pub bytes: BoxStream<'static, io::Result<Bytes>>,
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

/// How long sending a bundle and taking it in, or writing and fetching one, may take.
const TRANSFER_TIMEOUT: Duration = Duration::from_hours(24);

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
            request = with_json(request, body)?;
        }
        self.answer(request).await
    }

    /// Asks for bytes that come as they are made, such as a bundle.
    pub async fn download(&self, path: &str, body: &impl Serialize) -> Result<Download, ApiClientError> {
        let request = with_json(self.request(Method::POST, path).timeout(TRANSFER_TIMEOUT), body)?;
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.refusal(response).await);
        }
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
        let etag = etag.map(|etag| etag.trim_matches('"').to_owned());
        let size_bytes = response.content_length();
        let bytes = response.bytes_stream().map_err(io::Error::other).boxed();
        Ok(Download { etag, size_bytes, bytes })
    }

    /// Sends bytes as they come, such as a bundle.
    pub async fn upload<T: DeserializeOwned>(
        &self,
        path: &str,
        bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<T, ApiClientError> {
        let request = self.request(Method::POST, path).timeout(TRANSFER_TIMEOUT);
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
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refusal(response).await);
        }
        let body = self.body(response).await?;
        serde_json::from_slice(&body).map_err(|_| self.not_understood(status))
    }

    /// All of an answer's body, which is short.
    async fn body(&self, mut response: reqwest::Response) -> Result<Vec<u8>, ApiClientError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.unreachable(&error))? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(self.not_understood(response.status()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// What an answer says that is no success.
    async fn refusal(&self, response: reqwest::Response) -> ApiClientError {
        let status = response.status();
        let body = match self.body(response).await {
            Ok(body) => body,
            Err(error) => return error,
        };
        let error: Value = serde_json::from_slice(&body).unwrap_or_default();
        let text = |name: &str| error["error"][name].as_str().map(str::to_owned);
        match (text("code"), text("message")) {
            (Some(code), Some(message)) => ApiClientError::Refused { status, code, message },
            _ => self.not_understood(status),
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

fn with_json(
    request: reqwest::RequestBuilder,
    body: &impl Serialize,
) -> Result<reqwest::RequestBuilder, ApiClientError> {
    let body = serde_json::to_vec(body).map_err(|error| ApiClientError::Setup(error.to_string()))?;
    Ok(request.header(CONTENT_TYPE, "application/json").body(body))
}

impl std::fmt::Debug for Download {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Download")
            .field("etag", &self.etag)
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}
