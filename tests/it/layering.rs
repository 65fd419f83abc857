//! The shape of the source: who may know whom, where foreign crates live, and how long a file may be.

use std::path::{Path, PathBuf};

/// Modules that everything but `oci` may use: they know nothing of the rest.
const LEAVES: [&str; 6] = ["oci", "audit", "clock", "secret", "tasks", "metrics"];

/// Which modules of ours each may use besides [`LEAVES`] and itself (design §3). `*` is all.
const MAY_USE: [(&str, &[&str]); 25] = [
    ("oci", &[]),
    ("audit", &[]),
    ("clock", &[]),
    ("tasks", &[]),
    ("metrics", &[]),
    ("secret", &[]),
    ("files", &[]),
    ("shutdown", &[]),
    ("telemetry", &["config"]),
    ("config", &["files"]),
    ("store", &[]),
    ("upstream", &["files"]),
    ("fill", &["store"]),
    ("bundle", &["store"]),
    ("jobs", &["config", "files", "mirror", "store", "shutdown"]),
    ("api_client", &["upstream"]),
    ("workloads", &[]),
    ("nodes", &["files"]),
    ("mirror", &["config", "files", "fill", "upstream", "store"]),
    ("server", &["bundle", "config", "files", "fill", "jobs", "mirror", "store", "shutdown", "telemetry"]),
    ("app", &["config", "files", "server", "jobs", "mirror", "fill", "upstream", "store", "shutdown", "telemetry"]),
    ("demo", &["app", "config", "shutdown"]),
    ("cli", &["*"]),
    ("lib", &["*"]),
    ("main", &["cli"]),
];

/// Where foreign crates, and parts of the standard library, may be used.
const HOMES: [(&str, &[&str]); 26] = [
    ("indicatif", &["cli/"]),
    ("async_compression", &["bundle/reading.rs"]),
    ("serde_saphyr", &["workloads/", "nodes/tests.rs"]),
    ("axum", &["server/", "demo/"]),
    ("hyper", &["server/", "demo/"]),
    ("hyper_util", &["server/", "demo/", "upstream/proxy.rs"]),
    ("http_body", &["server/", "demo/"]),
    ("http_body_util", &["server/", "demo/"]),
    ("tower", &["server/", "demo/"]),
    ("reqwest", &["upstream/", "api_client.rs"]),
    ("rustls", &["upstream/", "server/", "cli/ask.rs"]),
    ("tokio_rustls", &["server/"]),
    ("bcrypt", &["server/auth/"]),
    ("sd_notify", &["cli/serve.rs"]),
    ("base64", &["server/auth/", "upstream/"]),
    ("rustls_native_certs", &["upstream/"]),
    ("webpki_roots", &["upstream/"]),
    ("prometheus_client", &["metrics.rs"]),
    ("rayon", &["tasks.rs", "store/recover.rs"]),
    ("clap", &["cli/"]),
    ("toml", &["config/", "demo/", "nodes/"]),
    ("tracing_subscriber", &["telemetry.rs", "telemetry/"]),
    ("std::fs", &["store/", "bundle/files.rs", "files.rs", "nodes/placing.rs"]),
    ("tokio::fs", &[]),
    ("std::process::exit", &["main.rs"]),
    ("SystemTime::now", &["clock.rs"]),
];

/// Files that may be longer than [`LINES`], each with its reason.
const LONGER: [(&str, &str); 3] = [
    ("demo/registry.rs", "a whole little registry, read in one go"),
    ("store/fs.rs", "every call to the file system, one after the other"),
    ("store/index.rs", "accounting and its invariant belong in one place"),
];

/// How many lines a file should have at most, without its tests.
const LINES: usize = 400;

/// How many lines a file may have at most, for whatever reason.
const LINES_HARD: usize = 600;

/// How many lines a function may have.
const FUNCTION_LINES: usize = 70;

