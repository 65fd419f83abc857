//! The layers of the configuration, one over the other: the file, the environment, flags.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

use super::mistake::{ConfigErrors, Located, Mistakes, Place, Source};
use super::reader::Document;
use super::written::{self, Setting, Written};
use super::{Config, meaning, values};
use crate::files;

/// Where variables come from: the process, or a test.
pub trait Env {
    /// The value of a variable, if it is set. What is no UTF-8 has U+FFFD in its place.
    fn get(&self, name: &str) -> Option<String>;
}

/// The environment of this process.
#[derive(Debug, Clone, Copy)]
pub struct ProcessEnv;

/// What flags of the command line say about the configuration, as texts; empty where there was none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--listen`, which may be repeated; each may be several addresses divided by commas.
    pub listen: Vec<String>,
    /// `--admin-listen`, as `--listen`.
    pub admin_listen: Vec<String>,
    /// `--data`: the data directory.
    pub data: Option<PathBuf>,
    /// `--capacity`
    pub capacity: Option<String>,
    /// `--offline`. There is no flag for the contrary.
    pub offline: bool,
    /// `--log`: the level.
    pub log: Option<String>,
    /// `--log-format`
    pub log_format: Option<String>,
}

/// The variable that names the file.
const CONFIG: &str = "CACHALOT_CONFIG";
const LISTEN: &str = "CACHALOT_LISTEN";
const ADMIN_LISTEN: &str = "CACHALOT_ADMIN_LISTEN";
const DATA: &str = "CACHALOT_DATA";
const CAPACITY: &str = "CACHALOT_CAPACITY";
const OFFLINE: &str = "CACHALOT_OFFLINE";
const LOG: &str = "CACHALOT_LOG";

/// The longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The configuration: the file at `path`, else the one that `CACHALOT_CONFIG` names, else none; over it the environment,
/// over that the flags. A variable that is set to nothing counts as not set. Files that it names (passwords, certificates)
/// are read too. The error lists every mistake there is.
pub fn load(path: Option<&Path>, env: &dyn Env, flags: &Flags) -> Result<Config, ConfigErrors> {
    let mistakes = Mistakes::default();
    let path = path.map(Path::to_owned).or_else(|| text(env, CONFIG, &mistakes).map(|path| path.value.into()));
    let mut written = path.and_then(|path| read_file(&path, &mistakes)).unwrap_or_default();
    lay_environment(&mut written, env, &mistakes);
    lay_flags(&mut written, flags, &mistakes);
    let config = meaning::mean(written, &mistakes);
    mistakes.or(config)
}

/// The configuration that a text comes to, with neither environment nor flags.
pub fn load_text(text: &str) -> Result<Config, ConfigErrors> {
    let mistakes = Mistakes::default();
    let written = read_text("configuration".into(), text, &mistakes);
    let config = meaning::mean(written, &mistakes);
    mistakes.or(config)
}

fn read_file(path: &Path, mistakes: &Mistakes) -> Option<Written> {
    let name: Arc<str> = path.display().to_string().into();
    match files::read_text(path, FILE_BYTES_MAX) {
        Ok(text) => Some(read_text(name, &text, mistakes)),
        Err(error) => {
            let place = Place { source: Source::File { path: name, position: None }, key: String::new() };
            mistakes.report(place, error.problem.to_string());
            None
        }
    }
}

/// Reads the text of a file, `path` being what mistakes call it.
pub(super) fn read_text(path: Arc<str>, text: &str, mistakes: &Mistakes) -> Written {
    let document = Document { path, text, mistakes };
    let (table, errors) = DeTable::parse_recoverable(text);
    // Past a syntax error the parser guesses, and mistakes in what it guessed would be noise. Of several errors in a line,
    // the first says it. Only the message is used: the rest repeats the line, which may hold a secret.
    let mut line = 0;
    for error in &errors {
        let place = document.place(error.span().map_or(0, |span| span.start), String::new());
        let Source::File { position: Some(position), .. } = place.source else { continue };
        if position.line != line {
            line = position.line;
            mistakes.report(place, format!("not valid TOML: {}", error.message()));
        }
    }
    if errors.is_empty() { Written::read(document.root(table.get_ref())) } else { Written::default() }
}

