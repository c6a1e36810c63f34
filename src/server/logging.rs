//! Log set-up: one subscriber to standard output, as text for people or one JSON object per line. What is logged is
//! decided where it happens (ids and lengths, never payload, header values or secrets); here only how it looks.

use std::fmt::Write;
use std::io::IsTerminal;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::config::{Log, LogFormat};
use super::error::{Error, Result};
use super::settings::Notice;
use super::values::LogLevel;

/// Starts logging for the whole process; a second call is an error.
pub fn start(log: &Log) -> Result<()> {
    let problem = |problem: String| Error::Logging { problem };
    let subscriber = subscriber(log, std::io::stdout, std::io::stdout().is_terminal())?;
    tracing::subscriber::set_global_default(subscriber).map_err(|e| problem(e.to_string()))
}

/// Logs what was noticed while the configuration was read.
pub fn tell(notices: &[Notice]) {
    for notice in notices {
        match notice {
            Notice::Info(text) => tracing::info!("{text}"),
            Notice::Warning(text) => tracing::warn!("{text}"),
        }
    }
}

/// The subscriber that `log` asks for, writing to `writer`; `colour` is for terminals.
fn subscriber<W>(log: &Log, writer: W, colour: bool) -> Result<Box<dyn Subscriber + Send + Sync>>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter(log)?).with_writer(writer);
    Ok(match log.format {
        LogFormat::Plaintext => Box::new(builder.with_ansi(colour).finish()),
        LogFormat::Json => Box::new(builder.fmt_fields(JsonFields::new()).event_format(JsonLines).finish()),
    })
}

fn filter(log: &Log) -> Result<EnvFilter> {
    let directives = match (&log.filter, log.console, log.level) {
        (_, false, _) => "off",
        (Some(filter), true, _) => filter.as_str(),
        // Libraries stay at info: their debug lines may show what they carry.
        (None, true, LogLevel::Debug) => "info,sealmq=debug",
        (None, true, LogLevel::Info) => "info",
        (None, true, LogLevel::Warning) => "warn",
        (None, true, LogLevel::Error) => "error",
        (None, true, LogLevel::Off) => "off",
    };
    EnvFilter::try_new(directives).map_err(|e| Error::Logging { problem: format!("`{directives}`: {e}") })
}

/// `{"ts": .., "level": .., "target": .., "msg": .., fields of the event and of its spans}`.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'s> LookupSpan<'s>,
    N: for<'w> tracing_subscriber::fmt::FormatFields<'w> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let mut line = Map::new();
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        line.insert("ts".into(), time.into());
        let level = match *event.metadata().level() {
            tracing::Level::WARN => "warning".to_owned(),
            other => other.as_str().to_ascii_lowercase(),
        };
        line.insert("level".into(), level.into());
        line.insert("target".into(), event.metadata().target().into());
        if let Some(scope) = context.event_scope() {
            for span in scope.from_root() {
                let extensions = span.extensions();
                let fields = extensions.get::<FormattedFields<N>>().map(|f| f.fields.as_str());
                if let Some(Ok(Value::Object(fields))) = fields.map(serde_json::from_str) {
                    line.extend(fields);
                }
            }
        }
        event.record(&mut Fields(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

struct Fields<'a>(&'a mut Map<String, Value>);

impl Fields<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        let name = if field.name() == "message" { "msg" } else { field.name() };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let mut text = String::new();
        // Writing to a String fails only if the value's own Debug does; what came before it is still worth a line.
        let _ = write!(text, "{value:?}");
        self.put(field, text.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(log: &Log, act: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        tracing::subscriber::with_default(subscriber(log, move || writer.clone(), false).unwrap(), act);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn log(format: LogFormat, level: LogLevel) -> Log {
        Log { console: true, level, format, filter: None }
    }

    #[test]
    fn a_json_line_has_event_and_span_fields() {
        let text = logged(&log(LogFormat::Json, LogLevel::Info), || {
            let _span = tracing::info_span!("connection", conn = 7).entered();
            tracing::warn!(bytes = 12u64, peer = "a\"b", "closed");
        });
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "warning");
        assert_eq!(line["msg"], "closed");
        assert_eq!(line["conn"], 7);
        assert_eq!((&line["bytes"], &line["peer"]), (&12.into(), &"a\"b".into()));
        assert!(line["ts"].as_str().unwrap().ends_with('Z') && text.ends_with("}\n"));
    }

    #[test]
    fn the_level_decides_and_libraries_stay_at_info() {
        let emit = || {
            tracing::debug!("ours");
            tracing::debug!(target: "rustls", "theirs");
            tracing::error!("bad");
        };
        let debug = logged(&log(LogFormat::Plaintext, LogLevel::Debug), emit);
        assert!(debug.contains("ours") && !debug.contains("theirs"), "{debug}");
        assert_eq!(logged(&log(LogFormat::Plaintext, LogLevel::Error), emit).lines().count(), 1);
        assert_eq!(logged(&log(LogFormat::Plaintext, LogLevel::Off), emit), "");
        let silent = Log { console: false, ..log(LogFormat::Plaintext, LogLevel::Debug) };
        assert_eq!(logged(&silent, emit), "");
    }

    #[test]
    fn a_filter_replaces_the_level_and_a_bad_one_is_refused() {
        let mut wanted = log(LogFormat::Plaintext, LogLevel::Error);
        wanted.filter = Some("sealmq=debug".into());
        assert!(logged(&wanted, || tracing::debug!("ours")).contains("ours"));
        wanted.filter = Some("sealmq=loudest=yes".into());
        assert!(subscriber(&wanted, io::sink, false).is_err());
    }
}
