//! TLS: whose certificates are believed.

use std::io::{Read, Write};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::*;

/// A TLS server with a certificate of its own making for one connection, and that certificate as PEM.
fn start() -> (Url, String) {
    start_for(None)
}

/// The same; where a certificate is given, only clients who prove that they have it are served.
fn start_for(client: Option<rustls::pki_types::CertificateDer<'static>>) -> (Url, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = made.cert.pem();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = match client {
        None => config.with_no_client_auth(),
        Some(certificate) => {
            let mut known = rustls::RootCertStore::empty();
            known.add(certificate).unwrap();
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(known.into(), provider);
            config.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let (config, listener) = (Arc::new(config), std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for stream in listener.incoming().take(1) {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream.unwrap());
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok() {
                assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
                stream.write_all(b"HTTP/1.1 200 x\r\ncontent-length: 2\r\n\r\n{}").unwrap();
            } else {
                // With unread bytes the connection would be reset, and with that the reason for the refusal lost.
                let _ = stream.sock.read_to_end(&mut Vec::new());
            }
        }
    });
    (url.parse().unwrap(), pem)
}

fn upstream(url: Url, change: impl FnOnce(&mut Options)) -> Upstream {
    let mut options = options(vec![url]);
    change(&mut options);
    let fixed = HashMap::from([("localhost".to_owned(), vec![IpAddr::V4(Ipv4Addr::LOCALHOST)])]);
    Upstream::in_network(options, Arc::new(Metrics::new()), Network { fixed, ..Network::default() })
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_not_believed() {
    let (url, _) = start();
    let error = get(&upstream(url, |_| {})).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Certificate, "{error}");
    assert!(error.to_string().contains("ca_file"), "{error}");
}

#[tokio::test]
async fn ca_file_vouches() {
    let (url, pem) = start();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(pem.as_bytes()).unwrap();
    get(&upstream(url, |options| options.ca_file = Some(file.path().to_owned()))).await.unwrap();
}

#[tokio::test]
async fn insecure_skip_verify_believes_anyone() {
    let (url, _) = start();
    get(&upstream(url, |options| options.insecure_skip_verify = true)).await.unwrap();
}

#[tokio::test]
async fn a_bad_ca_file_is_an_error_of_the_request_that_names_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for path in [file.path().to_owned(), "/nonexistent/ca.pem".into()] {
        let url = "https://localhost:1".parse().unwrap();
        let error = get(&upstream(url, |options| options.ca_file = Some(path.clone()))).await.unwrap_err();
        assert_eq!(error.kind, UpstreamErrorKind::Tls);
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn a_plain_server_at_an_https_address_is_a_tls_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let plain: Url = format!("https://{}", listener.local_addr().unwrap()).parse().unwrap();
    tasks::spawn("plain", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let _ = stream.read_u8().await;
    });
    let error = get(&upstream(plain, |_| {})).await.unwrap_err();
    assert_eq!(error.kind, UpstreamErrorKind::Tls, "{error}");
}

/// A certificate of an authority that is itself, in files, and as a server knows it.
fn own_certificate(folder: &std::path::Path) -> (ClientCertificate, rustls::pki_types::CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["mirror.corp".to_owned()]).unwrap();
    let own = ClientCertificate { cert: folder.join("us.crt"), key: folder.join("us.key") };
    std::fs::write(&own.cert, made.cert.pem()).unwrap();
    std::fs::write(&own.key, made.signing_key.serialize_pem()).unwrap();
    (own, made.cert.der().clone())
}

#[tokio::test]
async fn our_own_certificate_is_shown_to_an_upstream_that_demands_it() {
    let folder = tempfile::tempdir().unwrap();
    let (own, der) = own_certificate(folder.path());
    let shown = |own: Option<ClientCertificate>| {
        let (url, pem) = start_for(Some(der.clone()));
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, pem).unwrap();
        upstream(url, |options| {
            options.ca_file = Some(ca_file);
            options.client_cert = own;
        })
    };
    get(&shown(Some(own))).await.unwrap();
    // Neither nothing nor a stranger's will do, and what is wrong is said.
    let other = tempfile::tempdir().unwrap();
    let (strangers, _) = own_certificate(other.path());
    for own in [None, Some(strangers)] {
        let error = get(&shown(own)).await.unwrap_err();
        assert!(matches!(error.kind, UpstreamErrorKind::Tls | UpstreamErrorKind::Certificate), "{error}");
        assert!(error.to_string().contains("client_cert"), "{error}");
    }
}

#[tokio::test]
async fn a_certificate_of_ours_that_can_t_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (own, _) = own_certificate(folder.path());
    for missing in [
        ClientCertificate { cert: folder.path().join("none"), ..own.clone() },
        ClientCertificate { key: own.cert.clone(), ..own },
    ] {
        let said = roots::settings(None, false, Some(&missing)).unwrap_err().to_string();
        assert!(said.contains("client_cert"), "{said}");
    }
}
