//! What a doctor looks at: each endpoint's name, its door, and what opens it, step by step and in words.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use tokio::time::Instant;

use super::authorize::Examined;
use super::challenge::Challenge;
use super::credentials::Login;
use super::endpoint::Endpoint;
use super::error::{Failure, UpstreamError};
use super::redirect::place;
use super::request::Ask;
use super::{Access, Inner, Upstream};
use crate::oci::Repository;

/// What one step came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The step's name.
    pub step: &'static str,
    /// How long it took.
    pub took: Duration,
    /// What was found, or what is wrong and what to do about it. Never holds a secret.
    pub said: Result<String, String>,
}

// === impl Upstream ===

impl Upstream {
    /// Looks at each endpoint as far as its door: its name, the answer to `/v2/`, who we are for `repository`, and the token
    /// that opens it. An endpoint that can't be reached ends its own examination.
    pub async fn examine(&self, repository: &Repository, access: Access) -> Vec<Finding> {
        let mut findings = Vec::new();
        for endpoint in &self.inner.endpoints {
            self.inner.examine_endpoint(endpoint, repository, access, &mut findings).await;
        }
        findings
    }
}

// === impl Inner ===

impl Inner {
    async fn examine_endpoint(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        repository: &Repository,
        access: Access,
        findings: &mut Vec<Finding>,
    ) {
        if let Some(host) = endpoint.url.domain() {
            let start = Instant::now();
            let said = match self.client.settings.proxy.on_the_way_to(&endpoint.url) {
                Some(proxy) => Ok(format!("{host} is looked up by {proxy}, the proxy that it is reached through")),
                None => self.look_up(host).await,
            };
            let failed = said.is_err();
            findings.push(Finding { step: "name", took: start.elapsed(), said });
            if failed {
                return;
            }
        }
        let start = Instant::now();
        let challenge = match self.knock(endpoint).await {
            Ok((words, challenge)) => {
                findings.push(Finding { step: "door", took: start.elapsed(), said: Ok(words) });
                challenge
            }
            Err(failure) => {
                let said = Err(self.named(failure, endpoint).to_string());
                findings.push(Finding { step: "door", took: start.elapsed(), said });
                return;
            }
        };
        let ask = Ask { access, ..Ask::get("manifest", repository, String::new()) };
        let start = Instant::now();
        let identity = self.identity(endpoint, &ask).await;
        let said = Ok(match &identity {
            None if access == Access::Anonymous => "nobody, as you asked".to_owned(),
            None => format!("nobody: no credential is configured for {repository}"),
            Some(identity) => format!("{} with {}", identity.scope, kind(&identity.login)),
        });
        findings.push(Finding { step: "we are", took: start.elapsed(), said });
        let start = Instant::now();
        let examined = Box::pin(self.examine_pass(endpoint, &ask, identity, challenge.as_ref())).await;
        let said = match examined {
            Ok(Examined::NotNeeded) => return,
            Ok(Examined::Words(words)) => Ok(words),
            Err(failure) => Err(self.named(failure, endpoint).to_string()),
        };
        findings.push(Finding { step: "token", took: start.elapsed(), said });
    }

    async fn look_up(&self, host: &str) -> Result<String, String> {
        match self.resolver.look_up(host).await {
            Ok(addresses) if addresses.is_empty() => Err(format!("{host} has no address")),
            Ok(addresses) => Ok(format!("{host} is {}", addresses.join(", "))),
            Err(error) => Err(format!("{host} can't be looked up: {error}")),
        }
    }

    /// Asks for `/v2/` and says what the door looks like.
    async fn knock(&self, endpoint: &Endpoint) -> Result<(String, Option<Challenge>), Failure> {
        let request = reqwest::Request::new(Method::GET, endpoint.address(""));
        let response = self.client.send("other", request).await?;
        let (status, challenge) = (response.status(), Challenge::best(response.headers()));
        self.client.drain(response).await;
        let wants = match &challenge {
            None => "wants no credential for that".to_owned(),
            Some(Challenge::Basic) => "wants a user name and password (Basic)".to_owned(),
            Some(Challenge::Bearer { realm, service, .. }) => {
                let server = realm.parse().map_or_else(|_| "?".to_owned(), |url| place(&url));
                let service = service.as_deref().unwrap_or("none named");
                format!("wants a token of {server} (service {service})")
            }
        };
        Ok((format!("{} answers {} to /v2/ and {wants}", endpoint.label(), status.as_u16()), challenge))
    }

    fn named(&self, failure: Failure, endpoint: &Endpoint) -> UpstreamError {
        failure.at(&self.name, endpoint.label())
    }
}

fn kind(login: &Login) -> &'static str {
    match login {
        Login::Password { .. } => "a user name and password",
        Login::IdentityToken { .. } => "an identity token, which its token server exchanges",
        Login::RegistryToken(_) => "a token of the registry's own",
    }
}
