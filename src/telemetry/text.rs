//! Log lines as text, as tracing-subscriber writes them where nothing is coloured, for a third of what that costs.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::{LookupSpan, Scope};

/// Time, level, spans, target, message and fields on a line. With an access log, a line is written for every request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text;

/// The fields of one event on their way into its line.
struct Fields<'a, 'w> {
    writer: &'a mut Writer<'w>,
    first: bool,
    result: fmt::Result,
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => " WARN",
        Level::INFO => " INFO",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "TRACE",
    }
}

// === impl Text ===

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let facts = event.metadata();
        SystemTime.format_time(&mut writer)?;
        writer.write_char(' ')?;
        writer.write_str(level(*facts.level()))?;
        writer.write_char(' ')?;
        let mut within = false;
        for span in context.event_scope().into_iter().flat_map(Scope::from_root) {
            within = true;
            writer.write_str(span.name())?;
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>().filter(|fields| !fields.is_empty()) {
                write!(writer, "{{{fields}}}")?;
            }
            writer.write_char(':')?;
        }
        if within {
            writer.write_char(' ')?;
        }
        writer.write_str(facts.target())?;
        writer.write_str(": ")?;
        let mut fields = Fields { writer: &mut writer, first: true, result: Ok(()) };
        event.record(&mut fields);
        fields.result?;
        writer.write_char('\n')
    }
}

// === impl Fields ===

impl Fields<'_, '_> {
    /// Writes what stands before a field's value.
    fn begin(&mut self, field: &Field) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.writer.write_char(' ')?;
        }
        let name = field.name();
        if name == "message" {
            return Ok(());
        }
        self.writer.write_str(name.strip_prefix("r#").unwrap_or(name))?;
        self.writer.write_char('=')
    }

    fn write(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.result = self.result.and_then(|()| self.begin(field)).and_then(|()| self.writer.write_fmt(value));
    }

    fn write_quoted(&mut self, value: &str) -> fmt::Result {
        // As `Debug` writes it, which looks at every character.
        if value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\') {
            self.writer.write_char('"')?;
            self.writer.write_str(value)?;
            self.writer.write_char('"')
        } else {
            write!(self.writer, "{value:?}")
        }
    }
}

impl Visit for Fields<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.result = self.result.and_then(|()| self.begin(field)).and_then(|()| {
            if field.name() == "message" { self.writer.write_str(value) } else { self.write_quoted(value) }
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, format_args!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn events() {
        let nothing: Option<&str> = None;
        tracing::info!(status = 200, some = Some("x"), nothing, share = 0.25, yes = true, below = -1, "a request");
        tracing::warn!(text = "\"quoted\", \\ and \n a line", r#type = "ü", shown = %display("a b"), "{} of {}", 1, 2);
        tracing::error!(target: "elsewhere", list = ?[1, 2], empty = "");
        let outer = tracing::debug_span!("outer", name = "one", count = 3);
        let _outer = outer.enter();
        let inner = tracing::info_span!("inner");
        let _inner = inner.enter();
        tracing::debug!("within");
        let error = io::Error::other("broken");
        tracing::trace!(error = &error as &dyn std::error::Error, big = u128::MAX, "all kinds");
    }

    /// The lines without their times.
    fn lines(out: &Out) -> Vec<String> {
        let text = String::from_utf8(out.0.lock().clone()).unwrap();
        text.lines().map(|line| line.split_once(' ').map_or(line, |(_, rest)| rest).to_owned()).collect()
    }

    #[test]
    fn lines_are_those_of_the_library() {
        let (own, library) = (Out::default(), Out::default());
        let writer = own.clone();
        let lines_of = tracing_subscriber::fmt().with_max_level(Level::TRACE).with_ansi(false);
        let plain = lines_of.with_writer(move || writer.clone()).event_format(Text).finish();
        tracing::subscriber::with_default(plain, events);
        let writer = library.clone();
        let lines_of = tracing_subscriber::fmt().with_max_level(Level::TRACE).with_ansi(false);
        let usual = lines_of.with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(usual, events);
        assert_eq!(lines(&own), lines(&library));
        assert_eq!(lines(&own).len(), 5, "{:?}", lines(&own));
    }
}
