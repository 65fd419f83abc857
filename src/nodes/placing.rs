//! Files put into a client's folder, and taken back: what was there before comes back as it was, and what is not ours is left alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ClientFile, MARK};
use crate::oci::Digest;

/// Why files could not be put in place, or taken back.
#[derive(Debug, thiserror::Error)]
pub enum PlacingError {
    /// The file system.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It leads elsewhere.
    #[error("{} is a symbolic link, and is left alone: name the folder that it leads to, or remove it", .0.display())]
    Link(PathBuf),
    /// The notes of an earlier run can't be read.
    #[error("{} can't be read, so what was there before is not known: {problem}", path.display())]
    Notes {
        /// The notes.
        path: PathBuf,
        /// What is wrong with them.
        problem: String,
    },
    /// This configuration is no folder of files.
    #[error("this is no file of its own that could be written: print it, and put it where it says")]
    NoFiles,
}

/// What was done in a folder, so that it can be taken back. It is written before anything is done.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Notes {
    /// Our files by their paths in the folder.
    files: BTreeMap<String, Note>,
    /// Folders that were made for them.
    folders: Vec<String>,
    /// The folder itself was made for them too.
    #[serde(default)]
    made_root: bool,
}

/// A file of ours.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Something lay there before, and is kept beside it.
    before: bool,
    /// What was written, by which it is known again.
    wrote: Digest,
}

/// What was done, in sentences.
pub(super) type Done = Vec<String>;

/// Where the notes lie. No client reads a file of this name.
const NOTES: &str = ".cachalot-hosts.json";

/// What was there before is called so, beside ours.
const BEFORE: &str = "before-cachalot";

/// Puts files into a folder, atomically each. Ours of an earlier run that are not among them are taken back.
pub fn place(folder: &Path, files: &[ClientFile]) -> Result<Done, PlacingError> {
    let files: BTreeMap<&str, &ClientFile> =
        files.iter().filter_map(|file| Some((file.path.as_deref()?, file))).collect();
    if files.is_empty() {
        return Err(PlacingError::NoFiles);
    }
    let is_new = !folder.exists();
    make_folder(folder)?;
    let mut notes = Notes::read(folder)?;
    notes.made_root |= is_new;
    let mut done = Vec::new();
    let gone: Vec<String> = notes.files.keys().filter(|path| !files.contains_key(path.as_str())).cloned().collect();
    for path in gone {
        notes.take_back(folder, &path, &mut done)?;
    }
    for (path, &ClientFile { ref text, is_secret, .. }) in files {
        let target = inside(folder, path)?;
        let present = read(&target)?;
        let is_told = is_secret && is_open(&target)?;
        if present.as_deref() == Some(text.as_bytes()) && notes.files.contains_key(path) && !is_told {
            continue;
        }
        // What somebody put in place of ours since then is theirs, and comes back in the end.
        let had = present.as_deref().is_some_and(|bytes| !notes.is_ours(path, bytes));
        let before = beside(&target);
        let keeps = had || (notes.files.get(path).is_some_and(|note| note.before) && is_link_free(&before)?);
        if let Some(parent) = path.rsplit_once('/').map(|(parent, _)| parent)
            && !folder.join(parent).exists()
        {
            notes.folders.push(parent.to_owned());
        }
        notes.files.insert(path.to_owned(), Note { before: keeps, wrote: Digest::sha256(text.as_bytes()) });
        notes.write(folder)?;
        if let Some(parent) = target.parent() {
            make_folder(parent)?;
        }
        if had {
            // A second name for the same file: its content, mode and times stay as they are.
            remove(&before)?;
            fs::hard_link(&target, &before).map_err(at(&before))?;
        }
        publish(&target, text.as_bytes(), if is_secret { 0o600 } else { 0o644 })?;
        done.push(format!("wrote {}", target.display()));
        if had {
            let kept = before.display();
            done.push(format!(
                "what was there is kept as {kept}; it is not read there, so add what you need of it to the new file"
            ));
        }
    }
    notes.write(folder)?;
    Ok(done)
}

/// Takes back all that was put into a folder.
pub fn take_back(folder: &Path) -> Result<Done, PlacingError> {
    let (mut notes, mut done) = (Notes::read(folder)?, Vec::new());
    for path in notes.files.keys().cloned().collect::<Vec<_>>() {
        notes.take_back(folder, &path, &mut done)?;
    }
    notes.write(folder)?;
    if notes.made_root {
        // As above: it stays if somebody put something into it.
        let _ = fs::remove_dir(folder);
    }
    Ok(done)
}

