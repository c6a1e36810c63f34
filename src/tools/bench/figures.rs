//! What a run has shown, as plain numbers with their units in their names, and the middle of several runs.

use serde::Serialize;

use super::crowd::Cost;
use super::histogram::Histogram;
use super::machine::Cpu;

/// When a run's parts ended, in microseconds from its start.
pub struct Times {
    /// The last publish was confirmed, or read by the broker.
    pub publish_us: u64,
    /// The last delivery came, from the start of consuming.
    pub deliver_us: u64,
    /// Both.
    pub total_us: u64,
}

/// Quantiles of a time, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// the median
    pub p50: u64,
    /// exceeded by one in ten
    pub p90: u64,
    /// exceeded by one in a hundred
    pub p99: u64,
    /// exceeded by one in a thousand
    pub p999: u64,
    /// the largest
    pub max: u64,
    /// the mean
    pub mean: f64,
}

impl Latency {
    fn of(histogram: &Histogram) -> Option<Latency> {
        (histogram.count() > 0).then(|| Latency {
            p50: histogram.quantile(0.5),
            p90: histogram.quantile(0.9),
            p99: histogram.quantile(0.99),
            p999: histogram.quantile(0.999),
            max: histogram.max(),
            mean: rounded(histogram.mean(), 1),
        })
    }
}

/// One run's figures. What was not measured is absent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figures {
    /// messages published
    pub published: u64,
    /// messages delivered
    pub delivered: u64,
    /// seconds until the last was confirmed (without confirms: read by the broker)
    pub publish_s: f64,
    /// seconds until the last was delivered
    pub deliver_s: Option<f64>,
    /// seconds until both were
    pub total_s: f64,
    /// messages published a second
    pub publish_per_s: f64,
    /// messages delivered a second
    pub deliver_per_s: Option<f64>,
    /// from publish to delivery
    pub latency_us: Option<Latency>,
    /// from publish to confirm
    pub confirm_us: Option<Latency>,
    /// the broker's CPU seconds, user and system, per million published messages
    pub broker_cpu_s_per_million: Option<f64>,
    /// this program's own, to judge whether it was in the way
    pub own_cpu_s_per_million: f64,
    /// the broker's resident memory after the run, in MiB
    pub resident_mib: Option<f64>,
    /// what the idle connections, queues and bindings took
    #[serde(flatten)]
    pub crowd: Cost,
    /// whether the broker told a publisher to stop for a while (connection.blocked)
    pub was_blocked: bool,
}

impl Figures {
    /// Rates and quantiles from counts, times and histograms.
    pub fn new(
        published: u64,
        delivered: u64,
        times: &Times,
        waited: &Histogram,
        under_way: &Histogram,
    ) -> Figures {
        let seconds = |us: u64| us.max(1) as f64 / 1e6;
        let deliver_s = (delivered > 0).then(|| seconds(times.deliver_us));
        Figures {
            published,
            delivered,
            publish_s: seconds(times.publish_us),
            deliver_s,
            total_s: seconds(times.total_us),
            publish_per_s: rounded(published as f64 / seconds(times.publish_us), 1),
            deliver_per_s: deliver_s.map(|deliver_s| rounded(delivered as f64 / deliver_s, 1)),
            latency_us: Latency::of(under_way),
            confirm_us: Latency::of(waited),
            broker_cpu_s_per_million: None,
            own_cpu_s_per_million: 0.0,
            resident_mib: None,
            crowd: Cost::default(),
            was_blocked: false,
        }
    }

    /// Adds CPU time that was spent during the run.
    pub fn count_cpu(&mut self, spent: &Cpu) {
        let millions = self.published.max(1) as f64 / 1e6;
        self.broker_cpu_s_per_million = spent.broker_s.map(|seconds| rounded(seconds / millions, 3));
        self.own_cpu_s_per_million = rounded(spent.own_s / millions, 3);
    }
}

fn rounded(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}

