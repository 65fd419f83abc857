//! Pages of lists: how many at a time, and where the next begins; and answers as JSON.

use std::collections::HashMap;

use axum::response::Response;
use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde::Serialize;

use super::super::router::json;
use super::ApiError;
use crate::mirror::Names;
use crate::oci::ImageName;

/// A page of a list, as every list is answered.
#[derive(Debug, Serialize)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// What to give as `after` for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) next: Option<String>,
}

/// The parameters of a query: each once, decoded.
#[derive(Debug, Default)]
pub(super) struct Query(HashMap<String, String>);

/// How many things a page has by default, and at most.
const LIMIT: (usize, usize) = (100, 1000);

/// The longest query that is read.
const QUERY_BYTES_MAX: usize = 4096;

/// A 200 with JSON.
pub(super) fn ok(body: &impl Serialize) -> Result<Response, ApiError> {
    let body = serde_json::to_string(body).map_err(|error| ApiError::internal(error.to_string()))?;
    Ok(json(StatusCode::OK, body))
}

// === impl Query ===

impl Query {
    /// Reads a query; parameters other than those in `known` are an error, lest a slip be taken for "all".
    pub(super) fn read(query: Option<&str>, known: &[&str]) -> Result<Self, ApiError> {
        let query = query.unwrap_or_default();
        if query.len() > QUERY_BYTES_MAX {
            return Err(ApiError::bad_request("the query is too long"));
        }
        let mut found = HashMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) {
                let known = known.join(", ");
                return Err(ApiError::bad_request(format!("unknown parameter; there are: {known}")));
            }
            let value = percent_decode_str(&value.replace('+', " ")).decode_utf8().map(std::borrow::Cow::into_owned);
            let value = value.map_err(|_| ApiError::bad_request(format!("{name} is not UTF-8 text")))?;
            if found.insert(name.to_owned(), value).is_some() {
                return Err(ApiError::bad_request(format!("{name} is there twice")));
            }
        }
        Ok(Self(found))
    }

    /// A parameter that says something.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The image that is meant, by the canonical name of its registry.
    pub(super) fn image(&self, names: &Names) -> Result<ImageName, ApiError> {
        let text = self.get("image");
        let text = text.ok_or_else(|| ApiError::bad_request("say which: ?image=docker.io/library/nginx:1.27"))?;
        let image = text.parse::<ImageName>();
        let image = image.map_err(|error| ApiError::bad_request(format!("{text} is no image: {error}")))?;
        names.canonical_if_known(&image).map_err(|error| ApiError::bad_request(error.to_string()))
    }

    /// How many things the page may have.
    pub(super) fn limit(&self) -> Result<usize, ApiError> {
        let (default, max) = LIMIT;
        match self.get("limit").map(str::parse) {
            None => Ok(default),
            Some(Ok(limit)) if (1..=max).contains(&limit) => Ok(limit),
            Some(_) => Err(ApiError::bad_request(format!("limit is a number from 1 to {max}"))),
        }
    }
}

// === impl Page ===

impl<T> Page<T> {
    /// A list that is short by nature.
    pub(super) fn whole(items: Vec<T>) -> Self {
        Self { items, next: None }
    }
}
