//! Rows to text: rabbitmqctl's formatters. Names come from clients, so control characters are escaped before they reach
//! a terminal.

use std::io::{self, Write};

use serde_json::Value;

use super::Failure;
use super::arguments::{Common, Formatter};

/// What can be listed: the columns that exist and those shown by default.
pub struct Kind {
    /// All columns.
    pub columns: &'static [&'static str],
    /// Shown when none are named.
    pub default: &'static [&'static str],
}

/// `list_queues`.
pub const QUEUES: Kind = Kind {
    columns: &[
        "name",
        "durable",
        "auto_delete",
        "exclusive",
        "arguments",
        "messages_ready",
        "messages_unacknowledged",
        "messages",
        "consumers",
        "state",
        "type",
        "memory",
    ],
    default: &["name", "messages"],
};

/// `list_exchanges`.
pub const EXCHANGES: Kind = Kind {
    columns: &["name", "type", "durable", "auto_delete", "internal", "arguments", "messages_delayed"],
    default: &["name", "type"],
};

/// `list_bindings`.
pub const BINDINGS: Kind = Kind { columns: BINDING_COLUMNS, default: BINDING_COLUMNS };

const BINDING_COLUMNS: &[&str] =
    &["source_name", "source_kind", "destination_name", "destination_kind", "routing_key", "arguments"];

/// The columns to show: named one by one or separated by commas.
pub fn columns(kind: &Kind, named: &[String]) -> Result<Vec<String>, Failure> {
    let split = || named.iter().flat_map(|n| n.split(',')).map(str::trim).filter(|n| !n.is_empty());
    let unknown: Vec<&str> = split().filter(|name| !kind.columns.contains(name)).collect();
    if !unknown.is_empty() {
        return Err(Failure::Usage(format!(
            "Info key(s) {} are not supported; there are: {}",
            unknown.join(","),
            kind.columns.join(" ")
        )));
    }
    let wanted: Vec<String> = split().map(str::to_owned).collect();
    if wanted.is_empty() { Ok(kind.default.iter().map(|c| c.to_string()).collect()) } else { Ok(wanted) }
}

/// Writes `rows` (JSON objects) with these columns in the format asked for.
pub fn write(rows: &[Value], columns: &[String], common: &Common, out: &mut dyn Write) -> io::Result<()> {
    match common.formatter {
        Formatter::Table => table(rows, columns, common, out),
        Formatter::Csv => csv(rows, columns, common, out),
        Formatter::PrettyTable => pretty_table(rows, columns, common, out),
        Formatter::Json => {
            writeln!(out, "[")?;
            for (n, row) in rows.iter().enumerate() {
                writeln!(out, "{}{}", if n == 0 { "" } else { "," }, json_row(row, columns))?;
            }
            writeln!(out, "]")
        }
        Formatter::JsonStream => rows.iter().try_for_each(|row| writeln!(out, "{}", json_row(row, columns))),
    }
}

// As rabbitmqctl: nothing at all for no rows, not even a header.
fn table(rows: &[Value], columns: &[String], common: &Common, out: &mut dyn Write) -> io::Result<()> {
    if common.has_headers() && !rows.is_empty() {
        writeln!(out, "{}", columns.join("\t"))?;
    }
    rows.iter().try_for_each(|row| writeln!(out, "{}", cells(row, columns).join("\t")))
}

fn csv(rows: &[Value], columns: &[String], common: &Common, out: &mut dyn Write) -> io::Result<()> {
    let line = |cells: &[String]| {
        let quoted: Vec<String> = cells.iter().map(|c| format!("\"{}\"", c.replace('"', "\"\""))).collect();
        quoted.join(",")
    };
    if common.has_headers() && !rows.is_empty() {
        writeln!(out, "{}", line(columns))?;
    }
    rows.iter().try_for_each(|row| writeln!(out, "{}", line(&cells(row, columns))))
}

fn pretty_table(rows: &[Value], columns: &[String], common: &Common, out: &mut dyn Write) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<Vec<String>> = rows.iter().map(|row| cells(row, columns)).collect();
    if common.has_headers() {
        lines.insert(0, columns.to_vec());
    }
    let width =
        |n: usize| lines.iter().filter_map(|l| l.get(n)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let rule = |left: char, middle: &str, right: char| {
        let bars: Vec<String> = widths.iter().map(|w| "\u{2500}".repeat(w + 2)).collect();
        format!("{left}{}{right}", bars.join(middle))
    };
    writeln!(out, "{}", rule('\u{250c}', "\u{252c}", '\u{2510}'))?;
    for (n, line) in lines.iter().enumerate() {
        if n > 0 {
            writeln!(out, "{}", rule('\u{251c}', "\u{253c}", '\u{2524}'))?;
        }
        for (cell, width) in line.iter().zip(&widths) {
            write!(out, "\u{2502} {cell:<width$} ")?;
        }
        writeln!(out, "\u{2502}")?;
    }
    writeln!(out, "{}", rule('\u{2514}', "\u{2534}", '\u{2518}'))
}

