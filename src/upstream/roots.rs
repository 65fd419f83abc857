//! TLS towards upstreams: whose certificates are believed, and which one we show.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Why the TLS settings of an upstream can't be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsSettingsError {
    /// The file can't be read, or is no PEM.
    #[error("ca_file {path}: {source}; it must hold certificates in PEM form", path = path.display())]
    CaFile { path: PathBuf, source: rustls::pki_types::pem::Error },
    /// The file holds no certificate.
    #[error("ca_file {path} holds no certificate", path = .0.display())]
    Empty(PathBuf),
    /// One of its certificates is none.
    #[error("ca_file {path}: {source}", path = path.display())]
    Certificate { path: PathBuf, source: rustls::Error },
    /// The file of our own certificate, or of its key, can't be read or is no PEM.
    #[error("client_cert {path}: {source}; it must hold {what} in PEM form", path = path.display())]
    ClientCertificate { path: PathBuf, what: &'static str, source: rustls::pki_types::pem::Error },
    /// The TLS library would not have it.
    #[error("TLS settings: {0}")]
    Rustls(#[from] rustls::Error),
}

/// A certificate of our own, for upstreams that ask for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate and those that vouch for it, as PEM.
    pub cert: PathBuf,
    /// Its key, as PEM.
    pub key: PathBuf,
}

/// Believes any certificate, for `insecure_skip_verify`. Signatures are still checked against the certificate shown.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

/// TLS settings that believe the system's roots, the bundled ones and those in `ca_file`. Reads files: call it on a pool.
///
/// The system's roots may be missing or partly unreadable (an empty image has none); the bundled ones then do.
pub(super) fn settings(
    ca_file: Option<&Path>,
    skip_verify: bool,
    own: Option<&ClientCertificate>,
) -> Result<ClientConfig, TlsSettingsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = if skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(roots(ca_file)?)
    };
    let mut settings = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let (certificates, key) = client_certificate(own)?;
            builder.with_client_auth_cert(certificates, key)?
        }
    };
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(settings)
}

/// The bundled roots and the system's, read once for all upstreams.
fn default_roots() -> RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    let load = || {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let system = rustls_native_certs::load_native_certs();
        let (added, ignored) = roots.add_parsable_certificates(system.certs);
        tracing::debug!(added, ignored, errors = system.errors.len(), "system root certificates loaded");
        roots
    };
    ROOTS.get_or_init(load).clone()
}

fn client_certificate(
    own: &ClientCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsSettingsError> {
    let unreadable =
        |path: &Path, what, source| TlsSettingsError::ClientCertificate { path: path.to_owned(), what, source };
    let certificates = CertificateDer::pem_file_iter(&own.cert)
        .and_then(Iterator::collect)
        .map_err(|source| unreadable(&own.cert, "certificates", source))?;
    let key = PrivateKeyDer::from_pem_file(&own.key).map_err(|source| unreadable(&own.key, "a private key", source))?;
    Ok((certificates, key))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsSettingsError> {
    let mut roots = default_roots();
    if let Some(path) = ca_file {
        add_file(&mut roots, path)?;
    }
    Ok(roots)
}

fn add_file(roots: &mut RootCertStore, path: &Path) -> Result<(), TlsSettingsError> {
    let unreadable = |source| TlsSettingsError::CaFile { path: path.to_owned(), source };
    let mut empty = true;
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        let certificate = certificate.map_err(unreadable)?;
        roots.add(certificate).map_err(|source| TlsSettingsError::Certificate { path: path.to_owned(), source })?;
        empty = false;
    }
    if empty { Err(TlsSettingsError::Empty(path.to_owned())) } else { Ok(()) }
}

// === impl AnyCertificate ===

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
