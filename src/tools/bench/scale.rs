//! The preset `scale`: whether a message costs more when more stands around it. Each curve changes one thing, from none
//! of it to ten thousand, and the rest stays as it is; CPU time is counted from rest to rest.

use serde::Serialize;

use super::figures::{Figures, Spread};
use super::load::{Amount, Load};
use super::report::{LoadReport, aligned, describe, number};

/// `--preset scale`
pub const PRESET: &str = "scale";
/// `--most`
pub const MOST: u64 = 10_000;
/// Routing keys of the traffic through a topic exchange: more than anybody remembers the way of.
const KEYS: usize = 1000;
/// What differs by less than this from run to run is no growth.
const GROWTH_MAX: f64 = 1.1;

/// Some loads that differ in one number.
#[derive(Debug)]
pub struct Curve {
    /// in JSON
    pub name: &'static str,
    /// for people: what there is more and more of
    pub title: &'static str,
    /// The smallest number first.
    pub points: Vec<Point>,
}

/// One of them.
#[derive(Debug)]
pub struct Point {
    /// The number.
    pub x: u64,
    /// What is run.
    pub load: Load,
}

/// All curves for the traffic of `base`: crowds up to `most`, depths up to a hundred times as much.
pub fn curves(base: &Load, most: u64) -> Vec<Curve> {
    let crowds = [0, most / 100, most / 10, most];
    let depths = [most, 10 * most, 30 * most, 100 * most];
    let amount = match base.amount {
        Amount::Count(count) => Amount::Count(count.saturating_mul(2)),
        Amount::Time(time) => Amount::Time(time),
    };
    // Tables are merged now and then: of more messages each has its part in it.
    let deep = Load { amount, ..base.clone() };
    // What little is done for such a message shows what routing adds.
    let routed = Load {
        amount,
        body_bytes: 100,
        persistent: false,
        durable: false,
        confirms: 0,
        ack_every: 0,
        keys: KEYS,
        ..base.clone()
    };
    let curve = |name, title, base: &Load, numbers: [u64; 4], change: fn(&mut Load, u64)| {
        let point = |x: u64| {
            let mut load = Load { name: format!("{title}: {x}"), settles: true, ..base.clone() };
            change(&mut load, x);
            Point { x, load }
        };
        Curve { name, title, points: numbers.map(point).into() }
    };
    vec![
        curve("idle_queues", "Empty queues, bound to another exchange", base, crowds, |load, x| {
            load.idle_queues = x as usize;
        }),
        curve("idle_bindings", "Bindings of another exchange", base, crowds, |load, x| {
            load.idle_bindings = x as usize;
        }),
        curve("depth", "Messages in the queue, held as deep", &deep, depths, |load, x| load.depth = x),
        curve("bindings", "Other bindings of the topic exchange", &routed, crowds, |load, x| {
            load.bindings = x as usize;
        }),
        curve("idle_connections", "Idle connections", base, crowds, |load, x| {
            load.idle_connections = x as usize;
        }),
    ]
}

/// What a curve has shown.
#[derive(Clone, Debug, Serialize)]
pub struct CurveReport {
    /// what there is more and more of
    pub name: &'static str,
    /// for people
    pub title: &'static str,
    /// the smallest number first
    pub points: Vec<PointReport>,
}

/// What one of its points has shown.
#[derive(Clone, Debug, Serialize)]
pub struct PointReport {
    /// the number
    pub x: u64,
    /// with it
    pub load: LoadReport,
}

impl CurveReport {
    /// `measured` are the reports of the curve's loads, in their order.
    pub fn new(curve: &Curve, measured: Vec<LoadReport>) -> CurveReport {
        let points = curve.points.iter().zip(measured).map(|(point, load)| PointReport { x: point.x, load });
        CurveReport { name: curve.name, title: curve.title, points: points.collect() }
    }

    /// Whether the broker's CPU time is known at every point; else its time by the clock stands for the cost.
    pub fn is_cpu(&self) -> bool {
        let mut runs = self.points.iter().flat_map(|p| &p.load.brokers).flat_map(|broker| &broker.runs);
        runs.all(|run| run.broker_cpu_s_per_million.is_some())
    }

