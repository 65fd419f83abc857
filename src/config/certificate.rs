//! The certificates that listeners show: as written, and as meant.

use std::path::PathBuf;

use super::mistake::{Located, Mistakes, Place};
use super::reader::Entry;
use super::schema;
use super::written::{Setting, path};
use crate::files;

/// The files of one certificate, as PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate, then those that lead to its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// An entry of `tls`.
#[derive(Debug)]
pub(super) struct WrittenCertificate {
    place: Place,
    cert: Setting<PathBuf>,
    key: Setting<PathBuf>,
    /// Whether a part was written but refused or misspelt, so that its absence is no mistake of its own.
    refused: bool,
}

/// The longest file of certificates or keys that is looked at.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// One certificate, or a list of them.
pub(super) fn read(entry: Entry<'_>) -> Setting<Vec<WrittenCertificate>> {
    let list = entry.one_or_many()?;
    Some(list.map(|members| members.into_iter().filter_map(WrittenCertificate::read).collect()))
}

/// Certificates whose files can be read now. What is in them is the business of who shows them.
pub(super) fn mean(written: Setting<Vec<WrittenCertificate>>, mistakes: &Mistakes) -> Vec<Certificate> {
    let written = written.into_iter().flat_map(|list| list.value);
    written.filter_map(|certificate| certificate.mean(mistakes)).collect()
}

// === impl WrittenCertificate ===

impl WrittenCertificate {
    fn read(entry: Entry<'_>) -> Option<Self> {
        let place = entry.place.clone();
        let mut section = entry.section(schema::CERTIFICATE)?;
        let misspelt = section.has_unknown_keys();
        let parts = [section.take("cert"), section.take("key")];
        section.finish();
        let written = parts.iter().flatten().count();
        let [cert, key] = parts.map(|part| part.and_then(path));
        let refused = misspelt || usize::from(cert.is_some()) + usize::from(key.is_some()) < written;
        Some(Self { place, cert, key, refused })
    }

    fn mean(self, mistakes: &Mistakes) -> Option<Certificate> {
        if self.refused {
            return None;
        }
        let file = |setting: Setting<PathBuf>, part: &str| {
            let Some(Located { value, place }) = setting else {
                mistakes.report(self.place.clone(), format!("this certificate lacks its {part} file"));
                return None;
            };
            if let Err(error) = files::read(&value, FILE_BYTES_MAX) {
                mistakes.report(place, error.to_string());
            }
            Some(value)
        };
        let (cert, key) = (file(self.cert, "cert"), file(self.key, "key"));
        Some(Certificate { cert: cert?, key: key? })
    }
}
