//! Profiles: the registries that people use, as the scripted registry plays them. Each is made of behaviours that any test
//! can use alone.

use super::{Auth, Bearer, Builder, Denial, Exchange, Fault, Kind, On, Referrers, Registry};

/// One registry as it is.
#[derive(Debug)]
pub(crate) struct Profile {
    /// What its images have in front.
    pub(crate) name: &'static str,
    builder: Builder,
    /// What it does to answers, for ever.
    quirks: Vec<(On, Fault)>,
    /// The user name that opens what is private.
    pub(crate) user: &'static str,
    /// Whether anybody may read what is public.
    pub(crate) anonymous: bool,
    /// Whether anything is private there.
    pub(crate) private: bool,
    /// Whether blobs, and maybe manifests, come from another host.
    pub(crate) redirects: bool,
    /// A public repository, and a private one.
    pub(crate) repositories: (&'static str, &'static str),
}

fn bearer(service: &'static str) -> Bearer {
    Bearer { service: Some(service.to_owned()), ..Bearer::default() }
}

// === impl Profile ===

impl Profile {
    fn new(name: &'static str, auth: Auth) -> Self {
        Self {
            name,
            builder: Registry::builder().auth(auth).redirect_blobs(),
            quirks: Vec::new(),
            user: "bot",
            anonymous: true,
            private: true,
            redirects: true,
            repositories: ("team/app", "team/secret"),
        }
    }

    fn change(mut self, change: impl FnOnce(Builder) -> Builder) -> Self {
        self.builder = change(self.builder);
        self
    }

    fn quirk(mut self, on: On, fault: Fault) -> Self {
        self.quirks.push((on, fault));
        self
    }

    /// Plays it.
    pub(crate) async fn start(&self) -> Registry {
        let registry = self.builder.clone().start().await;
        for (on, fault) in &self.quirks {
            registry.fault(on.clone(), fault.clone());
        }
        registry
    }

    /// 401 for what isn't there, even with a token; pulls are counted, HEADs are not.
    pub(crate) fn docker_hub() -> Self {
        let mut hub = Self::new("docker.io", Auth::Bearer(bearer("registry.docker.io")))
            .change(|registry| registry.hides_missing().quota(100));
        hub.repositories = ("library/app", "acme/secret");
        hub
    }

    /// A token even for what is public, a placeholder for its scope, strict about types, no list of referrers.
    pub(crate) fn ghcr() -> Self {
        let bearer = Bearer {
            scope: Some("repository:user/image:pull".to_owned()),
            denial: Denial::Token(401),
            ..bearer("ghcr.io")
        };
        Self::new("ghcr.io", Auth::Bearer(bearer))
            .change(|registry| registry.strict_accept().hides_missing().referrers(Referrers::Missing))
    }

    /// Bearer, refusing what isn't there.
    pub(crate) fn quay() -> Self {
        Self::new("quay.io", Auth::Bearer(bearer("quay.io")))
            .change(|registry| registry.hides_missing().tags_per_page(50))
    }

    /// 403 for what is private or missing; a POST for tokens is 404; referrers lead to a login page elsewhere.
    pub(crate) fn google() -> Self {
        let bearer =
            Bearer { denial: Denial::Resource403, exchange: Exchange::Refused(404), ..bearer("us-docker.pkg.dev") };
        let mut google = Self::new("gcr.io", Auth::Bearer(bearer))
            .change(|registry| registry.hides_missing().referrers(Referrers::Login));
        google.user = "_json_key";
        google
    }

    /// Nothing to prove; manifests and blobs come from elsewhere.
    pub(crate) fn kubernetes() -> Self {
        let mut kubernetes = Self::new("registry.k8s.io", Auth::Open).change(Builder::redirect_manifests);
        kubernetes.private = false;
        kubernetes
    }

