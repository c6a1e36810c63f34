//! A comparison as one HTML file for people: nothing is loaded from anywhere, nothing runs in it, and its size does not
//! grow with the stores'. Whoever has never seen a hex dump should understand it; whoever has should find the numbers.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Write};

use super::compare::{CompareReport, Excerpt, counterpart};
use super::figures::{byte_map, entropy_line, histogram};
use super::hexdump::LINE_BYTES;
use super::portrait::Portrait;
use super::scan::{FileReport, Outcome, Place, ScanReport};
use crate::seal::keyring::hex;

/// Files that are drawn; the others are in the table.
const FILES_DRAWN_MAX: usize = 8;
/// Bytes of the smallest file that is drawn without a hit in it: fewer make no picture.
const DRAWN_BYTES_MIN: u64 = 256;
/// Rows of that table.
const FILES_LISTED_MAX: usize = 200;
/// Places that are shown side by side.
const EXCERPTS_MAX: usize = 6;
/// Lines of each of them.
const LINES_MAX: usize = 24;

const STYLE: &str = include_str!("report.css");

/// Text as it may stand in HTML, in an attribute as well.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// A count of bytes for people.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    format!("{value:.1} {}", UNITS.get(unit).copied().unwrap_or_default())
}

/// The files' portraits by side and path.
struct Portraits(HashMap<(bool, String), Portrait>);

impl Portraits {
    fn of(report: &CompareReport, unread: &mut Vec<String>) -> Portraits {
        let mut portraits = HashMap::new();
        for (is_sealed, side) in [(true, &report.sealed), (false, &report.plain)] {
            for file in side.files.iter().filter(|file| file.bytes > 0) {
                let own = file.hits.iter().filter(|hit| hit.place == Place::Content);
                let hits: Vec<(u64, u64)> =
                    own.flat_map(|hit| hit.offsets.iter().map(|offset| (*offset, hit.bytes))).collect();
                match Portrait::of_file(&file.location, file.bytes, &hits) {
                    Ok(portrait) => drop(portraits.insert((is_sealed, file.path.clone()), portrait)),
                    Err(error) => unread.push(format!("{} could not be drawn: {error}", file.path)),
                }
            }
        }
        Portraits(portraits)
    }

    fn get(&self, is_sealed: bool, path: &str) -> Option<&Portrait> {
        self.0.get(&(is_sealed, path.to_owned()))
    }
}

/// The whole page. `made_at` is when, in words.
pub fn render_html(report: &CompareReport, made_at: &str) -> String {
    let mut unread = Vec::new();
    let portraits = Portraits::of(report, &mut unread);
    let mut page = String::new();
    // Writing into a String cannot fail.
    let _ = write_page(&mut page, report, &portraits, made_at, &unread);
    page
}

fn write_page(
    out: &mut String,
    report: &CompareReport,
    portraits: &Portraits,
    made_at: &str,
    unread: &[String],
) -> fmt::Result {
    writeln!(
        out,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>What a copied disk shows: a plain and a sealed store</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>"
    )?;
    write_head(out, report)?;
    write_guide(out)?;
    write_needles(out, report)?;
    write_excerpts(out, report)?;
    write_drawn(out, report, portraits)?;
    write_files(out, report, portraits)?;
    write_limits(out, report, made_at, unread)?;
    writeln!(out, "</main>\n</body>\n</html>")
}

