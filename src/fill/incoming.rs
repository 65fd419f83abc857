//! A body on its way, watched for its pace and taken in batches.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::origin::{OriginBody, OriginError, OriginErrorKind};

/// A body that counts as broken when it only drips.
#[derive(Debug)]
pub(super) struct Incoming {
    body: OriginBody,
    /// How long the current window has waited for upstream, and what came of it. Time spent on our own disk is not
    /// upstream's fault.
    waited: Duration,
    window_bytes: u64,
    /// What came beyond the end of a batch, or broke one off: bytes that arrived before a failure are kept.
    next: Option<Result<Bytes, OriginError>>,
}

/// Bytes that arrived together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) chunks: Vec<Bytes>,
    pub(super) len: u64,
    /// The body has ended.
    pub(super) last: bool,
}

/// How much is written at a time once bytes arrive quickly.
const BATCH_BYTES: u64 = 1024 * 1024;

/// How long bytes wait for company before they are written and readers are woken.
const LINGER: Duration = Duration::from_millis(5);

/// The window in which a body's pace is judged, and the least that must come in it: 64 KiB/s.
const PACE_WINDOW: Duration = Duration::from_mins(1);
const PACE_BYTES_MIN: u64 = 60 * 64 * 1024;

// === impl Incoming ===

impl Incoming {
    pub(super) fn new(body: OriginBody) -> Self {
        Self { body, waited: Duration::ZERO, window_bytes: 0, next: None }
    }

    /// The bytes of a blob of `size_bytes` that this body should bring.
    pub(super) fn range(&self, size_bytes: u64) -> (u64, u64) {
        (self.body.offset, self.body.end.unwrap_or(size_bytes).min(size_bytes))
    }

    /// The next bytes; `None` is the body's end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        if let Some(next) = self.next.take() {
            return next.map(Some);
        }
        loop {
            let asked = Instant::now();
            let answered = timeout(PACE_WINDOW.saturating_sub(self.waited), self.body.body.next()).await;
            self.waited += asked.elapsed();
            if let Ok(Some(Ok(chunk))) = &answered {
                self.window_bytes += chunk.len() as u64;
            }
            if self.waited >= PACE_WINDOW {
                if self.window_bytes < PACE_BYTES_MIN {
                    return Err(OriginError {
                        kind: OriginErrorKind::Broken,
                        message: format!("the body only drips: {} bytes in a minute", self.window_bytes).into(),
                    });
                }
                (self.waited, self.window_bytes) = (Duration::ZERO, 0);
            }
            if let Ok(answer) = answered {
                return answer.transpose();
            }
        }
    }

    /// Waits for bytes, then takes what follows within [`LINGER`], up to [`BATCH_BYTES`] and never beyond `limit`. With
    /// `at_once`, takes the first bytes as they are: a client waits for them.
    pub(super) async fn batch(&mut self, limit: u64, at_once: bool) -> Result<Batch, OriginError> {
        let mut batch = Batch::default();
        let mut deadline = None;
        while batch.len < BATCH_BYTES.min(limit) {
            let next = match deadline {
                None => self.next().await,
                Some(deadline) => match timeout_at(deadline, self.next()).await {
                    Ok(next) => next,
                    Err(_elapsed) => break,
                },
            };
            let mut chunk = match next {
                Ok(Some(chunk)) => chunk,
                Ok(None) => {
                    batch.last = true;
                    break;
                }
                Err(error) if batch.len == 0 => return Err(error),
                Err(error) => {
                    self.next = Some(Err(error));
                    break;
                }
            };
            let room = usize::try_from(limit - batch.len).unwrap_or(usize::MAX);
            if chunk.len() > room {
                self.next = Some(Ok(chunk.split_off(room)));
            }
            batch.len += chunk.len() as u64;
            batch.chunks.push(chunk);
            if at_once {
                break;
            }
            deadline.get_or_insert_with(|| Instant::now() + LINGER);
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// A body that sends so many bytes a second, for ever.
    fn body(bytes_per_second: usize) -> Incoming {
        let ticks = stream::unfold(tokio::time::interval(Duration::from_secs(1)), move |mut ticks| async move {
            ticks.tick().await;
            Some((Ok(Bytes::from(vec![0; bytes_per_second])), ticks))
        });
        Incoming::new(OriginBody { host: String::new(), offset: 0, end: None, total_bytes: None, body: ticks.boxed() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_broken_within_two_minutes_and_one_that_is_just_fast_enough_never() {
        let mut dripping = body(60 * 1024);
        let began = Instant::now();
        let error = loop {
            match dripping.next().await {
                Ok(_) => assert!(began.elapsed() < Duration::from_mins(2)),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind, OriginErrorKind::Broken);

        let mut slow = body(68 * 1024);
        while began.elapsed() < Duration::from_mins(30) {
            assert!(slow.next().await.is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_spent_elsewhere_is_not_upstreams_fault() {
        let mut body = body(70 * 1024);
        for _ in 0..20 {
            // Our own disk is slow.
            tokio::time::advance(Duration::from_secs(50)).await;
            assert!(body.next().await.is_ok());
        }
    }
}
