//! What things count against the capacity (law 8). Pure.

/// The sums of all that counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) present: u64,
    pub(super) evicting: u64,
    pub(super) records: u64,
    pub(super) reserved: u64,
    pub(super) capacity: u64,
    pub(super) blobs: usize,
}

/// Blocks of the file system: what any file takes at least.
const BLOCK_BYTES: u64 = 4096;

/// What a blob of `size_bytes` counts: its blocks, and its share of folders.
pub(super) fn charge(size_bytes: u64) -> u64 {
    blocks(size_bytes).saturating_add(size_bytes / 1024).saturating_add(512)
}

/// What a partial counts of whose file `on_disk_bytes` were written: its folder and its checkpoints take their blocks too.
pub(super) fn sparse_charge(on_disk_bytes: u64) -> u64 {
    charge(on_disk_bytes).saturating_add(5 * BLOCK_BYTES)
}

/// What a record file of `size_bytes` counts.
pub(super) fn record_charge(size_bytes: u64) -> u64 {
    blocks(size_bytes).saturating_add(512)
}

fn blocks(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_things_count_a_block_and_huge_ones_do_not_overflow() {
        assert_eq!(charge(0), 512);
        assert_eq!(charge(1), 4096 + 512);
        assert_eq!(charge(4097), 8192 + 4 + 512);
        assert_eq!(record_charge(100), 4608);
        assert_eq!(charge(u64::MAX), u64::MAX);
    }
}
