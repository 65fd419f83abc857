//! The upstreams that need no configuration.

use super::Tags;
use super::endpoint::Endpoint;
use super::upstream::{Upstream, UpstreamName};

/// A built-in upstream: its name, its further names, and where it is if not at `https://NAME`.
struct BuiltIn {
    name: &'static str,
    aliases: &'static [&'static str],
    endpoint: Option<&'static str>,
}

const fn at_its_name(name: &'static str) -> BuiltIn {
    BuiltIn { name, aliases: &[], endpoint: None }
}

const ALL: [BuiltIn; 18] = [
    BuiltIn {
        name: "docker.io",
        aliases: &["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"],
        endpoint: Some("https://registry-1.docker.io"),
    },
    at_its_name("nvcr.io"),
    at_its_name("ghcr.io"),
    at_its_name("quay.io"),
    BuiltIn { name: "registry.k8s.io", aliases: &["k8s.gcr.io"], endpoint: None },
    at_its_name("gcr.io"),
    at_its_name("*.pkg.dev"),
    at_its_name("public.ecr.aws"),
    at_its_name("mcr.microsoft.com"),
    at_its_name("registry.gitlab.com"),
    at_its_name("docker.elastic.co"),
    at_its_name("registry.redhat.io"),
    at_its_name("registry.access.redhat.com"),
    at_its_name("cgr.dev"),
    at_its_name("icr.io"),
    at_its_name("lscr.io"),
    at_its_name("xpkg.upbound.io"),
    at_its_name("registry.suse.com"),
];

/// All of them, with tags as for all. (That each name and address is valid is tested, not found out at run time.)
pub(super) fn upstreams(tags: &Tags) -> Vec<Upstream> {
    let upstream = |builtin: &BuiltIn| {
        let name: UpstreamName = builtin.name.parse().ok()?;
        let mut upstream = Upstream::new(name, tags);
        if let Some(endpoint) = builtin.endpoint {
            upstream.endpoints = vec![Endpoint::at(endpoint.parse().ok()?)];
        }
        upstream.aliases = builtin.aliases.iter().map(|alias| (*alias).to_owned()).collect();
        Some(upstream)
    };
    ALL.iter().filter_map(upstream).collect()
}

/// The built-in upstream that has a text among its further names.
pub(super) fn owner_of_alias(alias: &str) -> Option<&'static str> {
    ALL.iter().find(|builtin| builtin.aliases.contains(&alias)).map(|builtin| builtin.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_upstream_is_valid_and_reached_by_tls() {
        let upstreams = upstreams(&Tags::default());
        assert_eq!(upstreams.len(), ALL.len());
        for upstream in &upstreams {
            assert_eq!(upstream.endpoints.len(), usize::from(upstream.name.exact().is_some()), "{}", upstream.name);
            assert!(
                upstream
                    .endpoints
                    .iter()
                    .all(|endpoint| endpoint.url.scheme() == "https" && endpoint.url.path() == "/")
            );
        }
        assert_eq!(upstreams[0].endpoints[0].url.as_str(), "https://registry-1.docker.io/");
        assert_eq!(owner_of_alias("k8s.gcr.io"), Some("registry.k8s.io"));
        assert_eq!(owner_of_alias("ghcr.io"), None);
    }
}
