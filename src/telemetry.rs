//! Log output: its format, its level, and where it goes.

mod lines;
mod text;

use std::io::{self, IsTerminal};
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use lines::Lines;
use text::Text;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, the event's fields at its top level.
    Json,
}

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter does not parse.
    #[error(
        "the log filter `{filter}` is not understood: {source}; \
         use a level such as `info`, or `cachalot=debug,cachalot::access=off`"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The thread that writes it could not be started.
    #[error("could not start the thread that writes the log: {0}")]
    Thread(#[from] io::Error),
    /// Nobody has set it up, so there is nothing to change.
    #[error("the log is not set up in this process")]
    NotSet,
    /// Somebody else logs in this process already.
    #[error("the log is already set up: {0}")]
    AlreadySet(#[from] TryInitError),
}

/// The one log that a process has: changes its filter, knows the one in force, and what is not written yet.
struct Log {
    lines: Lines,
    change: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    level: Mutex<String>,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// How long the end of a program waits for a log that is not taken.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// Sends log lines that pass `filter` (as in `info,cachalot::access=off`) to standard error, a moment later. Only once a
/// process, which must [`flush`] before it ends.
pub fn init(format: Format, filter: &str) -> Result<(), TelemetryError> {
    let level = filter.to_owned();
    let out = Lines::start(io::stderr())?;
    let coloured = format == Format::Text && io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(parse(filter)?).with_writer(out.clone()).with_ansi(coloured);
    let change: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync> = match format {
        Format::Text if coloured => {
            let lines = lines.with_filter_reloading();
            let handle = lines.reload_handle();
            lines.finish().try_init()?;
            Box::new(move |filter| handle.reload(filter))
        }
        Format::Text => {
            let lines = lines.event_format(Text).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.finish().try_init()?;
            Box::new(move |filter| handle.reload(filter))
        }
        Format::Json => {
            let lines = lines.json().flatten_event(true).with_span_list(false).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.finish().try_init()?;
            Box::new(move |filter| handle.reload(filter))
        }
    };
    // There is one log a process, or this would have failed above.
    let _ = LOG.set(Log { lines: out, change, level: Mutex::new(level) });
    Ok(())
}

/// Waits until all that was logged is written, or a log that nobody takes has had its time.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.lines.flush(FLUSH_MAX);
    }
}

/// The filter in force, if the log is set up.
pub fn level() -> Option<String> {
    LOG.get().map(|log| log.level.lock().clone())
}

/// Puts another filter in force.
pub fn set_level(filter: &str) -> Result<(), TelemetryError> {
    let parsed = parse(filter)?;
    let log = LOG.get().ok_or(TelemetryError::NotSet)?;
    let mut level = log.level.lock();
    (log.change)(parsed).map_err(|_| TelemetryError::NotSet)?;
    filter.clone_into(&mut level);
    Ok(())
}

/// Reads a log filter, so that a mistake is found while the configuration is checked.
pub fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(filter).map_err(|source| TelemetryError::Filter { filter: filter.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_does_not_parse_is_named_in_the_error() {
        let message = parse("cachalot=loud").unwrap_err().to_string();
        assert!(message.contains("`cachalot=loud`"), "{message}");
        parse("info,cachalot::access=off").unwrap();
    }
}
