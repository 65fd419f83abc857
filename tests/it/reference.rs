//! The reference pages of the documentation say what the code says: they are made from it, and a page that is not the same fails.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use cachalot::config;
use cachalot::metrics::{ListLabels, Metrics, OutcomeLabels, RequestLabels, UpstreamLabels, WhereLabels};
use cachalot::nodes::{Client, ClientFile, Wanted, files_of};

/// With this variable set, the pages are written anew instead.
const WRITE: &str = "CACHALOT_WRITE_REFERENCE";

/// What the file says first of the configuration itself.
const FIRST: &str = "Every key may be left out.";

fn same_as(page: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(page);
    if std::env::var_os(WRITE).is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == text, "docs/{page} is not what the code says: run this test once with {WRITE}=1");
}

/// Every metric with something in it, so that its labels show.
fn every_metric() -> Metrics {
    let metrics = Metrics::new();
    let upstream = UpstreamLabels { upstream: String::new() };
    let list = ListLabels { list: String::new() };
    metrics.requests.get_or_create(&RequestLabels { upstream: String::new(), kind: "", outcome: "" }).inc();
    metrics.response_bytes.get_or_create(&OutcomeLabels { upstream: String::new(), outcome: "" }).inc();
    metrics.upstream_answered("", "", "200", Duration::ZERO);
    metrics.upstream_bytes.get_or_create(&upstream).inc();
    metrics.upstream_succeeded("");
    metrics.upstream_ratelimit_remaining.get_or_create(&upstream).set(1);
    metrics.verify_failures.get_or_create(&WhereLabels { r#where: "" }).inc();
    metrics.store_failed("");
    metrics.stale_served.get_or_create(&upstream).inc();
    metrics.stale_age_seconds.get_or_create(&upstream).set(1.0);
    metrics.warm_complete.get_or_create(&list).set(1);
    metrics.warm_last_run_timestamp_seconds.get_or_create(&list).set(1);
    metrics
}

#[test]
fn metrics() {
    let text = every_metric().render();
    let mut labels: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).unwrap();
        let pairs = rest.rsplit_once('}').map_or("", |(pairs, _)| pairs);
        let of: Vec<&str> = pairs.split(',').filter_map(|pair| pair.split_once('=')).map(|(label, _)| label).collect();
        labels.entry(name).or_insert(of);
    }
    let kinds: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).filter_map(|line| line.split_once(' ')).collect();
    let mut page = "# Metrics\n\nThe admin listener gives them at `/metrics` as OpenMetrics text, which Prometheus reads. This page is \
                    made from the code.\nAlerts and a Grafana dashboard made of them are in the chart: `charts/cachalot/files/`.\n\n\
                    | metric | kind | labels | meaning |\n|---|---|---|---|\n"
        .to_owned();
    for (name, help) in
        text.lines().filter_map(|line| line.strip_prefix("# HELP ")).filter_map(|line| line.split_once(' '))
    {
        let kind = kinds[name];
        let sample = match kind {
            "counter" => format!("{name}_total"),
            "histogram" => format!("{name}_bucket"),
            _ => name.to_owned(),
        };
        let of: Vec<_> = labels[&*sample].iter().filter(|label| **label != "le").map(|l| format!("`{l}`")).collect();
        let shown = if kind == "counter" { &sample } else { name };
        writeln!(page, "| `{shown}` | {kind} | {} | {help} |", of.join(", ")).unwrap();
    }
    page.push_str(
        "\n`upstream` is a name or pattern as in the configuration; `kind` is manifest, blob, tags, referrers, ping, write, token or \
         other;\n`outcome` is what the header Cache-Status says: hit, revalidated, stale, miss, collapsed (joined another client's \
         download),\nunverified (a range of a blob that is still coming), bypass (passed through, for want of room), local, not_found, \
         refused or failed;\n`status` is a status code, or timeout, connect, tls or broken; `where` is upstream or store; `op` is an \
         operation of the file system.\n",
    );
    same_as("metrics.md", &page);
}

