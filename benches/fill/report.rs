//! What was measured, against what is aimed at, one line each.

use std::fmt;
use std::time::Duration;

/// One line of the report.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) what: &'static str,
    pub(crate) measured: String,
    pub(crate) goal: String,
    pub(crate) met: bool,
}

/// Several measurements of the same thing.
#[derive(Clone, Debug)]
pub(crate) struct Sample(Vec<f64>);

// === impl Line ===

impl Line {
    /// Something that should be at most `goal`.
    pub(crate) fn at_most(what: &'static str, sample: &Sample, goal: f64, unit: &str) -> Self {
        Self {
            what,
            measured: format!("{sample}{unit}"),
            goal: format!("≤ {goal}{unit}"),
            met: sample.median() <= goal,
        }
    }

    /// Something that was measured once and should be at most `goal`.
    pub(crate) fn count(what: &'static str, measured: f64, goal: f64, unit: &str) -> Self {
        Self {
            what, measured: format!("{measured:.2}{unit}"), goal: format!("≤ {goal}{unit}"), met: measured <= goal
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.met { "met" } else { "MISSED" };
        write!(f, "{:<62} {:<40} {:<12} {verdict}", self.what, self.measured, self.goal)
    }
}

// === impl Sample ===

impl Sample {
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn median(&self) -> f64 {
        let Self(values) = self;
        match values.len() {
            0 => f64::NAN,
            len if len % 2 == 1 => values[len / 2],
            len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
        }
    }
}

/// The median, how many there were, and the least and the most.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(values) = self;
        let (least, most) = (values.first().unwrap_or(&f64::NAN), values.last().unwrap_or(&f64::NAN));
        write!(f, "{:.3} (of {}: {least:.3} to {most:.3})", self.median(), values.len())
    }
}

/// How many times as long one took as the other.
pub(crate) fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}
