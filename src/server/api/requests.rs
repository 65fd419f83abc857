//! `/requests`: the last requests of clients.

use axum::extract::{RawQuery, State};
use axum::response::Response;

use super::page::{self, Page, Query};
use super::{Api, ApiError};

pub(super) async fn list(State(api): State<Api>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let query = Query::read(query.as_deref(), &["limit", "after", "outcome", "upstream", "repository", "client"])?;
    let limit = query.limit()?;
    let after = query.get("after").map(str::parse).transpose();
    let after = after.map_err(|_| ApiError::bad_request("after is the number that a page said is next"))?;
    let is = |name: &str, value: &str| query.get(name).is_none_or(|wanted| wanted == value);
    let items = api.0.activity.recent(after, limit, |request| {
        is("outcome", request.outcome)
            && is("upstream", &request.upstream)
            && is("repository", &request.repository)
            && query
                .get("client")
                .is_none_or(|client| request.client.is_some_and(|address| address.to_string() == *client))
    });
    let next = (items.len() == limit).then(|| items.last().map(|request| request.id.to_string())).flatten();
    page::ok(&Page { items, next })
}
