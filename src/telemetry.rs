//! Log output: its format, its level, and where it goes.

use std::io::{self, IsTerminal};

use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

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
    /// Nobody has set it up, so there is nothing to change.
    #[error("the log is not set up in this process")]
    NotSet,
    /// Somebody else logs in this process already.
    #[error("the log is already set up: {0}")]
    AlreadySet(#[from] TryInitError),
}

/// Changes the filter of the one log that a process has, and knows the one in force.
struct Levels {
    change: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    level: Mutex<String>,
}

static LEVELS: OnceLock<Levels> = OnceLock::new();

/// Sends log lines that pass `filter` (as in `info,cachalot::access=off`) to standard error. Only once a process.
pub fn init(format: Format, filter: &str) -> Result<(), TelemetryError> {
    let level = filter.to_owned();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(parse(filter)?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    let change: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync> = match format {
        Format::Text => {
            let lines = lines.with_filter_reloading();
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
    let _ = LEVELS.set(Levels { change, level: Mutex::new(level) });
    Ok(())
}

/// The filter in force, if the log is set up.
pub fn level() -> Option<String> {
    LEVELS.get().map(|levels| levels.level.lock().clone())
}

/// Puts another filter in force.
pub fn set_level(filter: &str) -> Result<(), TelemetryError> {
    let parsed = parse(filter)?;
    let levels = LEVELS.get().ok_or(TelemetryError::NotSet)?;
    let mut level = levels.level.lock();
    (levels.change)(parsed).map_err(|_| TelemetryError::NotSet)?;
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
