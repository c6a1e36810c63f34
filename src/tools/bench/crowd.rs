//! What stands around the traffic and has no part in it: idle connections, empty queues, bindings that match nothing.
//! A broker should serve the traffic as if they were not there; what they take is told beside it.

use std::future::Future;
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

/// How many connections make it at the same time.
const MAKERS: usize = 16;

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
        let connect = |link: Link, numbers: Vec<usize>, broker: Broker| async move {
            let mut links = Vec::new();
            for _ in numbers {
                links.push(client::open(&broker.target, &broker.tls).await?.0);
            }
            client::close(link).await;
            Ok(links)
        };
        idle = shared_out(broker, load.idle_connections, connect).await?;
        cost.connect_s = Some(began.elapsed().as_secs_f64());
    }
    if !names.idle_queues.is_empty() {
        let began = Instant::now();
        let (exchange, durable) = (names.idle_exchange.clone(), load.durable);
        one(broker, async |link| client::declare_exchange(link, &exchange, "topic", durable).await).await?;
        let queues = names.idle_queues.clone();
        let declare = move |mut link: Link, numbers: Vec<usize>, _| {
            let (queues, exchange) = (queues.clone(), exchange.clone());
            async move {
                for queue in numbers.iter().filter_map(|at| queues.get(*at)) {
                    client::declare_queue(&mut link, queue, durable, Default::default()).await?;
                    client::bind(&mut link, queue, &exchange, queue).await?;
                }
                client::close(link).await;
                Ok(Vec::<()>::new())
            }
        };
        shared_out(broker, names.idle_queues.len(), declare).await?;
        cost.declare_s = Some(began.elapsed().as_secs_f64());
    }
    if let (1.., Some(exchange), Some(queue)) = (load.bindings, &names.exchange, names.queues.first()) {
        let began = Instant::now();
        let (exchange, queue) = (exchange.clone(), queue.clone());
        let bind = move |mut link: Link, numbers: Vec<usize>, _| {
            let (exchange, queue) = (exchange.clone(), queue.clone());
            async move {
                for number in numbers {
                    client::bind(&mut link, &queue, &exchange, &other_key(&exchange, number)).await?;
                }
                client::close(link).await;
                Ok(Vec::<()>::new())
            }
        };
        shared_out(broker, load.bindings, bind).await?;
        cost.bind_s = Some(began.elapsed().as_secs_f64());
    }
    if cost != Cost::default() {
        cost.crowd_resident_mib = broker.pid.map(machine::resident_mib).transpose()?;
    }
    Ok((idle, cost))
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
