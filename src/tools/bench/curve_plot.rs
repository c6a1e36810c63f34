//! The curves of the preset `scale` as a picture: a panel for each, the number of what there is more and more of along a
//! logarithmic axis, a message's cost upwards from 0, a line for each broker; below, what was to be reached.

use super::machine::Machine;
use super::plot::legend;
use super::report::number;
use super::scale::{CurveReport, PointReport, goals};
use super::svg::{Anchor, COLOURS, Svg, ticks};

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
const GAP: f64 = 40.0;
const HEAD: f64 = 64.0;
const LINE: f64 = 20.0;
const PANEL_WIDTH: f64 = (WIDTH - 2.0 * MARGIN - GAP) / 2.0;
const PANEL_HEAD: f64 = 30.0;
const PLOT_HEIGHT: f64 = 150.0;
const PANEL_HEIGHT: f64 = PANEL_HEAD + PLOT_HEIGHT + 50.0;
/// Left of the first point, and right of the last one.
const SIDE: f64 = 50.0;

/// Draws them.
pub fn draw(curves: &[CurveReport], machine: &Machine) -> String {
    let brokers = curves.first().and_then(|c| c.points.first()).map_or(&[][..], |p| &p.load.brokers);
    let reached: Vec<String> = goals(curves)
        .iter()
        .map(|goal| {
            let verdict = if goal.is_met() { "met" } else { "missed" };
            let measured = format!("{} {}", number(goal.measured), goal.unit);
            format!("{}, {}: {measured} ({}: {verdict})", goal.broker, goal.what, goal.wanted())
        })
        .collect();
    let top = HEAD + LINE * brokers.len() as f64 + 20.0;
    let rows = curves.len().div_ceil(2) as f64;
    let below = top + rows * PANEL_HEIGHT + 20.0;
    let height = below + LINE * reached.len() as f64 + 40.0;
    let title = "What a message costs when more stands around it";
    let mut svg = Svg::new(WIDTH, height, title, &reached.join(" "));
    svg.text("head", (MARGIN, 30.0), Anchor::Start, title);
    let cost = if curves.iter().all(CurveReport::is_cpu) { "of the broker's CPU" } else { "by the clock" };
    let upwards =
        format!("Upwards: seconds {cost} for a million messages. Less is better; level is the goal.");
    svg.text("faint", (MARGIN, 50.0), Anchor::Start, &upwards);
    for (at, broker) in brokers.iter().enumerate() {
        let y = HEAD + LINE * at as f64;
        svg.bar(colour("c", at), MARGIN, y, 12.0, 12.0, &broker.name);
        svg.text("", (MARGIN + 20.0, y + 11.0), Anchor::Start, &legend(broker));
    }
    for (at, curve) in curves.iter().enumerate() {
        let x = MARGIN + (at % 2) as f64 * (PANEL_WIDTH + GAP);
        panel(&mut svg, curve, (x, top + (at / 2) as f64 * PANEL_HEIGHT));
    }
    for (at, line) in reached.iter().enumerate() {
        svg.text("", (MARGIN, below + LINE * at as f64), Anchor::Start, line);
    }
    let runs = brokers.iter().map(|broker| broker.runs.len()).max().unwrap_or(0);
    let processor = machine.processor.as_deref().unwrap_or("unknown processor");
    let footer = format!(
        "Medians of {runs} runs, lines from the smallest to the largest. {} cores shared with the load, {processor}. \
         sealmq-bench {}",
        machine.cores,
        env!("CARGO_PKG_VERSION")
    );
    svg.text("faint", (MARGIN, height - 16.0), Anchor::Start, &footer);
    svg.finish()
}

fn colour(prefix: &str, broker: usize) -> String {
    format!("{prefix}{}", broker % COLOURS.len())
}

