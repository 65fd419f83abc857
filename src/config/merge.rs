//! The file's upstreams laid over the built-in ones, changed or added, and their names checked against each other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::meaning::{count, value_or};
use super::mistake::{Located, Mistakes, Place, quoted};
use super::policy::NameGlobs;
use super::upstream::{TagGlobs, Upstream, UpstreamName};
use super::written::{Setting, WrittenPolicy, WrittenUpstream};
use super::{Tags, builtin, certificate, credential, endpoint};
use crate::files;

/// The longest file of certificates that is read.
const CA_FILE_BYTES_MAX: u64 = 4 << 20;
/// The longest list of denied digests that is read.
pub const DENIED_BYTES_MAX: u64 = 4 << 20;

/// Who has a name, and where that was written, if it was.
type Claims = BTreeMap<String, (UpstreamName, Option<Place>)>;

/// All upstreams as meant.
pub(super) fn upstreams(written: Vec<WrittenUpstream>, tags: &Tags, mistakes: &Mistakes) -> Vec<Upstream> {
    let mut upstreams = builtin::upstreams(tags);
    let mut aliases = Vec::new();
    let mut claims: Claims = upstreams.iter().flat_map(built_in_claims).collect();
    for mut upstream in written {
        let Located { value: name, place } = upstream.name.clone();
        if let Some(owner) = builtin::owner_of_alias(name.as_str()) {
            let problem = format!("this is another name of the built-in upstream {owner:?}");
            mistakes.suggest(place, problem, Some(format!("[upstreams.{owner:?}]")));
            continue;
        }
        let index = upstreams.iter().position(|known| known.name == name).unwrap_or_else(|| {
            upstreams.push(Upstream::new(name.clone(), tags));
            upstreams.len() - 1
        });
        claims.insert(name.as_str().to_owned(), (name, Some(place)));
        if let UpstreamName::Pattern(_) = upstreams[index].name {
            report_on_pattern(&upstream, mistakes);
        } else {
            aliases.push((index, upstream.aliases.take()));
            apply_to_one(&mut upstreams[index], &mut upstream, mistakes);
        }
        apply(&mut upstreams[index], upstream, mistakes);
    }
    // Aliases come last, because a name may be taken by an upstream further down.
    for (index, aliases) in aliases {
        let (upstream, aliases) = (&mut upstreams[index], aliases.map_or_else(Vec::new, |aliases| aliases.value));
        claim(upstream, aliases, &mut claims, mistakes);
    }
    upstreams
}

/// The name and the aliases of a built-in upstream.
fn built_in_claims(upstream: &Upstream) -> Vec<(String, (UpstreamName, Option<Place>))> {
    let texts = upstream.aliases.iter().map(String::as_str).chain([upstream.name.as_str()]);
    texts.map(|text| (text.to_owned(), (upstream.name.clone(), None))).collect()
}

/// Adds further names to those that an upstream has, unless they are taken.
fn claim(upstream: &mut Upstream, aliases: Vec<Located<String>>, claims: &mut Claims, mistakes: &Mistakes) {
    for Located { value: alias, place } in aliases {
        let Some((owner, owner_place)) = claims.get(&alias) else {
            claims.insert(alias.clone(), (upstream.name.clone(), Some(place)));
            upstream.aliases.push(alias);
            continue;
        };
        let own = *owner == upstream.name;
        let whose = match owner_place {
            _ if own && alias == owner.as_str() => "the upstream's own name".to_owned(),
            Some(at) if own => format!("listed twice: see {}", at.mention()),
            // Said by the program already, so repeating it is no mistake.
            None if own => continue,
            None => format!("taken by the built-in upstream {:?}", owner.as_str()),
            Some(at) => format!("taken by {}", at.mention()),
        };
        mistakes.report(place, format!("{} is {whose}", quoted(&alias)));
    }
}

/// Lays over an upstream what only one with a name of its own may have, all but its aliases.
fn apply_to_one(upstream: &mut Upstream, written: &mut WrittenUpstream, mistakes: &Mistakes) {
    if let Some(endpoints) = written.endpoints.take() {
        upstream.endpoints = endpoint::mean(upstream.name.as_str(), endpoints, mistakes);
    }
    let credentials = written.credentials.take().into_iter().flat_map(|list| list.value);
    upstream.credentials = credential::mean(upstream.name.as_str(), credentials, mistakes);
    upstream.insecure_skip_verify = value_or(written.insecure_skip_verify.take(), upstream.insecure_skip_verify);
}