/// A source file, without its tests and comments.
struct Source {
    /// Below `src/`, with slashes.
    path: String,
    text: String,
    /// The lines before its tests.
    code: Vec<String>,
    /// The lines of its tests.
    tests: Vec<String>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<Source> {
    let base = root().join(folder);
    let mut found = Vec::new();
    let mut folders = vec![base.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(Source::read(&base, &path));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty());
    found
}

// === impl Source ===

impl Source {
    fn read(base: &Path, path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let path = path.strip_prefix(base).unwrap().to_str().unwrap().replace('\\', "/");
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let marker = |at: &usize| lines[*at] == "#[cfg(test)]" && lines.get(at + 1).is_some_and(|l| l == "mod tests {");
        let all_tests = base.ends_with("tests") || path.ends_with("tests.rs") || path.contains("/tests/");
        let at = if all_tests { 0 } else { (0..lines.len()).find(marker).unwrap_or(lines.len()) };
        let (code, tests) = lines.split_at(at);
        Self { path, code: code.to_vec(), tests: tests.to_vec(), text }
    }

    /// The top-level module: `oci` for `oci/digest.rs`, `clock` for `clock.rs`.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap().trim_end_matches(".rs")
    }

    /// The code in one piece, without comments.
    fn code(&self) -> String {
        let lines = self.code.iter().filter(|line| !line.trim_start().starts_with("//"));
        lines.cloned().collect::<Vec<_>>().join("\n")
    }

    /// The modules of ours that the code names.
    fn uses(&self) -> Vec<String> {
        let code = self.code();
        let ours = if self.module() == "main" { "cachalot::" } else { "crate::" };
        let mut uses = Vec::new();
        for rest in code.split(ours).skip(1) {
            if let Some(group) = rest.strip_prefix('{') {
                uses.extend(members(group));
            } else {
                uses.push(word(rest).to_owned());
            }
        }
        uses
    }

    /// Whether the code names a crate, or an item by its path.
    fn names(&self, path: &str) -> bool {
        let code = self.code();
        let parent = path.rsplit_once("::");
        let whole = |at: usize, len: usize| {
            let before = code[..at].chars().next_back();
            let after = code[at + len..].chars().next();
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
                && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
        };
        let spelled = code
            .match_indices(path)
            .any(|(at, _)| whole(at, path.len()) && (parent.is_some() || code[at + path.len()..].starts_with("::")));
        let grouped = parent.is_some_and(|(parent, item)| {
            let opening = format!("{parent}::{{");
            code.match_indices(&opening).any(|(at, _)| members(&code[at + opening.len()..]).contains(&item.to_owned()))
        });
        spelled || grouped
    }
}

/// The identifier that a text begins with.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first words of the members of a group of imports, whose opening brace has been read.
fn members(text: &str) -> Vec<String> {
    let mut depth = 0;
    let mut member = String::new();
    let mut found = Vec::new();
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => found.push(std::mem::take(&mut member)),
            c => member.push(c),
        }
    }
    found.push(member);
    found.iter().map(|member| word(member.trim()).to_owned()).filter(|member| !member.is_empty()).collect()
}

#[test]
fn every_file_opens_with_a_sentence_about_itself() {
    for source in sources("src").iter().chain(&sources("tests")) {
        let first = source.text.lines().next().unwrap_or_default();
        assert!(first.starts_with("//! "), "{} opens with {first:?}", source.path);
    }
}

