//! Log output: its format, its level, and where it goes.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
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
    /// Somebody else logs in this process already.
    #[error("the log is already set up: {0}")]
    AlreadySet(#[from] TryInitError),
}

/// Sends log lines that pass `filter` (as in `info,cachalot::access=off`) to standard error. Only once a process.
pub fn init(format: Format, filter: &str) -> Result<(), TelemetryError> {
    let filter = parse(filter)?;
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    match format {
        Format::Text => lines.finish().try_init()?,
        Format::Json => lines.json().flatten_event(true).with_span_list(false).finish().try_init()?,
    }
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
