//! Bearer tokens: read from the token server's answer, kept while they are good, fetched once however many want them.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::time::Instant;
use url::Url;

use super::credentials::CredentialId;
use super::error::{Failure, UpstreamErrorKind};
use crate::tasks;

/// What a token is good for: where, as whom, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    /// Host and port that the token is sent to.
    pub(super) place: String,
    /// `None`: nobody in particular.
    pub(super) identity: Option<CredentialId>,
    pub(super) scope: String,
}

/// How a token is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grant {
    /// The token server, checked already.
    pub(super) realm: Url,
    pub(super) service: String,
    pub(super) scopes: Vec<String>,
}

/// A token. Its text is never shown.
#[derive(Debug)]
pub(super) struct Token {
    /// The whole `Authorization` value.
    pub(super) authorization: HeaderValue,
    /// How it was asked for, to ask again before it expires.
    pub(super) grant: Grant,
    refresh: Instant,
    expires: Instant,
}

/// The tokens of one upstream.
pub(super) struct Tokens(Mutex<HashMap<TokenKey, Slot>>);

type Flight = Shared<BoxFuture<'static, Result<Arc<Token>, Failure>>>;

#[derive(Default)]
struct Slot {
    token: Option<Arc<Token>>,
    flight: Option<Flight>,
}

/// Ends a flight on every way out, a panic included.
struct Landing {
    tokens: Arc<Tokens>,
    key: TokenKey,
}

/// Lifetime where the token server names none, or a shorter one (token specification).
const LIFETIME_MIN: Duration = Duration::from_mins(1);
/// No promise longer than this is believed.
const LIFETIME_MAX: Duration = Duration::from_hours(24);
/// Tokens held at most; each repository has its own.
const TOKENS_MAX: usize = 4096;

// === impl Token ===

impl Token {
    /// Reads a token server's answer that arrived at `now`.
    pub(super) fn parse(body: &[u8], grant: Grant, now: Instant) -> Result<Self, Failure> {
        let answer: serde_json::Value =
            serde_json::from_slice(body).map_err(|_| Failure::protocol("the token server's answer is not JSON"))?;
        let text = |name: &str| answer.get(name).and_then(|value| value.as_str()).filter(|text| !text.is_empty());
        let token = text("token")
            .or_else(|| text("access_token"))
            .ok_or_else(|| Failure::protocol("the token server's answer holds no token"))?;
        let mut authorization = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Failure::protocol("the token server's token can't be sent in a header"))?;
        authorization.set_sensitive(true);
        let lifetime = lifetime(answer.get("expires_in"));
        let refresh = lifetime.mul_f64(rand::random_range(0.75..0.85));
        Ok(Self { authorization, grant, refresh: now + refresh, expires: now + lifetime })
    }

    /// How long it is still good.
    pub(super) fn lifetime(&self, now: Instant) -> Duration {
        self.expires.saturating_duration_since(now)
    }

    fn is_good(&self, now: Instant) -> bool {
        now < self.expires
    }

    /// Whether it is time to fetch the next one, though this one is still good.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        now >= self.refresh
    }
}

fn lifetime(expires_in: Option<&serde_json::Value>) -> Duration {
    let seconds = expires_in.and_then(|value| value.as_f64().or_else(|| value.as_str()?.parse().ok()));
    let lifetime = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let forever = seconds.is_some_and(|seconds| seconds > LIFETIME_MAX.as_secs_f64());
    if forever { LIFETIME_MAX } else { lifetime.unwrap_or(LIFETIME_MIN).clamp(LIFETIME_MIN, LIFETIME_MAX) }
}

// === impl Tokens ===

impl Tokens {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(HashMap::new())))
    }

    /// A token that is good at `now`.
    pub(super) fn get(&self, key: &TokenKey, now: Instant) -> Option<Arc<Token>> {
        self.0.lock().get(key)?.token.clone().filter(|token| token.is_good(now))
    }

    /// Drops this very token; one that has replaced it meanwhile stays.
    pub(super) fn forget(&self, key: &TokenKey, token: &Arc<Token>) {
        if let Some(slot) = self.0.lock().get_mut(key)
            && slot.token.as_ref().is_some_and(|held| Arc::ptr_eq(held, token))
        {
            slot.token = None;
        }
    }

    /// The result of `fetch`, or of the one that is under way for this key. It runs on when nobody waits any longer.
    pub(super) fn fetch<F>(self: &Arc<Self>, key: &TokenKey, fetch: F) -> Flight
    where
        F: Future<Output = Result<Token, Failure>> + Send + 'static,
    {
        let mut slots = self.0.lock();
        if !slots.contains_key(key) && slots.len() >= TOKENS_MAX {
            make_room(&mut slots);
        }
        let slot = slots.entry(key.clone()).or_default();
        if let Some(flight) = &slot.flight {
            return flight.clone();
        }
        let landing = Landing { tokens: Arc::clone(self), key: key.clone() };
        let task = tasks::spawn("token", async move { landing.end(fetch.await) });
        let flight =
            task.map(|joined| joined.unwrap_or_else(|_| Err(UpstreamErrorKind::Broken.into()))).boxed().shared();
        slot.flight = Some(flight.clone());
        flight
    }
}

