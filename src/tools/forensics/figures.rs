//! The pictures of a report, each as a piece of HTML with the numbers in its text for those who cannot see it.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::png;
use super::portrait::{MAP_WIDTH, Portrait, entropy_of_chance};

/// Red, green, blue and opacity of each look; told apart by brightness too, on white and on black.
const PALETTE: [[u8; 4]; 5] =
    [[0, 0, 0, 0], [201, 208, 217, 255], [31, 111, 235, 255], [110, 118, 129, 255], [255, 122, 0, 255]];

const WIDTH: f64 = 512.0;
const HEIGHT: f64 = 120.0;
/// Room for the numbers at the left of the entropy.
const MARGIN: f64 = 16.0;
/// What the histogram's tallest bar may at least stand for, so that even noise does not fill the picture.
const TALLEST_SHARE_MIN: f64 = 2.0 / 256.0;

/// The bytes as dots.
pub(super) fn byte_map(portrait: &Portrait) -> String {
    let picture = STANDARD.encode(png::encode(MAP_WIDTH, &portrait.map, &PALETTE));
    let rows = portrait.map.len().div_ceil(MAP_WIDTH).max(1);
    format!(
        "<img class=\"map\" width=\"{MAP_WIDTH}\" height=\"{rows}\" alt=\"Byte map: {:.0} % of the bytes are text, {} rows of {MAP_WIDTH}\" src=\"data:image/png;base64,{picture}\">",
        portrait.text_share() * 100.0,
        rows
    )
}

fn svg(label: &str, content: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">{content}</svg>")
}

/// How often each byte value occurs, as 256 bars, and as a dashed line how often if all were as frequent.
pub(super) fn histogram(portrait: &Portrait) -> String {
    let (peak, share) = portrait.peak();
    let tallest = share.max(TALLEST_SHARE_MIN);
    let total = portrait.bytes.max(1) as f64;
    let mut bars = String::new();
    for (value, count) in portrait.histogram.0.iter().enumerate().filter(|(_, count)| **count > 0) {
        let height = (*count as f64 / total / tallest * (HEIGHT - 4.0)).max(0.6);
        // Writing into a String cannot fail.
        let _ = write!(bars, "M{} {HEIGHT}v-{height:.1}h1.7V{HEIGHT}z", value * 2);
    }
    let even = HEIGHT - (1.0 / 256.0 / tallest * (HEIGHT - 4.0));
    let label = format!("Histogram: the most frequent byte is {peak:#04x} with {:.1} percent", share * 100.0);
    svg(
        &label,
        &format!("<path class=\"bars\" d=\"{bars}\"/><path class=\"even\" d=\"M0 {even:.1}H{WIDTH}\"/>"),
    )
}

/// The entropy of each window from left to right, 0 at the bottom and 8 at the top, and as a dashed line that of chance.
pub(super) fn entropy_line(portrait: &Portrait) -> String {
    let height = |bits: f64| HEIGHT - 2.0 - bits / 8.0 * (HEIGHT - 10.0);
    let step = (WIDTH - MARGIN) / portrait.entropies.len().max(1) as f64;
    let mut line = String::new();
    for (number, bits) in portrait.entropies.iter().enumerate() {
        let (from, to, y) =
            (MARGIN + number as f64 * step, MARGIN + (number + 1) as f64 * step, height(*bits));
        let move_or_line = if number == 0 { 'M' } else { 'L' };
        // Writing into a String cannot fail.
        let _ = write!(line, "{move_or_line}{from:.1} {y:.1}H{to:.1}");
    }
    let chance = height(entropy_of_chance(portrait.window_bytes.min(portrait.bytes)));
    let grid: String = [0.0, 4.0, 8.0].map(|bits| format!("M{MARGIN} {:.1}H{WIDTH}", height(bits))).concat();
    let lowest = portrait.entropies.iter().copied().fold(8.0, f64::min);
    let label =
        format!("Entropy along the file: {:.2} bits a byte, {lowest:.2} at its lowest", portrait.entropy());
    let content = format!(
        "<path class=\"grid\" d=\"{grid}\"/><path class=\"even\" d=\"M{MARGIN} {chance:.1}H{WIDTH}\"/><path class=\"line\" d=\"{line}\"/>\
         <text x=\"3\" y=\"{:.1}\">8</text><text x=\"3\" y=\"{:.1}\">4</text><text x=\"3\" y=\"{:.1}\">0</text>",
        height(8.0) + 4.0,
        height(4.0) + 4.0,
        height(0.0) - 1.0
    );
    svg(&label, &content)
}
