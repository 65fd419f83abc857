//! Decisions: which upstream, hit, join, miss, stale, revalidate or pass through.
