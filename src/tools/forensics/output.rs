//! Files that the program writes: its owner's alone, and never in the directory that is looked at.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::compare::CompareReport;
use super::html::render_html;

/// Writes a file that does not exist yet, mode 0600.
///
/// # Errors
/// When it exists, be it as a link, or would lie in one of the examined directories.
pub(super) fn write_new(path: &Path, bytes: &[u8], examined: &[&Path]) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let real = |path: &Path| fs::canonicalize(path).with_context(|| path.display().to_string());
    let folder = real(folder)?;
    for root in examined {
        if folder.starts_with(real(root)?) {
            bail!("{} lies in {}, which is to stay as it is", path.display(), root.display());
        }
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a comparison as a page, which takes the place of an earlier one.
///
/// # Errors
/// When it would lie in one of the compared directories, or something is there that is no file.
pub fn write_html(path: &Path, report: &CompareReport) -> Result<()> {
    let now = OffsetDateTime::now_utc().format(&Rfc3339)?;
    write_report(path, &render_html(report, &now), &[&report.sealed.root, &report.plain.root])
}

pub(super) fn write_report(path: &Path, text: &str, examined: &[&Path]) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_file() => {
            let beside = path.with_extension("html.tmp");
            write_new(&beside, text.as_bytes(), examined)?;
            fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
        }
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => write_new(path, text.as_bytes(), examined),
    }
}
