//! The comparison of brokers under one load as a picture: a panel for each measure, a bar for each broker, its figure at
//! the end, and over repeated runs a line from the smallest to the largest.

use super::figures::{MEASURES, Measure, Spread};
use super::machine::Machine;
use super::report::{BrokerReport, LoadReport, describe, number};
use super::svg::{Anchor, COLOURS, Svg, ticks};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
const GAP: f64 = 40.0;
const HEAD: f64 = 64.0;
const LEGEND_LINE: f64 = 20.0;
const PANEL_WIDTH: f64 = (WIDTH - 2.0 * MARGIN - GAP) / 2.0;
/// Right of the axis's end: the figure of the longest bar.
const FIGURE_WIDTH: f64 = 70.0;
const PANEL_HEAD: f64 = 24.0;
const BAR: f64 = 18.0;
const BAR_STEP: f64 = 24.0;
const AXIS: f64 = 40.0;

/// Draws it.
pub fn draw(load: &LoadReport, machine: &Machine) -> String {
    let has = |measure: &&Measure| load.brokers.iter().any(|broker| broker.spread.contains_key(measure.key));
    let measures: Vec<&Measure> = MEASURES.iter().filter(has).collect();
    let panel_height = PANEL_HEAD + BAR_STEP * load.brokers.len() as f64 + AXIS;
    let top = HEAD + LEGEND_LINE * load.brokers.len() as f64 + 20.0;
    let rows = measures.len().div_ceil(2) as f64;
    let height = top + rows * panel_height + 40.0;
    let mut svg = Svg::new(WIDTH, height, &load.name, &spoken(load, &measures));
    svg.text("head", (MARGIN, 30.0), Anchor::Start, &load.name);
    svg.text("faint", (MARGIN, 50.0), Anchor::Start, &describe(&load.settings));
    for (at, broker) in load.brokers.iter().enumerate() {
        let y = HEAD + LEGEND_LINE * at as f64;
        svg.bar(class(at), MARGIN, y, 12.0, 12.0, &broker.name);
        svg.text("", (MARGIN + 20.0, y + 11.0), Anchor::Start, &legend(broker));
    }
    for (at, measure) in measures.iter().enumerate() {
        let x = MARGIN + (at % 2) as f64 * (PANEL_WIDTH + GAP);
        panel(&mut svg, load, measure, (x, top + (at / 2) as f64 * panel_height));
    }
    let y = top + rows * panel_height + 20.0;
    svg.text("faint", (MARGIN, y), Anchor::Start, &footer(load, machine));
    svg.finish()
}

fn class(broker: usize) -> String {
    format!("c{}", broker % COLOURS.len())
}

/// Who a broker is.
pub(super) fn legend(broker: &BrokerReport) -> String {
    let transport = broker.tls.unwrap_or("plain TCP");
    format!("{} ({}, {transport})", broker.name, broker.server)
}

fn panel(svg: &mut Svg, load: &LoadReport, measure: &Measure, (x, y): (f64, f64)) {
    let spreads: Vec<Option<&Spread>> =
        load.brokers.iter().map(|broker| broker.spread.get(measure.key)).collect();
    let max = spreads.iter().flatten().map(|spread| spread.max).fold(0.0, f64::max);
    let ticks = ticks(max);
    let scale = (PANEL_WIDTH - FIGURE_WIDTH) / ticks.last().copied().unwrap_or(1.0);
    let (first, end) = (y + PANEL_HEAD, y + PANEL_HEAD + BAR_STEP * spreads.len() as f64);
    svg.text("part", (x, y + 14.0), Anchor::Start, &format!("{} ({})", measure.title, meaning(measure.unit)));
    for tick in &ticks {
        let at = x + tick * scale;
        svg.line("grid", (at, first), (at, end));
        svg.text("faint", (at, end + 16.0), Anchor::Middle, &number(*tick));
    }
    for (at, spread) in spreads.iter().enumerate() {
        let bar_y = first + BAR_STEP * at as f64 + (BAR_STEP - BAR) / 2.0;
        let middle = bar_y + BAR / 2.0;
        let Some(spread) = spread else {
            svg.text("faint", (x + 6.0, middle + 4.0), Anchor::Start, "not measured");
            continue;
        };
        let name = &load.brokers[at].name;
        let hint = format!("{name}: {} {}", number(spread.median), measure.unit);
        svg.bar(class(at), x, bar_y, spread.median * scale, BAR, &hint);
        if spread.max > spread.min {
            let (low, high) = (x + spread.min * scale, x + spread.max * scale);
            svg.line("spread", (low, middle), (high, middle));
            svg.line("spread", (low, middle - 4.0), (low, middle + 4.0));
            svg.line("spread", (high, middle - 4.0), (high, middle + 4.0));
        }
        let behind = x + spread.max.max(spread.median) * scale + 6.0;
        svg.text("", (behind, middle + 4.0), Anchor::Start, &number(spread.median));
    }
    svg.line("axis", (x, first), (x, end));
    svg.line("axis", (x, end), (x + ticks.last().copied().unwrap_or(1.0) * scale, end));
}

