//! `sealmq-forensics verify`: a store's audit as a report. The judging is the store's own.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::scan::Outcome;
use super::sources::KeyArguments;
use crate::engine::row_name;
use crate::server::progress_line::ProgressLine;
use crate::store::{Audit, AuditOptions, Fault, Progress, Row, RowKind, StoreError, audit};

/// Queues and faults that the text lists; `--json` lists all that are kept.
const LINES_MAX: usize = 50;

/// What to verify.
#[derive(Args, Debug)]
pub struct VerifyArguments {
    /// The data directory of a broker that does not run, an atomic copy of it, or a backup
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The key's source.
    #[command(flatten)]
    pub key: KeyArguments,
    /// Where the anchor lies, if not in DIR
    #[arg(long, value_name = "FILE", conflicts_with = "no_anchor")]
    pub anchor: Option<PathBuf>,
    /// A missing anchor is no fault: of a copy that was made without it
    #[arg(long)]
    pub no_anchor: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// A verified store.
#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// `Clean`: sound. `Found`: at least one fault.
    pub outcome: Outcome,
    /// As given.
    pub directory: PathBuf,
    /// `sealed` or `plain-insecure`.
    pub mode: &'static str,
    /// The store's uuid.
    pub store: String,
    /// When it was made.
    pub created: String,
    /// `None` in a plain store, and when it does not open.
    pub keyring: Option<KeyringReport>,
    /// The anchor, and the commit that it tells of.
    pub anchor: AnchorReport,
    /// The last commit.
    pub commit: Option<CommitReport>,
    /// What was opened.
    pub counts: CountsReport,
    /// By id.
    pub queues: Vec<QueueReport>,
    /// How many there are.
    pub fault_count: u64,
    /// The first of them.
    pub faults: Vec<FaultReport>,
    /// No faults.
    pub notes: Vec<String>,
    /// Whether every record was read.
    pub complete: bool,
}

/// The keyring, without any key.
#[derive(Debug, Serialize)]
pub struct KeyringReport {
    /// Rises with each write.
    pub generation: u64,
    /// Kind and id of each slot, hex.
    pub slots: Vec<String>,
    /// How many.
    pub data_keys: usize,
}

/// The anchor.
#[derive(Debug, Serialize)]
pub struct AnchorReport {
    /// Where it is or should be.
    pub path: PathBuf,
    /// 0 when it tells of none.
    pub commit_seq: u64,
}

/// The last commit.
#[derive(Debug, Serialize)]
pub struct CommitReport {
    /// Its number.
    pub commit_seq: u64,
    /// When, RFC 3339.
    pub at: String,
    /// The broker was stopped in order.
    pub clean: bool,
}

/// How many records were opened.
#[derive(Debug, Serialize)]
pub struct CountsReport {
    /// Messages, in each queue.
    pub messages: u64,
    /// Bodies that stand apart.
    pub bodies: u64,
    /// Topology and users.
    pub rows: u64,
    /// Of queues.
    pub manifests: u64,
    /// Of all kinds.
    pub records: u64,
    /// As they stand in the database.
    pub bytes: u64,
}

/// A queue.
#[derive(Debug, Serialize)]
pub struct QueueReport {
    /// Its id in the store.
    pub id: u64,
    /// What clients call it; `None` when no row says so (it was deleted).
    pub name: Option<String>,
    /// How many.
    pub messages: u64,
    /// Of messages that opened.
    pub bytes: u64,
    /// The first place in use.
    pub head: u64,
    /// The next place.
    pub next_seq: u64,
    /// That name this queue.
    pub faults: u64,
}

/// A fault.
#[derive(Debug, Serialize)]
pub struct FaultReport {
    /// Stable.
    pub code: &'static str,
    /// The queue's id.
    pub queue: Option<u64>,
    /// The queue's name.
    pub queue_name: Option<String>,
    /// The entry's place.
    pub seq: Option<u64>,
    /// The body's id.
    pub body: Option<u64>,
    /// The file.
    pub file: Option<PathBuf>,
    /// In bytes.
    pub offset: Option<u64>,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: &'static str,
}

