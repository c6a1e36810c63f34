//! Needles and the forms in which a store could hold them. No files here.

use std::fmt;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use memchr::memmem::Finder;
use serde::{Serialize, Serializer};

use super::error::Error;

/// Encoded forms shorter than this are not searched: they say too little about the needle, and random
/// bytes contain them by chance too often (2^-48 per position at this length).
const ENCODED_BYTES_MIN: usize = 6;

/// How a text may stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// As it is, in UTF-8.
    Text,
    /// UTF-16, low byte first.
    Utf16Le,
    /// UTF-16, high byte first.
    Utf16Be,
    /// Lower-case hexadecimal digits.
    HexLower,
    /// Upper-case hexadecimal digits.
    HexUpper,
    /// RFC 4648 section 4; the number of bytes that precede the needle in its group of three.
    Base64(u8),
    /// RFC 4648 section 5, likewise.
    Base64Url(u8),
}

impl Form {
    /// The name in reports.
    pub fn label(self) -> &'static str {
        match self {
            Form::Text => "text",
            Form::Utf16Le => "UTF-16LE",
            Form::Utf16Be => "UTF-16BE",
            Form::HexLower => "hex",
            Form::HexUpper => "HEX",
            Form::Base64(0) => "base64",
            Form::Base64(1) => "base64, shifted by 1",
            Form::Base64(_) => "base64, shifted by 2",
            Form::Base64Url(0) => "base64url",
            Form::Base64Url(1) => "base64url, shifted by 1",
            Form::Base64Url(_) => "base64url, shifted by 2",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

impl Serialize for Form {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.label())
    }
}

/// One byte string to look for.
pub(super) struct Pattern {
    /// Index into [`Needles::texts`].
    pub(super) needle: usize,
    pub(super) form: Form,
    pub(super) finder: Finder<'static>,
}

impl Pattern {
    /// Length in bytes, at least 1.
    pub(super) fn len(&self) -> usize {
        self.finder.needle().len()
    }
}

/// The texts to look for, in every form.
pub struct Needles {
    texts: Vec<String>,
    patterns: Vec<Pattern>,
}

impl Needles {
    /// Prepares the search. Texts given twice are taken once; an empty one is refused.
    pub fn new<T: Into<String>>(texts: impl IntoIterator<Item = T>) -> Result<Needles, Error> {
        let mut needles = Needles { texts: Vec::new(), patterns: Vec::new() };
        for text in texts.into_iter().map(Into::into) {
            if text.is_empty() {
                return Err(Error::EmptyNeedle);
            }
            if !needles.texts.contains(&text) {
                needles.add(text);
            }
        }
        if needles.texts.is_empty() { Err(Error::EmptyNeedle) } else { Ok(needles) }
    }

    /// The needles as given, in that order.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    pub(super) fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Length of the longest pattern in bytes.
    pub(super) fn longest(&self) -> usize {
        self.patterns.iter().map(Pattern::len).max().unwrap_or(1)
    }

    /// How many hits of needle `index` are to be expected in `bytes` random bytes, by chance alone.
    pub(super) fn chance_hits(&self, index: usize, bytes: u64) -> f64 {
        let own = self.patterns.iter().filter(|pattern| pattern.needle == index);
        own.map(|pattern| bytes as f64 * (-8.0 * pattern.len() as f64).exp2()).sum()
    }

    fn add(&mut self, text: String) {
        let needle = self.texts.len();
        let mut found: Vec<Vec<u8>> = Vec::new();
        for (form, bytes) in forms(&text) {
            let long_enough = form == Form::Text || bytes.len() >= ENCODED_BYTES_MIN;
            // Digits only: both cases of hex are the same bytes, and so on.
            if long_enough && !found.contains(&bytes) {
                self.patterns.push(Pattern { needle, form, finder: Finder::new(&bytes).into_owned() });
                found.push(bytes);
            }
        }
        self.texts.push(text);
    }
}