/// The middle one of some values and the outermost, of however many runs there were.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// the median; of an even number the mean of the two in the middle
    pub median: f64,
    /// the smallest
    pub min: f64,
    /// the largest
    pub max: f64,
}

impl Spread {
    /// `None` if any run lacks the value, or there is no run.
    pub fn of(values: impl IntoIterator<Item = Option<f64>>) -> Option<Spread> {
        let mut values: Vec<f64> = values.into_iter().collect::<Option<_>>()?;
        values.sort_unstable_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[half] } else { (values[half - 1] + values[half]) / 2.0 };
        Some(Spread { median, min, max })
    }
}

/// A figure that tables and plots show: its name in JSON, its title, its unit, and where it is found.
pub struct Measure {
    /// in JSON
    pub key: &'static str,
    /// for people
    pub title: &'static str,
    /// behind the number
    pub unit: &'static str,
    /// from a run, in that unit
    pub value: fn(&Figures) -> Option<f64>,
}

/// What is told of each broker, in this order.
pub const MEASURES: &[Measure] = &[
    Measure { key: "publish_per_s", title: "Publish rate", unit: "msg/s", value: |f| Some(f.publish_per_s) },
    Measure { key: "deliver_per_s", title: "Delivery rate", unit: "msg/s", value: |f| f.deliver_per_s },
    Measure { key: "total_s", title: "Total time", unit: "s", value: |f| Some(f.total_s) },
    Measure {
        key: "latency_p50_ms",
        title: "Delivery p50",
        unit: "ms",
        value: |f| ms(f.latency_us, |l| l.p50),
    },
    Measure {
        key: "latency_p99_ms",
        title: "Delivery p99",
        unit: "ms",
        value: |f| ms(f.latency_us, |l| l.p99),
    },
    Measure {
        key: "confirm_p50_ms",
        title: "Confirm p50",
        unit: "ms",
        value: |f| ms(f.confirm_us, |l| l.p50),
    },
    Measure {
        key: "confirm_p99_ms",
        title: "Confirm p99",
        unit: "ms",
        value: |f| ms(f.confirm_us, |l| l.p99),
    },
    Measure {
        key: "broker_cpu_s_per_million",
        title: "Broker's CPU",
        unit: "s/M",
        value: |f| f.broker_cpu_s_per_million,
    },
    Measure { key: "connect_s", title: "Idle connections", unit: "s", value: |f| f.crowd.connect_s },
    Measure { key: "declare_s", title: "Idle queues", unit: "s", value: |f| f.crowd.declare_s },
    Measure { key: "bind_s", title: "Bindings", unit: "s", value: |f| f.crowd.bind_s },
    Measure {
        key: "crowd_resident_mib",
        title: "Memory then",
        unit: "MiB",
        value: |f| f.crowd.crowd_resident_mib,
    },
];

fn ms(latency: Option<Latency>, part: fn(&Latency) -> u64) -> Option<f64> {
    latency.map(|latency| part(&latency) as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_the_spread_its_ends() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied().map(Some));
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of([Some(1.0), None]), None);
    }

    #[test]
    fn rates_are_counts_over_their_own_times() {
        let mut under_way = Histogram::default();
        under_way.record(500);
        let times = Times { publish_us: 2_000_000, deliver_us: 4_000_000, total_us: 5_000_000 };
        let figures = Figures::new(1000, 3000, &times, &Histogram::default(), &under_way);
        assert_eq!((figures.publish_per_s, figures.deliver_per_s), (500.0, Some(750.0)));
        assert_eq!((figures.total_s, figures.confirm_us), (5.0, None));
        assert_eq!(figures.latency_us.map(|latency| (latency.p50, latency.max)), Some((500, 500)));
        let unread = Figures::new(1000, 0, &times, &Histogram::default(), &Histogram::default());
        assert_eq!((unread.deliver_s, unread.deliver_per_s, unread.latency_us), (None, None, None));
    }
}
