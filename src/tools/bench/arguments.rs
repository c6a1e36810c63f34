//! The command line, and what it means: brokers, workloads, outputs. What contradicts itself is refused here, before
//! anything connects.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use super::error::{Error, Result};
use super::load::{Amount, Argument, BODY_BYTES_MIN, Load, bytes_text};
use super::presets::{self, PRESETS, USUAL, Values};
use super::scale::{self, Curve};
use super::trust::Trust;
use super::url::Target;

/// Puts a load on AMQP 0-9-1 brokers and tells how fast each is: rates, the time to delivery and to the confirm, CPU.
/// Any broker will do. Several are measured in turn with the same traffic and compared.
#[derive(Parser, Debug)]
#[command(name = "sealmq-bench", version, after_help = NOTES)]
pub struct Arguments {
    /// A broker: [NAME=]amqp[s]://[USER[:PASSWORD]@]HOST[:PORT][/VHOST]; user and password are guest unless given
    #[arg(value_name = "URL", required_unless_present = "list_presets")]
    urls: Vec<String>,
    /// Authority of the brokers' certificates, a PEM file; may be repeated [default: the system's]
    #[arg(long, value_name = "FILE")]
    ca: Vec<PathBuf>,
    /// Client certificate (PEM) to show to the brokers
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Holds the password for URLs that name a user without one; the process list shows what is in a URL
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// A workload with a name; further options change parts of it
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// List the presets and exit
    #[arg(long)]
    list_presets: bool,
    /// Messages to publish in all [default: 100000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Publish for so long instead, in seconds
    #[arg(long, value_name = "SECONDS", conflicts_with = "count", value_parser = seconds)]
    duration: Option<Duration>,
    /// Before each first run, messages that are not measured (with --duration: seconds) [default: a tenth]
    #[arg(long, value_name = "N")]
    warmup: Option<f64>,
    /// Runs; brokers take turns. Tables and plots show medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,
    /// Give a run up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    timeout: Duration,

    /// Publishing connections [default: 1]
    #[arg(long, value_name = "N", value_parser = connections(1))]
    producers: Option<u64>,
    /// Consuming connections; 0: the messages stay where they are [default: 1]
    #[arg(long, value_name = "N", value_parser = connections(0))]
    consumers: Option<u64>,
    /// Queues; producers publish to all in turn [default: 1]
    #[arg(long, value_name = "N", value_parser = connections(1))]
    queues: Option<u64>,
    /// Bytes of each body, 8 at least; several, separated by commas, are measured one after the other [default: 1024]
    #[arg(long, value_name = "BYTES", value_delimiter = ',')]
    size: Vec<usize>,
    /// Messages with delivery_mode 1 in queues that are not durable [default: persistent ones in durable queues]
    #[arg(long)]
    transient: bool,
    /// Persistent messages although the preset has transient ones
    #[arg(long, conflicts_with = "transient")]
    persistent: bool,
    /// Durable queues although the messages are transient
    #[arg(long)]
    durable: bool,
    /// Unconfirmed publishes that each producer may have; 0: no publisher confirms [default: 1000]
    #[arg(long, value_name = "N")]
    confirms: Option<usize>,
    /// Unacknowledged deliveries that each consumer may have; 0: no limit [default: 256]
    #[arg(long, value_name = "N")]
    prefetch: Option<u16>,
    /// Acknowledge every Nth delivery together with those before it; 0: consume without acknowledgements [default: 64]
    #[arg(long, value_name = "N")]
    ack_every: Option<u64>,
    /// Messages a second over all producers; 0: as many as go [default: 0]
    #[arg(long, value_name = "N")]
    rate: Option<u64>,
    /// Publish to a fanout exchange, so that each queue gets each message
    #[arg(long)]
    fanout: bool,
    /// Connections that do nothing, opened before the traffic begins [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    idle_connections: usize,
    /// Empty queues, each bound to another exchange than the traffic's [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    idle_queues: usize,
    /// Bindings of another exchange than the traffic's [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    idle_bindings: usize,
    /// Publish to a topic exchange that has so many bindings beside those that match [default: none, no exchange]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, conflicts_with = "fanout")]
    bindings: usize,
    /// Publish to a topic exchange with so many routing keys in turn [default: one for each queue]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, conflicts_with = "fanout")]
    keys: usize,
    /// Put so many messages into the queues before, and hold them as deep during the run [default: 0]
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true,
        conflicts_with = "backlog"
    )]
    depth: u64,
    /// The largest crowd of the preset `scale`: queues, bindings, connections; queues are a hundred times as deep
    #[arg(long, value_name = "N", default_value_t = scale::MOST, hide_default_value = true,
          value_parser = clap::value_parser!(u64).range(100..=100_000))]
    most: u64,
    /// Consume only when everything is published
    #[arg(long)]
    backlog: bool,
    /// x-queue-type of the queues: classic, quorum ...
    #[arg(long, value_name = "TYPE")]
    queue_type: Option<String>,
    /// Argument of the queues; may be repeated. true, false and whole numbers have their types, "5" in quotes is text
    #[arg(long, value_name = "NAME=VALUE")]
    argument: Vec<String>,
    /// How the names of the queues begin; a random part follows, so that no other queue is touched
    #[arg(long, value_name = "TEXT", default_value = "sealmq-bench")]
    prefix: String,

    /// Process id of a broker on this machine, to count its CPU time; once for each URL, in their order
    #[arg(long, value_name = "PID")]
    cpu_of: Vec<u32>,
    /// Write all figures to this file; `-` is standard output, without the table
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw a comparison, or the curves of the preset `scale`, as SVG; with several sizes one file for each, named FILE-SIZE.svg
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// No progress on the terminal
    #[arg(long, short)]
    quiet: bool,
}

