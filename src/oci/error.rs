//! Error codes of the distribution specification, and the JSON body that carries one to a client.

use std::fmt;

use serde_json::{Value, json};

/// What went wrong, in the words that clients understand. containerd, podman and dockerd all act on some of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The repository has no such blob.
    BlobUnknown,
    /// A blob upload was invalid.
    BlobUploadInvalid,
    /// There is no such upload.
    BlobUploadUnknown,
    /// The digest is malformed, or is not that of the content.
    DigestInvalid,
    /// The access was refused, whoever asks.
    Denied,
    /// A manifest names a blob that the registry doesn't hold.
    ManifestBlobUnknown,
    /// The manifest can't be read.
    ManifestInvalid,
    /// The repository has no such manifest.
    ManifestUnknown,
    /// The repository name is malformed.
    NameInvalid,
    /// There is no such repository, or no upstream that would have it.
    NameUnknown,
    /// The `n` of a tag list is malformed (not in the specification; the code that the reference registry uses).
    PaginationNumberInvalid,
    /// The size announced is not the size received.
    SizeInvalid,
    /// Too many requests. Sent with 503 only, for clients treat a 429 badly.
    TooManyRequests,
    /// Credentials are needed.
    Unauthorized,
    /// The service, or the upstream behind it, can't answer now (not in the specification; widely used).
    Unavailable,
    /// Something else went wrong (not in the specification; widely used).
    Unknown,
    /// The operation is not offered.
    Unsupported,
}

/// The media type of what [`error_body`] makes.
pub const ERROR_MEDIA_TYPE: &str = "application/json";

/// The body of an error answer: one entry with `code`, a `message` for the person who reads it, and optional `detail`.
pub fn error_body(code: ErrorCode, message: &str, detail: Option<Value>) -> String {
    let mut entry = json!({ "code": code.as_str(), "message": message });
    if let Some(detail) = detail {
        entry["detail"] = detail;
    }
    json!({ "errors": [entry] }).to_string()
}

// === impl ErrorCode ===

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 17] = [
        Self::BlobUnknown,
        Self::BlobUploadInvalid,
        Self::BlobUploadUnknown,
        Self::DigestInvalid,
        Self::Denied,
        Self::ManifestBlobUnknown,
        Self::ManifestInvalid,
        Self::ManifestUnknown,
        Self::NameInvalid,
        Self::NameUnknown,
        Self::PaginationNumberInvalid,
        Self::SizeInvalid,
        Self::TooManyRequests,
        Self::Unauthorized,
        Self::Unavailable,
        Self::Unknown,
        Self::Unsupported,
    ];

    /// The code as it stands in the JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::BlobUploadInvalid => "BLOB_UPLOAD_INVALID",
            Self::BlobUploadUnknown => "BLOB_UPLOAD_UNKNOWN",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::Denied => "DENIED",
            Self::ManifestBlobUnknown => "MANIFEST_BLOB_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::SizeInvalid => "SIZE_INVALID",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unknown => "UNKNOWN",
            Self::Unsupported => "UNSUPPORTED",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_the_shape_that_clients_parse() {
        assert_eq!(
            error_body(ErrorCode::BlobUnknown, "docker.io has no \"such\" blob", None),
            r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"docker.io has no \"such\" blob"}]}"#
        );
        let body = error_body(ErrorCode::TooManyRequests, "later\n", Some(json!({ "upstream": "docker.io" })));
        let read: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(read["errors"][0]["detail"]["upstream"], "docker.io");
        assert_eq!(read["errors"][0]["message"], "later\n");
    }

    #[test]
    fn codes_are_distinct_and_hold_only_capitals_and_underscores() {
        let codes: std::collections::BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(codes.len(), ErrorCode::ALL.len());
        assert!(codes.iter().all(|code| code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')));
    }
}
