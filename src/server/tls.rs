//! TLS towards clients: certificates chosen by the name that the client asks for, read again when their files change.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, version};
use tokio_rustls::TlsAcceptor;

use crate::files::{self, FileError};

/// The files of one certificate, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, then those that lead to its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// What the listeners of one kind show their clients. Cheap to clone; clones change together.
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

/// Certificates that were read again.
#[derive(Debug)]
pub struct NewCertificates {
    certificates: Arc<Certificates>,
    held: Vec<Arc<CertifiedKey>>,
}

/// A certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file is read, but it isn't what belongs there.
    #[error("{}: holds no {what} in PEM form: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// What the reader says.
        source: pem::Error,
    },
    /// Certificate and key don't go together, or are of a kind that isn't known.
    #[error("{} and {} can't be used together: {source}", files.cert.display(), files.key.display())]
    Pair {
        /// Both files.
        files: CertificateFiles,
        /// Why.
        source: rustls::Error,
    },
    /// There is nothing to show.
    #[error("no certificate is named")]
    Nothing,
}

struct Certificates {
    files: Vec<CertificateFiles>,
    /// In the order of the files; never empty.
    held: RwLock<Vec<Arc<CertifiedKey>>>,
}

/// The longest file that is read. A chain is some kilobytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The only protocol spoken, as the other side of TLS asks for it.
const ALPN: &[u8] = b"http/1.1";

// === impl Tls ===

impl Tls {
    /// Reads certificates and keys. The first is shown to clients that ask for no name, or for one that none has.
    pub fn read(files: Vec<CertificateFiles>) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let held = read_all(&files, &provider)?;
        let certificates = Arc::new(Certificates { files, held: RwLock::new(held) });
        let builder = ServerConfig::builder_with_provider(provider);
        let mut config = builder
            .with_protocol_versions(&[&version::TLS13, &version::TLS12])
            .map_err(|source| TlsError::Pair { files: certificates.files[0].clone(), source })?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { config: Arc::new(config), certificates })
    }

    /// Reads all files again, without showing what they hold yet.
    pub fn read_again(&self) -> Result<NewCertificates, TlsError> {
        let held = read_all(&self.certificates.files, self.config.crypto_provider())?;
        Ok(NewCertificates { certificates: Arc::clone(&self.certificates), held })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.certificates.files).finish_non_exhaustive()
    }
}

fn read_all(files: &[CertificateFiles], provider: &CryptoProvider) -> Result<Vec<Arc<CertifiedKey>>, TlsError> {
    if files.is_empty() {
        return Err(TlsError::Nothing);
    }
    files.iter().map(|files| read_one(files, provider).map(Arc::new)).collect()
}

fn read_one(files: &CertificateFiles, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let bad = |path: &PathBuf, what| {
        let path = path.clone();
        move |source| TlsError::Pem { path, what, source }
    };
    let text = files::read(&files.cert, FILE_BYTES_MAX)?;
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(bad(&files.cert, "certificate"))?;
    if chain.is_empty() {
        return Err(bad(&files.cert, "certificate")(pem::Error::NoItemsFound));
    }
    let text = files::read(&files.key, FILE_BYTES_MAX)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(bad(&files.key, "private key"))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|source| TlsError::Pair { files: files.clone(), source })
}

/// Whether a certificate is for a name.
fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    let parsed = key.end_entity_cert().and_then(ParsedCertificate::try_from);
    parsed.is_ok_and(|certificate| verify_server_name(&certificate, name).is_ok())
}

// === impl NewCertificates ===

impl NewCertificates {
    /// Shows them from now on; connections that are open go on. Whether any is another than before.
    pub fn put_into_force(self) -> bool {
        let mut held = self.certificates.held.write();
        let changed = held.iter().zip(&self.held).any(|(old, new)| old.cert != new.cert);
        *held = self.held;
        changed
    }
}

// === impl Certificates ===

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let held = self.held.read();
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = name.and_then(|name| held.iter().find(|key| is_for(key, &name)));
        named.or_else(|| held.first()).cloned()
    }
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").field("files", &self.files).finish_non_exhaustive()
    }
}
