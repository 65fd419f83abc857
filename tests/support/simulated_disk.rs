//! A disk that forgets at a power cut what was not synced: names, sizes and bytes.
//!
//! It sits at the store's seam to the file system and follows every change. The store works on real files meanwhile. When
//! the power goes, every operation fails; [`SimulatedDisk::restore`] then leaves on the real disk what the simulated one
//! still knows, and the next store is opened on that.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::{Change, Faults, Op};

/// The simulated disk of one data directory.
#[derive(Debug, Default)]
pub(crate) struct SimulatedDisk(Mutex<State>);

/// How much of what was not synced a power cut takes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    /// All of it.
    Everything,
    /// Only bytes: names and sizes were written down in time, and zeros stand where bytes were to come.
    Bytes,
    /// Some of it: each name and each page of 4 KiB by the toss of a coin.
    Some(u64),
}

#[derive(Debug, Default)]
struct State {
    /// The folder above the data directory, and how the latter is called in it.
    above: PathBuf,
    /// The first is that folder.
    nodes: Vec<Node>,
    operations: usize,
    /// The power goes before the operation of this number.
    cut_at: Option<usize>,
}

#[derive(Debug)]
enum Node {
    File { written: Vec<u8>, synced: Vec<u8> },
    Folder { now: Names, synced: Names },
}

type Names = BTreeMap<OsString, usize>;

const PAGE: usize = 4096;

/// A coin that falls the same way each time that the same seed is used.
struct Coin(u64);

// === impl SimulatedDisk ===

impl SimulatedDisk {
    /// Begins to follow a data directory. What is there already is durable.
    pub(crate) fn mount(&self, root: &Path) {
        let mut state = self.0.lock();
        let above = root.parent().unwrap();
        if state.above == above {
            return;
        }
        assert!(state.nodes.is_empty(), "one data directory a disk");
        above.clone_into(&mut state.above);
        state.nodes.push(Node::Folder { now: Names::new(), synced: Names::new() });
        state.adopt(0, root);
    }

    /// From now on, the power goes before the `n`-th operation.
    pub(crate) fn cut_at(&self, n: usize) {
        let mut state = self.0.lock();
        state.cut_at = Some(state.operations + n);
    }

    /// The power goes now.
    pub(crate) fn cut(&self) {
        self.cut_at(0);
    }

    /// Whether the power has gone and an operation failed for that.
    pub(crate) fn is_cut(&self) -> bool {
        let state = self.0.lock();
        state.cut_at.is_some_and(|at| state.operations > at)
    }

    /// How many operations there were.
    pub(crate) fn operations(&self) -> usize {
        self.0.lock().operations
    }

    /// Replaces what is in the data directory by what a power cut leaves of it, and has the power return. Nobody may be
    /// using the directory.
    pub(crate) fn restore(&self, root: &Path, loss: Loss) {
        let mut state = self.0.lock();
        let _ = std::fs::remove_dir_all(root);
        let mut coin = Coin(if let Loss::Some(seed) = loss { seed } else { 0 });
        if let Some(node) = state.find(root) {
            state.write_out(node, root, loss, &mut coin);
        }
        state.cut_at = None;
        state.nodes.clear();
        state.nodes.push(Node::Folder { now: Names::new(), synced: Names::new() });
        if root.exists() {
            state.adopt(0, root);
        }
    }
}

impl Faults for SimulatedDisk {
    fn before(&self, _: Op, _: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.operations += 1;
        if state.cut_at.is_some_and(|at| state.operations > at) {
            return Err(Errno::IO.into());
        }
        Ok(())
    }

    fn changing(&self, change: &Change<'_>) {
        // What the operating system will refuse changes nothing here either.
        let _ = self.0.lock().apply(change);
    }
}

// === impl State ===

