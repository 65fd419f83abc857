//! Nodes and other clients: the configuration by which each of them comes to the mirror.

mod clients;
mod clusters;
mod containerd;
mod examine;
mod machine;
mod placing;
mod proxies;
mod registries;

use std::net::IpAddr;
use std::time::Duration;

use url::Url;

use crate::oci::RegistryName;

pub use examine::{Examined, Problem, examine};
pub use machine::{CERTS_FOLDER, CertsFolder, Unfit, certs_folder};
pub use placing::{PlacingError, copy_program, place, take_back};

/// Whose configuration is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// containerd's `hosts.toml` files, by pull-time configuration.
    Containerd,
    /// dockerd.
    Docker,
    /// podman, buildah and skopeo.
    Podman,
    /// CRI-O, which reads what podman reads.
    Crio,
    /// k3s and RKE2.
    K3s,
    /// OpenShift's sets of mirrors.
    Openshift,
    /// BuildKit.
    Buildkit,
    /// kaniko's flags.
    Kaniko,
    /// Talos machine configuration.
    Talos,
    /// Bottlerocket settings.
    Bottlerocket,
    /// User data of EKS nodes (Amazon Linux).
    Eks,
    /// GKE's containerd configuration.
    Gke,
    /// A kind cluster.
    Kind,
    /// A k3d cluster.
    K3d,
    /// minikube.
    Minikube,
}

/// A mirror, as clients reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorUrl {
    /// Such as `http://10.0.0.7:5050`.
    pub url: String,
    /// Such as `10.0.0.7:5050`.
    pub host: String,
    /// The host alone, such as `10.0.0.7`; an IPv6 address without brackets.
    pub name: String,
    /// The port, also where it is that of the scheme.
    pub port: u16,
    /// Without TLS.
    pub is_plain: bool,
}

/// A text that is no address of a mirror.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the address of a mirror, such as http://10.0.0.7:5050: a scheme, a host and a port, and no path")]
pub struct InvalidMirror(String);

/// What clients are to be told.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The mirrors, in the order in which they are asked; at least one.
    pub mirrors: Vec<MirrorUrl>,
    /// The registries that they mirror; none is all.
    pub registries: Vec<RegistryName>,
    /// The registries that are named one by one where a client knows no "all".
    pub known: Vec<RegistryName>,
    /// Registries that are asked themselves, whatever else is mirrored (containerd).
    pub except: Vec<RegistryName>,
    /// There is no way round the mirrors.
    pub strict: bool,
    /// The authority of the mirrors' certificate, where it lies on the client.
    pub ca_file: Option<String>,
    /// What is sent with each request to a mirror, name and value.
    pub headers: Vec<(String, String)>,
    /// How long a mirror that doesn't answer may delay a request.
    pub dial_timeout: Duration,
    /// Signatures are looked for beside images (CRI-O, podman).
    pub sigstore: bool,
}

/// A file of a client's configuration, or a text to be put somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFile {
    /// Where it belongs on the client, or what it is.
    pub place: String,
    /// Its path in the folder that this configuration is a folder of; none if it is no file of one's own.
    pub path: Option<String>,
    /// What it says.
    pub text: String,
    /// It has a credential in it, so that nobody but its owner may read it.
    pub is_secret: bool,
    /// What there is to know, in sentences.
    pub notes: Vec<&'static str>,
}

/// The first line of each file: by it, what is ours is known.
pub const MARK: &str = "Written by `cachalot hosts`; `cachalot hosts --undo` takes it back.";

/// The files that a client needs.
pub fn files_of(client: Client, wanted: &Wanted) -> Vec<ClientFile> {
    match client {
        Client::Containerd => containerd::files(wanted),
        Client::Docker => clients::docker(wanted),
        Client::Podman | Client::Crio => clients::podman(wanted, client == Client::Crio),
        Client::Buildkit => clients::buildkit(wanted),
        Client::Kaniko => clients::kaniko(wanted),
        Client::K3s => clusters::k3s(wanted),
        Client::K3d => clusters::k3d(wanted),
        Client::Openshift => clusters::openshift(wanted),
        Client::Talos => clusters::talos(wanted),
        Client::Bottlerocket => clusters::bottlerocket(wanted),
        Client::Eks => clusters::eks(wanted),
        Client::Gke => clusters::gke(wanted),
        Client::Kind => clusters::kind(wanted),
        Client::Minikube => clusters::minikube(wanted),
    }
}

