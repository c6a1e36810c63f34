//! `sealmq-bench`: puts a load on any AMQP 0-9-1 broker and tells how fast it is. It is a client and nothing more: what
//! it says of SealMQ it says of others in the same way.
//!
//! | File | |
//! |---|---|
//! | [`arguments`], [`presets`], [`url`], [`load`] | what is to be done |
//! | [`link`], [`client`], [`trust`] | a connection |
//! | [`crowd`] | what stands around the traffic |
//! | [`producer`], [`consumer`], [`pending`], [`tally`], [`histogram`] | the traffic, and what is counted on the way |
//! | [`mod@run`] | one run against one broker |
//! | [`scale`] | many runs: what each thing that stands around the traffic, or waits in a queue, adds to a message's cost |
//! | [`figures`], [`machine`], [`report`], [`svg`], [`plot`], [`curve_plot`], [`progress`] | what is told of it |

pub mod arguments;
pub mod client;
pub mod consumer;
pub mod crowd;
pub mod curve_plot;
pub mod error;
pub mod figures;
pub mod histogram;
pub mod link;
pub mod load;
pub mod machine;
pub mod pending;
pub mod plot;
pub mod presets;
pub mod producer;
pub mod progress;
pub mod report;
pub mod run;
pub mod scale;
pub mod svg;
pub mod tally;
pub mod trust;
pub mod url;

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Parser;

use arguments::{Arguments, Plan};
use error::{Error, Result};
use load::Load;
use progress::Progress;
use report::{BrokerReport, LoadReport, Report};
use run::Broker;
use scale::CurveReport;

/// Exit statuses.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// A broker could not be measured, or a file not be written.
    pub const FAILED: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
}

/// Does what the command line says; returns the exit status.
pub async fn run(command_line: Vec<OsString>, out: &mut impl Write, err: &mut impl Write) -> u8 {
    let arguments = match Arguments::try_parse_from(command_line) {
        Ok(arguments) => arguments,
        Err(help) if !help.use_stderr() => {
            let _ = write!(out, "{}", help.render());
            return exit::OK;
        }
        Err(error) => {
            let _ = write!(err, "{}", error.render());
            return exit::USAGE;
        }
    };
    match measure(arguments, out).await {
        Ok(()) => exit::OK,
        Err(error) => {
            let _ = writeln!(err, "sealmq-bench: {error}");
            error.exit_status()
        }
    }
}

async fn measure(arguments: Arguments, out: &mut impl Write) -> Result<()> {
    if arguments.lists_presets() {
        let list: String =
            presets::PRESETS.iter().map(|preset| format!("{:<22}{}\n", preset.name, preset.about)).collect();
        return print(out, &list);
    }
    let plan = arguments.plan()?;
    let tls = plan.trust.client_config()?;
    let to_broker = |(target, pid): &(url::Target, Option<u32>)| Broker {
        target: target.clone(),
        tls: tls.clone(),
        pid: *pid,
    };
    let brokers: Vec<Broker> = plan.brokers.iter().map(to_broker).collect();
    let progress = Progress::new(plan.is_quiet);
    let mut report = Report::new();
    for curve in &plan.curves {
        let loads: Vec<Load> = curve.points.iter().map(|point| point.load.clone()).collect();
        let measured = CurveReport::new(curve, shown(&plan, &loads, &brokers, &progress).await?);
        if !prints_json(&plan) {
            print(out, &scale::table(&measured))?;
        }
        report.curves.push(measured);
    }
    let loads = if plan.curves.is_empty() { plan.loads.as_slice() } else { &[] };
    for load in loads {
        let measured = shown(&plan, std::slice::from_ref(load), &brokers, &progress).await?;
        if !prints_json(&plan) {
            measured.iter().try_for_each(|load| print(out, &report::table(load)))?;
        }
        report.loads.extend(measured);
    }
    if !report.curves.is_empty() && !prints_json(&plan) {
        print(out, &scale::goals_table(&report.curves))?;
    }
    if let Some(path) = &plan.json {
        let text = report.to_json()?;
        if prints_json(&plan) { print(out, &text)? } else { write_file(path, &text)? }
    }
    if let (Some(path), false) = (&plan.plot, report.curves.is_empty()) {
        write_file(path, &curve_plot::draw(&report.curves, &report.machine))?;
    }
    if let Some(path) = &plan.plot {
        for load in &report.loads {
            write_file(
                &plot_path(path, load.settings.body_bytes, report.loads.len()),
                &plot::draw(load, &report.machine),
            )?;
        }
    }
    Ok(())
}

