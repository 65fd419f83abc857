//! Credential helpers: programs that are asked for a registry's credential, as docker asks them.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use super::credentials::Login;
use super::docker_config::Helper;
use super::error::shortened;
use crate::secret::Secret;

/// What helpers said, for a while: some ask a cloud, which takes a second and is counted there.
#[derive(Debug, Default)]
pub(super) struct Helpers(Mutex<HashMap<Helper, Arc<Memory>>>);

/// What one helper said of one registry. Who asks meanwhile waits for the same answer.
#[derive(Debug, Default)]
struct Memory(tokio::sync::Mutex<Option<Heard>>);

#[derive(Debug)]
struct Heard {
    when: Instant,
    answer: Result<Option<Login>, String>,
}

/// A helper that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer is believed. ECR's passwords last twelve hours, and a refusal has it asked again.
const KEPT_FOR: Duration = Duration::from_mins(5);
/// How long a failure is.
const FAILURE_KEPT_FOR: Duration = Duration::from_secs(10);
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
/// What helpers say of what they don't have.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// In place of a user name: the secret is an identity token.
const TOKEN_USER: &str = "<token>";

// === impl Helpers ===

impl Helpers {
    /// The login that a helper has for its registry, if it has one. The error says what went wrong, without any secret.
    pub(super) async fn ask(&self, helper: &Helper) -> Result<Option<Login>, String> {
        self.ask_since(helper, None).await
    }

    /// The same, but not what it said before `since`: what it said then was refused.
    pub(super) async fn ask_again(&self, helper: &Helper, since: Instant) -> Result<Option<Login>, String> {
        self.ask_since(helper, Some(since)).await
    }

    /// Whether a helper was heard to have nothing for its registry.
    pub(super) fn has_nothing(&self, helper: &Helper) -> bool {
        let memory = self.0.lock().get(helper).cloned();
        // While it is being asked, nobody knows.
        memory.is_some_and(|memory| {
            memory.0.try_lock().is_ok_and(|heard| matches!(&*heard, Some(Heard { answer: Ok(None), .. })))
        })
    }

    async fn ask_since(&self, helper: &Helper, since: Option<Instant>) -> Result<Option<Login>, String> {
        let memory = Arc::clone(self.0.lock().entry(helper.clone()).or_default());
        let mut heard = memory.0.lock().await;
        let good = heard.as_ref().filter(|heard| {
            let kept_for = if heard.answer.is_ok() { KEPT_FOR } else { FAILURE_KEPT_FOR };
            heard.when.elapsed() < kept_for && since.is_none_or(|since| heard.when > since)
        });
        if let Some(good) = good {
            return good.answer.clone();
        }
        let answer = run(helper).await;
        if let Err(problem) = &answer {
            tracing::warn!("{problem}; asking without it");
        }
        *heard = Some(Heard { when: Instant::now(), answer: answer.clone() });
        answer
    }
}

/// Runs `docker-credential-NAME get`, or the program itself where it is given by its path.
async fn run(helper: &Helper) -> Result<Option<Login>, String> {
    let Helper { program, server } = helper;
    let program = if program.starts_with('/') { program.clone() } else { format!("docker-credential-{program}") };
    let failed = |problem: &str| format!("the credential helper {program} {problem} for {server}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&format!("can't be run ({error})")))?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            // One that doesn't read may still answer.
            let _ = stdin.write_all(format!("{server}\n").as_bytes()).await;
        }
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut output).await?;
        }
        child.wait().await.map(|status| (status.success(), output))
    };
    match timeout(PATIENCE, talk).await {
        Ok(Ok((true, output))) => read(&output).map(Some).ok_or_else(|| failed("gave an answer that is none")),
        Ok(Ok((false, output))) => {
            let said = String::from_utf8_lossy(&output);
            if said.trim() == NOT_FOUND {
                return Ok(None);
            }
            Err(failed(&format!("failed ({})", shortened(said.trim()))))
        }
        Ok(Err(error)) => Err(failed(&format!("failed ({error})"))),
        Err(_elapsed) => Err(failed(&format!("did not answer within {} s", PATIENCE.as_secs()))),
    }
}

/// A helper's answer.
fn read(output: &[u8]) -> Option<Login> {
    let answer: Value = serde_json::from_slice(output).ok()?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str);
    let (username, secret) = (text("Username")?.to_owned(), Secret::new(text("Secret").filter(|s| !s.is_empty())?));
    Some(if username == TOKEN_USER {
        Login::IdentityToken { username: String::new(), token: secret }
    } else {
        Login::Password { username, password: secret }
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A helper that is this shell script, in a folder that must outlive it.
    fn script(folder: &tempfile::TempDir, text: &str) -> Helper {
        let path = folder.path().join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Helper { program: path.to_str().unwrap().to_owned(), server: "ecr.example".to_owned() }
    }

    #[tokio::test]
    async fn a_helper_is_asked_once_for_a_while_and_again_after_a_refusal() {
        let folder = tempfile::tempdir().unwrap();
        let count = folder.path().join("count");
        let text = format!(
            "read server; echo x >> {count}; n=$(wc -l < {count}); \
             echo \"{{\\\"ServerURL\\\":\\\"$server\\\",\\\"Username\\\":\\\"AWS\\\",\\\"Secret\\\":\\\"$1-$server-$n\\\"}}\"",
            count = count.display()
        );
        let helper = script(&folder, &text);
        let helpers = Helpers::default();
        let login = |word: &str| Ok(Some(Login::Password { username: "AWS".to_owned(), password: Secret::new(word) }));
        assert!(!helpers.has_nothing(&helper));
        for _ in 0..2 {
            assert_eq!(helpers.ask(&helper).await, login("get-ecr.example-1"));
        }
        let refused = Instant::now();
        assert_eq!(helpers.ask_again(&helper, refused).await, login("get-ecr.example-2"));
        assert_eq!(helpers.ask_again(&helper, refused).await, login("get-ecr.example-2"));
        assert_eq!(helpers.ask(&helper).await, login("get-ecr.example-2"));
    }

    #[tokio::test]
    async fn a_helper_may_have_nothing_or_fail_and_its_secrets_stay_out_of_messages() {
        let folder = tempfile::tempdir().unwrap();
        let helpers = Helpers::default();
        let none = script(&folder, "echo credentials not found in native keychain; exit 1");
        assert_eq!(helpers.ask(&none).await, Ok(None));
        assert!(helpers.has_nothing(&none));
        for (text, said) in [
            ("echo no session; exit 1", "failed (no session)"),
            ("echo hunter2", "gave an answer that is none"),
            ("echo '{\"Username\":\"u\",\"Secret\":\"\"}'", "gave an answer that is none"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let problem = helpers.ask(&script(&folder, text)).await.unwrap_err();
            assert!(problem.contains(said) && !problem.contains("hunter2"), "{problem}");
        }
        let missing = Helper { program: "no-such-helper".to_owned(), server: "x".to_owned() };
        assert!(helpers.ask(&missing).await.unwrap_err().contains("docker-credential-no-such-helper can't be run"));
    }

    #[test]
    fn an_identity_token_is_told_by_its_user() {
        let token = Login::IdentityToken { username: String::new(), token: Secret::new("t") };
        assert_eq!(read(br#"{"Username":"<token>","Secret":"t"}"#), Some(token));
        assert_eq!(read(b"{}"), None);
    }
}