fn write_head(out: &mut String, report: &CompareReport) -> fmt::Result {
    let (sealed, plain) = (report.sealed.hit_count(), report.plain.hit_count());
    let (class, verdict) = match report.outcome {
        Outcome::Clean => ("good", "The sealed store shows nothing of what was looked for."),
        Outcome::Found => ("bad", "The sealed store shows something that it should hide."),
        Outcome::Failed => ("void", "This comparison proves nothing; the reasons stand below."),
    };
    writeln!(
        out,
        "<header>\n<h1>What a copied disk shows</h1>\n<p class=\"lead\">Two brokers got the same messages. One wrote them to its \
         disk as they are, the other sealed them first. This page looks at the files of both the way a thief would: as bytes, without \
         any key.</p>\n<p class=\"verdict {class}\">{verdict}</p>\n<div class=\"sides\">"
    )?;
    write_side(out, "plain", "Plain store", &report.plain, plain)?;
    write_side(out, "sealed", "Sealed store", &report.sealed, sealed)?;
    writeln!(out, "</div>")?;
    if !report.errors.is_empty() || !report.sealed.errors.is_empty() || !report.plain.errors.is_empty() {
        writeln!(out, "<ul class=\"errors\">")?;
        let errors = report.errors.iter().chain(&report.sealed.errors).chain(&report.plain.errors);
        for error in errors {
            writeln!(out, "<li>{}</li>", escape(error))?;
        }
        writeln!(out, "</ul>")?;
    }
    writeln!(out, "</header>")
}

fn write_side(out: &mut String, class: &str, name: &str, side: &ScanReport, hits: u64) -> fmt::Result {
    let found = side.needles.iter().filter(|needle| needle.hits > 0).count();
    let count = side.needles.len();
    let places = if hits == 1 { "place" } else { "places" };
    writeln!(
        out,
        "<section class=\"side {class}\"><h2>{name}</h2><p class=\"number\">{found} of {count}</p><p>texts can be read, in {hits} \
         {places}. {} files, {}.</p><p class=\"path\">{}</p></section>",
        side.files.len(),
        size(side.bytes),
        escape(&side.root.display().to_string())
    )
}

fn write_guide(out: &mut String) -> fmt::Result {
    writeln!(
        out,
        "<section id=\"guide\">\n<h2>How to read this page</h2>\n<dl class=\"guide\">\n\
         <dt>Byte map</dt><dd>A file as a picture, from left to right and from top to bottom, one dot for each byte: \
         <span class=\"named\"><span class=\"key text\"></span> text</span>, \
         <span class=\"named\"><span class=\"key zero\"></span> zero</span>, \
         <span class=\"named\"><span class=\"key other\"></span> anything else</span>, \
         <span class=\"named\"><span class=\"key hit\"></span> what was looked for</span>. Text shows as solid stripes. Sealed bytes \
         show as even noise without a stripe, because each value is as likely as any other; between them stand the few bytes by which \
         the database finds them again.</dd>\n\
         <dt>Histogram</dt><dd>How often each of the 256 byte values occurs. Text and numbers have favourites and so peaks; sealed bytes \
         have none, and the bars are all about as high as the dashed line.</dd>\n\
         <dt>Entropy</dt><dd>How unpredictable the bytes are along the file, from 0 (all the same) to 8 bits a byte (each a throw of the \
         dice). The dashed line is what dice reach in pieces of that length. English text lies near 4 to 5.</dd>\n\
         <dt>Hex dump</dt><dd>Bytes as <code>xxd</code> prints them: the place in the file, the bytes in base 16, and as characters; a dot \
         stands for what is no character. What was looked for is <mark>marked</mark>.</dd>\n</dl>\n</section>"
    )
}

fn write_needles(out: &mut String, report: &CompareReport) -> fmt::Result {
    writeln!(
        out,
        "<section id=\"needles\">\n<h2>What was looked for</h2>\n<p>Each text in several spellings: as it is, as UTF-16, in hexadecimal digits and in \
         base64. A text that is not in the plain store either proves nothing about the sealed one.</p>\n<table>\n<thead><tr><th>Text</th>\
         <th class=\"n\">in the plain store</th><th class=\"n\">in the sealed store</th><th>Spelled as</th><th></th></tr></thead>\n<tbody>"
    )?;
    for (own, control) in report.sealed.needles.iter().zip(&report.plain.needles) {
        let files = report.plain.files.iter().chain(&report.sealed.files);
        let hits = files.flat_map(|file| &file.hits).filter(|hit| hit.needle == own.needle);
        let forms: BTreeSet<&str> = hits.map(|hit| hit.form.label()).collect();
        let forms: Vec<&str> = forms.into_iter().collect();
        let (class, word) = match (control.hits, own.hits) {
            (_, 1..) => ("bad", "readable in the sealed store"),
            (0, 0) => ("void", "in neither store: proves nothing"),
            _ => ("good", "hidden"),
        };
        let chance = match own.expected_by_chance {
            chance if chance > 0.01 => format!(" (short: {chance:.2} hits are to be expected by chance)"),
            _ => String::new(),
        };
        writeln!(
            out,
            "<tr><td><code>{}</code></td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td class=\"word {class}\">{word}{chance}</td></tr>",
            escape(&own.needle),
            control.hits,
            own.hits,
            escape(&forms.join(", "))
        )?;
    }
    writeln!(out, "</tbody>\n</table>\n</section>")
}

