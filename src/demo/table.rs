//! The demo's printed table: one line a step, columns aligned.

use std::fmt;
use std::time::Duration;

/// The figures of one step.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was done.
    pub step: String,
    /// How many clients pulled at once.
    pub clients: usize,
    /// How long all of them took together.
    pub elapsed: Duration,
    /// Body bytes that the clients received and verified, all together.
    pub client_bytes: u64,
    /// Body bytes that upstream sent meanwhile.
    pub upstream_bytes: u64,
    /// Body bytes of one pull of the image.
    pub image_bytes: u64,
}

/// The line above the rows.
#[derive(Clone, Copy, Debug)]
pub struct Heading;

// === impl Heading ===

impl fmt::Display for Heading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(f, "", ["clients", "seconds", "MB/s", "from upstream", "ratio"])
    }
}

// === impl Row ===

impl Row {
    /// Upstream's bytes as multiples of the image.
    pub fn ratio(&self) -> f64 {
        float(self.upstream_bytes) / float(self.image_bytes.max(1))
    }

    fn megabytes_per_second(&self) -> f64 {
        float(self.client_bytes) / 1e6 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clients = self.clients.to_string();
        let seconds = format!("{:.2}", self.elapsed.as_secs_f64());
        let speed = format!("{:.0}", self.megabytes_per_second());
        let upstream = format!("{:.1} MB", float(self.upstream_bytes) / 1e6);
        let ratio = format!("{:.2}x", self.ratio());
        line(f, &self.step, [&clients, &seconds, &speed, &upstream, &ratio])
    }
}

fn line(f: &mut fmt::Formatter<'_>, step: &str, [clients, seconds, speed, upstream, ratio]: [&str; 5]) -> fmt::Result {
    write!(f, "  {step:<40}{clients:>8}{seconds:>9}{speed:>8}{upstream:>15}{ratio:>8}")
}

#[expect(clippy::cast_precision_loss, reason = "figures for people, rounded to two places")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_ratios_count_whole_images() {
        let row = Row {
            step: "20 cold pulls at once".to_owned(),
            clients: 20,
            elapsed: Duration::from_millis(2500),
            client_bytes: 2_000_000_000,
            upstream_bytes: 100_000_000,
            image_bytes: 100_000_000,
        };
        assert_eq!(
            format!("{Heading}\n{row}"),
            "                                           clients  seconds    MB/s  from upstream   ratio\n  \
             20 cold pulls at once                         20     2.50     800       100.0 MB   1.00x"
        );
    }
}