fn cells(row: &Value, columns: &[String]) -> Vec<String> {
    columns.iter().map(|column| row.get(column).map(cell).unwrap_or_default()).collect()
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text),
        Value::Array(fields) => {
            let fields: Vec<String> = fields.iter().map(argument).collect();
            format!("[{}]", fields.join(","))
        }
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

// An argument as an Erlang pair, `{"x-max-length",10}`.
fn argument(field: &Value) -> String {
    let quoted = |text: &str| format!("\"{}\"", printable(text).replace('"', "\\\""));
    let name = field.get("name").and_then(Value::as_str).unwrap_or_default();
    let value = match field.get("value") {
        Some(Value::String(text)) => quoted(text),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    format!("{{{},{value}}}", quoted(name))
}

/// `text` with control characters as `\u{..}`, so that a queue's name cannot steer a terminal or break a table.
pub fn printable(text: &str) -> String {
    let show = |c: char| if c.is_control() { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(show).collect()
}

// Columns stay in the order asked for; arguments are `[name, type, value]` as rabbitmqctl gives them.
fn json_row(row: &Value, columns: &[String]) -> String {
    let field = |column: &String| {
        let value = match row.get(column) {
            Some(Value::Array(fields)) => Value::Array(fields.iter().map(triple).collect()),
            Some(value) => value.clone(),
            None => Value::Null,
        };
        format!("{}:{value}", Value::from(column.as_str()))
    };
    format!("{{{}}}", columns.iter().map(field).collect::<Vec<_>>().join(","))
}

fn triple(field: &Value) -> Value {
    let part = |name: &str| field.get(name).cloned().unwrap_or(Value::Null);
    Value::Array(vec![part("name"), part("kind"), part("value")])
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::super::arguments::Arguments;
    use super::*;

    fn rows() -> Vec<Value> {
        let arguments = json!([{"name": "x-max-length", "kind": "long", "value": 10},
                               {"name": "x-queue-type", "kind": "longstr", "value": "classic"}]);
        vec![
            json!({"name": "q 1", "messages": 3, "durable": true, "arguments": arguments}),
            json!({"name": "a\"b", "messages": 0, "durable": false, "arguments": []}),
        ]
    }

    fn shown(flags: &str, named: &[&str]) -> String {
        let common = Arguments::try_parse_from(format!("x {flags} ping").split_whitespace()).unwrap().common;
        let named: Vec<String> = named.iter().map(|n| n.to_string()).collect();
        let mut out = Vec::new();
        write(&rows(), &columns(&QUEUES, &named).unwrap(), &common, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn formats_as_rabbitmqctl_does() {
        assert_eq!(shown("", &[]), "name\tmessages\nq 1\t3\na\"b\t0\n");
        assert_eq!(shown("--no-table-headers", &[]), "q 1\t3\na\"b\t0\n");
        assert_eq!(shown("-s", &["durable,name"]), "true\tq 1\nfalse\ta\"b\n");
        assert_eq!(
            shown("-s", &["arguments"]),
            "[{\"x-max-length\",10},{\"x-queue-type\",\"classic\"}]\n[]\n"
        );
        assert_eq!(shown("--formatter csv", &[]), "\"name\",\"messages\"\n\"q 1\",\"3\"\n\"a\"\"b\",\"0\"\n");
        assert_eq!(
            shown("--formatter json", &["name", "arguments"]),
            "[\n{\"name\":\"q 1\",\"arguments\":[[\"x-max-length\",\"long\",10],[\"x-queue-type\",\"longstr\",\"classic\"]]}\n\
             ,{\"name\":\"a\\\"b\",\"arguments\":[]}\n]\n"
        );
        assert_eq!(shown("--formatter json_stream", &["messages"]), "{\"messages\":3}\n{\"messages\":0}\n");
    }

    #[test]
    fn a_pretty_table_is_as_wide_as_its_widest_cell() {
        let text = shown("--formatter pretty_table", &[]);
        let widths: Vec<usize> = text.lines().map(|l| l.chars().count()).collect();
        assert_eq!(widths, [19; 7], "{text}");
    }

    #[test]
    fn unknown_columns_are_a_usage_error() {
        let error = columns(&QUEUES, &["name,colour".into(), "taste".into()]).unwrap_err();
        assert_eq!(error.exit_code(), super::super::exit::USAGE);
        assert!(error.to_string().starts_with("Info key(s) colour,taste are not supported"));
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2J\tb\u{9b}"), "a\\u{1b}[2J\\u{9}b\\u{9b}");
        assert_eq!(printable("gr\u{fc}n"), "gr\u{fc}n");
    }
}
