//! What was measured, as a table to read and a picture to look at.

use std::fmt::Write as _;

/// One thing that was measured on several servers, in rounds, each server once a round.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    /// Server and what was measured in each round.
    pub(crate) samples: Vec<(&'static str, Vec<f64>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

/// The servers in the order of their columns, and their colours.
const SERVERS: [(&str, &str); 3] = [("cachalot", "#1f6feb"), ("nginx", "#2da44e"), ("docker-registry", "#bf8700")];

// === impl Row ===

impl Row {
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, better: Better) -> Self {
        Self { what: what.into(), unit, better, samples: Vec::new() }
    }

    pub(crate) fn push(&mut self, server: &'static str, sample: f64) {
        match self.samples.iter_mut().find(|(name, _)| *name == server) {
            Some((_, samples)) => samples.push(sample),
            None => self.samples.push((server, vec![sample])),
        }
    }

    fn of(&self, server: &str) -> Option<&[f64]> {
        self.samples.iter().find(|(name, _)| *name == server).map(|(_, samples)| samples.as_slice())
    }

    /// The median, over the rounds, of Cachalot's figure divided by the other's of the same round.
    pub(crate) fn ratio(&self, other: &str) -> Option<[f64; 3]> {
        let (own, other) = (self.of("cachalot")?, self.of(other)?);
        Some(spread(own.iter().zip(other).map(|(own, other)| own / other).collect()))
    }
}

/// The smallest, the median, the largest.
pub(crate) fn spread(mut samples: Vec<f64>) -> [f64; 3] {
    samples.sort_by(f64::total_cmp);
    match samples.as_slice() {
        [] => [f64::NAN; 3],
        all => [all[0], all[all.len() / 2], all[all.len() - 1]],
    }
}

fn figure(value: f64) -> String {
    match value.abs() {
        10_000.0.. => format!("{:.0}", (value / 100.0).round() * 100.0),
        100.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The table, in Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| | unit | cachalot | nginx | docker-registry | ÷ nginx (spread) | ÷ docker-registry (spread) |\n",
    );
    text.push_str("|---|---|--:|--:|--:|--:|--:|\n");
    for row in rows {
        let _ = write!(text, "| {} | {} |", row.what, row.unit);
        for (server, _) in SERVERS {
            let cell = row.of(server).map_or_else(String::new, |samples| figure(spread(samples.to_vec())[1]));
            let _ = write!(text, " {cell} |");
        }
        for other in ["nginx", "docker-registry"] {
            let cell = row
                .ratio(other)
                .map_or_else(String::new, |[low, median, high]| format!("**{median:.2}** ({low:.2}–{high:.2})"));
            let _ = write!(text, " {cell} |");
        }
        text.push('\n');
    }
    text
}

/// A picture of the rows in which more is better: each server's bar, with nginx's, or else the longest, as long as the
/// picture is wide.
pub(crate) fn picture(rows: &[Row], caption: &str) -> String {
    const LEFT: f64 = 330.0;
    const WIDTH: f64 = 420.0;
    const BAR: f64 = 13.0;
    let rows: Vec<_> = rows.iter().filter(|row| row.better == Better::More).collect();
    let mut body = String::new();
    let mut y = 44.0;
    for (n, (server, colour)) in SERVERS.iter().enumerate() {
        let x = 160.0f64.mul_add(n as f64, LEFT);
        let _ = writeln!(
            body,
            r#"<rect x="{x}" y="14" width="11" height="11" fill="{colour}"/><text x="{}" y="24">{server}</text>"#,
            x + 16.0
        );
    }
    for row in rows {
        let median = |server: &str| row.of(server).map(|samples| spread(samples.to_vec())[1]);
        let longest = SERVERS.iter().filter_map(|(server, _)| median(server)).fold(0.0, f64::max);
        let shown: Vec<_> = SERVERS.iter().filter_map(|(server, colour)| Some((median(server)?, colour))).collect();
        let middle = (BAR + 2.0).mul_add(shown.len() as f64 / 2.0, y) + 3.0;
        let _ = writeln!(body, r#"<text x="{}" y="{middle}" text-anchor="end">{}</text>"#, LEFT - 10.0, row.what);
        for (value, colour) in shown {
            let width = (value / longest * WIDTH).max(1.0);
            let _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{y}" width="{width:.1}" height="{BAR}" fill="{colour}"/><text x="{:.1}" y="{}" fill="gray">{} {}</text>"#,
                LEFT + width + 5.0,
                y + BAR - 2.0,
                figure(value),
                row.unit,
            );
            y += BAR + 2.0;
        }
        y += 12.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 880 {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"880\" height=\"{height}\" fill=\"white\"/>\n{body}<text x=\"10\" y=\"{}\" fill=\"gray\">{caption}</text>\n</svg>\n",
        y + 12.0,
        height = y + 24.0,
    )
}