#[test]
fn files_and_functions_stay_short() {
    let mut long = Vec::new();
    for (path, _) in LONGER {
        assert!(root().join("src").join(path).exists(), "{path} is no more");
    }
    for source in sources("src") {
        let lines = source.code.len();
        let excused = LONGER.iter().any(|(path, _)| *path == source.path);
        if lines > LINES_HARD || (lines > LINES && !excused) {
            long.push(format!("{}: {lines} lines", source.path));
        }
        for (at, line) in source.code.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let is_function = line.trim_start().split(' ').take(5).any(|word| word == "fn") && !line.contains("//");
            if !is_function || line.ends_with(';') {
                continue;
            }
            let closing = format!("{}}}", " ".repeat(indent));
            let length = source.code[at..].iter().position(|line| *line == closing).map_or(0, |end| end + 1);
            if length > FUNCTION_LINES {
                long.push(format!("{}:{}: a function of {length} lines", source.path, at + 1));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn modules_know_only_what_the_design_lets_them_know() {
    let mut forbidden = Vec::new();
    for source in sources("src") {
        let module = source.module();
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
            panic!("{}: say in this test what the module {module} may use", source.path)
        };
        for used in source.uses() {
            let leaf = LEAVES.contains(&used.as_str()) && module != "oci";
            let known = MAY_USE.iter().any(|(name, _)| *name == used);
            if known && used != module && !leaf && !allowed.contains(&"*") && !allowed.contains(&used.as_str()) {
                forbidden.push(format!("{} uses {used}", source.path));
            }
        }
    }
    assert!(forbidden.is_empty(), "{forbidden:#?}");
}

#[test]
fn foreign_crates_stay_in_their_homes() {
    let mut strays = Vec::new();
    for source in sources("src") {
        for (path, homes) in HOMES {
            if source.names(path) && !homes.iter().any(|home| source.path.starts_with(home)) {
                strays.push(format!("{} uses {path}", source.path));
            }
        }
        if source.module() == "oci" && ["tokio", "std::io", "std::time"].iter().any(|path| source.names(path)) {
            strays.push(format!("{} is not pure", source.path));
        }
        for spawn in ["tokio::spawn", "tokio::task::spawn", "spawn_blocking", "std::thread::spawn"] {
            if source.code().contains(spawn) && source.path != "tasks.rs" {
                strays.push(format!("{} uses {spawn}", source.path));
            }
        }
    }
    assert!(strays.is_empty(), "{strays:#?}");
}

#[test]
fn tests_wait_for_events_and_never_for_time() {
    let call = ["sleep", "("].concat();
    let mut sleepers = Vec::new();
    let (of_tests, of_src) = (sources("tests"), sources("src"));
    for source in of_tests.iter().chain(&of_src) {
        // Other programs have no gates to wait at, and the long forms set the pace of their clients.
        let paced = source.path.starts_with("real/") || ["it/crowds.rs", "it/soak.rs"].contains(&&*source.path);
        if !paced && source.tests.iter().any(|line| line.contains(&call)) {
            sleepers.push(&source.path);
        }
    }
    assert!(sleepers.is_empty(), "{sleepers:?}");
}

#[test]
fn names_say_what_things_are() {
    const EMPTY_WORDS: [&str; 8] = ["Manager", "Helper", "Util", "Common", "Impl", "Service", "Misc", "Handler"];
    let mut empty = Vec::new();
    for source in sources("src") {
        for line in &source.code {
            let mut words = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(crate) ").split(' ');
            if !words.next().is_some_and(|word| ["struct", "enum", "trait", "type"].contains(&word)) {
                continue;
            }
            let name = word(words.next().unwrap_or_default()).to_owned();
            if EMPTY_WORDS.iter().any(|empty| name.ends_with(empty) || name.starts_with(empty)) {
                empty.push(format!("{}: {name}", source.path));
            }
        }
    }
    assert!(empty.is_empty(), "{empty:#?}");
}

#[test]
fn tests_that_the_architecture_page_names_exist() {
    let Ok(page) = std::fs::read_to_string(root().join("ARCHITECTURE.md")) else { return };
    let all: String = sources("src").iter().chain(&sources("tests")).map(|source| source.text.as_str()).collect();
    for quoted in page.split('`').skip(1).step_by(2) {
        let name = quoted.rsplit("::").next().unwrap_or_default();
        let like_a_test = name.matches('_').count() >= 4 && word(name) == name;
        assert!(!like_a_test || all.contains(&format!("fn {name}(")), "ARCHITECTURE.md names {quoted}");
    }
}

#[test]
fn the_code_map_says_of_each_file_what_the_file_says_of_itself() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for source in sources("src").iter().filter(|source| !source.code.is_empty()) {
        let name = source.path.trim_end_matches("mod.rs");
        let sentence = source.code[0].trim_start_matches("//! ");
        let rows = [format!("| `{name}` | {sentence} |"), format!("| **`{name}`** | {sentence} |")];
        let nested = format!("| `{}` | {sentence} |", source.path);
        assert!(rows.iter().chain([&nested]).any(|row| page.contains(row)), "no row of the code map: {}", rows[0]);
    }
}
