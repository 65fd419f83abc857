//! A text that no log, error or dump shows.

use std::fmt;
use std::sync::Arc;

/// A password or token. Printing it in any way shows `<redacted>`; only [`Secret::expose`] gives it away, so that every
/// use can be found by that name. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(Arc<str>);

/// What is printed in place of a secret.
pub const REDACTED: &str = "<redacted>";

// === impl Secret ===

impl Secret {
    /// Keeps a text secret from here on.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// The text itself: for the request that carries it, and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            format!("{secret} {secret:?} {secret:#?} {:?}", Some(&secret)),
            format!("{REDACTED} {REDACTED} {REDACTED} Some({REDACTED})")
        );
        assert_eq!(secret.expose(), "hunter2");
    }
}