/// Drops a quarter of what nobody waits for, those first that expire first.
fn make_room(slots: &mut HashMap<TokenKey, Slot>) {
    let idle = slots.iter().filter(|(_, slot)| slot.flight.is_none());
    let mut by_expiry: Vec<(Option<Instant>, TokenKey)> =
        idle.map(|(key, slot)| (slot.token.as_ref().map(|token| token.expires), key.clone())).collect();
    by_expiry.sort_by_key(|(expires, _)| *expires);
    for (_, key) in by_expiry.into_iter().take(TOKENS_MAX / 4) {
        slots.remove(&key);
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tokens").field(&self.0.lock().len()).finish()
    }
}

// === impl Landing ===

impl Landing {
    fn end(self, result: Result<Token, Failure>) -> Result<Arc<Token>, Failure> {
        let token = Arc::new(result?);
        self.tokens.0.lock().entry(self.key.clone()).or_default().token = Some(Arc::clone(&token));
        Ok(token)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut slots = self.tokens.0.lock();
        if let Some(slot) = slots.get_mut(&self.key) {
            slot.flight = None;
            if slot.token.is_none() {
                slots.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn grant() -> Grant {
        Grant { realm: "https://auth.example/token".parse().unwrap(), service: "s".to_owned(), scopes: Vec::new() }
    }

    fn key(scope: &str) -> TokenKey {
        TokenKey { place: "registry.example".to_owned(), identity: None, scope: scope.to_owned() }
    }

    fn token(lifetime_s: u64) -> Token {
        let body = json!({ "token": "abc", "expires_in": lifetime_s }).to_string();
        Token::parse(body.as_bytes(), grant(), Instant::now()).unwrap()
    }

    #[test]
    fn lifetimes() {
        for (value, seconds) in [
            (None, 60),
            (Some(json!(0)), 60),
            (Some(json!(-5)), 60),
            (Some(json!(59)), 60),
            (Some(json!(300)), 300),
            (Some(json!(300.5)), 300),
            (Some(json!("300")), 300),
            (Some(json!("soon")), 60),
            (Some(json!(null)), 60),
            (Some(json!(1e300)), 86_400),
            (Some(json!(u64::MAX)), 86_400),
        ] {
            assert_eq!(lifetime(value.as_ref()).as_secs(), seconds, "{value:?}");
        }
    }

    #[test]
    fn both_names_of_a_token_are_read_and_its_text_is_not_shown() {
        let now = Instant::now();
        for body in [r#"{"token":"abc"}"#, r#"{"access_token":"abc"}"#, r#"{"token":"","access_token":"abc"}"#] {
            let token = Token::parse(body.as_bytes(), grant(), now).unwrap();
            assert_eq!(token.authorization, "Bearer abc");
            assert!(!format!("{token:?}").contains("abc"));
            assert!(token.is_good(now + Duration::from_secs(59)) && !token.is_good(now + Duration::from_mins(1)));
            assert!(!token.is_due(now + Duration::from_secs(44)) && token.is_due(now + Duration::from_secs(52)));
        }
        for body in ["", "{}", "[]", "<html>", r#"{"token":1}"#, r#"{"token":"a\nb"}"#, r#"{"token":""}"#] {
            assert!(Token::parse(body.as_bytes(), grant(), now).is_err(), "{body}");
        }
    }

    #[tokio::test]
    async fn a_hundred_who_want_a_token_share_one_fetch_and_its_failure() {
        let tokens = Tokens::new();
        let (gate, opened) = tokio::sync::oneshot::channel::<Result<Token, Failure>>();
        let first = tokens.fetch(&key("a"), async { opened.await.unwrap() });
        let others: Vec<Flight> = (0..99).map(|_| tokens.fetch(&key("a"), async { unreachable!() })).collect();
        let _ = gate.send(Err(UpstreamErrorKind::Status(503).into()));
        assert!(first.await.is_err());
        for other in others {
            assert_eq!(other.await.unwrap_err().kind, UpstreamErrorKind::Status(503));
        }
        assert!(tokens.0.lock().is_empty());
        tokens.fetch(&key("a"), async { Ok(token(60)) }).await.unwrap();
        assert!(tokens.get(&key("a"), Instant::now()).is_some());
    }

    #[tokio::test]
    async fn a_panic_while_fetching_ends_the_flight() {
        let tokens = Tokens::new();
        assert!(tokens.fetch(&key("a"), async { panic!("as planned") }).await.is_err());
        assert!(tokens.fetch(&key("a"), async { Ok(token(60)) }).await.is_ok());
    }

    #[tokio::test]
    async fn forgetting_a_token_spares_its_successor() {
        let tokens = Tokens::new();
        let old = tokens.fetch(&key("a"), async { Ok(token(60)) }).await.unwrap();
        let new = tokens.fetch(&key("a"), async { Ok(token(60)) }).await.unwrap();
        tokens.forget(&key("a"), &old);
        assert!(tokens.get(&key("a"), Instant::now()).is_some());
        tokens.forget(&key("a"), &new);
        assert!(tokens.get(&key("a"), Instant::now()).is_none());
    }

    #[tokio::test]
    async fn the_number_of_tokens_is_bounded_and_the_oldest_go_first() {
        let tokens = Tokens::new();
        tokens.fetch(&key("long"), async { Ok(token(3600)) }).await.unwrap();
        for n in 0..TOKENS_MAX {
            tokens.fetch(&key(&n.to_string()), async { Ok(token(60)) }).await.unwrap();
        }
        assert!(tokens.0.lock().len() <= TOKENS_MAX);
        assert!(tokens.get(&key("long"), Instant::now()).is_some());
    }
}
