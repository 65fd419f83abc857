//! The proxies that a node's services are told to go through, looked at: the mirror must be reached without.

use std::path::Path;

use super::MirrorUrl;
use super::examine::{Examined, below, read};
use crate::files;

/// The services that pull images.
const SERVICES: [&str; 5] = ["containerd", "docker", "crio", "k3s", "kubelet"];

/// Looks at the drop-ins of services.
pub(super) fn look(root: &Path, mirror: Option<&MirrorUrl>, found: &mut Examined) {
    let mirrors: Vec<MirrorUrl> = mirror.map_or_else(|| found.mirrors.clone(), |mirror| vec![mirror.clone()]);
    for service in SERVICES {
        let folder = below(root, &format!("etc/systemd/system/{service}.service.d"));
        let mut drop_ins = files::entries(&folder).unwrap_or_default();
        drop_ins.sort();
        let (mut proxies, mut without): (Vec<_>, Vec<String>) = (Vec::new(), Vec::new());
        for path in drop_ins {
            for (name, value) in read(&path).ok().flatten().as_deref().map(variables).unwrap_or_default() {
                match name.to_ascii_uppercase().as_str() {
                    "HTTP_PROXY" | "HTTPS_PROXY" | "ALL_PROXY" => {
                        proxies.push((path.clone(), name.to_ascii_uppercase()));
                    }
                    "NO_PROXY" => without = value.split(',').map(|one| one.trim().to_owned()).collect(),
                    _ => {}
                }
            }
        }
        for (path, variable) in proxies {
            let passes = |mirror: &&MirrorUrl| match variable.as_str() {
                "HTTP_PROXY" => mirror.is_plain,
                "HTTPS_PROXY" => !mirror.is_plain,
                _ => true,
            };
            for mirror in mirrors.iter().filter(passes).filter(|mirror| !is_excepted(mirror, &without)) {
                let what = format!(
                    "{service} reaches the mirror through a proxy: {variable} is set, and NO_PROXY does not name {}",
                    mirror.host
                );
                found.say(&path, what, format!("add {} to NO_PROXY, and restart {service}", mirror.name));
            }
        }
    }
}

/// Whether a list of exceptions names a mirror, as Go's programs read it.
fn is_excepted(mirror: &MirrorUrl, without: &[String]) -> bool {
    // Go's programs never send this machine's own traffic to a proxy.
    if mirror.is_loopback() {
        return true;
    }
    let (host, address) = (&*mirror.name, mirror.address());
    without.iter().any(|one| {
        let is_inside =
            || address.is_some_and(|address| one.parse().is_ok_and(|net: ipnet::IpNet| net.contains(&address)));
        let suffix = one.trim_start_matches('.');
        one == "*"
            || one == host
            || *one == mirror.host
            || is_inside()
            || (!suffix.is_empty() && host.ends_with(&format!(".{suffix}")))
    })
}

/// The variables of `Environment=` lines.
fn variables(unit: &str) -> Vec<(String, String)> {
    let lines = unit.lines().filter_map(|line| line.trim().strip_prefix("Environment="));
    let words = lines.flat_map(|line| {
        line.split('"').flat_map(|part| if part.contains(' ') { part.split(' ').collect() } else { vec![part] })
    });
    words
        .filter_map(|word| word.split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), value.to_owned()))
        .collect()
}
