//! How long a held tag may be served: pure decisions about time.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::{DeletedTags, StaleIfError};
use crate::store::TagRecord;

/// What a held tag is worth without asking upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// As good as upstream's own.
    Fresh,
    /// To be checked. Its lifetime ended so long ago.
    Expired(Duration),
}

/// By how much lifetimes are stretched while upstream says that few pulls are left to us.
const STRETCH: u32 = 10;

/// How long a tag is fresh, by what is configured and by what upstream says of our quota.
pub(super) fn lifetime(ttl: Duration, quota_is_low: bool) -> Duration {
    if quota_is_low { ttl.saturating_mul(STRETCH) } else { ttl }
}

/// Whether a tag is forgotten that upstream deleted at `gone`.
pub(super) fn is_forgotten(kept: DeletedTags, gone: Timestamp) -> bool {
    match kept {
        DeletedTags::Keep => false,
        DeletedTags::Forget => true,
        DeletedTags::For(kept) => gone.age().is_some_and(|age| age > kept),
    }
}

/// Judges a tag by the time of its last check. An age below zero (the clock was set back) counts as expired.
pub(super) fn judge(record: &TagRecord, ttl: Duration, immutable: bool) -> Freshness {
    if immutable {
        return Freshness::Fresh;
    }
    match record.checked.age() {
        Some(age) if age < spread(ttl, record.checked) => Freshness::Fresh,
        Some(age) => Freshness::Expired(age.saturating_sub(ttl)),
        None => Freshness::Expired(Duration::ZERO),
    }
}

/// `ttl` ± 10 %, the same for one check but different between tags, so that tags fetched together don't expire
/// together.
fn spread(ttl: Duration, checked: Timestamp) -> Duration {
    let tenth_percent = u32::try_from(checked.0 % 201).unwrap_or(100);
    ttl * (900 + tenth_percent) / 1000
}

/// Whether a tag checked at `checked` may still be served while upstream fails.
pub(super) fn stale_allowed(limit: StaleIfError, checked: Timestamp) -> bool {
    match limit {
        StaleIfError::Forever => true,
        StaleIfError::Never => false,
        StaleIfError::For(limit) => checked.age().is_none_or(|age| age <= limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn checked(ago: Duration) -> TagRecord {
        let checked = Timestamp(Timestamp::now().0 - u64::try_from(ago.as_millis()).unwrap());
        TagRecord { digest: Digest::sha256(b""), media_type: String::new(), fetched: checked, checked, gone: None }
    }

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn a_tag_is_fresh_for_its_lifetime_give_or_take_a_tenth() {
        assert_eq!(judge(&checked(Duration::from_secs(53)), MINUTE, false), Freshness::Fresh);
        assert!(matches!(judge(&checked(Duration::from_secs(67)), MINUTE, false), Freshness::Expired(_)));
        assert!(matches!(judge(&checked(Duration::ZERO), Duration::ZERO, false), Freshness::Expired(_)));
        assert_eq!(judge(&checked(1000 * MINUTE), MINUTE, true), Freshness::Fresh);
    }

    #[test]
    fn a_check_in_the_future_counts_as_expired() {
        let mut record = checked(Duration::ZERO);
        record.checked = Timestamp(Timestamp::now().0 + 3_600_000);
        assert_eq!(judge(&record, MINUTE, false), Freshness::Expired(Duration::ZERO));
    }

    #[test]
    fn few_pulls_left_stretch_lifetimes() {
        assert_eq!((lifetime(MINUTE, false), lifetime(MINUTE, true)), (MINUTE, 10 * MINUTE));
        assert_eq!(lifetime(Duration::ZERO, true), Duration::ZERO);
    }

    #[test]
    fn deleted_tags_are_forgotten_in_time() {
        let gone = checked(10 * MINUTE).checked;
        for (kept, forgotten) in [
            (DeletedTags::Keep, false),
            (DeletedTags::Forget, true),
            (DeletedTags::For(5 * MINUTE), true),
            (DeletedTags::For(15 * MINUTE), false),
        ] {
            assert_eq!(is_forgotten(kept, gone), forgotten, "{kept:?}");
        }
    }

    #[test]
    fn stale_limits() {
        let old = checked(10 * MINUTE).checked;
        assert!(stale_allowed(StaleIfError::Forever, old));
        assert!(!stale_allowed(StaleIfError::Never, old));
        assert!(!stale_allowed(StaleIfError::For(5 * MINUTE), old));
        assert!(stale_allowed(StaleIfError::For(15 * MINUTE), old));
    }
}
