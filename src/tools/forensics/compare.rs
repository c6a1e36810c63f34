//! A sealed and a plain directory side by side. The plain one is the control: where a needle is not found
//! there either, its absence from the sealed one proves nothing.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde::Serialize;

use super::error::Error;
use super::hexdump::{self, LINE_BYTES};
use super::needle::Needles;
use super::scan::{FileReport, Hit, Outcome, Place, ScanReport, scan};

/// Places shown out of the plain directory.
const EXCERPTS_MAX: usize = 12;

/// Bytes shown before and after each hit.
const CONTEXT_BYTES: u64 = 64;

/// Longest excerpt, however many hits follow each other.
const EXCERPT_BYTES_MAX: u64 = 1024;

/// Bytes shown out of the sealed directory, for contrast.
const CONTRAST_BYTES: u64 = 256;

/// Part of a file as xxd lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Excerpt {
    /// Path below the searched folder.
    pub path: String,
    /// What stands in it: needle, form and offset.
    pub hits: Vec<String>,
    /// Offset, hexadecimal digits and ASCII, 16 bytes a line.
    pub lines: Vec<String>,
    /// Where in the file it begins.
    #[serde(skip)]
    pub(super) offset: u64,
    /// The bytes themselves.
    #[serde(skip)]
    pub(super) bytes: Vec<u8>,
    /// The hits among them: first byte, counted from the beginning of the file, and length.
    #[serde(skip)]
    pub(super) marks: Vec<(u64, u64)>,
}

/// Two searched folders.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompareReport {
    /// `Found`: a needle stands in the sealed directory. `Clean`: none does, and at least one stands in the
    /// plain one. `Failed`: something was unreadable, or no needle was in either, which proves nothing.
    pub outcome: Outcome,
    /// The sealed directory.
    pub sealed: ScanReport,
    /// The plain directory.
    pub plain: ScanReport,
    /// Around the hits in the plain directory, each needle's first hit before any other's second.
    pub plain_excerpts: Vec<Excerpt>,
    /// Around the hits in the sealed directory, where there should be none.
    pub sealed_excerpts: Vec<Excerpt>,
    /// The beginning of the sealed directory's largest file.
    pub contrast: Option<Excerpt>,
    /// What could not be shown, or proves nothing.
    pub errors: Vec<String>,
}

/// Searches both folders and shows what stands around the hits.
pub fn compare(sealed: &Path, plain: &Path, needles: &Needles) -> Result<CompareReport, Error> {
    let mut report = CompareReport {
        outcome: Outcome::Failed,
        sealed: scan(sealed, needles)?,
        plain: scan(plain, needles)?,
        plain_excerpts: Vec::new(),
        sealed_excerpts: Vec::new(),
        contrast: None,
        errors: Vec::new(),
    };
    report.plain_excerpts = excerpts(&report.plain, &mut report.errors);
    report.sealed_excerpts = excerpts(&report.sealed, &mut report.errors);
    let largest = report.sealed.files.iter().max_by_key(|file| file.bytes).filter(|file| file.bytes > 0);
    report.contrast = largest.and_then(|file| {
        let span = Span { file, start: 0, end: CONTRAST_BYTES, hits: Vec::new(), marks: Vec::new() };
        span.show().map_err(|error| report.errors.push(error)).ok()
    });
    if is_plain_by_its_own_word(sealed) {
        report.errors.push(format!(
            "{} is a plain store, as its SEALMQ_STORE says, and was given as the sealed one: are the two exchanged?",
            sealed.display()
        ));
    }
    let complete = [&report.sealed, &report.plain].iter().all(|side| side.errors.is_empty());
    if report.plain.hit_count() == 0 {
        report.errors.push(format!(
            "no needle was found in {} either, so that its absence from {} proves nothing: check the needles, and that the messages were persistent",
            plain.display(),
            sealed.display()
        ));
    }
    report.outcome = match (complete && report.errors.is_empty(), report.sealed.hit_count()) {
        (false, _) => Outcome::Failed,
        (true, 0) => Outcome::Clean,
        (true, _) => Outcome::Found,
    };
    Ok(report)
}

/// The one thing that is read of a store's format: whoever exchanges the two directories must not be told of a leak.
fn is_plain_by_its_own_word(dir: &Path) -> bool {
    let descriptor = std::fs::read(dir.join("SEALMQ_STORE")).unwrap_or_default();
    String::from_utf8_lossy(&descriptor).contains("\"plain-insecure\"")
}