fn lay_environment(written: &mut Written, env: &dyn Env, mistakes: &Mistakes) {
    lay(&mut written.listen, text(env, LISTEN, mistakes).and_then(|text| addresses(&[text], mistakes)));
    lay(&mut written.admin_listen, text(env, ADMIN_LISTEN, mistakes).and_then(|text| addresses(&[text], mistakes)));
    lay(&mut written.path, text(env, DATA, mistakes).map(|text| text.map(PathBuf::from)));
    lay(&mut written.capacity, text(env, CAPACITY, mistakes).and_then(|text| parse(text, mistakes, str::parse)));
    lay(&mut written.offline, text(env, OFFLINE, mistakes).and_then(|text| parse(text, mistakes, values::boolean)));
    lay(&mut written.log_level, text(env, LOG, mistakes).and_then(|text| parse(text, mistakes, values::log_level)));
    // As everywhere, either case will do, and the lower one goes first.
    let proxy = |names: [&'static str; 4]| {
        let found = names.into_iter().find_map(|name| text(env, name, mistakes));
        found.and_then(|text| parse(text, mistakes, values::proxy))
    };
    written.proxies.http = proxy(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]);
    written.proxies.https = proxy(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]);
    written.proxies.no_proxy = ["no_proxy", "NO_PROXY"].into_iter().find_map(|name| text(env, name, mistakes));
}

fn lay_flags(written: &mut Written, flags: &Flags, mistakes: &Mistakes) {
    let flag = |name, text: &String| Located { value: text.clone(), place: flag_place(name) };
    let all = |name, texts: &[String]| {
        let texts: Vec<_> = texts.iter().map(|text| flag(name, text)).collect();
        addresses(&texts, mistakes)
    };
    lay(&mut written.listen, all("--listen", &flags.listen));
    lay(&mut written.admin_listen, all("--admin-listen", &flags.admin_listen));
    let data = |path: &PathBuf| Located { value: path.clone(), place: flag_place("--data") };
    lay(&mut written.path, flags.data.as_ref().map(data));
    let capacity = flags.capacity.as_ref().map(|text| flag("--capacity", text));
    lay(&mut written.capacity, capacity.and_then(|text| parse(text, mistakes, str::parse)));
    lay(&mut written.offline, flags.offline.then(|| Located { value: true, place: flag_place("--offline") }));
    let log = flags.log.as_ref().map(|text| flag("--log", text));
    lay(&mut written.log_level, log.and_then(|text| parse(text, mistakes, values::log_level)));
    let log_format = flags.log_format.as_ref().map(|text| flag("--log-format", text));
    lay(&mut written.log_format, log_format.and_then(|text| parse(text, mistakes, written::log_format)));
}

/// What a higher layer says goes before what a lower one did.
fn lay<T>(setting: &mut Setting<T>, over: Setting<T>) {
    if over.is_some() {
        *setting = over;
    }
}

fn flag_place(name: &'static str) -> Place {
    Place { source: Source::Flag(name), key: String::new() }
}

/// A variable that is set to something.
fn text(env: &dyn Env, name: &'static str, mistakes: &Mistakes) -> Setting<String> {
    let value = env.get(name).filter(|value| !value.is_empty())?;
    let place = Place { source: Source::Environment(name), key: String::new() };
    if value.contains(char::REPLACEMENT_CHARACTER) {
        mistakes.report(place, "the value is not UTF-8 text");
        return None;
    }
    Some(Located { value, place })
}

fn parse<T>(text: Located<String>, mistakes: &Mistakes, parse: impl Fn(&str) -> Result<T, String>) -> Setting<T> {
    let Located { value, place } = text;
    parse(&value).map_err(|problem| mistakes.report(place.clone(), problem)).ok().map(|value| Located { value, place })
}

/// The addresses of several texts, each of which may be several divided by commas.
fn addresses(texts: &[Located<String>], mistakes: &Mistakes) -> Setting<Vec<Located<std::net::SocketAddr>>> {
    let place = texts.first()?.place.clone();
    let single = texts.iter().flat_map(|text| {
        text.value.split(',').map(|address| Located { value: address.trim().to_owned(), place: text.place.clone() })
    });
    let value: Vec<_> = single.filter_map(|address| parse(address, mistakes, values::socket_address)).collect();
    (!value.is_empty()).then_some(Located { value, place })
}

// === impl ProcessEnv ===

impl Env for ProcessEnv {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }
}