/// A text in quotes, as TOML, YAML and JSON all read it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Where a registry really is.
fn origin(registry: &RegistryName) -> String {
    match registry.as_str() {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        other => format!("https://{other}"),
    }
}

// === impl Client ===

impl Client {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::Containerd,
        Self::Docker,
        Self::Podman,
        Self::Crio,
        Self::K3s,
        Self::Openshift,
        Self::Buildkit,
        Self::Kaniko,
        Self::Talos,
        Self::Bottlerocket,
        Self::Eks,
        Self::Gke,
        Self::Kind,
        Self::K3d,
        Self::Minikube,
    ];

    /// Whether it can be told of a registry of this name. Some put the name into the image's path, which has no room for a port.
    pub fn can_name(self, registry: &RegistryName) -> bool {
        let in_path = matches!(self, Self::Podman | Self::Crio | Self::Openshift | Self::Kaniko);
        !(in_path && registry.as_str().contains(':'))
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Crio => "crio",
            Self::K3s => "k3s",
            Self::Openshift => "openshift",
            Self::Buildkit => "buildkit",
            Self::Kaniko => "kaniko",
            Self::Talos => "talos",
            Self::Bottlerocket => "bottlerocket",
            Self::Eks => "eks",
            Self::Gke => "gke",
            Self::Kind => "kind",
            Self::K3d => "k3d",
            Self::Minikube => "minikube",
        }
    }
}

// === impl MirrorUrl ===

impl MirrorUrl {
    /// Whether only a cluster's own name service knows its name: nodes pull without that.
    pub fn is_cluster_name(&self) -> bool {
        let name = &*self.name;
        self.address().is_none()
            && name != "localhost"
            && (!name.contains('.') || name.split('.').any(|label| label == "svc"))
    }

    /// Whether it is this machine.
    fn is_loopback(&self) -> bool {
        self.name == "localhost" || self.address().is_some_and(|address| address.is_loopback())
    }

    /// Its address, if it is named by one.
    fn address(&self) -> Option<IpAddr> {
        self.name.parse().ok()
    }
}

impl std::str::FromStr for MirrorUrl {
    type Err = InvalidMirror;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMirror(text.to_owned());
        let url = Url::parse(text).map_err(|_| invalid())?;
        let is_bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let is_plain = match url.scheme() {
            "http" => true,
            "https" => false,
            _ => return Err(invalid()),
        };
        let (Some(name), Some(port), true, "", None) =
            (url.host_str(), url.port_or_known_default(), is_bare, url.username(), url.password())
        else {
            return Err(invalid());
        };
        let host = url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"));
        let name = name.trim_matches(['[', ']']).to_owned();
        Ok(Self { url: format!("{}://{host}", url.scheme()), host, name, port, is_plain })
    }
}

// === impl Wanted ===

impl Wanted {
    /// The registries by name, also where all are wanted.
    fn named(&self) -> &[RegistryName] {
        if self.registries.is_empty() { &self.known } else { &self.registries }
    }

    /// The registries, or `all` for all of them.
    fn or_all(&self, all: &str) -> Vec<String> {
        match &self.registries[..] {
            [] => vec![all.to_owned()],
            registries => registries.iter().map(|registry| registry.as_str().to_owned()).collect(),
        }
    }

    fn dial_timeout(&self) -> String {
        format!("{}ms", self.dial_timeout.as_millis())
    }

    /// The hosts of mirrors without TLS.
    fn plain_hosts(&self) -> Vec<&str> {
        self.mirrors.iter().filter(|mirror| mirror.is_plain).map(|mirror| &*mirror.host).collect()
    }
}

// === impl ClientFile ===

impl ClientFile {
    fn new(place: impl Into<String>, path: Option<&str>, text: String) -> Self {
        Self { place: place.into(), path: path.map(str::to_owned), text, is_secret: false, notes: Vec::new() }
    }

    fn with(mut self, note: &'static str) -> Self {
        self.notes.push(note);
        self
    }

    fn with_if(self, is_so: bool, note: &'static str) -> Self {
        if is_so { self.with(note) } else { self }
    }
}

#[cfg(test)]
mod examine_tests;
#[cfg(test)]
mod tests;
