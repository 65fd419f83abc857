//! `cachalot check-config`: what the configuration comes to, or everything that is wrong with it.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::config::{self, EXIT_CONFIG, Env, Flags, ProcessEnv};

/// Loads the configuration just as `serve` would and writes what it means to `out`, as TOML with secrets hidden, or every
/// mistake to `err`. Returns the exit code: 0 or [`EXIT_CONFIG`]. Fails only if it cannot write.
pub fn run(
    path: Option<&Path>,
    env: &dyn Env,
    flags: &Flags,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<u8> {
    match config::load(path, env, flags) {
        Ok(config) => {
            out.write_all(config.to_toml().as_bytes())?;
            out.flush()?;
            Ok(0)
        }
        Err(errors) => {
            writeln!(err, "{errors}")?;
            err.flush()?;
            Ok(EXIT_CONFIG)
        }
    }
}

/// Runs the command with this process's environment and streams.
pub(super) fn main(settings: &super::Settings) -> ExitCode {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    match run(settings.config.as_deref(), &ProcessEnv, &settings.flags(), &mut out, &mut err) {
        Ok(code) => ExitCode::from(code),
        Err(error) => super::fail(&format!("could not print: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoEnv;

    impl Env for NoEnv {
        fn get(&self, _name: &str) -> Option<String> {
            None
        }
    }

    fn check(file: &str) -> (u8, String, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        std::fs::write(&path, file).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(Some(&path), &NoEnv, &Flags::default(), &mut out, &mut err).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap().replace(path.to_str().unwrap(), "c.toml");
        (code, text(out), text(err))
    }

    #[test]
    fn a_good_file_is_shown_with_its_secrets_hidden() {
        let file = "[upstreams.\"docker.io\"]\ncredentials = [{ username = \"bot\", password = \"hunter2\" }]\n";
        let (code, out, err) = check(file);
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.contains("listen = \"127.0.0.1:5050\""), "{out}");
        assert!(out.contains("{ scope = \"docker.io\", username = \"bot\", password = \"<redacted>\" }"), "{out}");
        assert!(!out.contains("hunter2"), "{out}");
    }

    #[test]
    fn a_bad_file_is_told_all_its_mistakes() {
        let (code, out, err) = check("ofline = true\n[server]\nlisten = 1\n");
        assert_eq!((code, out.as_str()), (EXIT_CONFIG, ""));
        assert_eq!(
            err,
            "2 mistakes in the configuration:\n  \
             c.toml:1:1: ofline: unknown key; did you mean \"offline\"?\n  \
             c.toml:3:10: server.listen: expected an address and port such as \"127.0.0.1:5050\" or \"[::1]:5050\", or a \
             list of such, found a number\n"
        );
    }
}