/// Copies the running program into a folder, for containers that have nothing else to run. Returns where it lies.
pub fn copy_program(folder: &Path) -> Result<PathBuf, PlacingError> {
    let program = std::env::current_exe().map_err(at(Path::new("/proc/self/exe")))?;
    let bytes = fs::read(&program).map_err(at(&program))?;
    let target = folder.join(env!("CARGO_PKG_NAME"));
    make_folder(folder)?;
    publish(&target, &bytes, 0o755)?;
    Ok(target)
}

// === impl Notes ===

impl Notes {
    fn read(folder: &Path) -> Result<Self, PlacingError> {
        let path = folder.join(NOTES);
        let Some(bytes) = read(&path)? else { return Ok(Self::default()) };
        serde_json::from_slice(&bytes).map_err(|error| PlacingError::Notes { path, problem: error.to_string() })
    }

    /// Nothing to note is no file.
    fn write(&self, folder: &Path) -> Result<(), PlacingError> {
        let path = folder.join(NOTES);
        if self.files.is_empty() {
            return remove(&path);
        }
        let text = serde_json::to_vec_pretty(self).map_err(|error| at(&path)(io::Error::other(error)))?;
        publish(&path, &text, 0o644)
    }

    /// Whether it is what was written there; files with a place for that say it also by themselves.
    fn is_ours(&self, path: &str, bytes: &[u8]) -> bool {
        let is_marked = || String::from_utf8_lossy(bytes).lines().next().is_some_and(|line| line.ends_with(MARK));
        self.files.get(path).is_some_and(|note| note.wrote == Digest::sha256(bytes)) || is_marked()
    }

    fn take_back(&mut self, folder: &Path, path: &str, done: &mut Done) -> Result<(), PlacingError> {
        let target = inside(folder, path)?;
        let before = beside(&target);
        let present = read(&target)?;
        if present.as_deref().is_some_and(|bytes| !self.is_ours(path, bytes)) {
            done.push(format!("left {} alone: it was changed since it was written", target.display()));
        } else if self.files.get(path).is_some_and(|note| note.before) && before.exists() {
            fs::rename(&before, &target).map_err(at(&target))?;
            done.push(format!("brought back {}", target.display()));
        } else {
            remove(&target)?;
            done.push(format!("removed {}", target.display()));
        }
        self.files.remove(path);
        if let Some((parent, _)) = path.rsplit_once('/')
            && let Some(made) = self.folders.iter().position(|folder| folder == parent)
        {
            self.folders.remove(made);
            // It stays if somebody put something into it.
            let _ = fs::remove_dir(folder.join(parent));
        }
        if let Some(parent) = target.parent().filter(|parent| parent.exists()) {
            sync(parent)?;
        }
        self.write(folder)
    }
}

/// A path in a folder, no part of which leads elsewhere.
fn inside(folder: &Path, path: &str) -> Result<PathBuf, PlacingError> {
    let mut place = folder.to_owned();
    for part in Path::new(path).components() {
        if let Component::Normal(part) = part {
            place.push(part);
            is_link_free(&place)?;
        }
    }
    Ok(place)
}

/// Whether something is there; an error if that is a symbolic link.
fn is_link_free(path: &Path) -> Result<bool, PlacingError> {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_symlink() => Err(PlacingError::Link(path.to_owned())),
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(at(path)(error)),
    }
}

fn beside(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(BEFORE);
    target.with_file_name(name)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, PlacingError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(path)(error)),
    }
}

/// Whether others than its owner may read what is there, if anything is.
fn is_open(path: &Path) -> Result<bool, PlacingError> {
    match fs::metadata(path) {
        Ok(facts) => Ok(facts.permissions().mode() & 0o077 != 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(at(path)(error)),
    }
}

fn make_folder(path: &Path) -> Result<(), PlacingError> {
    fs::create_dir_all(path).map_err(at(path))
}

fn remove(path: &Path) -> Result<(), PlacingError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// Writes a file under another name, and gives it its own when it is on the disk.
fn publish(target: &Path, bytes: &[u8], mode: u32) -> Result<(), PlacingError> {
    let parent = target.parent().unwrap_or(Path::new("."));
    let mut staged = tempfile::Builder::new()
        .prefix(".cachalot-")
        .permissions(fs::Permissions::from_mode(mode))
        .tempfile_in(parent)
        .map_err(at(parent))?;
    staged.write_all(bytes).and_then(|()| staged.as_file().sync_all()).map_err(at(target))?;
    staged.persist(target).map_err(|error| at(target)(error.error))?;
    sync(parent)
}

fn sync(folder: &Path) -> Result<(), PlacingError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(at(folder))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PlacingError {
    let path = path.to_owned();
    move |source| PlacingError::Io { path, source }
}