fn forms(text: &str) -> Vec<(Form, Vec<u8>)> {
    let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![
        (Form::Text, text.as_bytes().to_vec()),
        (Form::Utf16Le, text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        (Form::Utf16Be, text.encode_utf16().flat_map(u16::to_be_bytes).collect()),
        (Form::HexUpper, hex.to_ascii_uppercase().into_bytes()),
        (Form::HexLower, hex.into_bytes()),
    ];
    for shift in 0..3 {
        forms.push((Form::Base64(shift), base64_fragment(&BASE64_STANDARD_NO_PAD, text.as_bytes(), shift)));
        forms
            .push((Form::Base64Url(shift), base64_fragment(&BASE64_URL_SAFE_NO_PAD, text.as_bytes(), shift)));
    }
    forms
}

/// The characters that depend on the needle alone, when `shift` unknown bytes precede it in its group of
/// three: each character holds 6 bits, and those it shares with a neighbour are left out.
fn base64_fragment(engine: &impl Engine, needle: &[u8], shift: u8) -> Vec<u8> {
    let shift = usize::from(shift);
    let mut bytes = vec![0; shift];
    bytes.extend_from_slice(needle);
    let encoded = engine.encode(&bytes).into_bytes();
    let (first, end) = ((shift * 8).div_ceil(6), bytes.len() * 8 / 6);
    encoded.get(first..end).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use memchr::memmem;
    use proptest::prelude::*;

    use super::*;

    fn found(needles: &Needles, haystack: &[u8]) -> Vec<Form> {
        let hits = needles.patterns().iter().filter(|pattern| pattern.finder.find(haystack).is_some());
        hits.map(|pattern| pattern.form).collect()
    }

    #[test]
    fn each_form_is_found_and_named() {
        let needles = Needles::new(["Rolling 3?>"]).unwrap();
        let utf16 = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            text.encode_utf16().flat_map(bytes).collect()
        };
        for (form, haystack) in [
            (Form::Text, b"\x00Rolling 3?>\x00".to_vec()),
            (Form::Utf16Le, utf16("\u{100}Rolling 3?>\u{100}", u16::to_le_bytes)),
            (Form::Utf16Be, utf16("\u{1}Rolling 3?>\u{101}", u16::to_be_bytes)),
            (Form::HexLower, b"526f6c6c696e6720333f3e".to_vec()),
            (Form::HexUpper, b"526F6C6C696E6720333F3E".to_vec()),
            (Form::Base64(0), BASE64_STANDARD_NO_PAD.encode("Rolling 3?>").into_bytes()),
            (Form::Base64Url(2), BASE64_URL_SAFE_NO_PAD.encode("xyRolling 3?>z").into_bytes()),
        ] {
            assert!(found(&needles, &haystack).contains(&form), "{form}");
        }
        assert!(found(&needles, b"rolling 3?>").is_empty());
    }

    #[test]
    fn equal_patterns_are_searched_once_and_short_codes_not_at_all() {
        let digits = Needles::new(["123", "123"]).unwrap();
        let forms: Vec<_> = digits.patterns().iter().map(|pattern| pattern.form).collect();
        assert_eq!(digits.texts(), ["123"]);
        assert_eq!(forms, [Form::Text, Form::Utf16Le, Form::Utf16Be, Form::HexUpper]);
        let short = Needles::new(["a"]).unwrap();
        assert_eq!(short.patterns().len(), 1);
    }

    #[test]
    fn refuses_a_needle_that_is_everywhere() {
        assert!(matches!(Needles::new([""]), Err(Error::EmptyNeedle)));
        assert!(matches!(Needles::new(Vec::<String>::new()), Err(Error::EmptyNeedle)));
    }

    #[test]
    fn a_short_needle_is_expected_by_chance_and_a_long_one_is_not() {
        let needles = Needles::new(["die", "a canary of sixteen"]).unwrap();
        let gib = 1 << 30;
        assert!((63.0..65.0).contains(&needles.chance_hits(0, gib)));
        assert!(needles.chance_hits(1, gib) < 1e-6);
    }

    proptest! {
        #[test]
        fn base64_is_found_wherever_the_needle_stands(
            before in prop::collection::vec(any::<u8>(), 0..9),
            needle in "\\PC{8,24}",
            after in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let whole = [&before, needle.as_bytes(), &after].concat();
            let shift = (before.len() % 3) as u8;
            for (engine, url) in [(&BASE64_STANDARD_NO_PAD, false), (&BASE64_URL_SAFE_NO_PAD, true)] {
                let fragment = base64_fragment(engine, needle.as_bytes(), shift);
                prop_assert!(fragment.len() >= ENCODED_BYTES_MIN);
                let at = memmem::find(engine.encode(&whole).as_bytes(), &fragment);
                prop_assert!(at.is_some(), "url alphabet: {}", url);
            }
        }
    }
}
