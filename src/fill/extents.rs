//! Which bytes of a partial file are present: disjoint extents, exact to the byte. Pure.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of bytes, kept as extents that neither overlap nor touch.
///
/// Exact to the byte rather than a bitmap of blocks, because readers are given what has arrived of a block; requests for
/// single ranges are aligned to blocks, which bounds how many extents a blob can have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Extents {
    runs: BTreeMap<u64, u64>,
    total: u64,
}

// === impl Extents ===

impl Extents {
    /// Adds bytes, some of which may be there already.
    pub(super) fn insert(&mut self, added: Range<u64>) {
        if added.is_empty() {
            return;
        }
        let Range { mut start, mut end } = added;
        // Whatever touches the new bytes becomes one extent with them.
        while let Some((&first, &last)) = self.runs.range(..=end).next_back()
            && last >= start
        {
            start = start.min(first);
            end = end.max(last);
            self.runs.remove(&first);
            self.total -= last - first;
        }
        self.runs.insert(start, end);
        self.total += end - start;
    }

    /// Where the bytes that are present from `offset` on end; `offset` itself if it is absent.
    pub(super) fn end_of(&self, offset: u64) -> u64 {
        match self.runs.range(..=offset).next_back() {
            Some((_, &end)) if end > offset => end,
            _ => offset,
        }
    }

    /// The first absent bytes at `offset` or later, up to where bytes are present again or `limit`. `None` if all up to
    /// there are present.
    pub(super) fn gap(&self, offset: u64, limit: u64) -> Option<Range<u64>> {
        let start = self.end_of(offset);
        let end = self.runs.range(start..).next().map_or(limit, |(&next, _)| next.min(limit));
        (start < end).then_some(start..end)
    }

    /// What there is from `from` on, in order.
    pub(super) fn runs_from(&self, from: u64) -> Vec<Range<u64>> {
        let first = self.end_of(from);
        let head = (first > from).then_some(from..first);
        head.into_iter().chain(self.runs.range(first..).map(|(&start, &end)| start..end)).collect()
    }

    /// How many bytes there are.
    pub(super) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn extents_that_touch_become_one() {
        let mut extents = Extents::default();
        extents.insert(10..20);
        extents.insert(30..40);
        extents.insert(5..5);
        assert_eq!((extents.end_of(0), extents.end_of(10), extents.end_of(19), extents.end_of(20)), (0, 20, 20, 20));
        assert_eq!(extents.gap(0, 100), Some(0..10));
        assert_eq!(extents.gap(10, 100), Some(20..30));
        assert_eq!(extents.gap(35, 40), None);
        extents.insert(20..30);
        assert_eq!(extents.end_of(10), 40);
        assert_eq!(extents.runs.len(), 1);
    }

    proptest! {
        #[test]
        fn extents_agree_with_a_set_of_bytes(ranges in prop::collection::vec((0_u64..200, 0_u64..40), 0..40)) {
            let mut extents = Extents::default();
            let mut naive = [false; 300];
            for (start, len) in ranges {
                extents.insert(start..start + len);
                for at in start..start + len {
                    naive[usize::try_from(at).unwrap()] = true;
                }
                prop_assert_eq!(extents.total(), naive.iter().filter(|there| **there).count() as u64);
                for from in [0, start, start + len / 2] {
                    let runs = extents.runs_from(from);
                    let told: Vec<u64> = runs.iter().cloned().flatten().collect();
                    let there = (from..300).filter(|at| naive[usize::try_from(*at).unwrap()]);
                    prop_assert_eq!(told, there.collect::<Vec<_>>());
                    prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
                }
                for offset in 0..300_u64 {
                    let from = usize::try_from(offset).unwrap();
                    let end = (from..300).find(|at| !naive[*at]).unwrap_or(300) as u64;
                    prop_assert_eq!(extents.end_of(offset), end);
                    let gap_end = (usize::try_from(end).unwrap()..300).find(|at| naive[*at]).unwrap_or(300) as u64;
                    prop_assert_eq!(extents.gap(offset, 300), (end < 300).then_some(end..gap_end));
                }
            }
        }
    }
}