/// Verifies a store; shows how far it has come on a terminal.
///
/// # Errors
/// When there can be no verdict: the store is in use, the key is missing or wrong, a file cannot be read.
pub fn verify(arguments: &VerifyArguments) -> Result<VerifyReport> {
    let dir = &arguments.directory;
    let found = arguments.key.find(dir)?;
    let options = AuditOptions {
        dir: dir.clone(),
        credential: found.credential,
        anchor: arguments.anchor.clone().or(found.anchor),
        demands_anchor: !arguments.no_anchor,
    };
    let mut line = ProgressLine::new();
    let audit = audit(options, &mut |progress| show(&mut line, progress));
    line.clear();
    Ok(report(dir, audit.map_err(refused)?))
}

/// A refusal with its code and remedy.
pub(super) fn refused(error: StoreError) -> anyhow::Error {
    let hint = match error {
        StoreError::Locked { .. } => "stop the broker, or look at a backup (sealmqctl backup)",
        StoreError::KekMissing { .. } => {
            "name its key: --kek FILE, --kek-fd, --passphrase-file, --passphrase or --config"
        }
        _ => error.remedy(),
    };
    anyhow::anyhow!("{}: {error} ({hint})", error.code())
}

/// The names of queues by their ids; an exchange that delays has a queue of its own under its row's id.
pub(super) fn queue_names(rows: &[Row]) -> HashMap<u64, String> {
    let named = |row: &Row| {
        let name = String::from_utf8_lossy(&row_name(row.kind, &row.plaintext)?).into_owned();
        match row.kind {
            RowKind::Queue => Some((row.id.0, name)),
            RowKind::Exchange => Some((row.id.0, format!("delayed messages of exchange {name}"))),
            _ => None,
        }
    };
    rows.iter().filter_map(named).collect()
}

/// Unix milliseconds as RFC 3339.
pub(super) fn moment(unix_ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000).ok();
    at.and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix_ms} ms after 1970"))
}

fn report(dir: &Path, audit: Audit) -> VerifyReport {
    let names = queue_names(&audit.rows);
    let queue = |queue: &crate::store::QueueFacts| QueueReport {
        id: queue.queue.0,
        name: names.get(&queue.queue.0).cloned(),
        messages: queue.messages,
        bytes: queue.bytes,
        head: queue.head,
        next_seq: queue.next_seq,
        faults: queue.faults,
    };
    let fault = |fault: Fault| FaultReport {
        queue_name: fault.queue.and_then(|queue| names.get(&queue).cloned()),
        code: fault.code,
        queue: fault.queue,
        seq: fault.seq,
        body: fault.body,
        file: fault.file,
        offset: fault.offset,
        reason: fault.reason,
        remedy: fault.remedy,
    };
    let counts = audit.counts;
    VerifyReport {
        outcome: if audit.fault_count == 0 { Outcome::Clean } else { Outcome::Found },
        directory: dir.to_path_buf(),
        mode: audit.mode.name(),
        store: audit.store,
        created: audit.created,
        keyring: audit.keyring.map(|keyring| KeyringReport {
            generation: keyring.generation,
            slots: keyring.slots.iter().map(|slot| format!("{} {}", slot.kind, slot.id)).collect(),
            data_keys: keyring.data_keys,
        }),
        anchor: AnchorReport { path: audit.anchor.0, commit_seq: audit.anchor.1 },
        commit: audit.commit.map(|commit| CommitReport {
            commit_seq: commit.commit_seq,
            at: moment(commit.wall_ms),
            clean: commit.clean,
        }),
        counts: CountsReport {
            messages: counts.entries,
            bodies: counts.bodies,
            rows: counts.rows,
            manifests: counts.manifests,
            records: counts.records,
            bytes: counts.bytes,
        },
        queues: audit.queues.iter().map(queue).collect(),
        fault_count: audit.fault_count,
        faults: audit.faults.into_iter().map(fault).collect(),
        notes: audit.notes,
        complete: audit.is_complete,
    }
}

fn show(line: &mut ProgressLine, Progress { step, records, bytes }: Progress) {
    if !step.is_empty() {
        line.show(|| format!("{step}: {records} records, {} MiB", bytes / (1024 * 1024)));
    }
}

/// A verified store as text, ending in a line with the result.
pub fn render_verify(report: &VerifyReport) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write_report(&mut text, report);
    text
}

