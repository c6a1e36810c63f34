//! The README's and SECURITY.md's promises that can be checked by reading: each test that is named exists, and each
//! code of a refusal or a fault is explained and tested.
//!
//! What lives here: searches in text. What must not: anything that needs the library.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

type Files = Vec<(PathBuf, String)>;

/// What the column "Shown by" names: a file without folder and ending, and a function.
fn named_tests(readme: &str) -> Vec<(&str, &str)> {
    let is_word = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let tables = readme.lines().filter(|line| line.starts_with('|'));
    let names = tables.flat_map(|line| line.split('`')).filter_map(|name| name.split_once("::"));
    names.filter(|(file, test)| is_word(file) && is_word(test)).collect()
}

fn missing_tests(readme: &str, files: &Files) -> Vec<String> {
    let is_there = |file: &str, test: &str| {
        let heads = [format!("def {test}("), format!("fn {test}(")];
        let mut candidates =
            files.iter().filter(|(path, _)| path.file_stem().is_some_and(|stem| stem == file));
        candidates.any(|(_, text)| heads.iter().any(|head| text.contains(head)))
    };
    let named = named_tests(readme).into_iter();
    named.filter(|(file, test)| !is_there(file, test)).map(|(file, test)| format!("{file}::{test}")).collect()
}

/// Every source file below the folder, and its text.
fn source_files(folder: &Path, out: &mut Files) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_code = path.extension().is_some_and(|ending| ending == "py" || ending == "rs");
        if path.is_dir() {
            source_files(&path, out);
        } else if is_code {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            out.push((path, text));
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_of(folder: &str) -> Files {
    let mut files = Files::new();
    source_files(&root().join(folder), &mut files);
    files
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).expect("the file is readable")
}

/// A test that is renamed must not leave the README's promise empty.
#[test]
fn every_test_that_the_readme_names_exists() {
    let readme = read("README.md");
    let files = [files_of("tests"), files_of("src")].concat();
    assert!(named_tests(&readme).len() > 20, "the README's table of features names its tests");
    let missing = missing_tests(&readme, &files);
    assert!(missing.is_empty(), "README.md names tests that do not exist: {missing:#?}");
}

#[test]
fn a_test_that_is_only_claimed_is_found() {
    let files = vec![("tests/test_a.py".into(), "def test_one(x):\n".to_owned())];
    assert!(missing_tests("| a | yes | `test_a::test_one` |", &files).is_empty());
    assert_eq!(missing_tests("| a | yes | `test_a::test_two`, `test_b::test_one` |", &files).len(), 2);
}

/// The codes in a text, whatever stands around them; with `mark`, only those between two of these.
fn codes(text: &str, mark: Option<char>) -> BTreeSet<&str> {
    let ends_word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let words = match mark {
        Some(mark) => text.split(mark).collect::<Vec<_>>(),
        None => text.split(ends_word).collect(),
    };
    let is_code = |word: &&str| {
        let name = word.strip_prefix("E_").filter(|name| !name.is_empty() && !name.ends_with('_'));
        name.is_some_and(|name| {
            name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
        })
    };
    words.into_iter().filter(is_code).collect()
}

/// Of the codes that the program has: those that the manual's table does not explain, those that no test of a whole
/// broker names; and those that the table explains and the program does not have.
fn codes_at_odds(program: &str, manual: &str, tests: &str) -> [Vec<String>; 3] {
    let table: String = manual.lines().filter(|line| line.starts_with('|')).collect();
    let (had, explained, tested) = (codes(program, Some('"')), codes(&table, Some('`')), codes(tests, None));
    let without =
        |some: &BTreeSet<&str>, others| some.difference(others).map(|code| (*code).to_owned()).collect();
    [without(&had, &explained), without(&had, &tested), without(&explained, &had)]
}

/// The program's text without its tests, and without sealmqctl, which knows only how the broker's codes begin.
fn program_text() -> String {
    let is_test =
        |path: &Path| path.components().any(|part| part.as_os_str().to_string_lossy().starts_with("tests"));
    let of_ctl = root().join("src/tools/ctl");
    let files = files_of("src").into_iter();
    let files = files.filter(|(path, _)| {
        path.strip_prefix(root()).is_ok_and(|path| !is_test(path)) && !path.starts_with(&of_ctl)
    });
    files.map(|(_, text)| text.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned()).collect()
}

/// Scripts rely on the codes, and people on the table.
#[test]
fn every_code_stands_in_the_table_of_security_md_and_in_a_test_of_a_whole_broker() {
    let tests: String = files_of("tests")
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "py"))
        .map(|(_, text)| text)
        .collect();
    let program = program_text();
    assert!(codes(&program, Some('"')).len() > 50, "the program's codes are found");
    let [unexplained, untested, gone] = codes_at_odds(&program, &read("SECURITY.md"), &tests);
    assert!(unexplained.is_empty(), "not in SECURITY.md's table of what happens: {unexplained:#?}");
    assert!(untested.is_empty(), "no test in Python brings these about: {untested:#?}");
    assert!(gone.is_empty(), "SECURITY.md explains codes that the program does not have: {gone:#?}");
}

#[test]
fn a_code_that_is_not_explained_not_tested_or_gone_is_found() {
    let program = r#"=> "E_ONE", "E_TWO", "E_THREE" "E_KEK_" "#;
    let manual = "a word about `E_THREE`\n| a | `E_ONE`, `E_TWO` | b |\n| c | `E_FOUR` | |\n";
    let at_odds = codes_at_odds(program, manual, "assert E_ONE in said\n'E_TWO_MORE', E_THREE: ");
    assert_eq!(at_odds.map(|codes| codes.join(" ")), ["E_THREE", "E_TWO", "E_FOUR"]);
}
