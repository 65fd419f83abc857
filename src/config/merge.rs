//! The file's upstreams laid over the built-in ones, changed or added, and their names checked against each other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::meaning::{count, value_or};
use super::mistake::{Located, Mistakes, Place, quoted};
use super::upstream::{Credential, TagGlobs, Upstream, UpstreamName};
use super::written::{self, Setting, WrittenCredential, WrittenUpstream};
use super::{Tags, builtin};
use crate::files;
use crate::oci::RepositoryName;
use crate::secret::Secret;

/// The longest password file that is read.
const PASSWORD_FILE_BYTES_MAX: u64 = 64 << 10;
/// The longest file of certificates that is read.
const CA_FILE_BYTES_MAX: u64 = 4 << 20;

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
        upstream.endpoints = unique(endpoints, "an upstream needs at least one endpoint", mistakes);
    }
    let credentials = written.credentials.take().into_iter().flat_map(|list| list.value);
    upstream.credentials = mean_credentials(upstream.name.as_str(), credentials, mistakes);
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

/// The members of a list in which each may occur once.
fn unique<T: PartialEq + std::fmt::Display>(
    list: Located<Vec<Located<T>>>,
    empty: &str,
    mistakes: &Mistakes,
) -> Vec<T> {
    if list.value.is_empty() {
        mistakes.report(list.place, empty);
    }
    let mut members: Vec<T> = Vec::new();
    for Located { value, place } in list.value {
        if members.contains(&value) {
            mistakes.report(place, format!("{} is listed twice", quoted(&value.to_string())));
        } else {
            members.push(value);
        }
    }
    members
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

fn mean_credentials(
    registry: &str,
    written: impl Iterator<Item = WrittenCredential>,
    mistakes: &Mistakes,
) -> Vec<Credential> {
    let mut credentials: Vec<Credential> = Vec::new();
    for credential in written {
        let place = credential.place.clone();
        let Some(credential) = mean_credential(registry, credential, mistakes) else { continue };
        if credentials.iter().any(|other| other.scope == credential.scope) {
            mistakes.report(place, format!("there are two credentials for {}", quoted(&credential.scope)));
        } else {
            credentials.push(credential);
        }
    }
    credentials
}

fn mean_credential(registry: &str, written: WrittenCredential, mistakes: &Mistakes) -> Option<Credential> {
    let WrittenCredential { place, scope, username, password, password_file, refused } = written;
    let scope = match scope {
        None => registry.to_owned(),
        Some(scope) => mean_scope(registry, scope, mistakes)?,
    };
    if refused {
        return None;
    }
    let lacks = |part: &str| mistakes.report(place.clone(), format!("this credential lacks a {part}"));
    let user = username.map(|username| username.value);
    if user.is_none() {
        lacks("username");
    }
    let (password, password_file) = match (password, password_file) {
        (Some(password), None) => (Some(password.value), None),
        (None, Some(file)) => (read_password(&file, mistakes), Some(file.value)),
        (Some(_), Some(file)) => {
            mistakes.report(file.place, "this credential has a password already: keep one of the two");
            (None, None)
        }
        (None, None) => {
            lacks("password or password_file");
            (None, None)
        }
    };
    Some(Credential { scope, username: user?, password: password?, password_file })
}

/// A scope that lies in the upstream it is written for, so that no credential can reach another.
fn mean_scope(registry: &str, scope: Located<String>, mistakes: &Mistakes) -> Option<String> {
    let Located { value: scope, place } = scope;
    let inside = scope.strip_prefix(registry).is_some_and(|rest| {
        rest.is_empty() || rest.strip_prefix('/').is_some_and(|path| path.parse::<RepositoryName>().is_ok())
    });
    if inside {
        return Some(scope);
    }
    mistakes
        .report(place, format!("{} is not {registry:?} or a part of it, such as \"{registry}/team\"", quoted(&scope)));
    None
}

/// The password in a file, without the line break that editors leave at its end.
fn read_password(file: &Located<PathBuf>, mistakes: &Mistakes) -> Option<Secret> {
    let report = |problem: String| mistakes.report(file.place.clone(), problem);
    let text =
        files::read_text(&file.value, PASSWORD_FILE_BYTES_MAX).map_err(|error| report(error.to_string())).ok()?;
    written::secret(text.trim_end_matches(['\r', '\n']))
        .map_err(|problem| report(format!("{}: {problem}", file.value.display())))
        .ok()
}
