//! Workloads with a name. A preset only says what an option is when it is not given: each may still be given.

use super::load::Amount;

/// Values in place of the usual defaults.
pub struct Preset {
    /// `--preset NAME`
    pub name: &'static str,
    /// One line for the help.
    pub about: &'static str,
    /// What differs from [`USUAL`].
    pub values: Values,
}

/// The options that a preset sets.
#[derive(Clone, Copy)]
pub struct Values {
    /// `--count` or `--duration`
    pub amount: Amount,
    /// `--producers`
    pub producers: usize,
    /// `--consumers`
    pub consumers: usize,
    /// `--queues`
    pub queues: usize,
    /// `--size`
    pub sizes: &'static [usize],
    /// not `--transient`
    pub persistent: bool,
    /// `--confirms`
    pub confirms: usize,
    /// `--prefetch`
    pub prefetch: u16,
    /// `--ack-every`
    pub ack_every: u64,
    /// `--rate`
    pub rate: u64,
    /// `--fanout`
    pub fanout: bool,
    /// `--backlog`
    pub backlog: bool,
}

/// Without a preset.
pub const USUAL: Values = Values {
    amount: Amount::Count(100_000),
    producers: 1,
    consumers: 1,
    queues: 1,
    sizes: &[1024],
    persistent: true,
    confirms: 1000,
    prefetch: 256,
    ack_every: 64,
    rate: 0,
    fanout: false,
    backlog: false,
};

const CONFIRMED: Values = Values { amount: Amount::Count(200_000), ..USUAL };
const TRANSIENT: Values = Values { persistent: false, confirms: 0, ..CONFIRMED };

/// All of them.
pub const PRESETS: &[Preset] = &[
    Preset {
        name: "classroom",
        about: "100 000 persistent, confirmed messages, 1 producer, 4 consumers, bodies of 100 B, 512 B and 1 KiB",
        values: Values { consumers: 4, sizes: &[100, 512, 1024], ..USUAL },
    },
    Preset { name: "confirmed-1k", about: "200 000 of 1 KiB, persistent, confirmed", values: CONFIRMED },
    Preset {
        name: "confirmed-1k-4c",
        about: "the same with 4 consumers",
        values: Values { consumers: 4, ..CONFIRMED },
    },
    Preset {
        name: "confirmed-512-4c",
        about: "the same with bodies of 512 B",
        values: Values { consumers: 4, sizes: &[512], ..CONFIRMED },
    },
    Preset {
        name: "confirmed-100-4c",
        about: "the same with bodies of 100 B",
        values: Values { consumers: 4, sizes: &[100], ..CONFIRMED },
    },
    Preset {
        name: "confirmed-64k",
        about: "10 000 of 64 KiB, 100 unconfirmed at most",
        values: Values { amount: Amount::Count(10_000), confirms: 100, sizes: &[65_536], ..CONFIRMED },
    },
    Preset {
        name: "confirmed-16q",
        about: "16 producers, queues and consumers, 200 unconfirmed each at most",
        values: Values { producers: 16, queues: 16, consumers: 16, confirms: 200, ..CONFIRMED },
    },
    Preset {
        name: "fanout-10",
        about: "20 000 to each of 10 durable queues, each with its consumer",
        values: Values {
            amount: Amount::Count(20_000),
            queues: 10,
            consumers: 10,
            confirms: 500,
            fanout: true,
            ..CONFIRMED
        },
    },
    Preset { name: "transient-1k", about: "200 000 of 1 KiB, transient, no confirms", values: TRANSIENT },
    Preset {
        name: "transient-100-autoack",
        about: "400 000 of 100 B, transient, no confirms, no acknowledgements",
        values: Values { amount: Amount::Count(400_000), sizes: &[100], ack_every: 0, ..TRANSIENT },
    },
    Preset {
        name: "backlog",
        about: "300 000 of 1 KiB published with nobody listening, then consumed",
        values: Values { amount: Amount::Count(300_000), backlog: true, prefetch: 1000, ..CONFIRMED },
    },
    Preset {
        name: super::scale::PRESET,
        about: "curves: CPU for each message over idle queues, bindings, depth, connections (--most 10000)",
        values: CONFIRMED,
    },
    Preset {
        name: "latency-5k-per-s",
        about: "25 000 at 5 000 messages a second, each acknowledged",
        values: Values { amount: Amount::Count(25_000), rate: 5000, ack_every: 1, ..CONFIRMED },
    },
];

/// The one of that name.
pub fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.name == name)
}