fn meaning(unit: &str) -> &str {
    match unit {
        "msg/s" => "messages a second, more is better",
        "s/M" => "seconds per million messages, less is better",
        "s" => "seconds, less is better",
        "ms" => "milliseconds, less is better",
        other => other,
    }
}

fn footer(load: &LoadReport, machine: &Machine) -> String {
    let runs = load.brokers.iter().map(|broker| broker.runs.len()).max().unwrap_or(0);
    let shown = if runs > 1 {
        format!("Medians of {runs} runs; the line goes from the smallest to the largest.")
    } else {
        "One run.".to_owned()
    };
    let processor = machine.processor.as_deref().unwrap_or("unknown processor");
    format!(
        "{shown} Load from a machine with {} cores, {processor}. sealmq-bench {}",
        machine.cores,
        env!("CARGO_PKG_VERSION")
    )
}

/// The picture in words.
fn spoken(load: &LoadReport, measures: &[&Measure]) -> String {
    let of_broker = |broker: &BrokerReport| {
        let figures = measures.iter().filter_map(|measure| {
            let spread = broker.spread.get(measure.key)?;
            Some(format!("{} {} {}", measure.title, number(spread.median), measure.unit))
        });
        format!("{}: {}.", broker.name, figures.collect::<Vec<_>>().join(", "))
    };
    load.brokers.iter().map(of_broker).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::sample;
    use super::super::svg::tests::assert_well_formed;
    use super::*;

    #[test]
    fn a_picture_is_well_formed_and_names_brokers_units_and_figures() {
        let picture = draw(&sample(), &Machine::this());
        assert_well_formed(&picture);
        for wanted in [
            "&lt;A &amp; &quot;B&quot;&gt; (Server 1, plain TCP)",
            "Publish rate (messages a second, more is better)",
            "Total time (seconds, less is better)",
            ">75 000<",
            "not measured",
            "Medians of 2 runs",
            "prefers-color-scheme:dark",
        ] {
            assert!(picture.contains(wanted), "{wanted} is missing in {picture}");
        }
        assert!(!picture.contains("Confirm p50"), "nobody measured it");
        assert!(!picture.contains("http") || picture.matches("http").count() == 1, "the name space only");
    }

    #[test]
    fn every_bar_begins_at_the_axis_and_ends_within_the_panel() {
        let picture = draw(&sample(), &Machine::this());
        let number = |line: &str, name: &str| -> f64 {
            let from = line.find(&format!(" {name}=\"")).unwrap() + name.len() + 3;
            line[from..].split('"').next().unwrap().parse().unwrap()
        };
        let bars: Vec<&str> = picture.lines().filter(|line| line.starts_with("<rect class=\"c")).collect();
        assert!(bars.len() > 8);
        for bar in bars {
            assert!(number(bar, "x") + number(bar, "width") <= WIDTH - MARGIN, "{bar}");
            assert!(number(bar, "width") > 0.0, "{bar}");
        }
    }
}