/// Where each point stands between 0 and 1: by its logarithm, and 0 a step before the smallest number.
fn places(numbers: &[u64]) -> Vec<f64> {
    let least = numbers.iter().copied().filter(|n| *n > 0).min().unwrap_or(1) as f64;
    let logarithms: Vec<f64> = numbers.iter().map(|n| (*n as f64).max(least / 10.0).log10()).collect();
    let low = logarithms.iter().copied().fold(f64::INFINITY, f64::min);
    let high = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logarithms.iter().map(|at| if high > low { (at - low) / (high - low) } else { 0.5 }).collect()
}

fn panel(svg: &mut Svg, curve: &CurveReport, (x, y): (f64, f64)) {
    svg.text("part", (x, y + 14.0), Anchor::Start, curve.title);
    let brokers = curve.points.iter().map(|point| point.load.brokers.len()).max().unwrap_or(0);
    let costs: Vec<Vec<_>> = (0..brokers)
        .map(|broker| curve.points.iter().map(|point| curve.cost(point, broker)).collect())
        .collect();
    let ticks = ticks(costs.iter().flatten().flatten().map(|cost| cost.max).fold(0.0, f64::max));
    let top = ticks.last().copied().unwrap_or(1.0);
    let ground = y + PANEL_HEAD + PLOT_HEIGHT;
    let up = |value: f64| ground - value / top * PLOT_HEIGHT;
    for tick in &ticks {
        svg.line("grid", (x + SIDE / 2.0, up(*tick)), (x + PANEL_WIDTH, up(*tick)));
        svg.text("faint", (x + SIDE / 2.0 - 6.0, up(*tick) + 4.0), Anchor::End, &number(*tick));
    }
    let numbers: Vec<u64> = curve.points.iter().map(|point: &PointReport| point.x).collect();
    let across = |place: &f64| x + SIDE + place * (PANEL_WIDTH - 2.0 * SIDE);
    let places: Vec<f64> = places(&numbers).iter().map(across).collect();
    for (at, place) in numbers.iter().zip(&places) {
        svg.text("faint", (*place, ground + 18.0), Anchor::Middle, &number(*at as f64));
    }
    svg.line("axis", (x + SIDE / 2.0, ground), (x + PANEL_WIDTH, ground));
    for (broker, costs) in costs.iter().enumerate() {
        let known: Vec<_> =
            places.iter().zip(costs).filter_map(|(place, cost)| Some((*place, (*cost)?))).collect();
        for pair in known.windows(2) {
            let ends = [pair[0], pair[1]].map(|(place, cost)| (place, up(cost.median)));
            svg.line(&format!("curve {}", colour("l", broker)), ends[0], ends[1]);
        }
        for (place, cost) in known {
            svg.line("spread", (place, up(cost.min)), (place, up(cost.max)));
            svg.dot(&colour("c", broker), (place, up(cost.median)), 4.0, &number(cost.median));
            let above = (place, up(cost.max) - 8.0);
            svg.text("", above, Anchor::Middle, &number(cost.median));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scale::tests::grown;
    use super::super::svg::tests::assert_well_formed;
    use super::*;

    #[test]
    fn a_picture_is_well_formed_and_says_what_grew() {
        let picture = draw(&[grown(), grown(), grown()], &Machine::this());
        assert_well_formed(&picture);
        for wanted in [
            "Empty &lt;queues&gt;",
            "of the broker&#39;s CPU",
            ">10 000<",
            "6 s (at most 10 s: met)",
            "3 x (at most 1.1 x: missed)",
            "Medians of 2 runs",
        ] {
            assert!(picture.contains(wanted), "{wanted} is missing in {picture}");
        }
        assert_eq!(picture.matches("<circle").count(), 3 * 2 * 2, "curves, points, brokers");
    }

    #[test]
    fn numbers_stand_by_their_logarithm_and_nothing_before_the_first() {
        let at = places(&[0, 100, 1000, 10_000]);
        let wanted = [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0];
        assert!(at.iter().zip(wanted).all(|(at, wanted)| (at - wanted).abs() < 1e-9), "{at:?}");
        assert_eq!(places(&[5]), [0.5]);
        assert_eq!(places(&[10, 1000]), [0.0, 1.0]);
    }
}