impl State {
    /// Takes in what lies at `path` as a name of `folder`.
    fn adopt(&mut self, folder: usize, path: &Path) {
        if path.is_dir() {
            let node = self.add(Node::Folder { now: Names::new(), synced: Names::new() });
            for entry in std::fs::read_dir(path).unwrap() {
                self.adopt(node, &entry.unwrap().path());
            }
            self.name(folder, path, node);
        } else if let Ok(bytes) = std::fs::read(path) {
            let node = self.add(Node::File { written: bytes.clone(), synced: bytes });
            self.name(folder, path, node);
        }
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Gives a node its name for ever.
    fn name(&mut self, folder: usize, path: &Path, node: usize) {
        let Node::Folder { now, synced } = &mut self.nodes[folder] else { panic!("{} is in a file", path.display()) };
        for names in [now, synced] {
            names.insert(path.file_name().unwrap().to_owned(), node);
        }
    }

    fn find(&self, path: &Path) -> Option<usize> {
        let mut at = 0;
        for name in path.strip_prefix(&self.above).ok()? {
            let Node::Folder { now, .. } = &self.nodes[at] else { return None };
            at = *now.get(name)?;
        }
        Some(at)
    }

    /// The names in the folder that `path` is in, and its own.
    fn names(&mut self, path: &Path) -> Option<(&mut Names, OsString)> {
        let at = self.find(path.parent()?)?;
        match &mut self.nodes[at] {
            Node::Folder { now, .. } => Some((now, path.file_name()?.to_owned())),
            Node::File { .. } => None,
        }
    }

    fn file(&mut self, path: &Path) -> Option<(&mut Vec<u8>, &mut Vec<u8>)> {
        let at = self.find(path)?;
        match &mut self.nodes[at] {
            Node::File { written, synced } => Some((written, synced)),
            Node::Folder { .. } => None,
        }
    }

    fn apply(&mut self, change: &Change<'_>) -> Option<()> {
        match *change {
            Change::CreateFolder { path } | Change::Create { path } => {
                let is_folder = matches!(change, Change::CreateFolder { .. });
                let node = self.nodes.len();
                let (names, name) = self.names(path)?;
                if names.contains_key(&name) {
                    return None;
                }
                names.insert(name, node);
                self.add(if is_folder {
                    Node::Folder { now: Names::new(), synced: Names::new() }
                } else {
                    Node::File { written: Vec::new(), synced: Vec::new() }
                });
            }
            Change::RemoveFolder { path } => {
                let at = self.find(path)?;
                if matches!(&self.nodes[at], Node::Folder { now, .. } if now.is_empty()) {
                    let (names, name) = self.names(path)?;
                    names.remove(&name);
                }
            }
            Change::Resize { path, size_bytes } => {
                self.file(path)?.0.resize(usize::try_from(size_bytes).unwrap(), 0);
            }
            Change::Write { path, offset, chunks } => {
                let written = self.file(path)?.0;
                let mut at = usize::try_from(offset).unwrap();
                for chunk in chunks {
                    let end = at + chunk.len();
                    written.resize(written.len().max(end), 0);
                    written[at..end].copy_from_slice(chunk);
                    at = end;
                }
            }
            Change::Rename { from, to } => {
                let node = self.find(from)?;
                self.find(to.parent()?)?;
                let (names, name) = self.names(from)?;
                names.remove(&name);
                let (names, name) = self.names(to)?;
                names.insert(name, node);
            }
            Change::Remove { path } => {
                self.file(path)?;
                let (names, name) = self.names(path)?;
                names.remove(&name);
            }
            Change::Sync { path } => {
                let (written, synced) = self.file(path)?;
                synced.clone_from(written);
            }
            Change::SyncFolder { path } => {
                let at = self.find(path)?;
                if let Node::Folder { now, synced } = &mut self.nodes[at] {
                    synced.clone_from(now);
                }
            }
        }
        Some(())
    }

    fn write_out(&self, node: usize, path: &Path, loss: Loss, coin: &mut Coin) {
        match &self.nodes[node] {
            Node::File { written, synced } => std::fs::write(path, survivors(written, synced, loss, coin)).unwrap(),
            Node::Folder { now, synced } => {
                std::fs::create_dir(path).unwrap();
                for name in now.keys().chain(synced.keys()).collect::<BTreeSet<_>>() {
                    let keeps_new = match loss {
                        Loss::Everything => false,
                        Loss::Bytes => true,
                        Loss::Some(_) => coin.toss(),
                    };
                    if let Some(node) = if keeps_new { now } else { synced }.get(name) {
                        self.write_out(*node, &path.join(name), loss, coin);
                    }
                }
            }
        }
    }
}

/// What is left of a file.
fn survivors(written: &[u8], synced: &[u8], loss: Loss, coin: &mut Coin) -> Vec<u8> {
    let mut left = synced.to_vec();
    match loss {
        Loss::Everything => {}
        Loss::Bytes => left.resize(written.len(), 0),
        Loss::Some(_) => {
            if coin.toss() {
                left.resize(written.len(), 0);
            }
            let end = left.len().min(written.len());
            for at in (0..end).step_by(PAGE) {
                if coin.toss() {
                    let page = at..end.min(at + PAGE);
                    left[page.clone()].copy_from_slice(&written[page]);
                }
            }
        }
    }
    left
}

// === impl Coin ===

impl Coin {
    /// The mixer of `SplitMix64`.
    fn toss(&mut self) -> bool {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) & 1 == 1
    }
}