    /// What a million messages cost a broker at a point, in seconds of its CPU or else by the clock.
    pub fn cost(&self, point: &PointReport, broker: usize) -> Option<Spread> {
        let is_cpu = self.is_cpu();
        let of_run = |run: &Figures| match is_cpu {
            true => run.broker_cpu_s_per_million,
            false => Some(run.total_s / run.published.max(1) as f64 * 1e6),
        };
        Spread::of(point.load.brokers.get(broker)?.runs.iter().map(of_run))
    }
}

/// One curve in figures, a row for each point and broker.
pub fn table(curve: &CurveReport) -> String {
    let Some(first) = curve.points.first() else { return String::new() };
    let cost = if curve.is_cpu() { "CPU s/M" } else { "s/M" };
    let heads = ["", "broker", cost, "from", "to", "delivered/s", "made in s", "MiB then"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for point in &curve.points {
        for (at, broker) in point.load.brokers.iter().enumerate() {
            let figure = |key| broker.spread.get(key).map(|spread| spread.median);
            let cost = curve.cost(point, at);
            let made = figure("connect_s").or(figure("declare_s").filter(|_| curve.name == "idle_queues"));
            let cells = [
                cost.map(|cost| cost.median),
                cost.map(|cost| cost.min),
                cost.map(|cost| cost.max),
                figure("deliver_per_s"),
                made.or(figure("bind_s")),
                figure("crowd_resident_mib"),
            ];
            let text = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), number);
            let head = [number(point.x as f64), broker.name.clone()];
            rows.push(head.into_iter().chain(cells.map(text)).collect());
        }
    }
    format!("{}. {}\n{}\n", curve.title, describe(&first.load.settings), aligned(&rows))
}

/// What SealMQ is built to reach, beside what was measured.
pub struct Goal {
    /// What it is about, with the largest number.
    pub what: String,
    /// Which broker.
    pub broker: String,
    /// As a median.
    pub measured: f64,
    /// How it is to compare with the limit.
    pub limit: Limit,
    /// Behind both numbers.
    pub unit: &'static str,
}

/// What a goal is.
#[derive(Clone, Copy)]
pub enum Limit {
    /// not more
    AtMost(f64),
    /// not less
    AtLeast(f64),
}

impl Goal {
    /// Whether it is reached.
    pub fn is_met(&self) -> bool {
        match self.limit {
            Limit::AtMost(most) => self.measured <= most,
            Limit::AtLeast(least) => self.measured >= least,
        }
    }

    /// `at most 10 s`
    pub fn wanted(&self) -> String {
        match self.limit {
            Limit::AtMost(most) => format!("at most {} {}", number(most), self.unit),
            Limit::AtLeast(least) => format!("at least {} {}", number(least), self.unit),
        }
    }
}

/// The goals that these curves tell of, for each broker.
pub fn goals(curves: &[CurveReport]) -> Vec<Goal> {
    let mut goals = Vec::new();
    for curve in curves {
        let (Some(first), Some(last)) = (curve.points.first(), curve.points.last()) else { continue };
        for (at, broker) in last.load.brokers.iter().enumerate() {
            let x = number(last.x as f64);
            let mut add = |what: String, measured: Option<f64>, limit, unit| {
                let broker = broker.name.clone();
                goals.extend(measured.map(|measured| Goal { what, broker, measured, limit, unit }));
            };
            let figure = |key| broker.spread.get(key).map(|spread| spread.median);
            match curve.name {
                "idle_queues" => {
                    let what = format!("{x} queues declared and bound");
                    add(what, figure("declare_s"), Limit::AtMost(10.0), "s");
                }
                "bindings" => {
                    let what = format!("through a topic exchange with {x} bindings");
                    add(what, figure("deliver_per_s"), Limit::AtLeast(200_000.0), "msg/s");
                }
                "idle_connections" => {
                    add(format!("{x} connections opened"), figure("connect_s"), Limit::AtMost(60.0), "s");
                    let what = format!("memory with {x} connections");
                    add(what, figure("crowd_resident_mib"), Limit::AtMost(400.0), "MiB");
                }
                _ => {}
            }
            let growth = curve.cost(last, at).zip(curve.cost(first, at));
            // Too few messages use no CPU time that /proc could tell. What is to be searched for a key may cost more.
            let growth = growth.filter(|(_, first)| first.median > 0.0 && curve.name != "bindings");
            let growth = growth.map(|(last, first)| last.median / first.median);
            let what = format!("{}: cost at {x} over {}", curve.title, number(first.x as f64));
            add(what, growth, Limit::AtMost(GROWTH_MAX), "x");
        }
    }
    goals
}

