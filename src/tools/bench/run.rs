//! One run against one broker: queues made, connections opened, traffic until the last delivery, queues deleted
//! whatever happened. Queues carry a random name, so that no other is ever touched.

use std::sync::Arc;

use rustls::ClientConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client;
use super::consumer::{Consumed, Consumer};
use super::crowd;
use super::error::{Error, Result};
use super::figures::{Figures, Times};
use super::histogram::Histogram;
use super::load::{Amount, Load};
use super::machine::{self, Cpu};
use super::producer::{Names, Producer, Published};
use super::progress::Progress;
use super::tally::Tally;
use super::url::Target;

/// A broker, and how to reach it.
#[derive(Clone)]
pub struct Broker {
    /// Where.
    pub target: Target,
    /// TLS for `amqps`.
    pub tls: Arc<ClientConfig>,
    /// Its process, if it runs on this machine and its CPU time is asked for.
    pub pid: Option<u32>,
}

/// What a run has shown.
pub struct Outcome {
    /// Who served, in the server's words.
    pub server: String,
    /// The TLS version; `None` on plain TCP.
    pub tls: Option<&'static str>,
    /// What was measured.
    pub figures: Figures,
}

/// Runs the load once.
pub async fn run(broker: &Broker, load: &Load, progress: &Progress) -> Result<Outcome> {
    let mut random = [0; 6];
    getrandom::fill(&mut random).map_err(|error| Error::Internal(format!("no randomness: {error}")))?;
    let id: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let names = load.names(&id);
    let outcome = tokio::select! {
        outcome = drive(broker, load, &names, progress) => outcome,
        () = tokio::time::sleep(load.timeout) => Err(Error::TimedOut {
            address: broker.target.address(),
            timeout_s: load.timeout.as_secs(),
            published: progress.published(),
            delivered: progress.delivered(),
        }),
        stopped = interrupted() => Err(stopped.err().unwrap_or(Error::Interrupted)),
    };
    progress.clear();
    let deleted = delete(broker, &names).await;
    match (outcome, deleted) {
        // What went wrong first is what matters.
        (Err(error), _) | (Ok(_), Err(error)) => Err(error),
        (Ok(outcome), Ok(())) => Ok(outcome),
    }
}

async fn delete(broker: &Broker, names: &Names) -> Result<()> {
    let dispersed = crowd::disperse(broker, names).await;
    dispersed.and(client::delete(&broker.target, &broker.tls, names).await)
}

