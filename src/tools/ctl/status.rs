//! `status` and the environment part of `report` as text, in rabbitmqctl's sections.

use std::io::{self, Write};

use serde_json::Value;

use super::listing::printable;

/// Writes the sections of `status`; a field that the broker did not give is left empty.
pub fn write(status: &Value, out: &mut dyn Write) -> io::Result<()> {
    let text = |field: &str| match status.get(field) {
        Some(Value::String(text)) => printable(text),
        Some(value) => value.to_string(),
        None => String::new(),
    };
    let number = |field: &str| status.get(field).and_then(Value::as_u64).unwrap_or(0);
    section("Runtime", out)?;
    writeln!(out, "OS PID: {}", text("pid"))?;
    writeln!(out, "OS: {}", std::env::consts::OS)?;
    writeln!(out, "Uptime (seconds): {}", text("uptime_seconds"))?;
    writeln!(out, "{} version: {}", text("product"), text("product_version"))?;
    writeln!(out, "SealMQ version: {}", text("sealmq_version"))?;
    writeln!(out, "Node name: {}", text("node"))?;
    writeln!(out, "Cluster name: {}", text("cluster_name"))?;
    section("Data directory", out)?;
    writeln!(out, "Node data directory: {}", text("data_dir"))?;
    writeln!(out, "Data at rest: {}", text("at_rest_mode"))?;
    bullets("Config files", status.get("config_files"), out)?;
    bullets("Log file(s)", status.get("log_files"), out)?;
    bullets("Alarms", status.get("alarms"), out)?;
    section("Memory", out)?;
    writeln!(out, "Total memory used: {}", gigabytes(number("memory_bytes")))?;
    writeln!(out, "Memory high watermark: {}", gigabytes(number("memory_limit_bytes")))?;
    section("File Descriptors", out)?;
    writeln!(out, "Total: {}, limit: {}", text("file_descriptors"), text("file_descriptors_limit"))?;
    section("Free Disk Space", out)?;
    writeln!(out, "Low free disk space watermark: {}", gigabytes(number("disk_free_limit_bytes")))?;
    writeln!(out, "Free disk space: {}", gigabytes(number("disk_free_bytes")))?;
    section("Totals", out)?;
    writeln!(out, "Connection count: {}", text("connections"))?;
    writeln!(out, "Channel count: {}", text("channels"))?;
    writeln!(out, "Consumer count: {}", text("consumers"))?;
    writeln!(out, "Queue count: {}", text("queues"))?;
    writeln!(out, "Message count: {}", text("messages"))?;
    writeln!(out, "Virtual host count: {}", text("vhosts"))?;
    section("Listeners", out)?;
    for listener in status.get("listeners").and_then(Value::as_array).into_iter().flatten() {
        let part = |name: &str| match listener.get(name) {
            Some(Value::String(text)) => printable(text),
            Some(value) => value.to_string(),
            None => String::new(),
        };
        let (interface, port) = (part("interface"), part("port"));
        let (protocol, purpose) = (part("protocol"), part("purpose"));
        writeln!(out, "Interface: {interface}, port: {port}, protocol: {protocol}, purpose: {purpose}")?;
    }
    Ok(())
}

/// Writes the settings that scripts look for in a report, as RabbitMQ's Erlang terms: the data directory in quotes.
pub fn write_environment(status: &Value, out: &mut dyn Write) -> io::Result<()> {
    let quoted = |field: &str| {
        let text = status.get(field).and_then(Value::as_str).unwrap_or_default();
        format!("\"{}\"", printable(text).replace('"', "\\\""))
    };
    writeln!(out, "[{{sealmq,")?;
    writeln!(out, "     [{{data_dir,{}}},", quoted("data_dir"))?;
    writeln!(out, "      {{at_rest_mode,{}}},", quoted("at_rest_mode"))?;
    writeln!(out, "      {{version,{}}}]}}]", quoted("sealmq_version"))
}

fn section(title: &str, out: &mut dyn Write) -> io::Result<()> {
    let before = if title == "Runtime" { "" } else { "\n" };
    writeln!(out, "{before}{title}\n")
}

fn bullets(title: &str, items: Option<&Value>, out: &mut dyn Write) -> io::Result<()> {
    section(title, out)?;
    let items = items.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        writeln!(out, "(none)")?;
    }
    items.iter().try_for_each(|item| writeln!(out, " * {}", printable(item.as_str().unwrap_or_default())))
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.4} gb", bytes as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_holds_the_data_directory_readable_and_in_quotes() {
        let status = json!({"data_dir": "/var/lib/sealmq", "at_rest_mode": "sealed", "alarms": ["memory"],
                            "memory_bytes": 1_500_000_000u64, "config_files": []});
        let (mut text, mut environment) = (Vec::new(), Vec::new());
        write(&status, &mut text).unwrap();
        write_environment(&status, &mut environment).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("\nNode data directory: /var/lib/sealmq\n"), "{text}");
        assert!(
            text.contains("\nAlarms\n\n * memory\n") && text.contains("\nConfig files\n\n(none)\n"),
            "{text}"
        );
        assert!(text.contains("Total memory used: 1.5000 gb\n"), "{text}");
        let environment = String::from_utf8(environment).unwrap();
        assert!(environment.contains("{data_dir,\"/var/lib/sealmq\"},\n"), "{environment}");
    }
}
