//! Listens to every log line of the whole suite, down to traces, for secrets that must not be in one.

use std::io;
use std::sync::{Mutex, Once};

use tracing_subscriber::EnvFilter;

/// What tests plant: passwords, tokens, the signatures of presigned addresses.
const PLANTED: [&str; 8] =
    ["hunter2", "word-of-the-node", "first-word", "second-word", "Bearer token-", "\"token-", "X-Signature", "Basic Y"];

/// The log lines that held one.
static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Where log lines go.
struct Listener;

// === impl Listener ===

impl io::Write for Listener {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        if PLANTED.iter().any(|secret| line.contains(secret)) {
            FOUND.lock().unwrap().push(line.into_owned());
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// From here on, everything that is logged by any test is looked at.
pub(crate) fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = EnvFilter::new("cachalot=trace,reqwest=trace,hyper_util=debug,hyper=debug");
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(|| Listener);
        subscriber.try_init().expect("nobody else listens");
    });
}

/// Fails when a secret was logged, by whichever test.
pub(crate) fn check() {
    let found = FOUND.lock().unwrap();
    assert!(found.is_empty(), "secrets were logged: {found:?}");
}