#[test]
fn configuration() {
    let full = include_str!("../../config/cachalot.full.toml");
    let mut page = "# Configuration\n\nMade from [config/cachalot.full.toml](../config/cachalot.full.toml), which a test keeps \
                    complete. `cachalot check-config` shows what a file comes to, or\nevery mistake in it with its line.\n"
        .to_owned();
    let mut prose: Vec<&str> = Vec::new();
    let mut is_in_examples = false;
    let told = |prose: &mut Vec<&str>, page: &mut String| {
        if !prose.is_empty() {
            let text = prose.join(" ").replace("  ", " ");
            // How the file itself is written is of no use here.
            let text = text.find(FIRST).map_or(&*text, |at| &text[at..]);
            write!(page, "\n{}\n", escaped(text)).unwrap();
            prose.clear();
        }
    };
    for line in full.lines() {
        let (commented, code) = match line.strip_prefix('#') {
            // "# words" are words; "#key = value" is a setting without a default.
            Some(words) if words.is_empty() || words.starts_with(' ') => {
                prose.push(words.trim());
                continue;
            }
            Some(code) => (true, code),
            None => (false, line),
        };
        if code.trim().is_empty() {
            told(&mut prose, &mut page);
        } else if code.starts_with('[') && !code.contains('=') {
            // What stands before a table is said of it.
            write!(page, "\n## `{}`\n", code.trim()).unwrap();
            is_in_examples = commented;
            told(&mut prose, &mut page);
        } else {
            told(&mut prose, &mut page);
            let what = if commented || is_in_examples { "for example" } else { "by default" };
            write!(page, "\n- {what} `{}`\n", code.trim()).unwrap();
        }
    }
    told(&mut prose, &mut page);
    same_as("configuration.md", &page);
}

/// A page for each client: what `cachalot hosts` says to it, and how that is taken back.
#[test]
fn clients() {
    let known = config::load_text("").unwrap().upstreams;
    let wanted = Wanted {
        mirrors: vec!["http://10.0.0.7:5050".parse().unwrap()],
        registries: Vec::new(),
        known: known.iter().filter_map(|upstream| upstream.name.to_string().parse().ok()).collect(),
        except: Vec::new(),
        strict: false,
        ca_file: None,
        headers: Vec::new(),
        dial_timeout: Duration::from_millis(500),
        sigstore: false,
    };
    let mut index = "# Clients, one by one\n\nMade from the code: what `cachalot hosts CLIENT --mirror http://10.0.0.7:5050` prints for \
                     a mirror at that address.\n[../clients.md](../clients.md) has what they have in common, and their traps.\n\n"
        .to_owned();
    for client in Client::ALL {
        let name = client.name();
        let files = files_of(client, &wanted);
        let mut page =
            format!("# {name}\n\nMade from the code: `cachalot hosts {name} --mirror http://10.0.0.7:5050`.\n");
        for ClientFile { place, text, notes, .. } in &files {
            write!(page, "\n{}:\n\n```\n{}\n```\n", escaped(place), text.trim_end()).unwrap();
            for note in notes {
                write!(page, "\n- {}\n", escaped(note)).unwrap();
            }
        }
        if files.iter().any(|file| file.path.is_some()) {
            write!(
                page,
                "\n`--write DIR` puts it there; `cachalot hosts {name} --undo DIR` takes it back, and what was there before comes back \
                 byte for byte.\n"
            )
            .unwrap();
        }
        page.push_str(
            "\n`--registry NAME` is for some registries only; `--strict` leaves no way round the mirror; `--ca` names the authority of \
             its certificate.\n",
        );
        writeln!(index, "- [{name}]({name}.md)").unwrap();
        same_as(&format!("clients/{name}.md"), &page);
    }
    same_as("clients/README.md", &index);
}

/// What would be markup is text here.
fn escaped(text: &str) -> String {
    text.replace('*', "\\*").replace('<', "\\<")
}

/// Every page that people read, with its folder.
fn pages() -> Vec<(std::path::PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = Vec::new();
    for folder in [".", "docs", "docs/clients", "charts/cachalot"] {
        for entry in std::fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.push((path.clone(), std::fs::read_to_string(path).unwrap()));
            }
        }
    }
    assert!(pages.len() > 30, "{}", pages.len());
    pages
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut dead = Vec::new();
    let mut count = 0;
    for (path, text) in pages() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            if file.contains("://") {
                continue;
            }
            count += 1;
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let is_there = target.exists()
                && (anchor.is_empty()
                    || std::fs::read_to_string(&target).unwrap().lines().any(|line| {
                        let title = line.trim_start_matches('#');
                        line.starts_with('#') && anchor_of(title.trim()) == anchor
                    }));
            if !is_there {
                dead.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(dead.is_empty() && count > 50, "{count} links, of which dead: {dead:#?}");
}

/// As forges make them of titles.
fn anchor_of(title: &str) -> String {
    let kept = title.to_lowercase().replace(' ', "-");
    kept.chars().filter(|letter| letter.is_alphanumeric() || ['-', '_'].contains(letter)).collect()
}

#[test]
fn commands_in_pages_are_commands() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_cachalot")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let known: Vec<&str> = help
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|word| !word.is_empty())
        .collect();
    assert!(known.contains(&"serve") && known.contains(&"check-config"), "{known:?}");
    let mut unknown = Vec::new();
    for (path, text) in pages() {
        for rest in text.split("`cachalot ").skip(1) {
            let word = rest.split(|end: char| !end.is_ascii_alphabetic() && end != '-').next().unwrap();
            if !word.is_empty() && !word.starts_with('-') && !known.contains(&word) {
                unknown.push(format!("{}: cachalot {word}", path.display()));
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}