/// A part of a file that is to be shown.
struct Span<'r> {
    file: &'r FileReport,
    start: u64,
    end: u64,
    hits: Vec<String>,
    marks: Vec<(u64, u64)>,
}

impl Span<'_> {
    fn show(&self) -> Result<Excerpt, String> {
        let mut bytes = Vec::new();
        let mut read = || {
            let mut file = File::open(&self.file.location)?;
            file.seek(SeekFrom::Start(self.start))?;
            file.take(self.end - self.start).read_to_end(&mut bytes)
        };
        read().map_err(|error| format!("cannot read {} again: {error}", self.file.location.display()))?;
        Ok(Excerpt {
            path: self.file.path.clone(),
            hits: self.hits.clone(),
            lines: hexdump::lines(self.start, &bytes),
            offset: self.start,
            marks: self.marks.clone(),
            bytes,
        })
    }
}

/// What stands in the sealed directory where the excerpt of the plain one was taken: in the file of the same name, or
/// in the largest one. `None` when there is nothing there.
pub(super) fn counterpart(sealed: &ScanReport, excerpt: &Excerpt) -> Option<Excerpt> {
    let len = excerpt.bytes.len() as u64;
    let reaches = |file: &&FileReport| file.bytes > excerpt.offset;
    let same = sealed.files.iter().find(|file| file.path == excerpt.path).filter(reaches);
    let (file, start) = match same {
        Some(file) => (file, excerpt.offset),
        None => {
            let file = sealed.files.iter().max_by_key(|file| file.bytes).filter(|file| file.bytes > 0)?;
            (file, excerpt.offset.min(file.bytes.saturating_sub(len) / LINE_BYTES as u64 * LINE_BYTES as u64))
        }
    };
    let own = file.hits.iter().filter(|hit| hit.place == Place::Content);
    let marks = own.flat_map(|hit| hit.offsets.iter().map(|offset| (*offset, hit.bytes))).collect();
    Span { file, start, end: start + len, hits: Vec::new(), marks }.show().ok()
}

fn excerpts(report: &ScanReport, errors: &mut Vec<String>) -> Vec<Excerpt> {
    let shown = spans(report).into_iter().map(|span| span.show());
    shown.filter_map(|excerpt| excerpt.map_err(|error| errors.push(error)).ok()).collect()
}

/// The places to show, in the order of files and offsets; neighbours become one.
fn spans(report: &ScanReport) -> Vec<Span<'_>> {
    let mut candidates: Vec<(&FileReport, &Hit, u64)> = Vec::new();
    for needle in &report.needles {
        for file in &report.files {
            let own =
                file.hits.iter().filter(|hit| hit.needle == needle.needle && hit.place == Place::Content);
            candidates.extend(own.flat_map(|hit| hit.offsets.iter().map(move |offset| (file, hit, *offset))));
        }
    }
    // Each needle's first place, then each one's second, and so on.
    let mut seen: Vec<(&str, usize)> = Vec::new();
    let mut ranked: Vec<(usize, (&FileReport, &Hit, u64))> = Vec::new();
    for candidate in candidates {
        let needle = candidate.1.needle.as_str();
        let rank = match seen.iter_mut().find(|(text, _)| *text == needle) {
            Some((_, count)) => {
                *count += 1;
                *count
            }
            None => {
                seen.push((needle, 0));
                0
            }
        };
        ranked.push((rank, candidate));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.truncate(EXCERPTS_MAX);
    ranked.sort_by(|(_, a), (_, b)| (&a.0.path, a.2).cmp(&(&b.0.path, b.2)));

    let line = LINE_BYTES as u64;
    let mut spans: Vec<Span<'_>> = Vec::new();
    for (_, (file, hit, offset)) in ranked {
        let start = offset.saturating_sub(CONTEXT_BYTES) / line * line;
        let end = (offset + hit.bytes.min(EXCERPT_BYTES_MAX) + CONTEXT_BYTES).div_ceil(line) * line;
        let label = format!("{:?} as {} at 0x{offset:x}", hit.needle, hit.form);
        match spans.last_mut() {
            Some(last)
                if last.file.path == file.path
                    && start <= last.end
                    && end.saturating_sub(last.start) <= EXCERPT_BYTES_MAX =>
            {
                last.end = last.end.max(end);
                last.hits.push(label);
                last.marks.push((offset, hit.bytes));
            }
            _ => spans.push(Span { file, start, end, hits: vec![label], marks: vec![(offset, hit.bytes)] }),
        }
    }
    spans
}