/// Lays over an upstream what any may have.
fn apply(upstream: &mut Upstream, written: WrittenUpstream, mistakes: &Mistakes) {
    upstream.tag_ttl = value_or(written.tag_ttl, upstream.tag_ttl);
    upstream.stale_if_error = value_or(written.stale_if_error, upstream.stale_if_error);
    if let Some(Located { value: globs, place }) = written.immutable_tags {
        match TagGlobs::new(globs.into_iter().map(|glob| glob.value).collect()) {
            Ok(globs) => upstream.immutable_tags = globs,
            Err(problem) => mistakes.report(place, problem),
        }
    }
    upstream.share_private = value_or(written.share_private, upstream.share_private);
    apply_policy(upstream, written.policy, mistakes);
    upstream.ca_file = ca_file(written.ca_file, mistakes);
    upstream.connect_timeout = value_or(written.connect_timeout, upstream.connect_timeout);
    upstream.header_timeout = value_or(written.header_timeout, upstream.header_timeout);
    upstream.read_timeout = value_or(written.read_timeout, upstream.read_timeout);
    if let Some(connections) = written.max_connections {
        upstream.max_connections = count(connections.value);
    }
    if let Some(hosts) = written.redirect_hosts {
        upstream.redirect_hosts = hosts.value.into_iter().map(|host| host.value).collect();
    }
}

fn apply_policy(upstream: &mut Upstream, written: WrittenPolicy, mistakes: &Mistakes) {
    let globs = |written: Setting<Vec<Located<String>>>| {
        let Located { value, place } = written?;
        let globs = NameGlobs::new(value.into_iter().map(|glob| glob.value).collect());
        globs.map_err(|problem| mistakes.report(place, problem)).ok()
    };
    upstream.allow = globs(written.allow);
    upstream.deny = globs(written.deny).unwrap_or_else(NameGlobs::none);
    upstream.deny_digests_file = endpoint::readable(written.deny_digests_file, DENIED_BYTES_MAX, mistakes);
    upstream.deleted_tags = value_or(written.deleted_tags, upstream.deleted_tags);
    let platforms = written.prefetch.into_iter().flat_map(|list| list.value);
    upstream.prefetch = platforms.map(|platform| platform.value).collect();
    if let Some(Located { value, place }) = &written.client_cert
        && value.len() > 1
    {
        mistakes.report(place.clone(), "an upstream is shown one certificate");
    }
    upstream.client_cert = certificate::mean(written.client_cert, mistakes).into_iter().next();
    upstream.proxy = value_or(written.proxy, upstream.proxy.clone());
    upstream.max_bandwidth = written.max_bandwidth.map(|bandwidth| bandwidth.value);
}

/// Nothing of a pattern may lead elsewhere than to the registry that was named, or give it anything of ours.
fn report_on_pattern(written: &WrittenUpstream, mistakes: &Mistakes) {
    let endpoints = written.endpoints.as_ref().map(|setting| &setting.place);
    let aliases = written.aliases.as_ref().map(|setting| &setting.place);
    let credentials = written.credentials.as_ref().map(|setting| &setting.place);
    let skip_verify = written.insecure_skip_verify.as_ref().filter(|skip| skip.value).map(|setting| &setting.place);
    let forbidden = [
        (endpoints, "a pattern has no endpoints: each registry that it matches is reached at its own name, by TLS"),
        (aliases, "a pattern has no aliases: they would not say which registry is meant"),
        (credentials, "a pattern has no credentials: strangers choose the name that would get them"),
        (skip_verify, "a pattern always checks certificates: name the registry that needs this"),
    ];
    for (place, problem) in forbidden {
        if let Some(place) = place {
            mistakes.report(place.clone(), problem);
        }
    }
}

/// A file of certificates that can be read now. What is in it is the business of who uses it.
fn ca_file(written: Setting<PathBuf>, mistakes: &Mistakes) -> Option<PathBuf> {
    let Located { value: path, place } = written?;
    match files::read_text(&path, CA_FILE_BYTES_MAX) {
        Ok(text) if text.contains("-----BEGIN CERTIFICATE-----") => {}
        Ok(_) => mistakes.report(place, format!("{}: holds no certificate in PEM form", path.display())),
        Err(error) => mistakes.report(place, error.to_string()),
    }
    Some(path)
}
