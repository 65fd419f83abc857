//! The `Authorization` header: what a client says of itself, read and not believed yet. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::secret::Secret;

/// What a client says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It has a token (`Bearer`).
    Token(Secret),
    /// It is nobody (`Basic` without name and password), which clients say that have been asked and have neither.
    Nobody,
    /// It is someone (`Basic`).
    Password {
        /// Who.
        name: String,
        /// What proves it.
        password: Secret,
    },
}

/// The longest header that is read.
const HEADER_BYTES_MAX: usize = 8 << 10;

/// Reads the value of an `Authorization` header; `None` if it says nothing that is understood.
pub fn parse(value: &str) -> Option<Claim> {
    if value.len() > HEADER_BYTES_MAX {
        return None;
    }
    let (scheme, rest) = value.trim().split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return (!rest.is_empty() && !rest.contains(' ')).then(|| Claim::Token(Secret::new(rest)));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(STANDARD.decode(rest).ok()?).ok()?;
    let (name, password) = decoded.split_once(':')?;
    if name.is_empty() && password.is_empty() {
        return Some(Claim::Nobody);
    }
    // bcrypt takes a NUL for the end.
    let sound = !name.is_empty() && !decoded.contains('\0');
    sound.then(|| Claim::Password { name: name.to_owned(), password: Secret::new(password) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(name: &str, password: &str) -> Claim {
        Claim::Password { name: name.to_owned(), password: Secret::new(password) }
    }

    #[test]
    fn both_schemes_are_read_and_nothing_else() {
        assert_eq!(parse("Basic YW5uOmE6Yg=="), Some(password("ann", "a:b")));
        assert_eq!(parse("basic  YW5uOg=="), Some(password("ann", "")));
        assert_eq!(parse("BEARER abc"), Some(Claim::Token(Secret::new("abc"))));
        for nothing in
            ["", "Basic", "Basic ", "Basic !", "Basic YW5u", "Basic OmE=", "Bearer ", "Bearer a b", "Digest x"]
        {
            assert_eq!(parse(nothing), None, "{nothing:?}");
        }
        assert_eq!(parse("Basic Og=="), Some(Claim::Nobody));
        assert_eq!(parse("Basic YW5uOmEAYg=="), None, "a NUL");
        assert_eq!(parse(&format!("Bearer {}", "x".repeat(9000))), None);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_said_is_no_reason_to_panic(value in ".{0,200}", scheme in "(Basic|Bearer|basic)?") {
            let _ = parse(&format!("{scheme} {value}"));
        }

        #[test]
        fn what_was_written_is_read(name in "[^:\u{0}]{1,40}", secret in "[^\u{0}]{0,40}") {
            let header = format!("Basic {}", STANDARD.encode(format!("{name}:{secret}")));
            proptest::prop_assert_eq!(parse(&header), Some(password(&name, &secret)));
        }
    }
}
