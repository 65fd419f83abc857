//! Answers with lists: tags and referrers.

use http::header::{CONTENT_TYPE, LINK};
use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::json;

use crate::oci::route::{Endpoint, Route};
use crate::oci::{Digest, media, referrers};

use super::router::{Answer, Ask, insert, insert_warning, json};

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// A page of a repository's tags. The name in it is the one that was asked for, and the link to the next page is
/// relative and keeps prefix and `ns`: some clients use nothing of it but path and query.
pub(super) async fn tags(ask: &Ask<'_>, limit: Option<u64>, last: Option<&str>) -> Answer {
    let page = ask.mirror.tags(ask.target, limit, last).await?;
    let body = json!({ "name": ask.route.name, "tags": page.tags });
    let mut response = json(StatusCode::OK, body.to_string());
    if let (true, Some(last)) = (page.more, page.tags.last()) {
        let next = Route { endpoint: Endpoint::Tags { limit, last: Some(last.clone()) }, ..ask.route.clone() };
        insert(response.headers_mut(), LINK, &format!("<{next}>; rel=\"next\""));
    }
    insert_warning(response.headers_mut(), page.warning.as_deref());
    Ok((response, page.outcome))
}

/// The referrers of a manifest, always an OCI image index.
pub(super) async fn referrers(ask: &Ask<'_>, subject: &Digest, artifact_types: &[String]) -> Answer {
    let list = ask.mirror.referrers(ask.target, subject, artifact_types).await?;
    let mut response = json(StatusCode::OK, list.body);
    insert(response.headers_mut(), CONTENT_TYPE, media::OCI_INDEX);
    if list.filtered {
        response.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static(referrers::FILTER_APPLIED));
    }
    insert_warning(response.headers_mut(), list.warning.as_deref());
    Ok((response, list.outcome))
}
