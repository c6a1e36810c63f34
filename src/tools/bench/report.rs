//! All figures of all runs: as JSON for programs, as a table for people.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use serde::Serialize;

use super::error::{Error, Result};
use super::figures::{Figures, MEASURES, Spread};
use super::load::{Amount, Argument, Load, bytes_text};
use super::machine::Machine;
use super::scale::CurveReport;
use super::url::Target;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `sealmq-bench`
    pub program: &'static str,
    /// its version
    pub version: &'static str,
    /// when it was started, in seconds since 1970
    pub started_unix_s: u64,
    /// where this program ran
    pub machine: Machine,
    /// one for each workload
    pub loads: Vec<LoadReport>,
    /// one for each kind of crowd, with the preset `scale`
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<CurveReport>,
}

/// One workload on all brokers.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    /// what it is called
    pub name: String,
    /// what it is
    pub settings: Settings,
    /// in the command line's order
    pub brokers: Vec<BrokerReport>,
}

/// A workload as plain values.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "each is the option of the same name")]
pub struct Settings {
    pub count: Option<u64>,
    pub duration_s: Option<f64>,
    pub warmup_count: Option<u64>,
    pub warmup_s: Option<f64>,
    pub producers: usize,
    pub consumers: usize,
    pub queues: usize,
    pub body_bytes: usize,
    pub persistent: bool,
    pub durable: bool,
    pub confirms: usize,
    pub prefetch: u16,
    pub ack_every: u64,
    pub rate: u64,
    pub fanout: bool,
    pub idle_connections: usize,
    pub idle_queues: usize,
    pub idle_bindings: usize,
    pub bindings: usize,
    pub keys: usize,
    pub depth: u64,
    pub backlog: bool,
    pub arguments: BTreeMap<String, serde_json::Value>,
}

/// One broker's runs.
#[derive(Clone, Debug, Serialize)]
pub struct BrokerReport {
    /// what it is called
    pub name: String,
    /// where it is, without the password
    pub url: String,
    /// what it says it is
    pub server: String,
    /// the TLS version, or none
    pub tls: Option<&'static str>,
    /// each run
    pub runs: Vec<Figures>,
    /// the middle and the ends of all runs, by the measure's name
    pub spread: BTreeMap<&'static str, Spread>,
}

impl Report {
    /// Without any figures yet.
    pub fn new() -> Report {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Report {
            program: "sealmq-bench",
            version: env!("CARGO_PKG_VERSION"),
            started_unix_s: since_1970.as_secs(),
            machine: Machine::this(),
            loads: Vec::new(),
            curves: Vec::new(),
        }
    }

    /// The JSON text, with a line's end behind it.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| Error::Internal(error.to_string()))?;
        Ok(text + "\n")
    }
}

impl Default for Report {
    fn default() -> Report {
        Report::new()
    }
}

impl LoadReport {
    /// Without any broker yet.
    pub fn new(load: &Load, warmup: Option<Amount>) -> LoadReport {
        let (count, duration_s) = parts(Some(load.amount));
        let (warmup_count, warmup_s) = parts(warmup);
        let value = |argument: &Argument| match argument {
            Argument::Bool(value) => (*value).into(),
            Argument::Number(value) => (*value).into(),
            Argument::Text(value) => value.as_str().into(),
        };
        let settings = Settings {
            count,
            duration_s,
            warmup_count,
            warmup_s,
            producers: load.producers,
            consumers: load.consumers,
            queues: load.queues,
            body_bytes: load.body_bytes,
            persistent: load.persistent,
            durable: load.durable,
            confirms: load.confirms,
            prefetch: load.prefetch,
            ack_every: load.ack_every,
            rate: load.rate,
            fanout: load.fanout,
            idle_connections: load.idle_connections,
            idle_queues: load.idle_queues,
            idle_bindings: load.idle_bindings,
            bindings: load.bindings,
            keys: load.keys,
            depth: load.depth,
            backlog: load.backlog,
            arguments: load
                .arguments
                .iter()
                .map(|(name, argument)| (name.clone(), value(argument)))
                .collect(),
        };
        LoadReport { name: load.name.clone(), settings, brokers: Vec::new() }
    }