fn write_report(out: &mut String, report: &VerifyReport) -> fmt::Result {
    let VerifyReport { directory, mode, store, created, counts, .. } = report;
    writeln!(out, "{}: {mode} store {store}, made {}\n", directory.display(), created.escape_debug())?;
    if let Some(KeyringReport { generation, slots, data_keys }) = &report.keyring {
        let slots = slots.join(", ");
        writeln!(out, "  keyring   generation {generation}, {data_keys} data keys, opened by: {slots}")?;
    }
    let AnchorReport { path, commit_seq } = &report.anchor;
    writeln!(out, "  anchor    {} tells of commit {commit_seq}", path.display())?;
    if let Some(CommitReport { commit_seq, at, clean }) = &report.commit {
        let end = if *clean { "stopped in order" } else { "not stopped in order" };
        writeln!(out, "  database  ends with commit {commit_seq}, {at}, {end}")?;
    }
    let CountsReport { messages, bodies, rows, manifests, records, bytes } = counts;
    writeln!(
        out,
        "  read      {records} records, {bytes} bytes: {messages} messages ({bodies} bodies apart), {manifests} manifests, {rows} rows"
    )?;
    write_queues(out, report)?;
    for (number, fault) in (1..).zip(report.faults.iter().take(LINES_MAX)) {
        write_fault(out, number, fault)?;
    }
    let shown = report.faults.len().min(LINES_MAX) as u64;
    if report.fault_count > shown {
        writeln!(
            out,
            "\nand {} more faults (--json lists {})",
            report.fault_count - shown,
            report.faults.len()
        )?;
    }
    if !report.notes.is_empty() {
        writeln!(out)?;
    }
    report.notes.iter().try_for_each(|note| writeln!(out, "note: {note}"))?;
    let what = match (report.mode, report.complete) {
        ("sealed", true) => "every record opened and all sums fit",
        (_, true) => "all records can be read and all sums fit; nothing authenticates them",
        (_, false) => "not everything could be read",
    };
    match report.fault_count {
        0 => writeln!(out, "\nSOUND: {what}"),
        count => writeln!(out, "\nFAULTS: {count}"),
    }
}

fn write_queues(out: &mut String, report: &VerifyReport) -> fmt::Result {
    if report.queues.is_empty() {
        return Ok(());
    }
    let columns = ["queue", "messages", "bytes", "first place", "next place", "faults"];
    let [id, messages, bytes, head, next, faults] = columns;
    writeln!(out, "\n{id:>8} {messages:>12} {bytes:>14} {head:>12} {next:>12} {faults:>7}  name")?;
    let mut shown: Vec<&QueueReport> = report.queues.iter().collect();
    // Those with faults first, else as they are.
    shown.sort_by_key(|queue| queue.faults == 0);
    for queue in shown.iter().take(LINES_MAX) {
        let QueueReport { id, messages, bytes, head, next_seq, faults, .. } = queue;
        let name = queue.name.as_deref().unwrap_or("(deleted)").escape_debug().to_string();
        writeln!(out, "{id:>8} {messages:>12} {bytes:>14} {head:>12} {next_seq:>12} {faults:>7}  {name}")?;
    }
    if shown.len() > LINES_MAX {
        writeln!(out, "and {} more queues (--json lists all)", shown.len() - LINES_MAX)?;
    }
    Ok(())
}

fn write_fault(out: &mut String, number: usize, fault: &FaultReport) -> fmt::Result {
    write!(out, "\nfault {number}: {}", fault.code)?;
    if let Some(queue) = fault.queue {
        write!(out, "  queue {queue}")?;
    }
    if let Some(name) = &fault.queue_name {
        write!(out, " ({})", name.escape_debug())?;
    }
    if let Some(seq) = fault.seq {
        write!(out, ", entry {seq}")?;
    }
    if let Some(body) = fault.body {
        write!(out, "  body {body}")?;
    }
    if let Some(file) = &fault.file {
        write!(out, "  {}", file.display())?;
    }
    if let Some(offset) = fault.offset {
        write!(out, " at byte {offset}")?;
    }
    writeln!(out, "\n  {}\n  -> {}", fault.reason, fault.remedy)
}
