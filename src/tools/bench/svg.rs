//! Writes SVG 1.1 as text: the few elements that a chart needs, every text escaped. It loads nothing, runs nothing, and
//! follows the reader's light or dark scheme.

use std::fmt::{Display, Write};

/// Colours that differ for most eyes, on white and on near-black (after Okabe and Ito), each with its darker scheme's.
pub const COLOURS: &[(&str, &str)] = &[
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9248"),
    ("#009e73", "#2fd3a4"),
    ("#a3528f", "#e29bcb"),
    ("#8a6d00", "#f0e442"),
    ("#555555", "#aaaaaa"),
];

/// A picture that grows element by element.
pub struct Svg {
    text: String,
}

/// Where a text stands relative to its point.
#[derive(Clone, Copy, PartialEq)]
pub enum Anchor {
    /// begins there
    Start,
    /// its middle is there
    Middle,
    /// ends there
    End,
}

impl Svg {
    /// An empty picture of this size in pixels, with a title and a description for those who do not see it.
    pub fn new(width: f64, height: f64, title: &str, description: &str) -> Svg {
        let mut text = String::new();
        let (title, description) = (escape(title), escape(description));
        let _ = write!(
            text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             role=\"img\" aria-labelledby=\"title description\">\n\
             <title id=\"title\">{title}</title>\n<desc id=\"description\">{description}</desc>\n<style>{}</style>\n\
             <rect class=\"ground\" width=\"{width}\" height=\"{height}\"/>\n",
            style()
        );
        Svg { text }
    }

    /// A filled rectangle; `class` is its colour, `hint` what a pointer on it shows.
    pub fn bar(&mut self, class: impl Display, x: f64, y: f64, width: f64, height: f64, hint: &str) {
        let hint = escape(hint);
        let _ = writeln!(
            self.text,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\">\
             <title>{hint}</title></rect>"
        );
    }

    /// A line; its class `l0`, `l1` and so on has the colour of `c0`, `c1`.
    pub fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ = writeln!(
            self.text,
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        );
    }

    /// A filled circle; `class` is its colour, `hint` what a pointer on it shows.
    pub fn dot(&mut self, class: &str, (x, y): (f64, f64), radius: f64, hint: &str) {
        let hint = escape(hint);
        let _ = writeln!(
            self.text,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius:.1}\"><title>{hint}</title></circle>"
        );
    }

    /// A text.
    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        let _ = writeln!(
            self.text,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    /// The whole file.
    pub fn finish(mut self) -> String {
        self.text.push_str("</svg>\n");
        self.text
    }
}

fn style() -> String {
    let mut light = String::new();
    let mut dark = String::new();
    for (at, (on_white, on_black)) in COLOURS.iter().enumerate() {
        let _ = write!(light, ".c{at}{{fill:{on_white}}}.l{at}{{stroke:{on_white}}}");
        let _ = write!(dark, ".c{at}{{fill:{on_black}}}.l{at}{{stroke:{on_black}}}");
    }
    format!(
        "text{{font:12px system-ui,sans-serif;fill:#222}}.head{{font-size:16px;font-weight:600}}\
         .part{{font-weight:600}}.faint{{fill:#666}}.ground{{fill:#fff}}.grid{{stroke:#ddd}}.axis{{stroke:#666}}\
         .spread{{stroke:#222;stroke-width:1.5}}.curve{{stroke-width:2}}{light}\
         @media (prefers-color-scheme:dark){{text{{fill:#eee}}.faint{{fill:#aaa}}.ground{{fill:#16181d}}\
         .grid{{stroke:#3a3d45}}.axis{{stroke:#999}}.spread{{stroke:#eee}}{dark}}}"
    )
}

/// Text as XML takes it; characters that XML 1.0 has no place for become `?`.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' | '\r' => out.push(' '),
            '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('?'),
            other => out.push(other),
        }
    }
    out
}

/// Where an axis from 0 has its ticks: about five round numbers, the last one not below `max`.
pub fn ticks(max: f64) -> Vec<f64> {
    if !max.is_finite() || max <= 0.0 {
        return vec![0.0, 1.0];
    }
    let rough = max / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(rough);
    let count = (max / step - 1e-9).ceil().max(1.0) as usize;
    (0..=count).map(|at| at as f64 * step).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Fails unless every element is closed in order, every attribute quoted, and no character stands where XML has
    /// no place for it. Not a whole XML parser, but all of what this file writes.
    pub fn assert_well_formed(text: &str) {
        let mut open = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('<') {
            assert!(!before.contains('>'), "a bare `>`: {before}");
            let references = before.split('&').skip(1);
            references.for_each(|r| assert!(r.contains(';'), "a bare `&`: {before}"));
            let (tag, behind) = behind.split_once('>').expect("every tag ends");
            rest = behind;
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "closed in order");
                continue;
            }
            let quotes = tag.matches('"').count();
            assert!(
                quotes % 2 == 0 && tag.matches("=\"").count() * 2 == quotes,
                "attributes are quoted: {tag}"
            );
            if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap());
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        assert!(text.chars().all(|c| c >= ' ' || c == '\n'));
    }

    proptest! {
        #[test]
        fn any_text_at_all_stays_text(any in ".*", other in "[<>&\"'\\x00-\\x1f]{0,9}") {
            let mut svg = Svg::new(10.0, 10.0, &any, &other);
            svg.text("part", (1.0, 2.0), Anchor::End, &other);
            svg.bar("c1", 0.0, 0.0, 1.0, 1.0, &any);
            svg.line("grid", (0.0, 0.0), (1.0, 1.0));
            svg.dot("c1", (0.0, 0.0), 1.0, &other);
            assert_well_formed(&svg.finish());
        }

        #[test]
        fn an_axis_reaches_its_largest_value_in_a_few_equal_steps(max in 1e-6f64..1e12) {
            let ticks = ticks(max);
            let last = *ticks.last().unwrap();
            prop_assert!(last >= max * 0.999_999 && last <= max * 2.0, "{max}: {ticks:?}");
            prop_assert!((2..=6).contains(&ticks.len()), "{max}: {ticks:?}");
        }
    }

    #[test]
    fn an_axis_of_nothing_has_ticks_too() {
        assert_eq!(ticks(0.0), [0.0, 1.0]);
        assert_eq!(ticks(f64::NAN), [0.0, 1.0]);
        assert_eq!(ticks(100.0), [0.0, 25.0, 50.0, 75.0, 100.0]);
    }
}
