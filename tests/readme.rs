//! The README's promises that can be checked by reading: each test that it names exists.
//!
//! What lives here: searches in text. What must not: anything that needs the library.

use std::path::Path;

/// What the column "Shown by" names: a file without folder and ending, and a function.
fn named_tests(readme: &str) -> Vec<(&str, &str)> {
    let is_word = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let tables = readme.lines().filter(|line| line.starts_with('|'));
    let names = tables.flat_map(|line| line.split('`')).filter_map(|name| name.split_once("::"));
    names.filter(|(file, test)| is_word(file) && is_word(test)).collect()
}

fn missing_tests(readme: &str, files: &[(String, String)]) -> Vec<String> {
    let is_there = |file: &str, test: &str| {
        let heads = [format!("def {test}("), format!("fn {test}(")];
        let mut candidates = files.iter().filter(|(name, _)| name == file);
        candidates.any(|(_, text)| heads.iter().any(|head| text.contains(head)))
    };
    let named = named_tests(readme).into_iter();
    named.filter(|(file, test)| !is_there(file, test)).map(|(file, test)| format!("{file}::{test}")).collect()
}

/// Every source file below the folder: its name without ending, and its text.
fn source_files(folder: &Path, out: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_code = path.extension().is_some_and(|ending| ending == "py" || ending == "rs");
        if path.is_dir() {
            source_files(&path, out);
        } else if let (true, Some(stem)) = (is_code, path.file_stem()) {
            out.push((
                stem.to_string_lossy().into_owned(),
                std::fs::read_to_string(&path).unwrap_or_default(),
            ));
        }
    }
}

/// A test that is renamed must not leave the README's promise empty.
#[test]
fn every_test_that_the_readme_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).expect("README.md is readable");
    let mut files = Vec::new();
    source_files(&root.join("tests"), &mut files);
    source_files(&root.join("src"), &mut files);
    assert!(named_tests(&readme).len() > 20, "the README's table of features names its tests");
    let missing = missing_tests(&readme, &files);
    assert!(missing.is_empty(), "README.md names tests that do not exist: {missing:#?}");
}

#[test]
fn a_test_that_is_only_claimed_is_found() {
    let files = [("test_a".to_owned(), "def test_one(x):\n".to_owned())];
    assert!(missing_tests("| a | yes | `test_a::test_one` |", &files).is_empty());
    assert_eq!(missing_tests("| a | yes | `test_a::test_two`, `test_b::test_one` |", &files).len(), 2);
}