fn write_excerpts(out: &mut String, report: &CompareReport) -> fmt::Result {
    if report.plain_excerpts.is_empty() && report.sealed_excerpts.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "<section id=\"places\">\n<h2>The same place in both stores</h2>\n<p>To the left, where a text was found in the plain store; to the right, what \
         stands at that place of the sealed one.</p>"
    )?;
    for excerpt in report.plain_excerpts.iter().take(EXCERPTS_MAX) {
        writeln!(out, "<div class=\"pair\">")?;
        write_dump(out, "plain", excerpt)?;
        if let Some(other) = counterpart(&report.sealed, excerpt) {
            write_dump(out, "sealed", &other)?;
        }
        writeln!(out, "</div>")?;
    }
    if !report.sealed_excerpts.is_empty() {
        writeln!(out, "<h3 class=\"bad\">Readable in the sealed store</h3>")?;
        for excerpt in report.sealed_excerpts.iter().take(EXCERPTS_MAX) {
            write_dump(out, "sealed", excerpt)?;
        }
    }
    writeln!(out, "</section>")
}

fn write_dump(out: &mut String, side: &str, excerpt: &Excerpt) -> fmt::Result {
    writeln!(
        out,
        "<figure class=\"dump {side}\"><figcaption>{side}: <span class=\"path\">{}</span></figcaption><pre>",
        escape(&excerpt.path)
    )?;
    let starts = (excerpt.offset..).step_by(LINE_BYTES);
    for (start, line) in starts.zip(excerpt.bytes.chunks(LINE_BYTES)).take(LINES_MAX) {
        write_line(out, start, line, &excerpt.marks)?;
    }
    let shown = LINES_MAX * LINE_BYTES;
    if excerpt.bytes.len() > shown {
        writeln!(out, "... {} bytes more", excerpt.bytes.len() - shown)?;
    }
    writeln!(out, "</pre></figure>")
}

/// One line of a dump, in which a run of marked bytes is one mark.
fn write_line(out: &mut String, start: u64, line: &[u8], marks: &[(u64, u64)]) -> fmt::Result {
    let is_marked = |at: u64| marks.iter().any(|(from, len)| (*from..from + len).contains(&at));
    write!(out, "<span class=\"at\">{start:08x}</span> ")?;
    let mut columns = [String::new(), String::new()];
    let mut was_marked = false;
    for (place, (at, byte)) in (start..).zip(line).enumerate() {
        let marks_now = is_marked(at);
        for column in &mut columns {
            match (was_marked, marks_now) {
                (false, true) => column.push_str("<mark>"),
                (true, false) => column.push_str("</mark>"),
                _ => {}
            }
        }
        let [digits, text] = &mut columns;
        write!(digits, "{byte:02x}{}", if place % 2 == 1 { " " } else { "" })?;
        let printable = if matches!(byte, 0x20..=0x7e) { char::from(*byte) } else { '.' };
        text.push_str(&escape(&printable.to_string()));
        was_marked = marks_now;
    }
    if was_marked {
        columns.iter_mut().for_each(|column| column.push_str("</mark>"));
    }
    let missing = LINE_BYTES - line.len();
    let blanks = missing * 2 + (LINE_BYTES / 2 - line.len() / 2);
    writeln!(out, "{}{:blanks$} {}", columns[0], "", columns[1])
}