const NOTES: &str = "Examples:
  sealmq-bench --ca certs/certs/ca_certificate.pem --password-file .sealmq/secrets/admin_password amqps://admin@localhost
  sealmq-bench --preset classroom --repeat 3 --plot classroom.svg SealMQ=amqps://localhost Other=amqp://localhost:5672
  sealmq-bench --queue-type quorum --duration 10 --consumers 4 --json - amqp://localhost

A publish counts when it is confirmed; without confirms, when the broker has read it. Times are taken within this program,
from the write of a message to the read of its delivery or confirm. Queues are deleted at the end, also after Ctrl-C.

Exit codes: 0 done, 1 failed, 2 wrong arguments.";

fn connections(least: u64) -> clap::builder::RangedU64ValueParser<u64> {
    clap::value_parser!(u64).range(least..=100_000)
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err("expected more than 0 seconds".into()),
    }
}

/// The command line, understood.
#[derive(Debug)]
pub struct Plan {
    /// The brokers, each with its process if its CPU time is asked for.
    pub brokers: Vec<(Target, Option<u32>)>,
    /// TLS.
    pub trust: Trust,
    /// Workloads, one for each size.
    pub loads: Vec<Load>,
    /// Instead of these, what a crowd costs.
    pub curves: Vec<Curve>,
    /// What is run before, unmeasured.
    pub warmup: Option<Amount>,
    /// Measured runs of each load on each broker.
    pub repeat: u32,
    /// For all figures; `-` is standard output.
    pub json: Option<PathBuf>,
    /// For the picture.
    pub plot: Option<PathBuf>,
    /// No progress.
    pub is_quiet: bool,
}

impl Arguments {
    /// Whether only the presets are to be listed.
    pub fn lists_presets(&self) -> bool {
        self.list_presets
    }