    /// Takes the middle of the runs, when all are there.
    pub fn finish(&mut self) {
        for broker in &mut self.brokers {
            let spreads = MEASURES
                .iter()
                .map(|measure| (measure.key, Spread::of(broker.runs.iter().map(measure.value))));
            broker.spread = spreads.filter_map(|(key, spread)| Some((key, spread?))).collect();
        }
    }
}

fn parts(amount: Option<Amount>) -> (Option<u64>, Option<f64>) {
    match amount {
        Some(Amount::Count(count)) => (Some(count), None),
        Some(Amount::Time(time)) => (None, Some(time.as_secs_f64())),
        None => (None, None),
    }
}

impl BrokerReport {
    /// Without any run yet.
    pub fn new(target: &Target, server: String, tls: Option<&'static str>) -> BrokerReport {
        let (name, url) = (target.name.clone(), target.to_string());
        BrokerReport { name, url, server, tls, runs: Vec::new(), spread: BTreeMap::new() }
    }
}

/// Medians side by side, a row for each broker; a column that nobody has is left out.
pub fn table(load: &LoadReport) -> String {
    let columns: Vec<_> = MEASURES
        .iter()
        .filter(|m| load.brokers.iter().any(|broker| broker.spread.contains_key(m.key)))
        .collect();
    let mut rows = vec![vec!["broker".to_owned()], vec![String::new()]];
    for measure in &columns {
        rows[0].push(measure.title.to_owned());
        rows[1].push(measure.unit.to_owned());
    }
    for broker in &load.brokers {
        let figure =
            |key| broker.spread.get(key).map_or_else(|| "-".to_owned(), |spread| number(spread.median));
        let cells = columns.iter().map(|measure| figure(measure.key));
        rows.push([broker.name.clone()].into_iter().chain(cells).collect());
    }
    let runs = load.brokers.iter().map(|broker| broker.runs.len()).max().unwrap_or(0);
    let middle = if runs > 1 { format!(", medians of {runs} runs") } else { String::new() };
    let mut text = format!("{}: {}{middle}\n", load.name, describe(&load.settings));
    text.push_str(&aligned(&rows));
    if load.brokers.iter().flat_map(|broker| &broker.runs).any(|run| run.was_blocked) {
        text.push_str("A broker stopped its publishers for a while (connection.blocked).\n");
    }
    text.push('\n');
    text
}