/// What a file is for, by its name, in words for people; whether it holds what clients wrote.
fn purpose(path: &str) -> (bool, &'static str) {
    let name = path.rsplit('/').next().unwrap_or(path);
    let suffix = name.rsplit_once('.').map_or("", |(_, suffix)| suffix);
    match (name, suffix) {
        (_, "log") => (true, "The log: what was written last, in order."),
        (_, "sst") => (true, "A table: what was written earlier, sorted."),
        (_, "blob") => (true, "Large message bodies."),
        ("keyring" | "keyring.mirror" | "mirror", _) => {
            (true, "The keys of the store, sealed under the operator's key.")
        }
        ("anchor", _) => (false, "How far the store has come, authenticated; holds no message."),
        ("SEALMQ_STORE", _) => (false, "What this folder is; holds no message and is readable on purpose."),
        (name, _) if name.starts_with("OPTIONS-") => (
            false,
            "The database's settings, the same for every store; holds no message and is readable in both.",
        ),
        (name, _) if name.starts_with("MANIFEST-") => {
            (false, "Which files make up the database; holds numbers and no message.")
        }
        ("CURRENT" | "IDENTITY", _) => (false, "A name that the database gives itself; holds no message."),
        _ if path.rsplit('/').nth(1) == Some("spill") => {
            (true, "Transient messages that had no room in memory, sealed under a key that was nowhere else.")
        }
        _ => (true, ""),
    }
}

/// The paths that tell most: those with hits, then those that may hold messages, then the largest.
fn drawn_paths(report: &CompareReport) -> Vec<&str> {
    let mut weights: HashMap<&str, (u64, bool, u64)> = HashMap::new();
    for file in report.plain.files.iter().chain(&report.sealed.files).filter(|file| file.bytes > 0) {
        let weight = weights.entry(file.path.as_str()).or_default();
        *weight = (weight.0 + file.hit_count(), purpose(&file.path).0, weight.2.max(file.bytes));
    }
    let mut paths: Vec<(&str, (u64, bool, u64))> = weights.into_iter().collect();
    paths.retain(|(_, (hits, _, bytes))| *hits > 0 || *bytes >= DRAWN_BYTES_MIN);
    paths.sort_by(|(a, x), (b, y)| y.cmp(x).then(a.cmp(b)));
    paths.into_iter().take(FILES_DRAWN_MAX).map(|(path, _)| path).collect()
}

fn write_drawn(out: &mut String, report: &CompareReport, portraits: &Portraits) -> fmt::Result {
    let paths = drawn_paths(report);
    let count = portraits.0.keys().map(|(_, path)| path.as_str()).collect::<BTreeSet<_>>().len();
    writeln!(out, "<section id=\"pictures\">\n<h2>The files in pictures</h2>")?;
    if count > paths.len() {
        writeln!(
            out,
            "<p>{} of {count} files: those with hits, then those that hold what clients wrote.</p>",
            paths.len()
        )?;
    }
    for path in paths {
        writeln!(out, "<article>\n<h3 class=\"path\">{}</h3>", escape(path))?;
        writeln!(out, "<p class=\"about\">{}</p>\n<div class=\"pair\">", purpose(path).1)?;
        for (is_sealed, side) in [(false, "plain"), (true, "sealed")] {
            match portraits.get(is_sealed, path) {
                Some(portrait) => write_portrait(out, side, portrait)?,
                None => writeln!(
                    out,
                    "<div class=\"portrait {side}\"><h4>{side}</h4><p class=\"none\">there is no such file here</p></div>"
                )?,
            }
        }
        writeln!(out, "</div>\n</article>")?;
    }
    writeln!(out, "</section>")
}

fn write_portrait(out: &mut String, side: &str, portrait: &Portrait) -> fmt::Result {
    let (peak, share) = portrait.peak();
    writeln!(out, "<div class=\"portrait {side}\"><h4>{side}</h4>")?;
    let drawn = match portrait.step {
        1 => format!("every one of its {} bytes", portrait.bytes),
        step => format!("one byte in {step} of {}", size(portrait.bytes)),
    };
    writeln!(out, "<figure>{}<figcaption>Byte map: {drawn}.</figcaption></figure>", byte_map(portrait))?;
    writeln!(
        out,
        "<figure>{}<figcaption>Histogram: the most frequent byte is 0x{peak:02x} with {:.1} %; {:.0} % are text (38 % if random).</figcaption></figure>",
        histogram(portrait),
        share * 100.0,
        portrait.text_share() * 100.0
    )?;
    writeln!(
        out,
        "<figure>{}<figcaption>Entropy: {:.2} bits a byte as a whole; drawn in pieces of {}.</figcaption></figure></div>",
        entropy_line(portrait),
        portrait.entropy(),
        size(portrait.window_bytes)
    )
}

