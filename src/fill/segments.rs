//! What to ask upstream for next: which bytes are present, which are on their way, which come first. Pure.

use std::ops::Range;

use super::extents::Extents;

/// The plan of one fill: every byte of the blob is present, claimed by one connection, or missing.
///
/// Invariant: claims don't overlap each other, and what a claim has left to bring is not present.
#[derive(Debug)]
pub(super) struct Segments {
    size_bytes: u64,
    segment_bytes: u64,
    window_bytes: u64,
    present: Extents,
    claims: Vec<Claim>,
    next_id: u64,
}

/// A segment that one connection brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    id: u64,
    /// What is still missing of it.
    pub(super) rest: Range<u64>,
}

// === impl Segments ===

impl Segments {
    /// Nothing is there yet. Segments have `segment_bytes` and are taken from at most `window_bytes` ahead of where they
    /// are needed, so that readers who read in order get the whole speed.
    pub(super) fn new(size_bytes: u64, segment_bytes: u64, window_bytes: u64) -> Self {
        Self {
            size_bytes,
            segment_bytes: segment_bytes.max(1),
            window_bytes: window_bytes.max(segment_bytes),
            present: Extents::default(),
            claims: Vec::new(),
            next_id: 0,
        }
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Up to here, everything from the start is present.
    pub(super) fn frontier(&self) -> u64 {
        self.present.end_of(0)
    }

    /// How many bytes are present.
    pub(super) fn present_bytes(&self) -> u64 {
        self.present.total()
    }

    /// Where the bytes that are present from `offset` on end.
    pub(super) fn end_of(&self, offset: u64) -> u64 {
        self.present.end_of(offset)
    }

    /// Whether a connection is bringing anything.
    pub(super) fn has_claims(&self) -> bool {
        self.claims.iter().any(|claim| !claim.rest.is_empty())
    }

    /// Whether all bytes are present.
    #[cfg(test)]
    pub(super) fn is_complete(&self) -> bool {
        self.frontier() >= self.size_bytes
    }

    /// The next segment to ask for, if any is needed now: what readers wait for (`wanted`), then what they will want next,
    /// then what lies just ahead of the frontier.
    pub(super) fn claim(&mut self, wanted: &[u64]) -> Option<Claim> {
        // Each reader's own segment comes before anyone's window, or one who reads in order would starve the others.
        let awaited = wanted.iter().find_map(|base| {
            let gap = self.unclaimed(*base, self.segment_end(*base))?;
            (gap.start == *base).then_some(gap)
        });
        let ahead = || {
            wanted.iter().copied().chain([self.frontier()]).find_map(|base| {
                // Up to where a segment ends: a frontier that creeps must not make for a request at each step.
                let limit = self.segment_end(base.saturating_add(self.window_bytes).saturating_sub(1));
                self.unclaimed(base, limit)
            })
        };
        let gap = awaited.or_else(ahead)?;
        let end = gap.end.min(self.segment_end(gap.start));
        Some(self.enter(gap.start..end))
    }

    /// Claims the next segment of the `blocks` around some bytes, if anything of those bytes is neither there nor on its way.
    pub(super) fn claim_wanted(&mut self, wanted: Range<u64>, blocks: Range<u64>) -> Option<Claim> {
        self.unclaimed(wanted.start, wanted.end.min(self.size_bytes))?;
        let gap = self.unclaimed(blocks.start, blocks.end.min(self.size_bytes))?;
        let end = gap.end.min(gap.start.saturating_add(self.segment_bytes));
        Some(self.enter(gap.start..end))
    }

    /// Whether all of some bytes are present.
    pub(super) fn has(&self, bytes: Range<u64>) -> bool {
        self.present.gap(bytes.start, bytes.end.min(self.size_bytes)).is_none()
    }

    /// What is present from `from` on, in order.
    pub(super) fn present_from(&self, from: u64) -> Vec<Range<u64>> {
        self.present.runs_from(from)
    }

    /// Claims the first bytes within `bytes` that are neither present nor claimed. From then on nobody else brings them.
    pub(super) fn claim_missing_in(&mut self, bytes: Range<u64>) -> Option<Claim> {
        let missing = self.unclaimed(bytes.start, bytes.end.min(self.size_bytes))?;
        Some(self.enter(missing))
    }

    fn enter(&mut self, rest: Range<u64>) -> Claim {
        let claim = Claim { id: self.next_id, rest };
        self.next_id += 1;
        self.claims.push(claim.clone());
        claim
    }

    /// The next bytes of a claim have arrived.
    pub(super) fn received(&mut self, claim: &mut Claim, len: u64) {
        let at = claim.rest.start;
        claim.rest.start = (at + len).min(claim.rest.end);
        self.present.insert(at..claim.rest.start);
        if let Some(ours) = self.claims.iter_mut().find(|ours| ours.id == claim.id) {
            ours.rest.start = claim.rest.start;
        }
    }

    /// A claim is done or given up: what it did not bring is missing again.
    pub(super) fn release(&mut self, claim: &Claim) {
        self.claims.retain(|ours| ours.id != claim.id);
    }

    /// The first bytes from `from` to `limit` that are neither present nor claimed.
    fn unclaimed(&self, mut from: u64, limit: u64) -> Option<Range<u64>> {
        loop {
            let gap = self.present.gap(from, limit)?;
            let claimed = self.claims.iter().filter(|claim| claim.rest.start < gap.end && claim.rest.end > gap.start);
            match claimed.map(|claim| &claim.rest).min_by_key(|rest| rest.start) {
                None => return Some(gap),
                Some(rest) if rest.start > gap.start => return Some(gap.start..rest.start),
                Some(rest) => from = rest.end,
            }
            if from >= limit {
                return None;
            }
        }
    }

    /// Where the segment that holds a byte ends.
    fn segment_end(&self, offset: u64) -> u64 {
        (offset / self.segment_bytes + 1).saturating_mul(self.segment_bytes).min(self.size_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn segments_are_taken_in_order_within_the_window() {
        let mut segments = Segments::new(100, 10, 40);
        let mut claims: Vec<_> = (0..4).map(|_| segments.claim(&[]).unwrap()).collect();
        assert_eq!(claims.iter().map(|claim| claim.rest.clone()).collect::<Vec<_>>(), [0..10, 10..20, 20..30, 30..40]);
        assert_eq!(segments.claim(&[]), None, "the window is full");
        segments.received(&mut claims[1], 10);
        segments.release(&claims[1]);
        assert_eq!((segments.frontier(), segments.end_of(10)), (0, 20));
        assert_eq!(segments.claim(&[]), None, "the frontier has not moved");
        segments.received(&mut claims[0], 4);
        assert_eq!(segments.frontier(), 4);
        assert_eq!(segments.claim(&[]).unwrap().rest, 40..50, "to the end of a segment");
        segments.received(&mut claims[0], 6);
        assert_eq!(segments.frontier(), 20);
    }

    #[test]
    fn what_readers_wait_for_comes_first_and_what_was_given_up_comes_again() {
        let mut segments = Segments::new(1000, 10, 40);
        assert_eq!(segments.claim(&[505, 700]).unwrap().rest, 505..510);
        assert_eq!(segments.claim(&[505, 700]).unwrap().rest, 700..710, "nobody starves");
        assert_eq!(segments.claim(&[505, 700]).unwrap().rest, 510..520);
        let mut first = segments.claim(&[]).unwrap();
        assert_eq!(first.rest, 0..10);
        segments.received(&mut first, 3);
        segments.release(&first);
        assert_eq!(segments.claim(&[]).unwrap().rest, 3..10);
        assert_eq!(segments.claim(&[700]).unwrap().rest, 710..720);
        assert_eq!(segments.claim_missing_in(705..725).unwrap().rest, 720..725);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Claim(Vec<u64>),
        Receive(usize, u64),
        Release(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            prop::collection::vec(0_u64..300, 0..3).prop_map(Step::Claim),
            (0_usize..8, 1_u64..30).prop_map(|(which, len)| Step::Receive(which, len)),
            (0_usize..8).prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn no_byte_is_claimed_twice_or_fetched_again_and_all_come_in_the_end(
            size in 1_u64..300,
            segment in 1_u64..50,
            window in 1_u64..120,
            steps in prop::collection::vec(step(), 0..200),
        ) {
            let mut segments = Segments::new(size, segment, window);
            let mut claims: Vec<Claim> = Vec::new();
            let mut arrived = vec![false; usize::try_from(size).unwrap()];
            let mut receive = |segments: &mut Segments, claim: &mut Claim, len: u64| {
                let before = claim.rest.clone();
                segments.received(claim, len);
                for at in before.start..claim.rest.start {
                    let at = usize::try_from(at).unwrap();
                    assert!(!arrived[at], "fetched twice");
                    arrived[at] = true;
                }
            };
            for step in steps {
                match step {
                    Step::Claim(wanted) => {
                        if let Some(claim) = segments.claim(&wanted) {
                            prop_assert!(!claim.rest.is_empty() && claim.rest.end <= size);
                            for other in &claims {
                                prop_assert!(other.rest.end <= claim.rest.start || claim.rest.end <= other.rest.start || other.rest.is_empty());
                            }
                            claims.push(claim);
                        }
                    }
                    Step::Receive(which, len) => {
                        let count = claims.len();
                        if let Some(claim) = claims.get_mut(which % count.max(1)) {
                            receive(&mut segments, claim, len);
                        }
                    }
                    Step::Release(which) => {
                        if !claims.is_empty() {
                            let claim = claims.remove(which % claims.len());
                            segments.release(&claim);
                        }
                    }
                }
            }
            for claim in claims.drain(..) {
                segments.release(&claim);
            }
            while !segments.is_complete() {
                let mut claim = segments.claim(&[]).expect("what is missing can be claimed");
                let rest = claim.rest.end - claim.rest.start;
                receive(&mut segments, &mut claim, rest);
                segments.release(&claim);
            }
            prop_assert!(arrived.iter().all(|there| *there));
            prop_assert_eq!(segments.claim(&[0, size / 2]), None);
        }
    }
}
