//! How much room the store may take and must leave: the settings, and what they come to on a given file system. Pure.

use std::fmt;
use std::str::FromStr;

use super::values;

/// How much the store may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// So many bytes.
    Bytes(u64),
    /// That share of the file system, 1 to 100.
    Percent(u8),
    /// What [`resolve`] finds fitting.
    Default,
}

/// How much of the file system no write of ours may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinFree {
    /// So many bytes, and the same share of the inodes.
    Bytes(u64),
    /// That share of its bytes and of its inodes, 0 to 99.
    Percent(u8),
}

/// What is known about the file system that holds the store, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystemFacts {
    /// Its size.
    pub total_bytes: u64,
    /// What an unprivileged process could still write.
    pub free_bytes: u64,
    /// What the store holds there already.
    pub held_bytes: u64,
    /// Whether the store's folder is a mount of its own, so that nothing else lives there.
    pub own_mount: bool,
}

/// What must stay free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Floor {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The most that the default takes of a file system that is not the store's alone.
const DEFAULT_BYTES_MAX: u64 = 50 << 30;

/// The capacity in bytes. By default 90 % of the file system if that is the store's own, else the smaller of 50 GiB and
/// half of what the store has and could have.
pub fn resolve(capacity: Capacity, facts: FileSystemFacts) -> u64 {
    match capacity {
        Capacity::Bytes(bytes) => bytes,
        Capacity::Percent(share) => share_of(facts.total_bytes, u64::from(share), 100),
        Capacity::Default if facts.own_mount => share_of(facts.total_bytes, 90, 100),
        Capacity::Default => DEFAULT_BYTES_MAX.min(facts.free_bytes.saturating_add(facts.held_bytes) / 2),
    }
}

/// The most that the store could ever hold there, if that is less than its capacity.
pub fn shortfall(capacity_bytes: u64, facts: FileSystemFacts) -> Option<u64> {
    let possible_bytes = facts.total_bytes.min(facts.free_bytes.saturating_add(facts.held_bytes));
    (capacity_bytes > possible_bytes).then_some(possible_bytes)
}

/// `whole × part / of`, rounded down, without overflow on the way.
fn share_of(whole: u64, part: u64, of: u64) -> u64 {
    let share = u128::from(whole) * u128::from(part) / u128::from(of.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

// === impl Capacity ===

impl FromStr for Capacity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(share) = values::percent(text, &(1..=100)) {
            return share.map(Self::Percent);
        }
        match values::bytes(text) {
            Ok(0) => Err("a capacity of nothing: a mirror needs room for the images it serves".to_owned()),
            Ok(bytes) => Ok(Self::Bytes(bytes)),
            Err(problem) => Err(format!("{problem}, or a share such as \"80%\"")),
        }
    }
}

// === impl MinFree ===

impl MinFree {
    /// What it comes to on a file system of that size. Some file systems count no inodes (`total_inodes` is 0); then
    /// none are asked for.
    pub fn resolve(self, total_bytes: u64, total_inodes: u64) -> Floor {
        match self {
            Self::Percent(share) => Floor {
                bytes: share_of(total_bytes, u64::from(share), 100),
                inodes: share_of(total_inodes, u64::from(share), 100),
            },
            Self::Bytes(bytes) => {
                let inodes = share_of(total_inodes, bytes.min(total_bytes), total_bytes);
                Floor { bytes, inodes }
            }
        }
    }
}

impl FromStr for MinFree {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match values::percent(text, &(0..=99)) {
            Some(share) => share.map(Self::Percent),
            None => {
                values::bytes(text).map(Self::Bytes).map_err(|problem| format!("{problem}, or a share such as \"5%\""))
            }
        }
    }
}

impl fmt::Display for MinFree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&values::bytes_text(*bytes)),
            Self::Percent(share) => write!(f, "{share}%"),
        }
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => f.write_str(&values::bytes_text(*bytes)),
            Self::Percent(share) => write!(f, "{share}%"),
            Self::Default => f.write_str("default"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn facts(total_gib: u64, free_gib: u64, held_gib: u64, own_mount: bool) -> FileSystemFacts {
        FileSystemFacts {
            total_bytes: total_gib * GIB,
            free_bytes: free_gib * GIB,
            held_bytes: held_gib * GIB,
            own_mount,
        }
    }

    #[test]
    fn the_default_takes_most_of_its_own_mount_and_little_of_a_shared_one() {
        assert_eq!(resolve(Capacity::Default, facts(1000, 5, 900, true)), 900 * GIB);
        assert_eq!(resolve(Capacity::Default, facts(1000, 500, 0, false)), 50 * GIB);
        assert_eq!(resolve(Capacity::Default, facts(100, 40, 0, false)), 20 * GIB);
        // What the store holds counts as its own, so a restart finds the same capacity again.
        assert_eq!(resolve(Capacity::Default, facts(100, 20, 20, false)), 20 * GIB);
        assert_eq!(resolve(Capacity::Default, facts(100, 0, 0, false)), 0);
    }

    #[test]
    fn what_was_asked_for_is_what_is_had() {
        assert_eq!(resolve(Capacity::Bytes(7), facts(1, 0, 0, true)), 7);
        assert_eq!(resolve(Capacity::Percent(80), facts(100, 1, 0, false)), 80 * GIB);
        let huge = FileSystemFacts { total_bytes: u64::MAX, free_bytes: u64::MAX, held_bytes: 1, own_mount: false };
        assert_eq!(resolve(Capacity::Percent(100), huge), u64::MAX);
        assert_eq!(resolve(Capacity::Default, huge), 50 * GIB);
    }

    #[test]
    fn a_capacity_that_the_file_system_can_not_give_is_told() {
        assert_eq!(shortfall(60 * GIB, facts(100, 40, 20, false)), None);
        assert_eq!(shortfall(61 * GIB, facts(100, 40, 20, false)), Some(60 * GIB));
        assert_eq!(shortfall(200 * GIB, facts(100, 90, 20, true)), Some(100 * GIB));
        assert_eq!(shortfall(7, FileSystemFacts { free_bytes: u64::MAX, ..facts(1, 0, 1, true) }), None);
    }

    #[test]
    fn the_floor_counts_bytes_and_inodes() {
        assert_eq!(MinFree::Percent(5).resolve(1000, 200), Floor { bytes: 50, inodes: 10 });
        assert_eq!(MinFree::Bytes(100).resolve(1000, 200), Floor { bytes: 100, inodes: 20 });
        assert_eq!(MinFree::Bytes(0).resolve(1000, 200), Floor { bytes: 0, inodes: 0 });
        assert_eq!(MinFree::Bytes(9).resolve(0, 0), Floor { bytes: 9, inodes: 0 });
        assert_eq!(MinFree::Bytes(5000).resolve(1000, 200), Floor { bytes: 5000, inodes: 200 });
    }

    #[test]
    fn capacities_are_read_and_written_alike() {
        for text in ["50GiB", "80%", "12345B"] {
            assert_eq!(text.parse::<Capacity>().unwrap().to_string(), text);
        }
        for text in ["0B", "0%", "5%", "1GiB"] {
            assert_eq!(text.parse::<MinFree>().unwrap().to_string(), text);
        }
        for bad in ["0B", "0%", "101%", "50", "much"] {
            assert!(bad.parse::<Capacity>().is_err(), "{bad}");
        }
    }
}