fn write_files(out: &mut String, report: &CompareReport, portraits: &Portraits) -> fmt::Result {
    let paths: BTreeSet<&str> = [&report.plain, &report.sealed]
        .iter()
        .flat_map(|side| &side.files)
        .map(|f| f.path.as_str())
        .collect();
    writeln!(
        out,
        "<section id=\"files\">\n<h2>All files</h2>\n<table class=\"files\">\n<thead><tr><th>File</th><th></th><th class=\"n\">Bytes</th>\
         <th class=\"n\">Entropy</th><th class=\"n\">Hits</th><th>SHA-256</th></tr></thead>"
    )?;
    for path in paths.iter().take(FILES_LISTED_MAX) {
        writeln!(out, "<tbody>")?;
        let mut name = format!("<code>{}</code>", escape(path));
        for (is_sealed, word, side) in [(false, "plain", &report.plain), (true, "sealed", &report.sealed)] {
            let Some(file) = side.files.iter().find(|file| file.path == *path) else { continue };
            write_file(out, &std::mem::take(&mut name), word, file, portraits.get(is_sealed, path))?;
        }
        writeln!(out, "</tbody>")?;
    }
    writeln!(out, "</table>")?;
    if paths.len() > FILES_LISTED_MAX {
        writeln!(out, "<p>and {} more files.</p>", paths.len() - FILES_LISTED_MAX)?;
    }
    writeln!(out, "</section>")
}

fn write_file(
    out: &mut String,
    name: &str,
    side: &str,
    file: &FileReport,
    portrait: Option<&Portrait>,
) -> fmt::Result {
    let hash = portrait.map(|portrait| hex(&portrait.sha256)).unwrap_or_default();
    let class = if file.hit_count() > 0 { " hits" } else { "" };
    writeln!(
        out,
        "<tr class=\"{side}{class}\"><td>{name}</td><td>{side}</td><td class=\"n\">{}</td><td class=\"n\">{:.3}</td><td class=\"n\">{}</td>\
         <td class=\"hash\">{hash}</td></tr>",
        file.bytes,
        file.entropy,
        file.hit_count()
    )
}

fn write_limits(out: &mut String, report: &CompareReport, made_at: &str, unread: &[String]) -> fmt::Result {
    writeln!(
        out,
        "<section id=\"limits\">\n<h2>What this shows, and what it does not</h2>\n<ul>\n\
         <li>Every byte of every file was searched, and the names of the files too. Pictures of large files draw one byte in so many, as \
         said below each; histogram, entropy and checksum are of the whole file.</li>\n\
         <li>The plain store is the control: only what is found there could have been found in the sealed one.</li>\n\
         <li>A search finds what it looks for. It is no proof that nothing else can be read; even noise and a flat histogram are what good \
         encryption looks like, and no proof of it. How the sealing works, and who it does not keep out, stands in SECURITY.md.</li>\n\
         <li>Not hidden: how many queues and messages there are, their sizes after padding, when they were written, and the small readable \
         parts that say what kind of file each is.</li>\n\
         <li>This page holds the texts that were looked for and what surrounds them in the plain store. Treat it as you treat those.</li>"
    )?;
    for error in unread {
        writeln!(out, "<li>{}</li>", escape(error))?;
    }
    writeln!(
        out,
        "</ul>\n</section>\n<footer>sealmq-forensics {}, {}. Plain: <code>{}</code>. Sealed: <code>{}</code>.</footer>",
        env!("CARGO_PKG_VERSION"),
        escape(made_at),
        escape(&report.plain.root.display().to_string()),
        escape(&report.sealed.root.display().to_string())
    )
}
