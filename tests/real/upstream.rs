//! The upstream registry: Debian's docker-registry 2.8 over a folder, with a count of what was asked of it.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::http;
use crate::process::{Process, free_port};

/// A running docker-registry. Several may serve the same folder.
pub(crate) struct Upstream {
    pub(crate) port: u16,
    process: Process,
    _folder: TempDir,
}

// === impl Upstream ===

impl Upstream {
    pub(crate) fn start(storage: &Path) -> Upstream {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let config = folder.path().join("config.yml");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: \"{}\"}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
            storage.display()
        );
        fs::write(&config, text).expect("the registry's configuration can be written");
        let log = folder.path().join("log");
        let mut process =
            Process::start("docker-registry", "docker-registry", &["serve".as_ref(), config.as_ref()], log);
        process.wait_until_ready(|| http::is_registry(port));
        Upstream { port, process, _folder: folder }
    }

    /// From here on, connections are refused.
    pub(crate) fn stop(&mut self) {
        self.process.kill();
        assert!(!http::is_registry(self.port), "upstream is gone");
    }

    /// The body bytes of all blobs sent so far, from the access log.
    pub(crate) fn blob_bytes_sent(&self) -> u64 {
        self.process.output().lines().filter_map(blob_bytes_of_line).sum()
    }
}

/// `… "GET /v2/x/blobs/sha256:… HTTP/1.1" 200 1234 "" "agent"` -> 1234.
fn blob_bytes_of_line(line: &str) -> Option<u64> {
    let mut parts = line.split('"').skip(1);
    let (request, numbers) = (parts.next()?, parts.next()?);
    let is_blob = request.starts_with("GET /v2/") && request.contains("/blobs/");
    if is_blob { numbers.split_whitespace().nth(1)?.parse().ok() } else { None }
}