    /// No service and no scope in its challenge, pages for people as errors, another realm for tokens that have expired.
    pub(crate) fn nvidia() -> Self {
        let bearer = Bearer {
            service: None,
            scope: Some(String::new()),
            stale_realm: Some("http://127.0.0.1:1/elsewhere".to_owned()),
            ..Bearer::default()
        };
        let mut nvidia = Self::new("nvcr.io", Auth::Bearer(bearer)).change(Builder::html_errors);
        nvidia.user = "$oauthtoken";
        nvidia
    }

    /// Basic for everything; a GET of a manifest has no digest, and at most a thousand tags come at a time.
    pub(crate) fn ecr() -> Self {
        let mut ecr = Self::new("ecr.corp", Auth::Basic)
            .change(|registry| registry.tags_asked_max(1000))
            .quirk(On::kind(Kind::Manifest).get(), Fault::Without("Docker-Content-Digest"));
        (ecr.user, ecr.anonymous) = ("AWS", false);
        ecr
    }

    /// HEAD of a blob is 401; a GET of a manifest has no digest.
    pub(crate) fn public_ecr() -> Self {
        Self::new("public.ecr.aws", Auth::Bearer(bearer("public.ecr.aws")))
            .quirk(On::kind(Kind::Blob).head(), Fault::status(401))
            .quirk(On::kind(Kind::Manifest).get(), Fault::Without("Docker-Content-Digest"))
    }

    /// Refresh tokens are exchanged by POST; its blob storage refuses what carries an `Authorization`.
    pub(crate) fn azure() -> Self {
        let bearer = Bearer { anonymous: false, exchange: Exchange::Refresh, ..bearer("corp.azurecr.io") };
        let mut azure = Self::new("corp.azurecr.io", Auth::Bearer(bearer));
        (azure.user, azure.anonymous) = ("00000000-0000-0000-0000-000000000000", false);
        azure
    }

    /// Open to all, blobs from a host of its own.
    pub(crate) fn microsoft() -> Self {
        let mut microsoft = Self::new("mcr.microsoft.com", Auth::Open);
        microsoft.private = false;
        microsoft
    }

    /// A stale token is answered with Basic; "not found" has a code of its own; serves its blobs itself.
    pub(crate) fn harbor() -> Self {
        let auth = Auth::Bearer(Bearer { stale_basic: true, ..bearer("harbor-registry") });
        let mut harbor = Self::new("harbor.corp", Auth::Open);
        harbor.builder = Registry::builder().auth(auth).not_found_code("UNKNOWN");
        harbor.redirects = false;
        harbor
    }

    /// Deep paths; 403 where a token does not suffice.
    pub(crate) fn gitlab() -> Self {
        let mut gitlab = Self::new(
            "registry.gitlab.com",
            Auth::Bearer(Bearer { denial: Denial::Token(403), ..bearer("container_registry") }),
        );
        gitlab.repositories = ("group/subgroup/project/app", "group/subgroup/project/secret");
        gitlab
    }

    /// Digests among its tags; a POST for tokens is 401.
    pub(crate) fn artifactory() -> Self {
        let bearer = Bearer { exchange: Exchange::Refused(401), ..bearer("artifactory.corp") };
        Self::new("artifactory.corp", Auth::Bearer(bearer)).change(Builder::odd_tags)
    }

    /// Basic; null where there are no tags; serves its blobs itself.
    pub(crate) fn nexus() -> Self {
        let mut nexus = Self::new("nexus.corp", Auth::Basic);
        nexus.builder = Registry::builder().auth(Auth::Basic).null_tags();
        (nexus.redirects, nexus.anonymous) = (false, false);
        nexus
    }

    /// As plain as can be.
    pub(crate) fn distribution() -> Self {
        let mut plain = Self::new("registry.corp", Auth::Basic);
        plain.builder = Registry::builder().auth(Auth::Basic);
        (plain.redirects, plain.anonymous) = (false, false);
        plain
    }
}
