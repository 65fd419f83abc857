//! bbolt databases, read: as much as it takes to walk through the buckets of containerd's metadata. Pure.

/// A bucket of a database that is all in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket<'a> {
    database: Database<'a>,
    page: Page<'a>,
}

/// What is under a key.
#[derive(Clone, Copy, Debug)]
pub(super) enum Item<'a> {
    Value(&'a [u8]),
    Bucket(Bucket<'a>),
}

#[derive(Clone, Copy, Debug)]
struct Database<'a> {
    bytes: &'a [u8],
    page_bytes: usize,
}

/// The bytes of a page, from its header on.
#[derive(Clone, Copy, Debug)]
struct Page<'a>(&'a [u8]);

const MAGIC: u32 = 0xed0c_daed;
const VERSION: u32 = 2;

const HEADER_BYTES: usize = 16;
const ELEMENT_BYTES: usize = 16;
/// The description of a database behind its page's header, and where in it its checksum is.
const META_BYTES: usize = 64;
const CHECKSUM_AT: usize = 56;

const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const BUCKET: u32 = 1;

/// Trees of pages are this deep at most, which is far deeper than any.
const DEPTH_MAX: usize = 32;

/// So many items are read of a bucket at most.
const ITEMS_MAX: usize = 200_000;

// === impl Bucket ===

impl<'a> Bucket<'a> {
    /// The top of a database; `None` if it is none, or damaged.
    pub(super) fn top(bytes: &'a [u8]) -> Option<Self> {
        let first = meta(bytes, 0);
        // The second description is a page further on, and pages are as large as the system's were.
        let seconds = (9..=16).filter_map(|shift| meta(bytes, 1 << shift));
        let newest = first.into_iter().chain(seconds).max_by_key(|meta| meta.transaction)?;
        let database = Database { bytes, page_bytes: newest.page_bytes };
        Some(Self { database, page: database.page(newest.root)? })
    }

    /// The bucket of this name.
    pub(super) fn bucket(&self, name: &str) -> Option<Self> {
        self.items()?.into_iter().find_map(|(key, item)| match item {
            Item::Bucket(bucket) if key == name.as_bytes() => Some(bucket),
            Item::Bucket(_) | Item::Value(_) => None,
        })
    }

    /// The value of this name.
    pub(super) fn value(&self, name: &str) -> Option<&'a [u8]> {
        self.items()?.into_iter().find_map(|(key, item)| match item {
            Item::Value(value) if key == name.as_bytes() => Some(value),
            Item::Bucket(_) | Item::Value(_) => None,
        })
    }

    /// Everything in it; `None` if it is damaged.
    pub(super) fn items(&self) -> Option<Vec<(&'a [u8], Item<'a>)>> {
        let mut items = Vec::new();
        self.collect(self.page, 0, &mut items)?;
        Some(items)
    }

    fn collect(&self, page: Page<'a>, depth: usize, items: &mut Vec<(&'a [u8], Item<'a>)>) -> Option<()> {
        if depth > DEPTH_MAX || items.len() > ITEMS_MAX {
            return None;
        }
        for at in 0..usize::from(page.count()?) {
            match page.flags()? {
                LEAF => {
                    let (is_bucket, key, value) = page.leaf(at)?;
                    items.push((key, if is_bucket { Item::Bucket(self.inner(value)?) } else { Item::Value(value) }));
                }
                BRANCH => self.collect(self.database.page(page.child(at)?)?, depth + 1, items)?,
                _ => return None,
            }
        }
        Some(())
    }

    /// A bucket in a bucket: on a page of its own, or, if it is small, in its value.
    fn inner(&self, value: &'a [u8]) -> Option<Self> {
        let page = match u64_at(value, 0)? {
            0 => Page(value.get(16..)?),
            root => self.database.page(root)?,
        };
        Some(Self { page, ..*self })
    }
}

// === impl Database ===

impl<'a> Database<'a> {
    fn page(&self, number: u64) -> Option<Page<'a>> {
        let start = usize::try_from(number).ok()?.checked_mul(self.page_bytes)?;
        // One that goes on over the next pages has all its elements in reach.
        self.bytes.get(start..).map(Page)
    }
}

// === impl Page ===

impl<'a> Page<'a> {
    fn flags(self) -> Option<u16> {
        u16_at(self.0, 8)
    }

    fn count(self) -> Option<u16> {
        u16_at(self.0, 10)
    }

    /// An element of a leaf: is it a bucket, its key, its value.
    fn leaf(self, at: usize) -> Option<(bool, &'a [u8], &'a [u8])> {
        let element = self.0.get(HEADER_BYTES + at * ELEMENT_BYTES..)?;
        let size = |at| usize::try_from(u32_at(element, at)?).ok();
        let (offset, key, value) = (size(4)?, size(8)?, size(12)?);
        let key_end = offset.checked_add(key)?;
        let bytes = (element.get(offset..key_end)?, element.get(key_end..key_end.checked_add(value)?)?);
        Some((u32_at(element, 0)? & BUCKET != 0, bytes.0, bytes.1))
    }

