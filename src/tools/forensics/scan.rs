//! Searching a directory: every file of it as bytes, and the names of files and folders too. Read-only,
//! and it needs no key.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::error::Error;
use super::needle::{Form, Needles};
use super::stream::{CHUNK_BYTES, Histogram, Searched, Searcher, Tally};

/// What a search comes to. The programs' exit codes are made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every file was read and no needle stands in any.
    Clean,
    /// A needle was found, and every file was read.
    Found,
    /// Something could not be read or proves nothing; see the errors.
    Failed,
}

/// Where in a file the needle stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// In its bytes.
    Content,
    /// In its path below the searched folder, or in what a symbolic link points to.
    Name,
}

/// One needle in one form in one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hit {
    /// The needle as given.
    pub needle: String,
    /// How it is written there.
    pub form: Form,
    /// In the content or in the name.
    pub place: Place,
    /// How often.
    pub count: u64,
    /// The first offsets in bytes, at most 16.
    pub offsets: Vec<u64>,
    /// Length in bytes of this form.
    pub bytes: u64,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FileReport {
    /// Path below the searched folder; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// Length.
    pub bytes: u64,
    /// Shannon entropy in bits per byte, 0 to 8.
    pub entropy: f64,
    /// What was found.
    pub hits: Vec<Hit>,
    #[serde(skip)]
    pub(super) location: PathBuf,
}

impl FileReport {
    /// Number of hits of all needles and forms.
    pub fn hit_count(&self) -> u64 {
        self.hits.iter().map(|hit| hit.count).sum()
    }
}

/// One needle over all files.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NeedleReport {
    /// As given.
    pub needle: String,
    /// Number of hits in all forms.
    pub hits: u64,
    /// Hits to be expected if all bytes were random: above about 0.01 the needle is too short to prove much.
    pub expected_by_chance: f64,
}

/// A searched folder.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScanReport {
    /// As given.
    pub root: PathBuf,
    /// Whether anything was found, and whether that is certain.
    pub outcome: Outcome,
    /// Sum of all lengths.
    pub bytes: u64,
    /// Shannon entropy of all bytes together, in bits per byte.
    pub entropy: f64,
    /// In the order given.
    pub needles: Vec<NeedleReport>,
    /// Sorted by path.
    pub files: Vec<FileReport>,
    /// What has no content to search: sockets, pipes, devices, symbolic links. Their names were searched.
    pub without_content: Vec<String>,
    /// What could not be read, each with path and reason.
    pub errors: Vec<String>,
}

impl ScanReport {
    /// Number of hits of all needles in all files.
    pub fn hit_count(&self) -> u64 {
        self.needles.iter().map(|needle| needle.hits).sum()
    }
}

/// Searches every file below `root` (or `root` itself, where it is a file). A file that cannot be read is
/// an error in the report, never left out in silence. Files are read while they are searched: of a running
/// broker's directory, some may vanish; stop it first, or search a copy.
pub fn scan(root: &Path, needles: &Needles) -> Result<ScanReport, Error> {
    let report = search(root, list(root)?, needles);
    if report.files.is_empty() && report.errors.is_empty() {
        return Err(Error::NothingToSearch { path: root.to_path_buf() });
    }
    Ok(report)
}

fn search(root: &Path, entries: Vec<Entry>, needles: &Needles) -> ScanReport {
    let mut searcher = Searcher::new(needles, CHUNK_BYTES);
    let mut histogram = Histogram::new();
    let mut report = ScanReport {
        root: root.to_path_buf(),
        outcome: Outcome::Clean,
        bytes: 0,
        entropy: 0.0,
        needles: Vec::new(),
        files: Vec::new(),
        without_content: Vec::new(),
        errors: Vec::new(),
    };
    for entry in entries {
        match entry {
            Entry::Unreadable(path, error) => report.errors.push(unreadable(&path, &error)),
            Entry::File(path) => match File::open(&path).and_then(|file| searcher.search(file)) {
                Ok(searched) => {
                    histogram.add(&searched.histogram);
                    report.bytes += searched.bytes;
                    report.files.push(file_report(root, &path, needles, &searched));
                }
                Err(error) => report.errors.push(unreadable(&path, &error)),
            },
            Entry::Folder(path) => report.files.extend(named(root, path, Path::new(""), needles)),
            Entry::Link(path, target) => {
                report.without_content.push(relative(root, &path).display().to_string());
                report.files.extend(named(root, path, &target, needles));
            }
            Entry::Special(path) => {
                report.without_content.push(relative(root, &path).display().to_string());
                report.files.extend(named(root, path, Path::new(""), needles));
            }
        }
    }
    report.entropy = histogram.entropy();
    summarize(&mut report, needles);
    report
}

fn summarize(report: &mut ScanReport, needles: &Needles) {
    report.files.sort_by(|a, b| a.path.cmp(&b.path));
    for (index, text) in needles.texts().iter().enumerate() {
        let own = report.files.iter().flat_map(|file| &file.hits).filter(|hit| hit.needle == *text);
        report.needles.push(NeedleReport {
            needle: text.clone(),
            hits: own.map(|hit| hit.count).sum(),
            expected_by_chance: needles.chance_hits(index, report.bytes),
        });
    }
    report.outcome = match (report.errors.is_empty(), report.hit_count()) {
        (false, _) => Outcome::Failed,
        (true, 0) => Outcome::Clean,
        (true, _) => Outcome::Found,
    };
}

