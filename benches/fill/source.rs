//! What the upstream has to send: files of noise, parts of them as blobs, and their digests.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

/// A part of a file, which is a whole blob.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    pub(crate) start: u64,
    pub(crate) len: u64,
}

// === impl Part ===

impl Part {
    /// A new file of so many bytes that look random, and differ for each `seed` (splitmix64).
    pub(crate) fn noise(folder: &Path, seed: u64, len: u64) -> io::Result<Self> {
        let path = folder.join(format!("noise-{seed}"));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d);
        for _ in 0..len / 8 {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            file.write_all(&(word ^ (word >> 31)).to_le_bytes())?;
        }
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.set_len(len)?;
        Ok(Self { file: Arc::new(file), path, start: 0, len })
    }

    /// A new file of zeros that takes no room: for what is never read to its end.
    pub(crate) fn sparse(folder: &Path, len: u64) -> io::Result<Self> {
        let path = folder.join("sparse");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        file.set_len(len)?;
        Ok(Self { file: Arc::new(file), path, start: 0, len })
    }

    /// The part of this part that begins at `start`.
    pub(crate) fn part(&self, start: u64, len: u64) -> Self {
        Self { start: self.start + start, len, ..self.clone() }
    }

    pub(crate) fn digest(&self) -> io::Result<String> {
        let mut hasher = Sha256::new();
        let mut at = 0;
        while at < self.len {
            let bytes = self.read(at, (self.len - at).min(1 << 20))?;
            hasher.update(&bytes);
            at += bytes.len() as u64;
        }
        Ok(format!("sha256:{}", hex::encode(hasher.finalize())))
    }

    pub(crate) fn read(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?];
        self.file.read_exact_at(&mut bytes, self.start + at)?;
        Ok(bytes)
    }
}

pub(crate) fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