    /// The page that an element of a branch leads to.
    fn child(self, at: usize) -> Option<u64> {
        u64_at(self.0.get(HEADER_BYTES + at * ELEMENT_BYTES..)?, 8)
    }
}

/// What a database says of itself.
struct Meta {
    page_bytes: usize,
    root: u64,
    transaction: u64,
}

/// The description on the page at an offset, if there is one and it is whole.
fn meta(bytes: &[u8], page_at: usize) -> Option<Meta> {
    let meta = bytes.get(page_at + HEADER_BYTES..page_at + HEADER_BYTES + META_BYTES)?;
    let is_whole = u64_at(meta, CHECKSUM_AT)? == fnv1a(&meta[..CHECKSUM_AT]);
    let is_one = u32_at(meta, 0)? == MAGIC && u32_at(meta, 4)? == VERSION;
    let page_bytes = usize::try_from(u32_at(meta, 8)?).ok().filter(|bytes| *bytes >= 512)?;
    (is_whole && is_one).then_some(Meta { page_bytes, root: u64_at(meta, 16)?, transaction: u64_at(meta, 48)? })
}

/// The 64-bit FNV-1a hash, with which descriptions are sealed.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: usize = 512;

    fn leaf(elements: &[(bool, &[u8], Vec<u8>)]) -> Vec<u8> {
        let mut page = vec![0; HEADER_BYTES + elements.len() * ELEMENT_BYTES];
        page[8..10].copy_from_slice(&LEAF.to_le_bytes());
        page[10..12].copy_from_slice(&u16::try_from(elements.len()).unwrap().to_le_bytes());
        for (at, (is_bucket, key, value)) in elements.iter().enumerate() {
            let start = HEADER_BYTES + at * ELEMENT_BYTES;
            let sizes = [usize::from(*is_bucket), page.len() - start, key.len(), value.len()];
            for (n, size) in sizes.into_iter().enumerate() {
                page[start + n * 4..start + n * 4 + 4].copy_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
            }
            page.extend(*key);
            page.extend(value);
        }
        page
    }

    fn inline(elements: &[(bool, &[u8], Vec<u8>)]) -> Vec<u8> {
        [vec![0; 16], leaf(elements)].concat()
    }

    fn description(root: u64, transaction: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        let meta = &mut page[HEADER_BYTES..];
        meta[..4].copy_from_slice(&MAGIC.to_le_bytes());
        meta[4..8].copy_from_slice(&VERSION.to_le_bytes());
        meta[8..12].copy_from_slice(&u32::try_from(PAGE).unwrap().to_le_bytes());
        meta[16..24].copy_from_slice(&root.to_le_bytes());
        meta[48..56].copy_from_slice(&transaction.to_le_bytes());
        let sum = fnv1a(&meta[..CHECKSUM_AT]);
        meta[CHECKSUM_AT..META_BYTES].copy_from_slice(&sum.to_le_bytes());
        page
    }

    /// Two transactions, of which the newer has a branch over two leaves.
    fn database() -> Vec<u8> {
        let old = leaf(&[(false, b"old", b"1".to_vec())]);
        let inner = inline(&[(true, b"b", inline(&[(false, b"key", b"value".to_vec())]))]);
        let leaves = [leaf(&[(true, b"a", inner)]), leaf(&[(false, b"c", b"2".to_vec())])];
        let mut branch = vec![0; HEADER_BYTES + 2 * ELEMENT_BYTES];
        branch[8..10].copy_from_slice(&BRANCH.to_le_bytes());
        branch[10] = 2;
        for (at, page) in [4u64, 5].into_iter().enumerate() {
            let start = HEADER_BYTES + at * ELEMENT_BYTES + 8;
            branch[start..start + 8].copy_from_slice(&page.to_le_bytes());
        }
        let mut bytes = [description(2, 7), description(3, 8)].concat();
        for page in [old, branch].into_iter().chain(leaves) {
            bytes.extend(page);
            bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
        }
        bytes
    }

    #[test]
    fn buckets_are_found_in_the_newest_state() {
        let bytes = database();
        let top = Bucket::top(&bytes).unwrap();
        assert_eq!(top.items().unwrap().len(), 2);
        assert_eq!(top.bucket("a").unwrap().bucket("b").unwrap().value("key"), Some(&b"value"[..]));
        assert_eq!(top.value("c"), Some(&b"2"[..]));
        assert_eq!(top.value("old"), None);
        let mut torn = bytes.clone();
        torn[PAGE + HEADER_BYTES + 20] ^= 1;
        assert_eq!(Bucket::top(&torn).unwrap().value("old"), Some(&b"1"[..]), "the state before");
        assert!(Bucket::top(b"").is_none());
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in 2 * PAGE..6 * PAGE, byte in any::<u8>()) {
            let mut bytes = database();
            if let Some(damaged) = bytes.get_mut(at) {
                *damaged = byte;
            }
            if let Some(top) = Bucket::top(&bytes) {
                let _ = top.bucket("a").and_then(|bucket| bucket.bucket("b")).and_then(|bucket| bucket.value("key"));
            }
        }
    }
}
