//! A machine about to be configured: where its containerd looks for hosts.toml files, and whether that is ours to write to.

use std::path::{Path, PathBuf};

use super::Client;
use super::examine::{self, Examined, Problem, exists};

/// Where the files of a machine's containerd belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertsFolder {
    /// The folder, below the root that was looked at.
    pub path: PathBuf,
    /// What may keep containerd from reading it, depending on its version.
    pub doubts: Vec<Problem>,
}

/// Why a machine is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The platform writes these files.
    #[error("this is a machine of {platform}, which writes its container runtime's files itself: `cachalot hosts {}` \
             prints what to tell it", client.name())]
    Owned {
        /// Who writes them.
        platform: &'static str,
        /// How it is told.
        client: Client,
    },
    /// It pulls by something else.
    #[error("there is no containerd on this machine{}", .0.map_or("", |_| ", but CRI-O: `cachalot hosts crio` prints its configuration"))]
    NoContainerd(Option<Client>),
    /// What would be written would not be read.
    #[error("containerd would not read what is written here, and only you may change that and restart it: {}", words(.0))]
    NotRead(Vec<Problem>),
}

/// Where it is unless containerd's configuration says otherwise, below the root.
pub const CERTS_FOLDER: &str = "etc/containerd/certs.d";

/// Platforms by the ID that os-release has for them.
const PLATFORMS: [(&str, &str, Client); 4] = [
    ("talos", "Talos", Client::Talos),
    ("bottlerocket", "Bottlerocket", Client::Bottlerocket),
    ("rhcos", "OpenShift", Client::Openshift),
    ("scos", "OpenShift", Client::Openshift),
];

/// Folders by which distributions of Kubernetes are known that bring their own containerd.
const RANCHER: [&str; 3] = ["etc/rancher/k3s", "etc/rancher/rke2", "etc/rancher/node"];

/// Where hosts.toml files belong on the machine whose root is at `root`. Reads, and changes nothing.
pub fn certs_folder(root: &Path) -> Result<CertsFolder, Unfit> {
    let id = platform(root);
    if let Some((_, platform, client)) = PLATFORMS.into_iter().find(|(known, ..)| id.as_deref() == Some(*known)) {
        return Err(Unfit::Owned { platform, client });
    }
    if RANCHER.into_iter().any(|folder| exists(root, folder)) {
        return Err(Unfit::Owned { platform: "k3s or RKE2", client: Client::K3s });
    }
    if !exists(root, "etc/containerd") {
        return Err(Unfit::NoContainerd(exists(root, "etc/crio").then_some(Client::Crio)));
    }
    let mut found = Examined::default();
    match examine::hosts_folder(root, &mut found) {
        Some(folder) if folder.is_read => Ok(CertsFolder { path: folder.path, doubts: found.problems }),
        _ => Err(Unfit::NotRead(found.problems)),
    }
}

/// The ID in os-release.
fn platform(root: &Path) -> Option<String> {
    let mut places = ["etc/os-release", "usr/lib/os-release"].into_iter();
    let text = places.find_map(|path| examine::read(&root.join(path)).ok().flatten())?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("ID="))?;
    Some(line.trim_matches(['"', '\'']).to_owned())
}

fn words(problems: &[Problem]) -> String {
    let one = |problem: &Problem| format!("{}: {}; {}", problem.place.display(), problem.what, problem.advice);
    problems.iter().map(one).collect::<Vec<_>>().join(". ")
}