async fn interrupted() -> Result<()> {
    let refused = |error: std::io::Error| Error::Internal(format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(refused)?;
    tokio::select! {
        pressed = tokio::signal::ctrl_c() => pressed.map_err(refused),
        _ = terminate.recv() => Ok(()),
    }
}

async fn drive(broker: &Broker, load: &Load, names: &Names, progress: &Progress) -> Result<Outcome> {
    let (mut setup, server) = client::open(&broker.target, &broker.tls).await?;
    let arguments = load.argument_table();
    for queue in &names.queues {
        client::declare_queue(&mut setup, queue, load.durable, arguments.as_table()).await?;
    }
    if let (Some(exchange), Some(kind)) = (&names.exchange, load.exchange_kind()) {
        client::declare_exchange(&mut setup, exchange, kind, load.durable).await?;
        for (queue, key) in names.queues.iter().zip(&names.binding_keys) {
            client::bind(&mut setup, queue, exchange, key).await?;
        }
    }
    let (idle, cost) = crowd::gather(broker, load, names).await?;
    if load.depth > 0 {
        fill(broker, load, names, progress).await?;
    }
    let producers = producers(broker, load, names).await?;
    let consumers = if load.backlog { Vec::new() } else { subscribe(broker, load, names).await? };
    let tls = setup.tls_version();
    client::close(setup).await;

    if load.settles {
        machine::at_rest(broker.pid).await?;
    }
    let before = Cpu::of(broker.pid)?;
    let tally = Arc::new(Tally::start());
    progress.watch(&tally);
    let (stop, stopping) = watch::channel(false);
    let mut consuming = spawn_consumers(consumers, &tally, &stopping);
    let published = publish(producers, &mut consuming, &tally).await?;
    let mut consume_from_us = 0;
    if load.backlog {
        let late = subscribe(broker, load, names).await?;
        consume_from_us = tally.now_us();
        consuming = spawn_consumers(late, &tally, &stopping);
    }
    let expected = if load.consumers == 0 { 0 } else { published.count * load.copies() };
    tally.expect(expected);
    tokio::select! {
        () = tally.completed() => {}
        Some(ended) = consuming.join_next() => return Err(ended_early(ended)),
    }
    if load.settles {
        machine::at_rest(broker.pid).await?;
    }
    let spent = Cpu::of(broker.pid)?.since(&before);
    stop.send_replace(true);
    let consumed = join(consuming).await?;
    // Of a queue that is never empty a consumer may have taken some more.
    if consumed.count < expected || (consumed.count > expected && load.depth == 0) {
        let address = broker.target.address();
        return Err(Error::Miscounted { address, expected, delivered: consumed.count });
    }
    let times = Times {
        publish_us: published.end_us,
        deliver_us: consumed.last_us.saturating_sub(consume_from_us),
        total_us: published.end_us.max(consumed.last_us),
    };
    let mut figures =
        Figures::new(published.count, consumed.count, &times, &published.waited, &consumed.under_way);
    figures.count_cpu(&spent);
    figures.resident_mib = broker.pid.map(machine::resident_mib).transpose()?;
    figures.was_blocked = tally.was_blocked();
    figures.crowd = cost;
    drop(idle);
    Ok(Outcome { server, tls, figures })
}

/// Publishes what is to be in the queues before.
async fn fill(broker: &Broker, load: &Load, names: &Names, progress: &Progress) -> Result<()> {
    let before = Load { amount: Amount::Count(load.depth), depth: 0, rate: 0, ..load.clone() };
    let producers = producers(broker, &before, names).await?;
    let tally = Arc::new(Tally::start());
    progress.watch(&tally);
    publish(producers, &mut JoinSet::new(), &tally).await.map(drop)
}

async fn producers(broker: &Broker, load: &Load, names: &Names) -> Result<Vec<Producer>> {
    let mut producers = Vec::new();
    for number in 0..load.producers {
        let (link, _) = client::open(&broker.target, &broker.tls).await?;
        producers.push(Producer::prepare(link, load, number, names).await?);
    }
    Ok(producers)
}

async fn subscribe(broker: &Broker, load: &Load, names: &Names) -> Result<Vec<Consumer>> {
    let mut consumers = Vec::new();
    for number in 0..load.consumers {
        let (link, _) = client::open(&broker.target, &broker.tls).await?;
        let queues: Vec<&str> = load.queues_of_consumer(number).map(|at| names.queues[at].as_str()).collect();
        consumers.push(Consumer::subscribe(link, load, &queues).await?);
    }
    Ok(consumers)
}

fn spawn_consumers(
    consumers: Vec<Consumer>,
    tally: &Arc<Tally>,
    stopping: &watch::Receiver<bool>,
) -> JoinSet<Result<Consumed>> {
    let mut tasks = JoinSet::new();
    for consumer in consumers {
        tasks.spawn(consumer.run(Arc::clone(tally), stopping.clone()));
    }
    tasks
}

/// Runs the producers to their end; a consumer that ends meanwhile has failed.
async fn publish(
    producers: Vec<Producer>,
    consuming: &mut JoinSet<Result<Consumed>>,
    tally: &Arc<Tally>,
) -> Result<Published> {
    let mut tasks = JoinSet::new();
    for producer in producers {
        tasks.spawn(producer.run(Arc::clone(tally)));
    }
    let mut all = Published { count: 0, end_us: 0, waited: Histogram::default() };
    loop {
        tokio::select! {
            biased;
            joined = tasks.join_next() => {
                let Some(joined) = joined else { return Ok(all) };
                let one = joined.map_err(|error| Error::Internal(error.to_string()))??;
                all.count += one.count;
                all.end_us = all.end_us.max(one.end_us);
                all.waited.add(&one.waited);
            }
            Some(ended) = consuming.join_next() => return Err(ended_early(ended)),
        }
    }
}

async fn join(mut consuming: JoinSet<Result<Consumed>>) -> Result<Consumed> {
    let mut all = Consumed { count: 0, last_us: 0, under_way: Histogram::default() };
    while let Some(joined) = consuming.join_next().await {
        let one = joined.map_err(|error| Error::Internal(error.to_string()))??;
        all.count += one.count;
        all.last_us = all.last_us.max(one.last_us);
        all.under_way.add(&one.under_way);
    }
    Ok(all)
}

fn ended_early(ended: std::result::Result<Result<Consumed>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(error)) => error,
        Ok(Ok(_)) => Error::Internal("a consumer stopped before it was told to".into()),
        Err(error) => Error::Internal(error.to_string()),
    }
}
