//! The `sealmq-forensics` program: parses its arguments, calls the library, maps the outcome to an exit code.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::{Args, Parser, Subcommand};
use sealmq::server::hardening;
use sealmq::server::settings::Notice;
use sealmq::tools::forensics::{self, InspectArguments, Needles, Outcome, VerifyArguments};
use serde::Serialize;

/// Looks at a broker's data directory. As a thief would, as bytes without any key: where given texts stand in it and
/// how random each file looks (scan, compare). As its owner: whether all of it is sound (verify), and what one record
/// or message is (inspect). Nothing in the directory is ever changed.
#[derive(Parser)]
#[command(name = "sealmq-forensics", version, after_help = NOTES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Search every file of a directory (or one file)
    Scan {
        /// The data directory; stop the broker first, or search a copy
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        #[command(flatten)]
        search: Search,
    },
    /// Search a sealed and a plain directory, and show them side by side with the bytes around each hit
    Compare {
        /// Directory of the broker that seals
        #[arg(value_name = "SEALED_DIR")]
        sealed: PathBuf,
        /// Directory of the broker with at_rest.mode = plain-insecure, the control
        #[arg(value_name = "PLAIN_DIR")]
        plain: PathBuf,
        #[command(flatten)]
        search: Search,
        /// Write a report with pictures to this file as well; it needs nothing but a browser
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Open every record of a store that no broker uses, and check all of its files
    Verify(VerifyArguments),
    /// Show what there is, or one record; with the key, one message
    Inspect(InspectArguments),
}

#[derive(Args)]
struct Search {
    /// Texts to look for: in a body, a header, a queue's name, a user's name, a password ...
    #[arg(long = "needle", value_name = "TEXT", required = true, num_args = 1..)]
    needles: Vec<String>,

    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

const NOTES: &str =
    "Each needle is searched as UTF-8, UTF-16 (both byte orders), hexadecimal digits (both cases) and base64
(all three alignments, both alphabets, without padding), in the files' bytes and in their names. Text that is
compressed or encrypted is not found; the entropy (8 bits per byte = random) tells such files.

verify and inspect want a store at rest: stop the broker, or give them a backup (sealmqctl backup) or an atomic
snapshot. Files that were copied one by one while the broker wrote are no state that it ever had.

Exit codes: 0 nothing found, sound, or shown; 1 found (compare: in the sealed directory), faults, or a record that
does not open; 2 error: something could not be read, there is no such record, or compare found no needle in the
plain directory either.";

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Found) => ExitCode::from(1),
        Ok(Outcome::Failed) => ExitCode::from(2),
        Err(error) => {
            eprintln!("sealmq-forensics: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Scan { directory, search } => {
            let report = forensics::scan(&directory, &Needles::new(search.needles)?)?;
            print(search.json, &report, forensics::render_scan)?;
            Ok(report.outcome)
        }
        Command::Compare { sealed, plain, search, html } => {
            let report = forensics::compare(&sealed, &plain, &Needles::new(search.needles)?)?;
            if let Some(path) = html {
                forensics::write_html(&path, &report)?;
            }
            print(search.json, &report, forensics::render_compare)?;
            Ok(report.outcome)
        }
        Command::Verify(arguments) => {
            harden();
            let report = forensics::verify(&arguments)?;
            print(arguments.json, &report, forensics::render_verify)?;
            Ok(report.outcome)
        }
        Command::Inspect(arguments) => {
            harden();
            let inspected = forensics::inspect(&arguments)?;
            inspected.warnings.iter().for_each(|warning| eprintln!("sealmq-forensics: {warning}"));
            write_out(&inspected.text)?;
            Ok(inspected.outcome)
        }
    }
}

/// Keys and messages come into this process's memory: no core dumps, no debuggers, as for the broker.
fn harden() {
    for notice in hardening::apply() {
        let (Notice::Info(text) | Notice::Warning(text)) = notice;
        eprintln!("sealmq-forensics: {text}");
    }
}

fn print<R: Serialize>(json: bool, report: &R, render: fn(&R) -> String) -> anyhow::Result<()> {
    let mut text = if json { serde_json::to_string_pretty(report)? } else { render(report) };
    if json {
        text.push('\n');
    }
    write_out(&text)
}

fn write_out(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough (`| head`); the outcome still counts.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(|error| anyhow!("cannot print the report: {error}")),
    }
}
