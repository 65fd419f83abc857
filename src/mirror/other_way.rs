//! How a client's body goes on when the store can't take its blob to the end: straight from upstream, verified as a whole.

use futures_util::StreamExt;

use crate::fill::{FillKey, Fills, Interrupted};
use crate::oci::range::ByteRange;
use crate::store::{Cut, Pieces};

use super::origin::UpstreamOrigin;

/// How to go on with a blob that turns out not to be storable.
#[derive(Debug)]
pub(super) struct OtherWay {
    pub(super) fills: Fills,
    pub(super) key: FillKey,
    pub(super) origin: UpstreamOrigin,
    pub(super) wait_for_verified: bool,
}

// === impl OtherWay ===

impl OtherWay {
    /// The rest of the blob, straight from upstream, verified along with what the client has.
    pub(super) async fn go(self, interrupted: Interrupted) -> Result<Pieces, Cut> {
        let Some(passing) = self.fills.pass(&self.key) else {
            return Err(Cut::new("too many others are served past the store"));
        };
        let rest = [ByteRange { first: interrupted.next, last: interrupted.size_bytes.saturating_sub(1) }];
        let body = self.fills.pass_on(&self.origin, self.key.digest, interrupted).await.map_err(Cut::new)?;
        Ok(while_held(body.pieces(Some(&rest), self.wait_for_verified), passing))
    }
}

/// The pieces, and a place that is given up with them.
pub(super) fn while_held(pieces: Pieces, place: impl Send + 'static) -> Pieces {
    pieces.inspect(move |_| _ = &place).boxed()
}
