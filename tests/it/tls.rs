//! TLS towards clients: which certificate they are shown, that pulls work through it, and that changed files count.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use cachalot::store::Op;
use rustix::io::Errno;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::images::{Blob, Image};
use crate::support::mirror::{FailingDisk, Mirror, blob, manifest};
use crate::support::registry::{On, Registry};
use crate::support::{all, within};

/// Writes a certificate for `name` of its own making, and returns it.
fn certify(folder: &Path, file: &str, name: &str) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    std::fs::write(folder.join(format!("{file}.key")), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join(format!("{file}.crt")), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

fn files(folder: &Path, file: &str) -> String {
    let path = |suffix| serde_json::json!(folder.join(format!("{file}.{suffix}")));
    format!("{{ cert = {}, key = {} }}", path("crt"), path("key"))
}

/// Connects as someone who believes one certificate and offers both protocols.
async fn connect(
    addr: SocketAddr,
    believed: &CertificateDer<'static>,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(believed.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Narrow, so that the server soon notices a client that stops reading.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let stream = socket.connect(addr).await.unwrap();
    let name = ServerName::try_from(name).unwrap();
    within("the handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

/// Asks for one thing, and returns the answer's head and body.
async fn get(
    addr: SocketAddr,
    believed: &CertificateDer<'static>,
    name: &'static str,
    path: &str,
) -> (String, Vec<u8>) {
    let mut stream = connect(addr, believed, name).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within("the answer", stream.read_to_end(&mut answer)).await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let body = answer.split_off(end);
    (String::from_utf8(answer).unwrap(), body)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pulled_by_tls_and_names_get_their_own_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let first = certify(folder.path(), "first", "mirror.corp");
    let second = certify(folder.path(), "second", "hub.mirror.corp");
    let registry = Registry::start().await;
    let image = Image::new(1, &[200_000, 3 << 20]);
    registry.put_image("library/app", "1", &image);
    let both = format!("[{}, {}]", files(folder.path(), "first"), files(folder.path(), "second"));
    let mirror = Mirror::builder().upstream("docker.io", &registry).set("server", "tls", &both).start().await;
    let addr = mirror.addr();
    for (certificate, name) in [(&first, "mirror.corp"), (&second, "hub.mirror.corp")] {
        let stream = connect(addr, certificate, name).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "{name}");
    }
    // A name that no certificate has gets the first, which its client may refuse.
    connect(addr, &first, "other.corp").await.unwrap_err();
    let (head, body) = get(addr, &first, "mirror.corp", &manifest("library/app", "1")).await;
    assert!(head.starts_with("HTTP/1.1 200 ") && body == image.manifest.bytes, "{head}");
    // Cold, then warm; several at once.
    for _ in 0..2 {
        let pulls = image.blobs().map(|part| {
            let (first, path) = (first.clone(), blob("library/app", &part.digest));
            let part = part.clone();
            async move {
                let (head, body) = get(addr, &first, "mirror.corp", &path).await;
                assert!(head.starts_with("HTTP/1.1 200 ") && body == part.bytes, "{head}");
            }
        });
        all(pulls.collect::<Vec<_>>()).await;
    }
    // Plain HTTP is no reason to hang, and no answer.
    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = within("the end of a plain connection", plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_certificate_is_shown_and_connections_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let old = certify(folder.path(), "one", "mirror.corp");
    let registry = Registry::start().await;
    let image = Image::new(1, &[2000]);
    registry.put_image("library/app", "v1", &image);
    let builder = Mirror::builder().upstream("docker.io", &registry);
    let mirror = builder.set("server", "tls", &files(folder.path(), "one")).start().await;
    let mut open = connect(mirror.addr(), &old, "mirror.corp").await.unwrap();
    let new = certify(folder.path(), "one", "mirror.corp");
    let reload = crate::support::client::Request::new("POST", "/api/v1/reload");
    let reloaded = mirror.send_admin(&reload).await;
    assert_eq!(reloaded.status(), 200, "{}", reloaded.text());
    assert_eq!(reloaded.json()["changed"], serde_json::json!(["certificates"]));
    connect(mirror.addr(), &old, "mirror.corp").await.unwrap_err();
    get(mirror.addr(), &new, "mirror.corp", &manifest("library/app", "v1")).await;
    open.write_all(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within("the answer", open.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // A certificate that does not fit its key changes nothing.
    std::fs::write(folder.path().join("one.key"), "nonsense").unwrap();
    assert_eq!(mirror.send_admin(&reload).await.status(), 409);
    get(mirror.addr(), &new, "mirror.corp", "/v2/").await;
    mirror.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_healthcheck_asks_by_tls_where_operators_are_served_by_it() {
    let registry = Registry::start().await;
    let folder = tempfile::tempdir().unwrap();
    certify(folder.path(), "admin", "mirror.corp");
    let admin = format!("127.0.0.1:{}", crate::upstreams::free_port());
    let mirror = Mirror::builder()
        .upstream("docker.io", &registry)
        .set("admin", "listen", &format!("\"{admin}\""))
        .set("admin", "tls", &files(folder.path(), "admin"))
        .start()
        .await;
    let config = mirror.site().config();
    let check = |arguments: Vec<String>| async move {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cachalot"));
        command.arg("healthcheck").args(arguments).env_clear().stdin(std::process::Stdio::null());
        within("the healthcheck", command.output()).await.unwrap().status.code()
    };
    let of = |words: [&str; 2]| words.map(str::to_owned).to_vec();
    assert_eq!(check(of(["--config", config.to_str().unwrap()])).await, Some(0));
    assert_eq!(check(of(["--address", &format!("https://{admin}")])).await, Some(0));
    assert_ne!(check(of(["--address", &admin])).await, Some(0), "that is no TLS");
    mirror.finish().await;
}

/// What is done to a file while a hundred clients are in the middle of it.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Cut,
    Removed,
    Unreadable,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_readers_of_a_file_that_is_harmed_get_what_is_right_and_the_next_gets_all() {
    let folder = tempfile::tempdir().unwrap();
    let believed = certify(folder.path(), "one", "mirror.corp");
    for harm in [Harm::Cut, Harm::Removed, Harm::Unreadable] {
        let registry = Registry::start().await;
        let (large, other) = (Blob::noise(1, 6 << 20), Blob::noise(2, 300_000));
        registry.put_blob("library/app", &large);
        registry.put_blob("library/app", &other);
        let disk = Arc::new(FailingDisk::default());
        let mut builder = Mirror::builder().upstream("docker.io", &registry);
        if let Harm::Unreadable = harm {
            // What can be made to fail is never read on the spot.
            builder = builder.disk(&disk);
        }
        let mirror = builder.set("server", "tls", &files(folder.path(), "one")).start().await;
        let (addr, path) = (mirror.addr(), blob("library/app", &large.digest));
        assert!(get(addr, &believed, "mirror.corp", &path).await.1 == large.bytes);
        mirror.idle().await;

        let mut readers = Vec::new();
        for _ in 0..100 {
            let mut reader = connect(addr, &believed, "mirror.corp").await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nHost: mirror.corp\r\nConnection: close\r\n\r\n");
            reader.write_all(request.as_bytes()).await.unwrap();
            let mut answer = vec![0; 4096];
            within("the answer's beginning", reader.read_exact(&mut answer)).await.unwrap();
            readers.push((reader, answer));
        }
        let file = mirror.site().blob_file(&large.digest);
        match harm {
            Harm::Cut => std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(5 << 20).unwrap(),
            Harm::Removed => std::fs::remove_file(&file).unwrap(),
            Harm::Unreadable => disk.fail(Op::Read, Errno::IO),
        }
        let bodies = readers.into_iter().map(|(mut reader, mut answer)| async move {
            within("the rest", reader.read_to_end(&mut answer)).await.unwrap();
            let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
            answer.split_off(end)
        });
        for body in all(bodies.collect::<Vec<_>>()).await {
            assert!(large.bytes.starts_with(&body), "{harm:?}: {} bytes", body.len());
            assert_eq!(body.len() == large.bytes.len(), matches!(harm, Harm::Removed), "{harm:?}: {}", body.len());
        }
        disk.recover();
        assert!(get(addr, &believed, "mirror.corp", &blob("library/app", &other.digest)).await.1 == other.bytes);
        assert!(get(addr, &believed, "mirror.corp", &path).await.1 == large.bytes, "{harm:?}");
        match harm {
            Harm::Cut => assert_eq!(registry.count(&On::blob(&large.digest)), 2, "fetched again"),
            Harm::Unreadable => assert_eq!(registry.count(&On::blob(&large.digest)), 1, "it is well after all"),
            Harm::Removed => {}
        }
        mirror.finish().await;
    }
}