/// They as a table.
pub fn goals_table(curves: &[CurveReport]) -> String {
    let mut rows = vec![["", "broker", "measured", "goal", ""].map(str::to_owned).to_vec()];
    for goal in goals(curves) {
        let measured = format!("{} {}", number(goal.measured), goal.unit);
        let verdict = if goal.is_met() { "met" } else { "MISSED" };
        let wanted = goal.wanted();
        rows.push(vec![goal.what, goal.broker, measured, wanted, verdict.to_owned()]);
    }
    aligned(&rows)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::arguments::tests::load;
    use super::super::report::tests::sample;
    use super::*;

    /// A curve of two points that has made a message three times as dear for the first broker.
    pub fn grown() -> CurveReport {
        let mut points = [0, 10_000].map(|x| PointReport { x, load: sample() });
        for (point, cpu_s) in points.iter_mut().zip([2.0, 6.0]) {
            for broker in &mut point.load.brokers {
                broker.runs.iter_mut().for_each(|run| {
                    run.broker_cpu_s_per_million = Some(cpu_s);
                    run.crowd.declare_s = Some(cpu_s);
                });
            }
            point.load.finish();
        }
        CurveReport { name: "idle_queues", title: "Empty <queues>", points: points.into() }
    }

    #[test]
    fn each_curve_changes_one_thing_and_reaches_its_largest_number() {
        let curves = curves(&load("--count 500"), 10_000);
        let last = |name: &str| {
            let curve = curves.iter().find(|curve| curve.name == name).unwrap();
            (curve.points.iter().map(|p| p.x).collect::<Vec<_>>(), &curve.points[3].load)
        };
        let crowd = vec![0, 100, 1000, 10_000];
        let (numbers, load) = last("depth");
        assert_eq!((numbers, load.depth), (vec![10_000, 100_000, 300_000, 1_000_000], 1_000_000));
        assert_eq!(load.idle_queues + load.idle_bindings + load.bindings + load.idle_connections, 0);
        let (numbers, load) = last("idle_queues");
        assert_eq!((numbers, load.idle_queues, load.depth), (crowd.clone(), 10_000, 0));
        let (numbers, load) = last("idle_bindings");
        assert_eq!((numbers, load.idle_bindings), (crowd.clone(), 10_000));
        let (numbers, load) = last("idle_connections");
        assert_eq!((numbers, load.idle_connections), (crowd.clone(), 10_000));
        let (numbers, load) = last("bindings");
        assert_eq!((numbers, load.bindings, load.keys), (crowd, 10_000, KEYS));
        assert_eq!((load.amount, load.exchange_kind()), (Amount::Count(1000), Some("topic")));
        assert!(curves.iter().flat_map(|curve| &curve.points).all(|point| point.load.settles));
    }

    #[test]
    fn growth_is_told_and_missed_goals_are_named() {
        let curve = grown();
        let table = table(&curve);
        let rows: Vec<&str> = table.lines().collect();
        assert!(
            rows[1].contains("CPU s/M") && rows[2].starts_with("0 ") && rows[4].starts_with("10 000"),
            "{table}"
        );
        assert!(rows[2].contains(" 2  ") && rows[4].contains(" 6  "), "{table}");
        let goals = goals(std::slice::from_ref(&curve));
        let said: Vec<_> = goals.iter().map(|goal| (goal.measured, goal.wanted(), goal.is_met())).collect();
        let of_one = [(6.0, "at most 10 s".to_owned(), true), (3.0, "at most 1.1 x".to_owned(), false)];
        assert_eq!(said, [of_one.clone(), of_one].concat());
        let table = goals_table(&[curve]);
        assert!(table.contains("10 000 queues declared and bound") && table.contains("MISSED"), "{table}");
    }

    #[test]
    fn without_cpu_time_the_clock_tells_the_cost() {
        let curve =
            CurveReport { name: "depth", title: "", points: vec![PointReport { x: 1, load: sample() }] };
        assert!(!curve.is_cpu(), "one broker has none");
        // A thousand messages in 20 and 40 ms.
        let cost = curve.cost(&curve.points[0], 0).unwrap();
        assert_eq!((cost.min.round(), cost.max.round()), (20.0, 40.0));
    }
}