/// As [`compare`], with progress on the terminal.
async fn shown(
    plan: &Plan,
    loads: &[Load],
    brokers: &[Broker],
    progress: &Progress,
) -> Result<Vec<LoadReport>> {
    tokio::select! {
        measured = compare(plan, loads, brokers, progress) => measured,
        never = progress.show() => match never {},
    }
}

/// All runs of some loads: in each round every load once, on the brokers in turn, so that what changes on the machine
/// meanwhile is shared out among them.
async fn compare(
    plan: &Plan,
    loads: &[Load],
    brokers: &[Broker],
    progress: &Progress,
) -> Result<Vec<LoadReport>> {
    let mut reports: Vec<LoadReport> = loads.iter().map(|load| LoadReport::new(load, plan.warmup)).collect();
    for (broker, load) in brokers.iter().flat_map(|broker| loads.first().map(|load| (broker, load))) {
        if let Some(amount) = plan.warmup {
            progress.label(format!("{}, {}, warm-up", broker.target.name, load.name));
            run::run(broker, &Load { amount, ..load.alone() }, progress).await?;
        }
    }
    for round in 0..plan.repeat {
        for (report, load) in reports.iter_mut().zip(loads) {
            for (at, broker) in brokers.iter().enumerate() {
                let name = &broker.target.name;
                progress.label(format!("{name}, {}, run {} of {}", load.name, round + 1, plan.repeat));
                let outcome = run::run(broker, load, progress).await?;
                if round == 0 {
                    report.brokers.push(BrokerReport::new(&broker.target, outcome.server, outcome.tls));
                }
                report.brokers[at].runs.push(outcome.figures);
            }
        }
    }
    reports.iter_mut().for_each(LoadReport::finish);
    Ok(reports)
}

fn prints_json(plan: &Plan) -> bool {
    plan.json.as_deref() == Some(Path::new("-"))
}

/// `FILE.svg`, or `FILE-512.svg` where there are several sizes.
fn plot_path(path: &Path, body_bytes: usize, loads: usize) -> PathBuf {
    if loads == 1 {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{body_bytes}.svg"))
}

fn print(out: &mut impl Write, text: &str) -> Result<()> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|source| Error::File { path: "standard output".into(), source })
}

fn write_file(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|source| Error::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_sizes_have_a_plot_each() {
        assert_eq!(plot_path(Path::new("d/c.svg"), 100, 1), Path::new("d/c.svg"));
        assert_eq!(plot_path(Path::new("d/c.svg"), 100, 3), Path::new("d/c-100.svg"));
    }

    #[tokio::test]
    async fn exit_statuses_tell_wrong_arguments_from_a_broker_that_is_not_there() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let away = format!("amqp://127.0.0.1:{port}");
        for (line, status, wanted) in [
            ("--help", exit::OK, "Exit codes"),
            ("--list-presets", exit::OK, "classroom"),
            ("--bogus", exit::USAGE, "--bogus"),
            ("--size 1 amqp://h", exit::USAGE, "8 bytes at least"),
            ("--ca /nonexistent amqps://h", exit::FAILED, "/nonexistent"),
            (away.as_str(), exit::FAILED, "cannot connect to 127.0.0.1"),
        ] {
            let words = ["sealmq-bench"].into_iter().chain(line.split(' ')).map(OsString::from);
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let got = run(words.collect(), &mut out, &mut err).await;
            let said = String::from_utf8([out, err].concat()).unwrap();
            assert!(got == status && said.contains(wanted), "{line}: {got} {said}");
        }
    }
}