    /// What it all means.
    pub fn plan(self) -> Result<Plan> {
        let preset = match self.preset.as_deref() {
            Some(name) => Some(presets::find(name).ok_or_else(|| {
                let names: Vec<&str> = PRESETS.iter().map(|preset| preset.name).collect();
                usage(format!("there is no preset `{name}`; there are {}", names.join(", ")))
            })?),
            None => None,
        };
        let values = preset.map_or(USUAL, |preset| preset.values);
        let sizes = if self.size.is_empty() { values.sizes.to_vec() } else { self.size.clone() };
        let loads: Vec<Load> = sizes
            .iter()
            .map(|size| self.load(&values, preset.map(|p| p.name), *size))
            .collect::<Result<_>>()?;
        let curves = match loads.as_slice() {
            [load] if self.preset.as_deref() == Some(scale::PRESET) => scale::curves(load, self.most),
            _ if self.preset.as_deref() == Some(scale::PRESET) => {
                return Err(usage("the preset scale has bodies of one size".into()));
            }
            _ => Vec::new(),
        };
        let warmup = self.warmup(loads.first().map_or(values.amount, |load| load.amount))?;
        Ok(Plan {
            brokers: self.brokers()?,
            loads,
            curves,
            warmup,
            trust: Trust { authorities: self.ca, client: self.cert.zip(self.key) },
            repeat: self.repeat,
            json: self.json,
            plot: self.plot,
            is_quiet: self.quiet,
        })
    }