/// What lies in a folder.
enum Entry {
    File(PathBuf),
    /// A folder: it may be empty, but it has a name.
    Folder(PathBuf),
    /// A symbolic link and its target.
    Link(PathBuf, PathBuf),
    /// A socket, pipe or device.
    Special(PathBuf),
    Unreadable(PathBuf, io::Error),
}

/// All entries below `root`, links not followed: what they point to is either in the folder as well, or is
/// not part of it.
fn list(root: &Path) -> Result<Vec<Entry>, Error> {
    let about = fs::metadata(root).map_err(|source| Error::Root { path: root.to_path_buf(), source })?;
    if !about.is_dir() {
        return Ok(vec![Entry::File(root.to_path_buf())]);
    }
    let mut entries = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let listing = match fs::read_dir(&folder) {
            Ok(listing) => listing,
            Err(error) => {
                entries.push(Entry::Unreadable(folder, error));
                continue;
            }
        };
        for entry in listing {
            let (path, kind) = match entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))) {
                Ok(found) => found,
                Err(error) => {
                    entries.push(Entry::Unreadable(folder.clone(), error));
                    continue;
                }
            };
            if kind.is_dir() {
                entries.push(Entry::Folder(path.clone()));
                folders.push(path);
            } else if kind.is_file() {
                entries.push(Entry::File(path));
            } else if kind.is_symlink() {
                match fs::read_link(&path) {
                    Ok(target) => entries.push(Entry::Link(path, target)),
                    Err(error) => entries.push(Entry::Unreadable(path, error)),
                }
            } else {
                entries.push(Entry::Special(path));
            }
        }
    }
    Ok(entries)
}

fn file_report(root: &Path, path: &Path, needles: &Needles, searched: &Searched) -> FileReport {
    let relative = relative(root, path);
    let mut hits = name_hits(&relative, Path::new(""), needles);
    hits.extend(collect(needles, &searched.tallies, Place::Content));
    FileReport {
        path: relative.display().to_string(),
        bytes: searched.bytes,
        entropy: searched.histogram.entropy(),
        hits,
        location: path.to_path_buf(),
    }
}

/// A report on something without content, if a needle stands in its name.
fn named(root: &Path, path: PathBuf, target: &Path, needles: &Needles) -> Option<FileReport> {
    let relative = relative(root, &path);
    let hits = name_hits(&relative, target, needles);
    let report =
        FileReport { path: relative.display().to_string(), bytes: 0, entropy: 0.0, hits, location: path };
    (!report.hits.is_empty()).then_some(report)
}

fn name_hits(relative: &Path, target: &Path, needles: &Needles) -> Vec<Hit> {
    let mut tallies = vec![Tally::default(); needles.patterns().len()];
    for (pattern, tally) in needles.patterns().iter().zip(&mut tallies) {
        for name in [relative, target] {
            for offset in pattern.finder.find_iter(name.as_os_str().as_bytes()) {
                tally.add(offset as u64);
            }
        }
    }
    collect(needles, &tallies, Place::Name)
}

fn collect(needles: &Needles, tallies: &[Tally], place: Place) -> Vec<Hit> {
    let found = needles.patterns().iter().zip(tallies).filter(|(_, tally)| tally.count > 0);
    let hit = |(pattern, tally): (&super::needle::Pattern, &Tally)| Hit {
        needle: needles.texts().get(pattern.needle).cloned().unwrap_or_default(),
        form: pattern.form,
        place,
        count: tally.count,
        offsets: tally.offsets.clone(),
        bytes: pattern.len() as u64,
    };
    found.map(hit).collect()
}

/// The path below the root: the root's own name is the operator's, not the store's.
fn relative(root: &Path, path: &Path) -> PathBuf {
    match path.strip_prefix(root) {
        Ok(below) if below.as_os_str().is_empty() => PathBuf::from(path.file_name().unwrap_or_default()),
        Ok(below) => below.to_path_buf(),
        Err(_) => path.to_path_buf(),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "; run as the broker's user",
        io::ErrorKind::NotFound => "; it vanished meanwhile: stop the broker first, or search a copy",
        _ => "",
    };
    format!("cannot read {}: {error}{remedy}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_file_is_an_error_that_names_it_and_the_rest_is_searched() {
        let root = tempfile::tempdir().unwrap();
        let (first, last) = (root.path().join("first"), root.path().join("last"));
        fs::write(&first, "a needle").unwrap();
        fs::write(&last, "another needle").unwrap();
        // The superuser cannot read this either: nothing is mapped at address 0.
        let memory = PathBuf::from("/proc/self/mem");
        let gone = root.path().join("gone");
        let entries = [first, memory, gone.clone(), last].map(Entry::File).into();
        let report = search(root.path(), entries, &Needles::new(["needle"]).unwrap());
        assert_eq!((report.outcome, report.hit_count()), (Outcome::Failed, 2));
        assert_eq!(report.errors.len(), 2, "{:?}", report.errors);
        assert!(report.errors[0].contains("/proc/self/mem"), "{:?}", report.errors);
        assert!(report.errors[1].contains(&gone.display().to_string()), "{:?}", report.errors);
    }
}
