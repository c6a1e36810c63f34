//! What stands around the traffic and has no part in it: idle connections, empty queues, bindings that match nothing.
//! A broker should serve the traffic as if they were not there; what they take is told beside it.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use tokio::task::JoinSet;

use super::client;
use super::error::{Error, Result};
use super::link::Link;
use super::load::Load;
use super::machine;
use super::producer::Names;
use super::run::Broker;

/// How many connections make it at the same time: a broker that syncs each declaration to its disk syncs those of many
/// clients together.
const MAKERS: usize = 64;

/// What it took to make it. What was not asked for is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// seconds until all idle connections were open
    pub connect_s: Option<f64>,
    /// seconds until all empty queues were declared and bound
    pub declare_s: Option<f64>,
    /// seconds until all other bindings were there
    pub bind_s: Option<f64>,
    /// the broker's resident memory then, in MiB
    pub crowd_resident_mib: Option<f64>,
}

/// Makes all of it; connections stay open while they are held.
pub async fn gather(broker: &Broker, load: &Load, names: &Names) -> Result<(Vec<Link>, Cost)> {
    let mut cost = Cost::default();
    let mut idle = Vec::new();
    if load.idle_connections > 0 {
        let began = Instant::now();
        idle = connect(broker, load.idle_connections).await?;
        cost.connect_s = Some(began.elapsed().as_secs_f64());
    }
    if !names.idle_queues.is_empty() {
        let began = Instant::now();
        declare(broker, names, load.durable).await?;
        cost.declare_s = Some(began.elapsed().as_secs_f64());
    }
    let began = Instant::now();
    if let (1.., Some(queue)) = (load.idle_bindings, names.idle_queues.first()) {
        bind(broker, load.idle_bindings, &names.idle_exchange, queue).await?;
    }
    if let (1.., Some(exchange), Some(queue)) = (load.bindings, &names.exchange, names.queues.first()) {
        bind(broker, load.bindings, exchange, queue).await?;
    }
    if load.idle_bindings + load.bindings > 0 {
        cost.bind_s = Some(began.elapsed().as_secs_f64());
    }
    if cost != Cost::default() {
        cost.crowd_resident_mib = broker.pid.map(machine::resident_mib).transpose()?;
    }
    Ok((idle, cost))
}

/// Deletes the empty queues. What is not there is no error.
pub async fn disperse(broker: &Broker, names: &Names) -> Result<()> {
    let queues = Arc::new(names.idle_queues.clone());
    let delete = |mut link: Link, numbers: Vec<usize>, _| {
        let queues = Arc::clone(&queues);
        async move {
            client::delete_queues(&mut link, numbers.iter().filter_map(|at| queues.get(*at))).await?;
            client::close(link).await;
            Ok(Vec::<()>::new())
        }
    };
    shared_out(broker, names.idle_queues.len(), delete).await.map(drop)
}

async fn connect(broker: &Broker, count: usize) -> Result<Vec<Link>> {
    let connect = |link: Link, numbers: Vec<usize>, broker: Broker| async move {
        let mut links = Vec::new();
        for _ in numbers {
            links.push(client::open(&broker.target, &broker.tls).await?.0);
        }
        client::close(link).await;
        Ok(links)
    };
    shared_out(broker, count, connect).await
}

async fn declare(broker: &Broker, names: &Names, durable: bool) -> Result<()> {
    let exchange = &names.idle_exchange;
    one(broker, async |link| client::declare_exchange(link, exchange, "topic", durable).await).await?;
    let queues = Arc::new(names.idle_queues.clone());
    let declare = |mut link: Link, numbers: Vec<usize>, _| {
        let (queues, exchange) = (Arc::clone(&queues), exchange.clone());
        async move {
            for queue in numbers.iter().filter_map(|at| queues.get(*at)) {
                client::declare_queue(&mut link, queue, durable, Default::default()).await?;
                client::bind(&mut link, queue, &exchange, queue).await?;
            }
            client::close(link).await;
            Ok(Vec::<()>::new())
        }
    };
    shared_out(broker, names.idle_queues.len(), declare).await.map(drop)
}

/// Binds one queue so many times, with keys that nobody publishes with.
async fn bind(broker: &Broker, count: usize, exchange: &str, queue: &str) -> Result<()> {
    let bind = |mut link: Link, numbers: Vec<usize>, _| {
        let (exchange, queue) = (exchange.to_owned(), queue.to_owned());
        async move {
            for number in numbers {
                client::bind(&mut link, &queue, &exchange, &other_key(&exchange, number)).await?;
            }
            client::close(link).await;
            Ok(Vec::<()>::new())
        }
    };
    shared_out(broker, count, bind).await.map(drop)
}

/// A pattern that no published key matches; one in four is no plain word.
fn other_key(exchange: &str, number: usize) -> String {
    match number % 8 {
        3 => format!("{exchange}.*.{number}"),
        7 => format!("{exchange}.#.{number}"),
        _ => format!("{exchange}.other.{number}"),
    }
}

/// Does something once, on a connection of its own.
async fn one(broker: &Broker, work: impl AsyncFnOnce(&mut Link) -> Result<()>) -> Result<()> {
    let (mut link, _) = client::open(&broker.target, &broker.tls).await?;
    work(&mut link).await?;
    client::close(link).await;
    Ok(())
}

/// Shares the numbers below `count` out among several connections; gives what each of them made.
async fn shared_out<T, F>(
    broker: &Broker,
    count: usize,
    work: impl Fn(Link, Vec<usize>, Broker) -> F,
) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<Vec<T>>> + Send + 'static,
{
    let mut makers = JoinSet::new();
    for maker in 0..MAKERS.min(count) {
        let (link, _) = client::open(&broker.target, &broker.tls).await?;
        makers.spawn(work(link, (maker..count).step_by(MAKERS).collect(), broker.clone()));
    }
    let mut made = Vec::new();
    while let Some(joined) = makers.join_next().await {
        made.extend(joined.map_err(|error| Error::Internal(error.to_string()))??);
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn other_bindings_differ_and_match_no_queues_name() {
        let keys: HashSet<String> = (0..1000).map(|number| other_key("p.id.topic", number)).collect();
        assert_eq!(keys.len(), 1000);
        assert!(keys.iter().all(|key| key.starts_with("p.id.topic.")), "a queue is called p.id.N");
    }
}