/// Rows of cells as lines: the first column to the left, numbers to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| {
        rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if at == 0 { write!(line, "{cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The workload in one line.
pub fn describe(settings: &Settings) -> String {
    let many = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let amount = match (settings.count, settings.duration_s) {
        (Some(count), _) => format!("{} messages", number(count as f64)),
        (None, seconds) => format!("{} s", seconds.unwrap_or_default()),
    };
    let mut parts = vec![
        amount,
        format!("bodies of {}", bytes_text(settings.body_bytes)),
        many(settings.producers, "producer"),
        many(settings.consumers, "consumer"),
        many(settings.queues, "queue"),
        if settings.persistent { "persistent".to_owned() } else { "transient".to_owned() },
    ];
    parts.push(match settings.confirms {
        0 => "no confirms".into(),
        confirms => format!("at most {confirms} unconfirmed"),
    });
    if settings.rate > 0 {
        parts.push(format!("{} a second", number(settings.rate as f64)));
    }
    if settings.ack_every == 0 {
        parts.push("no acknowledgements".into());
    }
    parts.extend(settings.fanout.then(|| "fanout".into()));
    for (count, what) in [
        (settings.idle_connections, "idle connection"),
        (settings.idle_queues, "idle queue"),
        (settings.idle_bindings, "idle binding"),
        (settings.bindings, "other binding"),
        (settings.keys, "routing key"),
    ] {
        parts.extend((count > 0).then(|| many(count, what)));
    }
    parts.extend((settings.depth > 0).then(|| format!("{} deep", number(settings.depth as f64))));
    parts.extend(settings.backlog.then(|| "consumed afterwards".into()));
    parts.extend(settings.arguments.iter().map(|(name, value)| format!("{name} {value}")));
    parts.join(", ")
}

/// Three significant digits, or all before the point, these in groups of three.
pub fn number(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.digits$}");
    let (whole, rest) =
        text.split_once('.').map_or((text.as_str(), None), |(whole, rest)| (whole, Some(rest)));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(' ');
        }
        grouped.push(digit);
    }
    let rest = rest.map(|rest| rest.trim_end_matches('0')).filter(|rest| !rest.is_empty());
    rest.map_or_else(|| format!("{sign}{grouped}"), |rest| format!("{sign}{grouped}.{rest}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::arguments::tests::load;
    use super::super::figures::Times;
    use super::super::histogram::Histogram;
    use super::*;

    /// Two brokers, two runs each, the second one without CPU figures and with a name that needs escaping.
    pub fn sample() -> LoadReport {
        let mut under_way = Histogram::default();
        (1..=1000).for_each(|at| under_way.record(at * 10));
        let run = |publish_us: u64, cpu_s: Option<f64>| {
            let times = Times { publish_us, deliver_us: publish_us * 2, total_us: publish_us * 2 };
            let mut figures = Figures::new(1000, 1000, &times, &Histogram::default(), &under_way);
            figures.broker_cpu_s_per_million = cpu_s;
            figures
        };
        let mut report =
            LoadReport::new(&load("--count 1000 --argument x-max-length=5"), Some(Amount::Count(100)));
        for (url, cpu_s) in [("SealMQ=amqps://u:secret@h", Some(4.2)), ("<A & \"B\">=amqp://h", None)] {
            let mut broker = BrokerReport::new(&Target::parse(url).unwrap(), "Server 1".into(), None);
            broker.runs = vec![run(10_000, cpu_s), run(20_000, cpu_s)];
            report.brokers.push(broker);
        }
        report.finish();
        report
    }

    #[test]
    fn the_json_has_settings_every_run_and_the_spread_and_no_password() {
        let report = Report { loads: vec![sample()], ..Report::new() };
        let text = report.to_json().unwrap();
        assert!(!text.contains("secret"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["program"], "sealmq-bench");
        assert!(json["machine"]["cores"].as_u64() >= Some(1));
        let load = &json["loads"][0];
        let settings = &load["settings"];
        assert_eq!((&settings["count"], &settings["warmup_count"]), (&1000.into(), &100.into()));
        assert_eq!(settings["arguments"]["x-max-length"], 5);
        let broker = &load["brokers"][0];
        assert_eq!((&broker["name"], &broker["url"]), (&"SealMQ".into(), &"amqps://h:5671".into()));
        assert_eq!(broker["runs"].as_array().map(Vec::len), Some(2));
        assert_eq!(broker["runs"][1]["publish_per_s"], 50_000.0);
        assert_eq!(broker["runs"][1]["latency_us"]["max"], 10_000);
        assert!(broker["runs"][1]["confirm_us"].is_null());
        let spread = &broker["spread"]["publish_per_s"];
        assert_eq!(
            (&spread["median"], &spread["min"], &spread["max"]),
            (&75e3.into(), &5e4.into(), &1e5.into())
        );
    }

    #[test]
    fn the_table_shows_medians_and_leaves_out_what_nobody_has() {
        let text = table(&sample());
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].contains("1 000 messages, bodies of 1 KiB, 1 producer, 1 consumer")
                && lines[0].ends_with("2 runs"),
            "{text}"
        );
        assert!(lines[1].contains("Broker's CPU") && !lines[1].contains("Confirm"), "{text}");
        assert!(
            lines[3].starts_with("SealMQ ") && lines[3].contains("75 000") && lines[3].ends_with("4.2"),
            "{text}"
        );
        assert!(lines[4].ends_with(" -"), "{text}");
    }

    #[test]
    fn numbers_are_short_and_grouped() {
        let texts = [0.0, 0.1234, 1.5, 12.345, 99.99, 123.4, 1234567.8, -1234.0].map(number);
        assert_eq!(texts, ["0", "0.123", "1.5", "12.3", "100", "123", "1 234 568", "-1 234"]);
    }
}
