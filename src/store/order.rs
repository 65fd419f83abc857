//! Who goes first: stamps raised along the lines from parents to children, then the oldest, leaves before parents. Pure.
//!
//! Nodes never ask again for layers that they hold, yet those base layers are what the next new node needs: so each
//! child counts as read when its newest parent was. And a manifest never goes before its last blob, or nobody could find
//! that one. The first raise is kept (and written to disk by the sweep). The second is only for the order: were it
//! kept, a shared base layer would keep its old manifests young, these would keep their other layers young, and
//! nothing would ever get old.

use std::collections::HashMap;
use std::sync::Arc;

use crate::oci::Digest;

/// A blob that could go, with its stamp when the order was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) digest: Digest,
    pub(super) stamp: u64,
}

/// A manifest or index, and what it lists.
pub(super) type Parent = (Digest, Arc<[Digest]>);

/// All candidates, first to go first, and the stamps that were raised.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// With their raised stamps.
    pub(super) candidates: Vec<Candidate>,
    pub(super) raised: Vec<(Digest, u64)>,
}

/// Index, manifest, layer: deeper nesting gets one level per pass, and no more than this.
const DEPTH_MAX: usize = 4;

/// Orders `candidates`. Parents and children that are no candidates don't count.
pub(super) fn order(mut candidates: Vec<Candidate>, parents: &[Parent]) -> Order {
    let places: HashMap<Digest, usize> = candidates.iter().enumerate().map(|(at, c)| (c.digest, at)).collect();
    let place = |digest: &Digest| places.get(digest).copied();
    let lines: Vec<(usize, Vec<usize>)> = parents
        .iter()
        .filter_map(|(parent, children)| {
            let parent = place(parent)?;
            let children = children.iter().filter_map(place).filter(|child| *child != parent).collect();
            Some((parent, children))
        })
        .collect();

    let mut stamps: Vec<u64> = candidates.iter().map(|candidate| candidate.stamp).collect();
    for _ in 0..DEPTH_MAX {
        let mut changed = false;
        for (parent, children) in &lines {
            let newest = stamps[*parent];
            for child in children.iter().filter(|child| stamps[**child] < newest).copied().collect::<Vec<_>>() {
                stamps[child] = newest;
                changed = true;
            }
        }
        if !changed {
            break;
        }
    }
    let mut raised = Vec::new();
    for (candidate, stamp) in candidates.iter_mut().zip(&stamps) {
        if candidate.stamp < *stamp {
            candidate.stamp = *stamp;
            raised.push((candidate.digest, *stamp));
        }
    }

    let ranks = ranks(&lines, &mut stamps);
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_unstable_by_key(|at| (stamps[*at], ranks[*at], candidates[*at].digest));
    Order { candidates: order.into_iter().map(|at| candidates[at]).collect(), raised }
}

/// Raises each parent to its newest child, and says how far above the leaves each one stands.
fn ranks(lines: &[(usize, Vec<usize>)], stamps: &mut [u64]) -> Vec<usize> {
    let mut ranks = vec![0; stamps.len()];
    for _ in 0..DEPTH_MAX {
        let mut changed = false;
        for (parent, children) in lines {
            let newest = children.iter().map(|child| stamps[*child]).max().unwrap_or(0).max(stamps[*parent]);
            let above = 1 + children.iter().map(|child| ranks[*child]).max().unwrap_or(0);
            changed |= (stamps[*parent], ranks[*parent]) != (newest, above);
            (stamps[*parent], ranks[*parent]) = (newest, above);
        }
        if !changed {
            break;
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::sha256(name.as_bytes())
    }

    fn candidates(stamps: &[(&str, u64)]) -> Vec<Candidate> {
        stamps.iter().map(|(name, stamp)| Candidate { digest: digest(name), stamp: *stamp }).collect()
    }

    fn parent(name: &str, children: &[&str]) -> Parent {
        (digest(name), children.iter().map(|child| digest(child)).collect())
    }

    fn names(order: &Order, all: &[&'static str]) -> Vec<&'static str> {
        let name = |d: &Digest| *all.iter().find(|name| digest(name) == *d).unwrap();
        order.candidates.iter().map(|candidate| name(&candidate.digest)).collect()
    }

    #[test]
    fn a_layer_counts_as_read_when_its_newest_manifest_was() {
        let all = ["base", "other", "image"];
        let held = candidates(&[("base", 1), ("other", 5), ("image", 9)]);
        let order = order(held, &[parent("image", &["base", "absent"])]);
        assert_eq!(names(&order, &all), ["other", "base", "image"]);
        assert_eq!(order.raised, [(digest("base"), 9)]);
    }

    #[test]
    fn a_manifest_stays_until_its_last_blob_has_gone() {
        let all = ["layer", "image", "other"];
        let order = order(candidates(&[("layer", 9), ("image", 1), ("other", 5)]), &[parent("image", &["layer"])]);
        assert_eq!(names(&order, &all), ["other", "layer", "image"]);
        assert!(order.raised.is_empty(), "the raise of a manifest is only for the order");
    }

    #[test]
    fn a_shared_base_layer_keeps_no_other_layers_young() {
        let all = ["base", "old layer", "old", "new layer", "new"];
        let held = candidates(&[("base", 1), ("old layer", 1), ("old", 1), ("new layer", 9), ("new", 9)]);
        let parents = [parent("old", &["base", "old layer"]), parent("new", &["base", "new layer"])];
        let order = order(held, &parents);
        assert_eq!(names(&order, &all)[0], "old layer");
        assert_eq!(order.raised, [(digest("base"), 9)]);
    }

    #[test]
    fn raises_reach_from_an_index_to_the_layers_in_any_order_of_lines() {
        let held = candidates(&[("layer", 1), ("image", 2), ("index", 7), ("other", 3)]);
        let parents = [parent("image", &["layer"]), parent("index", &["image"])];
        let order = order(held, &parents);
        assert_eq!(names(&order, &["layer", "image", "index", "other"]), ["other", "layer", "image", "index"]);
    }

    #[test]
    fn a_circle_in_broken_records_ends() {
        let parents = [parent("a", &["b", "a"]), parent("b", &["a"])];
        assert_eq!(order(candidates(&[("a", 1), ("b", 2)]), &parents).candidates.len(), 2);
    }
}