    fn brokers(&self) -> Result<Vec<(Target, Option<u32>)>> {
        if !self.cpu_of.is_empty() && self.cpu_of.len() != self.urls.len() {
            return Err(usage("--cpu-of stands once for each URL, in their order, or not at all".into()));
        }
        let password = match &self.password_file {
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(|source| Error::File { path: path.clone(), source })?;
                Some(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            None => None,
        };
        let mut brokers = Vec::<(Target, Option<u32>)>::new();
        for (at, url) in self.urls.iter().enumerate() {
            let mut target =
                Target::parse(url).map_err(|problem| usage(format!("URL {}: {problem}", at + 1)))?;
            if target.password.is_none() {
                target.password = password.clone();
            }
            if target.password.is_none() {
                let user = &target.user;
                return Err(usage(format!("URL {}: no password for {user}: --password-file FILE", at + 1)));
            }
            if brokers.iter().any(|(other, _)| other.name == target.name) {
                let name = &target.name;
                return Err(usage(format!("two brokers are called {name}; NAME=URL gives them names")));
            }
            brokers.push((target, self.cpu_of.get(at).copied()));
        }
        Ok(brokers)
    }

    fn warmup(&self, amount: Amount) -> Result<Option<Amount>> {
        let wrong =
            || usage("--warmup is a number of messages, or of seconds with --duration; 0 is none".into());
        Ok(match (amount, self.warmup) {
            (_, Some(0.0)) => None,
            (Amount::Count(count), None) => Some(Amount::Count(count.div_ceil(10))),
            (Amount::Count(_), Some(given)) if given >= 1.0 => Some(Amount::Count(given as u64)),
            (Amount::Time(time), None) => Some(Amount::Time(time / 10)),
            (Amount::Time(_), Some(given)) => {
                Some(Amount::Time(Duration::try_from_secs_f64(given).map_err(|_| wrong())?))
            }
            (Amount::Count(_), Some(_)) => return Err(wrong()),
        })
    }

    fn load(&self, values: &Values, preset: Option<&str>, body_bytes: usize) -> Result<Load> {
        let given = |option: Option<u64>, default: usize| option.map_or(default, |n| n as usize);
        let persistent = (values.persistent || self.persistent) && !self.transient;
        let size = bytes_text(body_bytes);
        let load = Load {
            name: preset.map_or_else(|| size.clone(), |preset| format!("{preset}, {size}")),
            amount: match (self.count, self.duration) {
                (Some(count), _) => Amount::Count(count),
                (None, Some(time)) => Amount::Time(time),
                (None, None) => values.amount,
            },
            producers: given(self.producers, values.producers),
            consumers: given(self.consumers, values.consumers),
            queues: given(self.queues, values.queues),
            body_bytes,
            persistent,
            durable: persistent || self.durable,
            confirms: self.confirms.unwrap_or(values.confirms),
            prefetch: self.prefetch.unwrap_or(values.prefetch),
            ack_every: self.ack_every.unwrap_or(values.ack_every),
            rate: self.rate.unwrap_or(values.rate),
            fanout: self.fanout || values.fanout,
            idle_connections: self.idle_connections,
            idle_queues: self.idle_queues,
            idle_bindings: self.idle_bindings,
            bindings: self.bindings,
            keys: self.keys,
            depth: self.depth,
            settles: false,
            backlog: self.backlog || values.backlog,
            arguments: self.queue_arguments()?,
            prefix: self.prefix.clone(),
            timeout: self.timeout,
        };
        check(&load)?;
        Ok(load)
    }

    fn queue_arguments(&self) -> Result<Vec<(String, Argument)>> {
        let kind =
            self.queue_type.iter().map(|kind| Ok(("x-queue-type".to_owned(), Argument::Text(kind.clone()))));
        let others = self.argument.iter().map(|text| match text.split_once('=') {
            Some((name, value)) if (1..=255).contains(&name.len()) => {
                Ok((name.to_owned(), Argument::parse(value)))
            }
            _ => Err(usage(format!("--argument {text}: expected NAME=VALUE"))),
        });
        kind.chain(others).collect()
    }
}

fn check(load: &Load) -> Result<()> {
    if load.body_bytes < BODY_BYTES_MIN {
        let least =
            format!("--size: a body has {BODY_BYTES_MIN} bytes at least: it begins with the time of sending");
        return Err(usage(least));
    }
    if load.body_bytes > 128 << 20 {
        return Err(usage("--size: a body has 128 MiB at most, as in RabbitMQ".into()));
    }
    if load.prefetch > 0 && load.ack_every > u64::from(load.prefetch) {
        let (ack_every, prefetch) = (load.ack_every, load.prefetch);
        let never = format!("--ack-every {ack_every} would never be reached with --prefetch {prefetch}");
        return Err(usage(never));
    }
    if load.fanout && load.bindings + load.keys > 0 {
        let fanout = "--bindings and --keys are for a topic exchange, this load has a fanout exchange";
        return Err(usage(fanout.into()));
    }
    if load.depth > 0 && (load.backlog || load.fanout || load.consumers == 0) {
        return Err(usage("--depth needs consumers from the start, and no fanout exchange".into()));
    }
    if load.backlog && load.consumers == 0 {
        return Err(usage("--backlog needs consumers to take it".into()));
    }
    // Room for the random part and a number behind it: a name has 255 bytes at most.
    if load.prefix.len() > 200 {
        return Err(usage("--prefix has 200 bytes at most".into()));
    }
    Ok(())
}

fn usage(text: String) -> Error {
    Error::Usage(text)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan> {
        let words = ["sealmq-bench"].into_iter().chain(line.split_ascii_whitespace());
        Arguments::try_parse_from(words).map_err(|error| usage(error.to_string()))?.plan()
    }

    /// The load that these options mean.
    pub fn load(line: &str) -> Load {
        plan(&format!("{line} amqp://h")).unwrap().loads.remove(0)
    }

    #[test]
    fn without_options_it_is_a_hundred_thousand_persistent_confirmed_messages() {
        let plan = plan("amqps://localhost").unwrap();
        let load = &plan.loads[0];
        assert_eq!((load.amount, load.body_bytes, load.confirms), (Amount::Count(100_000), 1024, 1000));
        assert!(load.persistent && load.durable && !load.fanout && !load.backlog);
        assert_eq!((plan.warmup, plan.repeat, plan.loads.len()), (Some(Amount::Count(10_000)), 1, 1));
        assert_eq!(plan.brokers[0].0.name, "localhost:5671");
    }

    #[test]
    fn each_option_says_its_part() {
        let load = load(
            "--duration 2.5 --producers 2 --consumers 3 --queues 4 --size 100 --transient --confirms 7 --prefetch 8 \
             --ack-every 5 --rate 9 --fanout --queue-type quorum --argument x-max-length=10 --prefix p --timeout 6",
        );
        assert_eq!(load.amount, Amount::Time(Duration::from_millis(2500)));
        assert_eq!((load.producers, load.consumers, load.queues, load.body_bytes), (2, 3, 4, 100));
        assert_eq!((load.confirms, load.prefetch, load.ack_every, load.rate), (7, 8, 5, 9));
        assert!(!load.persistent && !load.durable && load.fanout);
        let arguments = [
            ("x-queue-type".to_owned(), Argument::Text("quorum".into())),
            ("x-max-length".to_owned(), Argument::Number(10)),
        ];
        assert_eq!(load.arguments, arguments);
        assert_eq!((load.prefix.as_str(), load.timeout), ("p", Duration::from_secs(6)));
        assert!(self::load("--transient --durable").durable);
    }

    #[test]
    fn the_classroom_has_one_producer_four_consumers_and_three_sizes() {
        let plan = plan("--preset classroom a=amqp://h b=amqp://h").unwrap();
        let sizes: Vec<usize> = plan.loads.iter().map(|load| load.body_bytes).collect();
        assert_eq!(sizes, [100, 512, 1024]);
        for load in &plan.loads {
            assert_eq!((load.amount, load.producers, load.consumers), (Amount::Count(100_000), 1, 4));
        }
        assert_eq!(plan.loads[1].name, "classroom, 512 B");
    }

    #[test]
    fn an_option_outranks_its_preset_and_every_preset_makes_sense() {
        let changed = load("--preset transient-1k --persistent --count 5 --size 64");
        assert_eq!((changed.amount, changed.body_bytes, changed.confirms), (Amount::Count(5), 64, 0));
        assert!(changed.persistent && changed.durable);
        for preset in PRESETS {
            load(&format!("--preset {}", preset.name));
        }
    }

    #[test]
    fn the_warmup_is_a_tenth_or_what_was_asked_for() {
        let warmup = |line: &str| plan(&format!("{line} amqp://h")).unwrap().warmup;
        assert_eq!(warmup("--count 15"), Some(Amount::Count(2)));
        assert_eq!(warmup("--warmup 0"), None);
        assert_eq!(warmup("--warmup 300"), Some(Amount::Count(300)));
        assert_eq!(warmup("--duration 10"), Some(Amount::Time(Duration::from_secs(1))));
        assert_eq!(warmup("--duration 10 --warmup 0.5"), Some(Amount::Time(Duration::from_millis(500))));
    }

    #[test]
    fn a_password_may_come_from_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret\n").unwrap();
        let line = format!("--password-file {} amqp://u@h amqp://v:w@i", file.path().display());
        let brokers = plan(&line).unwrap().brokers;
        let passwords: Vec<_> = brokers.iter().map(|(target, _)| target.password.as_deref()).collect();
        assert_eq!(passwords, [Some("secret"), Some("w")]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (line, wanted) in [
            ("", "URL"),
            ("nonsense", "expected amqp://"),
            ("amqp://u@h", "no password for u"),
            ("--password-file /nonexistent amqp://u@h", "/nonexistent"),
            ("amqp://h amqp://h", "two brokers are called h:5672"),
            ("--preset nope amqp://h", "classroom"),
            ("--size 7 amqp://h", "8 bytes at least"),
            ("--size 999999999 amqp://h", "128 MiB"),
            ("--ack-every 300 amqp://h", "never be reached"),
            ("--backlog --consumers 0 amqp://h", "needs consumers"),
            ("--depth 5 --consumers 0 amqp://h", "--depth needs consumers"),
            ("--preset backlog --depth 5 amqp://h", "--depth needs consumers"),
            ("--preset fanout-10 --keys 5 amqp://h", "topic exchange"),
            ("--preset scale --size 10,20 amqp://h", "one size"),
            ("--count 0 amqp://h", "count"),
            ("--producers 0 amqp://h", "producers"),
            ("--duration 0 amqp://h", "more than 0"),
            ("--duration 1 --count 1 amqp://h", "cannot be used with"),
            ("--warmup 0.5 amqp://h", "--warmup"),
            ("--duration 5 --warmup=-1 amqp://h", "--warmup is a number"),
            ("--cpu-of 1 --cpu-of 2 amqp://h", "--cpu-of"),
            ("--argument x amqp://h", "NAME=VALUE"),
            ("--cert c amqp://h", "--key"),
        ] {
            let error = plan(line).map(drop).unwrap_err().to_string();
            assert!(error.contains(wanted), "{line}: {error}");
        }
    }
}
