//! What leads where: which content belongs to an image, along the lines from manifests to what they list. Pure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::records::ManifestRecord;
use crate::oci::Digest;

/// Where one manifest leads.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    pub(super) children: Arc<[Digest]>,
    /// What each child runs on, where the manifest says that; empty if it says it of none.
    pub(super) platforms: Arc<[Option<String>]>,
    /// The manifest that it refers to.
    pub(super) subject: Option<Digest>,
}

/// How far to go.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Scope<'a> {
    /// Only children for these platforms, such as `linux/amd64`, and those that don't say; empty is all. Builders append
    /// attestations for a platform `unknown/unknown`: those come with what refers to images.
    pub(super) platforms: &'a [String],
    /// What refers to what is reached (signatures, SBOMs) too.
    pub(super) referrers: bool,
}

/// Everything that the roots lead to, the roots included, whether it is held or not.
pub(super) fn reach<'a>(
    roots: impl IntoIterator<Item = Digest>,
    lines: impl Fn(&Digest) -> Option<&'a Lines>,
    referrers: &HashMap<Digest, Vec<Digest>>,
    scope: Scope<'_>,
) -> HashSet<Digest> {
    let mut reached = HashSet::new();
    let mut pending: Vec<Digest> = roots.into_iter().collect();
    while let Some(digest) = pending.pop() {
        if !reached.insert(digest) {
            continue;
        }
        if let Some(lines) = lines(&digest) {
            pending.extend(lines.children_for(scope));
        }
        pending.extend(referrers.get(&digest).into_iter().flatten());
    }
    reached
}

/// Which manifests refer to each.
pub(super) fn referrers<'a>(manifests: impl Iterator<Item = (&'a Digest, &'a Lines)>) -> HashMap<Digest, Vec<Digest>> {
    let mut referrers: HashMap<Digest, Vec<Digest>> = HashMap::new();
    for (digest, lines) in manifests {
        if let Some(subject) = lines.subject {
            referrers.entry(subject).or_default().push(*digest);
        }
    }
    referrers
}

/// Whether a platform is the one that is wanted: with its variant, or with any if none is named.
pub(super) fn is_of(platform: &str, wanted: &str) -> bool {
    platform.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

// === impl Lines ===

impl Lines {
    /// Content that may be had from elsewhere belongs to nothing: registries need not hold it, and clients ask others for it.
    pub(super) fn of(record: &ManifestRecord) -> Self {
        let own = || record.descriptors.iter().filter(|descriptor| !descriptor.is_foreign());
        let platforms: Vec<_> = own().map(|descriptor| descriptor.platform.as_ref().map(ToString::to_string)).collect();
        let any = platforms.iter().any(Option::is_some);
        Self {
            children: own().map(|descriptor| descriptor.digest).collect(),
            platforms: if any { platforms.into() } else { Arc::default() },
            subject: record.subject,
        }
    }

    fn children_for<'a>(&'a self, scope: Scope<'a>) -> impl Iterator<Item = Digest> + 'a {
        let wanted = scope.platforms;
        let fits = move |at: usize| match self.platforms.get(at) {
            Some(Some(platform)) if !wanted.is_empty() && platform.starts_with("unknown/") => scope.referrers,
            Some(Some(platform)) if !wanted.is_empty() => wanted.iter().any(|wanted| is_of(platform, wanted)),
            _ => true,
        };
        self.children.iter().enumerate().filter(move |(at, _)| fits(*at)).map(|(_, child)| *child)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn lines(children: &[&str], platforms: &[Option<&str>], subject: Option<&str>) -> Lines {
        Lines {
            children: children.iter().map(|child| digest(child)).collect(),
            platforms: platforms.iter().map(|platform| platform.map(str::to_owned)).collect(),
            subject: subject.map(digest),
        }
    }

    fn world() -> HashMap<Digest, Lines> {
        let platforms = [Some("linux/amd64"), Some("linux/arm64/v8"), None, Some("unknown/unknown")];
        [
            ("index", lines(&["amd", "arm", "any", "attested"], &platforms, None)),
            ("amd", lines(&["base", "amd layer"], &[], None)),
            ("arm", lines(&["base", "arm layer"], &[], None)),
            ("signature", lines(&["signed"], &[], Some("index"))),
            ("circle", lines(&["circle"], &[], Some("circle"))),
        ]
        .map(|(name, lines)| (digest(name), lines))
        .into()
    }

    fn reached(root: &str, scope: Scope<'_>) -> Vec<&'static str> {
        let names = [
            "index",
            "amd",
            "arm",
            "any",
            "attested",
            "base",
            "amd layer",
            "arm layer",
            "signature",
            "signed",
            "circle",
            "absent",
        ];
        let world = world();
        let referrers = if scope.referrers { referrers(world.iter()) } else { HashMap::new() };
        let reached = reach([digest(root)], |digest| world.get(digest), &referrers, scope);
        names.into_iter().filter(|name| reached.contains(&digest(name))).collect()
    }

    #[test]
    fn an_image_reaches_all_that_it_lists_and_what_that_lists() {
        let all = reached("index", Scope::default());
        assert_eq!(all, ["index", "amd", "arm", "any", "attested", "base", "amd layer", "arm layer"]);
        assert_eq!(reached("absent", Scope::default()), ["absent"]);
        assert_eq!(reached("circle", Scope { referrers: true, ..Scope::default() }), ["circle"]);
    }

    #[test]
    fn platforms_and_referrers_are_reached_where_asked_for() {
        let wanted = ["linux/arm64".to_owned()];
        let arm = reached("index", Scope { platforms: &wanted, referrers: true });
        assert_eq!(arm, ["index", "arm", "any", "attested", "base", "arm layer", "signature", "signed"]);
        let wanted = ["linux/arm".to_owned()];
        assert_eq!(reached("index", Scope { platforms: &wanted, referrers: false }), ["index", "any"]);
    }
}
