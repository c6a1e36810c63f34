//! Reports as text for a terminal. Nothing is decided here.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use super::compare::{CompareReport, Excerpt};
use super::scan::{FileReport, Hit, Outcome, Place, ScanReport};

/// Expected hits by chance above which a needle is called too short.
const CHANCE_NOTABLE: f64 = 0.01;

/// A scan as text, ending in a line with the result.
pub fn render_scan(report: &ScanReport) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write_scan(&mut text, report);
    text
}

/// A comparison as text, ending in a line with the result.
pub fn render_compare(report: &CompareReport) -> String {
    let mut text = String::new();
    let _ = write_compare(&mut text, report);
    text
}

fn write_scan(out: &mut String, report: &ScanReport) -> fmt::Result {
    writeln!(
        out,
        "{}: {} files, {} bytes, entropy {:.3} bits per byte\n",
        report.root.display(),
        report.files.len(),
        report.bytes,
        report.entropy
    )?;
    writeln!(out, "{:>14}  {:>7}  {:>8}  file", "bytes", "entropy", "hits")?;
    for file in &report.files {
        let (hits, path) = (file.hit_count(), file.path.escape_debug());
        writeln!(out, "{:>14}  {:>7.3}  {hits:>8}  {path}", file.bytes, file.entropy)?;
    }
    writeln!(out)?;
    for needle in &report.needles {
        writeln!(out, "needle {:?}: {} hits", needle.needle, needle.hits)?;
        write_chance(out, report, &needle.needle)?;
        for file in &report.files {
            for hit in file.hits.iter().filter(|hit| hit.needle == needle.needle) {
                writeln!(out, "  {}", describe(file, hit))?;
            }
        }
    }
    for name in &report.without_content {
        writeln!(out, "name only: {}", name.escape_debug())?;
    }
    write_errors(out, &report.errors)?;
    let result = match report.outcome {
        Outcome::Clean => "clean: no needle stands in any file".to_owned(),
        Outcome::Found => format!("FOUND: {} hits", report.hit_count()),
        Outcome::Failed => {
            format!("FAILED: not everything could be read ({} hits in the rest)", report.hit_count())
        }
    };
    writeln!(out, "\n{result}")
}

fn write_compare(out: &mut String, report: &CompareReport) -> fmt::Result {
    let (sealed, plain) = (&report.sealed, &report.plain);
    writeln!(out, "sealed: {}\nplain:  {}\n", sealed.root.display(), plain.root.display())?;
    writeln!(out, "{:<44}{:>16}{:>16}", "", "sealed", "plain")?;
    writeln!(out, "{:<44}{:>16}{:>16}", "files", sealed.files.len(), plain.files.len())?;
    writeln!(out, "{:<44}{:>16}{:>16}", "bytes", sealed.bytes, plain.bytes)?;
    writeln!(out, "{:<44}{:>16.3}{:>16.3}", "entropy, bits per byte", sealed.entropy, plain.entropy)?;
    for (own, control) in sealed.needles.iter().zip(&plain.needles) {
        let name = format!("hits of {:?}", own.needle);
        let note = if own.hits + control.hits == 0 { "   in neither: proves nothing" } else { "" };
        writeln!(out, "{name:<44}{:>16}{:>16}{note}", own.hits, control.hits)?;
        write_chance(out, sealed, &own.needle)?;
    }
    write_files(out, sealed, plain)?;
    for excerpt in &report.plain_excerpts {
        write_excerpt(out, "plain", excerpt)?;
    }
    for excerpt in &report.sealed_excerpts {
        write_excerpt(out, "SEALED, but readable", excerpt)?;
    }
    if let Some(excerpt) = &report.contrast {
        write_excerpt(out, "sealed, its largest file", excerpt)?;
    }
    write_errors(out, &sealed.errors)?;
    write_errors(out, &plain.errors)?;
    write_errors(out, &report.errors)?;
    let result = match report.outcome {
        Outcome::Clean => {
            format!("clean: 0 hits in the sealed directory, {} in the plain one", plain.hit_count())
        }
        Outcome::Found => format!("FOUND: {} hits in the sealed directory", sealed.hit_count()),
        Outcome::Failed => {
            format!("FAILED: see the errors above ({} hits in the sealed directory)", sealed.hit_count())
        }
    };
    writeln!(out, "\n{result}")
}

/// One line per path, of either side.
fn write_files(out: &mut String, sealed: &ScanReport, plain: &ScanReport) -> fmt::Result {
    let find = |report: &ScanReport, path: &str| -> String {
        match report.files.iter().find(|file| file.path == path) {
            Some(file) => format!("{:>12} {:>7.3} {:>5}", file.bytes, file.entropy, file.hit_count()),
            None => format!("{:>26}", "-"),
        }
    };
    let paths: BTreeSet<&str> =
        [sealed, plain].iter().flat_map(|side| &side.files).map(|f| f.path.as_str()).collect();
    let columns = format!("{:>12} {:>7} {:>5}", "bytes", "entropy", "hits");
    writeln!(out, "\n{:>26} |{:>26} |", "sealed", "plain")?;
    writeln!(out, "{columns} |{columns} | file")?;
    for path in paths {
        writeln!(out, "{:>26} |{:>26} | {}", find(sealed, path), find(plain, path), path.escape_debug())?;
    }
    Ok(())
}

fn write_excerpt(out: &mut String, side: &str, excerpt: &Excerpt) -> fmt::Result {
    writeln!(out, "\n{side}: {}", excerpt.path.escape_debug())?;
    for hit in &excerpt.hits {
        writeln!(out, "  {hit}")?;
    }
    for line in &excerpt.lines {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn write_chance(out: &mut String, report: &ScanReport, needle: &str) -> fmt::Result {
    let own = report.needles.iter().find(|own| own.needle == needle);
    match own.map(|own| own.expected_by_chance) {
        Some(expected) if expected > CHANCE_NOTABLE => {
            writeln!(out, "  short needle: {expected:.2} hits are expected by chance in so many random bytes")
        }
        _ => Ok(()),
    }
}

fn write_errors(out: &mut String, errors: &[String]) -> fmt::Result {
    errors.iter().try_for_each(|error| writeln!(out, "error: {error}"))
}

fn describe(file: &FileReport, hit: &Hit) -> String {
    let path = file.path.escape_debug();
    if hit.place == Place::Name {
        return format!("{path}: in its name, as {}", hit.form);
    }
    let offsets: Vec<_> = hit.offsets.iter().map(|offset| format!("0x{offset:x}")).collect();
    let more = hit.count - hit.offsets.len() as u64;
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{path}: as {} at {}{more}", hit.form, offsets.join(", "))
}
